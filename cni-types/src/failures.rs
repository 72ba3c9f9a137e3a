//! Failures of steps that do not depend on each other: cleaning up goes on, and tells all of them at the end.

use crate::Error;

/// Failures that are told in words; of more, which have one cause as a rule, only how many there are.
const MAX_TOLD: usize = 16;

/// What has failed so far.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Keeps a failure; hands on what succeeded.
    pub fn note<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(done) => Some(done),
            Err(error) => {
                self.0.push(error);
                None
            }
        }
    }

    /// The first failure with its code, and the words of the others, too.
    ///
    /// # Errors
    /// If there is any.
    pub fn into_result(mut self) -> Result<(), Error> {
        match self.0.as_slice() {
            [] => Ok(()),
            [_] => self.0.pop().map_or(Ok(()), Err),
            [first, ..] => {
                let words: Vec<&str> = self.0.iter().take(MAX_TOLD).map(Error::msg).collect();
                let mut told = words.join("; ");
                if self.0.len() > MAX_TOLD {
                    told.push_str(&format!("; and {} more", self.0.len() - MAX_TOLD));
                }
                Err(Error::new(first.code(), told).with_details(first.details()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn one_failure_is_told_as_it_is_and_several_together() {
        let busy = || Err::<(), _>(Error::new(ErrorCode::TRY_AGAIN_LATER, "busy").with_details("by c1"));
        let mut failures = Failures::default();
        assert_eq!(failures.note(Ok(7)), Some(7));
        failures.note(busy());
        assert_eq!(failures.into_result(), busy());

        let mut failures = Failures::default();
        failures.note(busy());
        failures.note::<()>(Err(Error::new(ErrorCode::INTERNAL, "broken")));
        let error = failures.into_result().unwrap_err();
        assert_eq!((error.code(), error.msg()), (ErrorCode::TRY_AGAIN_LATER, "busy; broken"));
        assert_eq!(Failures::default().into_result(), Ok(()));

        let mut failures = Failures::default();
        for _ in 0..1000 {
            failures.note(busy());
        }
        let told = failures.into_result().unwrap_err();
        assert_eq!(told.msg(), format!("{}and 984 more", "busy; ".repeat(16)));
    }
}
