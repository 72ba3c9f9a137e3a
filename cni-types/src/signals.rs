//! Signals as a plugin needs them, whatever its caller has made of them: what is ignored stays so when a program is
//! executed (execve(2)).

use std::cell::Cell;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// Signals that ask a process to end and leave it the time to do so.
pub const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

thread_local! {
    static ON_WAY_BACK: Cell<bool> = const { Cell::new(false) };
}

/// The way back out of a half-done call: while this lives, the programs that the thread waits for run to their end,
/// however often it is asked to end.
#[derive(Debug)]
pub struct WayBack(());

impl WayBack {
    /// Sets out.
    #[must_use = "it lasts as long as this lives"]
    pub fn new() -> Self {
        ON_WAY_BACK.set(true);
        Self(())
    }
}

impl Default for WayBack {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        ON_WAY_BACK.set(false);
    }
}

/// The ending signals that end this thread's wait for a program: those that it holds back.
pub(crate) fn heeded() -> Result<SigSet, Errno> {
    let held = SigSet::thread_get_mask()?;
    Ok(ENDING.into_iter().filter(|signal| !ON_WAY_BACK.get() && held.contains(*signal)).collect())
}

/// Lets children be waited for, and lets a write fail that would make a file too large.
///
/// The kernel keeps no child's end for a parent that ignores SIGCHLD (wait(2)). For a write beyond `RLIMIT_FSIZE` it
/// sends SIGXFSZ, which ends the process in the middle of its work unless it is ignored (setrlimit(2)).
pub fn settle() {
    for (which, disposition) in [(Signal::SIGCHLD, SigHandler::SigDfl), (Signal::SIGXFSZ, SigHandler::SigIgn)]
    {
        // SAFETY: neither disposition is a function.
        #[allow(unsafe_code, reason = "nix cannot tell a harmless disposition from a function")]
        let settled = unsafe { signal(which, disposition) };
        if let Err(errno) = settled {
            log::warn!("{which}: {errno}");
        }
    }
}
