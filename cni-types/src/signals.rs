//! Signals as a plugin needs them, whatever its caller has made of them: what is ignored stays so when a program is
//! executed (execve(2)).

use std::cell::Cell;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// Signals that ask a process to end and leave it the time to do so.
pub const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How long a program has on the way back. iptables waits for those who change the rules for 20 s.
const WAY_BACK_PATIENCE: Duration = Duration::from_secs(30);

thread_local! {
    static ON_WAY_BACK: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// The way back out of a half-done call: while this lives, each program that the thread waits for has half a minute,
/// however often the thread is asked to end. One that hangs does not keep the rest from being taken back.
#[derive(Debug)]
pub struct WayBack(());

impl WayBack {
    /// Sets out.
    #[must_use = "it lasts as long as this lives"]
    pub fn new() -> Self {
        Self::with_patience(WAY_BACK_PATIENCE)
    }

    /// Sets out, and waits for a program no longer than that.
    pub(crate) fn with_patience(patience: Duration) -> Self {
        ON_WAY_BACK.set(Some(patience));
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
        ON_WAY_BACK.set(None);
    }
}

/// How long a program is waited for if this thread is on its way back.
pub(crate) fn way_back_patience() -> Option<Duration> {
    ON_WAY_BACK.get()
}

/// The ending signals that end this thread's wait for a program: those that it holds back.
pub(crate) fn heeded() -> Result<SigSet, Errno> {
    let held = SigSet::thread_get_mask()?;
    let on_way_back = way_back_patience().is_some();
    Ok(ENDING.into_iter().filter(|signal| !on_way_back && held.contains(*signal)).collect())
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
