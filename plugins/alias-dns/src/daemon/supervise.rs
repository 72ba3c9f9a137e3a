//! The supervisor: keeps what a worker needs and starts another one the moment that the worker is gone.
//!
//! It parses no packet, reads no file and listens to nobody but the worker. Queries that come while no worker lives
//! wait in the sockets that it holds open. It ends when the worker says that it leaves for good.

use std::io::Result;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::channel::{self, Channel, Kept, Message};
use super::image::{self, Part};

/// A worker that lived shorter counts as one that could not start.
const SETTLED: Duration = Duration::from_secs(1);

/// The longest pause before a start.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Supervises the worker at the other end of `channel`, and those that follow it.
pub(crate) fn run(mut channel: Channel) -> Result<()> {
    // Workers are this process' children, and nobody asks how they ended.
    // SAFETY: ignoring a signal installs no function.
    #[allow(unsafe_code, reason = "nix cannot tell a harmless disposition from a function")]
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    image::forget_code();
    let mut kept = Kept::new();
    let mut pause = Pause::default();
    let mut started = Instant::now();
    loop {
        match channel.receive() {
            Ok(Some(Message::Keep(more))) => kept.extend(more),
            Ok(Some(Message::Drop(label))) => {
                kept.remove(&label);
            }
            Ok(Some(Message::Go)) => {}
            Ok(Some(Message::Quit)) => return Ok(()),
            Ok(None) | Err(_) => {
                pause.after(started.elapsed());
                started = Instant::now();
                channel = restart(&kept, &mut pause);
            }
        }
    }
}

/// A new worker that has got everything; tried until it succeeds, for giving up would lose every name.
fn restart(kept: &Kept, pause: &mut Pause) -> Channel {
    loop {
        pause.wait();
        let mut parcels = channel::parcels(channel::borrowed(kept));
        parcels.push(channel::the_go());
        match image::start(Part::Worker, &parcels) {
            Ok(channel) => return channel,
            Err(_) => pause.after(Duration::ZERO),
        }
    }
}

/// How long to wait before the next start: not at all after a worker that had settled, then longer each time.
#[derive(Debug, Default)]
struct Pause(Duration);

impl Pause {
    fn after(&mut self, lived: Duration) {
        self.0 = if lived >= SETTLED {
            Duration::ZERO
        } else {
            (self.0 * 2).clamp(Duration::from_millis(5), LONGEST_PAUSE)
        };
    }

    fn wait(&self) {
        let millis = u16::try_from(self.0.as_millis()).unwrap_or(u16::MAX);
        if millis > 0 {
            // Nothing can happen meanwhile: the one peer is gone.
            let _ = poll(&mut [], PollTimeout::from(millis));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_had_settled_is_replaced_at_once_and_a_failing_one_ever_slower_up_to_a_bound() {
        let mut pause = Pause::default();
        let mut lengths = Vec::new();
        for _ in 0..9 {
            pause.after(Duration::from_millis(3));
            lengths.push(pause.0.as_millis());
        }
        assert_eq!(lengths, [5, 10, 20, 40, 80, 160, 250, 250, 250]);
        pause.after(SETTLED);
        assert_eq!(pause.0, Duration::ZERO);
    }
}
