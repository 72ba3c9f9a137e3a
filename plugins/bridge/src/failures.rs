//! Failures of steps that do not depend on each other: cleaning up goes on, and tells all of them at the end.

use cni_types::Error;

/// What has failed so far.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Keeps a failure; hands on what succeeded.
    pub(crate) fn note<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(done) => Some(done),
            Err(error) => {
                self.0.push(error);
                None
            }
        }
    }

    /// The first failure with its code, and the words of all.
    ///
    /// # Errors
    /// If there is any.
    pub(crate) fn into_result(mut self) -> Result<(), Error> {
        match self.0.as_slice() {
            [] => Ok(()),
            [_] => self.0.pop().map_or(Ok(()), Err),
            [first, ..] => {
                let words: Vec<&str> = self.0.iter().map(Error::msg).collect();
                Err(Error::new(first.code(), words.join("; ")).with_details(first.details()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cni_types::ErrorCode;

    use super::*;

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
    }
}
