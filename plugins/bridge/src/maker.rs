//! The process that makes an attachment, as the container's interface names it until all is done.
//!
//! An ADD that is killed says so nowhere, and a complete attachment looks like one that lacks only what its
//! configuration did not ask for. So the interface is made with a group that names the process, and the message that
//! announces the addresses, the last of an ADD, takes it away: a repetition in the same namespace then tells what it has
//! to take over from what it has to leave alone.

use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::Pid;

/// The bit that tells such a group from those that people number. No process number (`PID_MAX_LIMIT`) reaches it.
const UNFINISHED: u32 = 1 << 31;

/// The group of a link that belongs to none, as a finished interface.
pub(crate) const NO_GROUP: u32 = 0;

/// The group of an interface that this process is at work on.
pub(crate) fn group() -> u32 {
    UNFINISHED | std::process::id()
}

/// Whether an interface with this group was being made by a process that is no more. One that has ended and was not
/// waited for still counts, and so does one whose number somebody else has by now.
pub(crate) fn is_abandoned(group: u32) -> bool {
    if group & UNFINISHED == 0 {
        return false;
    }
    let Ok(process) = i32::try_from(group & !UNFINISHED) else { return false };
    process > 0 && signal::kill(Pid::from_raw(process), None) == Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_runs_has_not_abandoned_its_work() {
        assert!(!is_abandoned(group()));
    }

    #[test]
    fn a_process_that_has_ended_has() {
        let mut child = Command::new("true").spawn().unwrap();
        let group = UNFINISHED | child.id();
        assert!(!is_abandoned(group), "a process that was not waited for");
        child.wait().unwrap();
        assert!(is_abandoned(group));
    }

    #[test]
    fn a_group_that_somebody_has_numbered_says_nothing() {
        // No process has so high a number, and none is asked about a number that would mean many.
        for group in [NO_GROUP, 1, i32::MAX.unsigned_abs(), UNFINISHED] {
            assert!(!is_abandoned(group), "{group:#x}");
        }
    }
}
