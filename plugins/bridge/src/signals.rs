//! Signals that ask the plugin to end: held back while the kernel is half changed, and heeded between steps.

use cni_types::{Error, ErrorCode};
use nix::sys::signal::{SigSet, Signal};

/// Signals that ask a process to end and leave it the time to do so.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Ending signals, held back from here on.
#[derive(Debug)]
pub(crate) struct Held(());

impl Held {
    /// Holds them back until the process ends; a child gets them as ever.
    ///
    /// # Errors
    /// Code 999 if the kernel refuses.
    pub(crate) fn new() -> Result<Self, Error> {
        let signals: SigSet = ENDING.into_iter().collect();
        signals.thread_block().map_err(|errno| Error::internal(errno).context("block signals"))?;
        Ok(Self(()))
    }

    /// An error if one has come in the meantime.
    ///
    /// # Errors
    /// Code 11: the same call can succeed later.
    pub(crate) fn heed(&self) -> Result<(), Error> {
        let mut pending = std::mem::MaybeUninit::uninit();
        // SAFETY: sigpending(2) fills the set it is given, and does nothing else.
        #[allow(unsafe_code, reason = "nix has no sigpending")]
        let pending = unsafe {
            if libc::sigpending(pending.as_mut_ptr()) != 0 {
                return Ok(());
            }
            SigSet::from_sigset_t_unchecked(pending.assume_init())
        };
        match ENDING.into_iter().find(|signal| pending.contains(*signal)) {
            Some(signal) => Err(Error::new(ErrorCode::TRY_AGAIN_LATER, format!("ended by {signal}"))),
            None => Ok(()),
        }
    }
}
