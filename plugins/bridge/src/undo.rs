//! The way back out of a half-done ADD.
//!
//! Each step that changed something pushes how it is taken back. Unless the whole is disarmed at the end, the steps
//! run in reverse order, also when ADD panics. A step that fails is told on stderr and does not keep the others, nor does
//! a signal that asks the plugin to end.

use cni_types::{Error, signals};

type Back<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

/// The steps back.
#[derive(Default)]
pub(crate) struct Undo<'a> {
    steps: Vec<(&'static str, Back<'a>)>,
}

impl<'a> Undo<'a> {
    /// Remembers how to take back what was just done; `what` names it for a person.
    pub(crate) fn push(&mut self, what: &'static str, back: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push((what, Box::new(back)));
    }

    /// What was done stays.
    pub(crate) fn disarm(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let _to_its_end = signals::WayBack::new();
        while let Some((what, back)) = self.steps.pop() {
            if let Err(error) = back() {
                log::error!("undo: {what}: {error}");
            }
        }
    }
}

/// The whole way back, in parts: each is taken before the ones that its things stand on, whatever was done first.
#[derive(Default)]
pub(crate) struct WayBack<'a> {
    // Fields are dropped in the order that they are declared in.
    /// The veth pair and its rules.
    pub(crate) attachment: Undo<'a>,
    /// What the attachments to a network share: its bridge and gateway.
    pub(crate) network: Undo<'a>,
    /// The addresses, given back once nobody has them any more.
    pub(crate) leases: Undo<'a>,
}

impl WayBack<'_> {
    /// What was done stays.
    pub(crate) fn disarm(self) {
        let Self { attachment, network, leases } = self;
        [attachment, network, leases].into_iter().for_each(Undo::disarm);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use cni_types::ErrorCode;

    use super::*;

    fn run(finish: impl FnOnce(Undo<'_>)) -> Vec<u8> {
        let ran = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for step in 1..=3 {
            let ran = &ran;
            undo.push("count", move || {
                ran.borrow_mut().push(step);
                Err(Error::new(ErrorCode::INTERNAL, "no way back"))
            });
        }
        finish(undo);
        ran.into_inner()
    }

    #[test]
    fn steps_run_backwards_and_a_failing_one_does_not_keep_the_others() {
        assert_eq!(run(|undo| drop(undo)), [3, 2, 1]);
    }

    #[test]
    fn an_attachment_is_taken_back_before_its_network_and_that_before_the_leases() {
        let ran = RefCell::new(Vec::new());
        let mut back = WayBack::default();
        for (undo, name) in [(&mut back.leases, 3), (&mut back.network, 2), (&mut back.attachment, 1)] {
            let ran = &ran;
            undo.push("count", move || {
                ran.borrow_mut().push(name);
                Ok(())
            });
        }
        drop(back);
        assert_eq!(ran.into_inner(), [1, 2, 3]);
    }

    #[test]
    fn nothing_runs_once_disarmed() {
        assert_eq!(run(|undo| undo.disarm()), [0; 0]);
    }

    #[test]
    fn steps_run_when_the_call_panics_wherever_the_memory_for_that_lies() {
        for _ in 0..4 {
            Box::leak(Box::new(0_u64));
            let ran = RefCell::new(false);
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut undo = Undo::default();
                undo.push("note", || {
                    *ran.borrow_mut() = true;
                    Ok(())
                });
                panic!("on purpose");
            }));
            assert!(panicked.is_err() && ran.into_inner());
        }
    }
}
