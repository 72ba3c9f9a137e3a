//! Signals as a plugin needs them, whatever its caller has made of them: what is ignored stays so when a program is
//! executed (execve(2)).

use nix::sys::signal::{SigHandler, Signal, signal};

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
