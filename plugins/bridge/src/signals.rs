//! Signals that ask the plugin to end: held back while the kernel is half changed, and heeded between steps.

use cni_types::signals::ENDING;
use cni_types::{Error, ErrorCode};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Ending signals, held back from here on.
#[derive(Debug)]
pub(crate) struct Held {
    arrived: SignalFd,
}

impl Held {
    /// Holds them back until the process ends; a child gets them as ever.
    ///
    /// # Errors
    /// Code 999 if the kernel refuses.
    pub(crate) fn new() -> Result<Self, Error> {
        let signals: SigSet = ENDING.into_iter().collect();
        let held = signals
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK));
        let arrived = held.map_err(|errno| Error::internal(errno).context("hold signals back"))?;
        Ok(Self { arrived })
    }

    /// An error if one has come in the meantime.
    ///
    /// # Errors
    /// Code 11: the same call can succeed later.
    pub(crate) fn heed(&self) -> Result<(), Error> {
        let Ok(Some(signal)) = self.arrived.read_signal() else { return Ok(()) };
        let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
        let name = Signal::try_from(number).map_or("a signal", Signal::as_str);
        Err(Error::new(ErrorCode::TRY_AGAIN_LATER, format!("ended by {name}")))
    }
}
