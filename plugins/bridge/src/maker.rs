//! The process that makes an attachment, as the container's interface names it until all is done.
//!
//! An ADD that is killed says so nowhere, and a complete attachment looks like one that lacks only what its
//! configuration did not ask for. So the interface is made with a group that names the process, and the message that
//! announces the addresses, the last of an ADD, takes it away: a repetition in the same namespace then tells what it has
//! to take over from what it has to leave alone.

use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::Pid;

/// The bits of a process number, which is below the kernel's `PID_MAX_LIMIT`.
const PROCESS: u32 = (1 << 22) - 1;

/// The other bits of such a group: a range that nobody numbers in, and no sign bit, since tools show groups signed.
const UNFINISHED: u32 = 0x6300_0000;

/// The group of a link that belongs to none, as a finished interface.
pub(crate) const NO_GROUP: u32 = 0;

/// The group of an interface that this process is at work on.
pub(crate) fn group() -> u32 {
    UNFINISHED | (std::process::id() & PROCESS)
}

/// How far the making of an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A process is at work on it. One that has ended and was not waited for still counts, and so does one whose number
    /// somebody else has by now.
    UnderWay,
    /// The process that made it is no more.
    Abandoned,
    /// It has got all that it is to have, or was made by others.
    Finished,
}

/// How far the making of an interface with this group is.
pub(crate) fn progress(group: u32) -> Progress {
    if group & !PROCESS != UNFINISHED {
        return Progress::Finished;
    }
    match i32::try_from(group & PROCESS) {
        Ok(process) if process > 0 => match signal::kill(Pid::from_raw(process), None) {
            Err(Errno::ESRCH) => Progress::Abandoned,
            _ => Progress::UnderWay,
        },
        _ => Progress::Finished,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_runs_has_not_abandoned_its_work() {
        assert_eq!(progress(group()), Progress::UnderWay);
    }

    #[test]
    fn a_process_that_has_ended_has() {
        let mut child = Command::new("true").spawn().unwrap();
        let group = UNFINISHED | child.id();
        assert_eq!(progress(group), Progress::UnderWay, "a process that was not waited for");
        child.wait().unwrap();
        assert_eq!(progress(group), Progress::Abandoned);
    }

    #[test]
    fn a_group_that_somebody_has_numbered_says_nothing() {
        // No process has the number 0, by which kill(2) means many.
        for group in [NO_GROUP, 1, PROCESS, i32::MAX.unsigned_abs(), u32::MAX, UNFINISHED] {
            assert_eq!(progress(group), Progress::Finished, "{group:#x}");
        }
    }
}
