//! Supervisor and guard: who keeps what another worker would need, and starts it.

use std::io::Result;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use super::listeners::Place;
use super::possession::label_of;
use super::{CONTROL, GUARD, LOCK, Life, Worker};
use crate::daemon::channel::{self, Channel, Message};
use crate::daemon::client::is_silence;
use crate::daemon::control::Wanted;
use crate::daemon::image::{self, Part};
use crate::poller::{Interest, Kind, Token};

/// How long a guard is waited for. One that comes later guards all the same.
const GUARD_PATIENCE: Duration = Duration::from_millis(500);

/// How often a guard is started that is killed before it is there.
const MAX_GUARDS: usize = 3;

impl Worker {
    pub(super) fn start_supervisor(&mut self) {
        self.supervisor_tried = Instant::now();
        let started = image::start(Part::Supervisor, &channel::parcels(self.possessions()));
        if let Err(error) = started.and_then(|channel| self.supervised_by(channel)) {
            log::warn!("start a supervisor: {error}");
        }
    }

    pub(super) fn supervised_by(&mut self, channel: Channel) -> Result<()> {
        self.poller.add(channel.as_fd(), Token::only(Kind::Supervisor), Interest::Read)?;
        self.supervisor = Some(channel);
        Ok(())
    }

    pub(super) fn supervisor_lost(&mut self) -> Life {
        let Some(supervisor) = &self.supervisor else { return Life::On };
        match supervisor.receive() {
            // It has nothing to say but by its end.
            Ok(Some(Message::Keep(_) | Message::Drop(_) | Message::Go | Message::Quit)) => {}
            Ok(None) | Err(_) => {
                self.supervisor = None;
                self.start_supervisor();
            }
        }
        Life::On
    }

    /// Starts a guard, in place of an earlier build's. Only possible before the rights are dropped.
    pub(super) fn renew_guard(&mut self) {
        let started = image::start(Part::Guard, &[]);
        if let Err(error) = started.and_then(|channel| self.guarded_by(channel)) {
            log::warn!("start a guard: {error}");
        }
    }

    /// From now on `channel` ends for its guard when both worker and supervisor are gone.
    pub(super) fn guarded_by(&mut self, channel: Channel) -> Result<()> {
        if let Some(earlier) = self.guard.take() {
            // One that is gone need not be told.
            let _ = earlier.quit();
            let _ = self.poller.remove(earlier.as_fd());
        }
        channel.limit(GUARD_PATIENCE)?;
        // The supervisor first: if this worker is killed after the guard has everything, the guard must not take that
        // for the end of the server, and start a second one beside the supervisor's.
        if let Some(supervisor) = &self.supervisor {
            supervisor.keep(GUARD, &[channel.as_fd()])?;
        }
        let handed_over = channel
            .keep_all(self.possessions())
            .and_then(|()| self.poller.add(channel.as_fd(), Token::only(Kind::Guard), Interest::Read));
        if let (Err(_), Some(supervisor)) = (&handed_over, &self.supervisor) {
            let _ = supervisor.drop(GUARD);
        }
        handed_over?;
        self.guard = Some(channel);
        Ok(())
    }

    /// Waits until the guard is there. One that has been killed before is replaced while that is possible; one that is
    /// slow, on a busy machine, is kept: without a guard, the names would be lost with worker and supervisor.
    pub(super) fn await_guard(&mut self) {
        for _ in 0..MAX_GUARDS {
            match self.guard.as_ref().map(Channel::receive) {
                Some(Ok(Some(_))) | None => return,
                Some(Err(error)) if is_silence(&error) => return,
                Some(Ok(None) | Err(_)) => {
                    self.guard_gone();
                    self.renew_guard();
                }
            }
        }
    }

    pub(super) fn guard_lost(&mut self) -> Life {
        match self.guard.as_ref().map(Channel::receive) {
            // Somebody has removed the files by which this server is found.
            Some(Ok(Some(Message::Quit))) => return Life::Over,
            // That it is there.
            Some(Ok(Some(_))) | None => {}
            // The next plugin that brings a record starts another one.
            Some(Ok(None) | Err(_)) => self.guard_gone(),
        }
        Life::On
    }

    fn guard_gone(&mut self) {
        let Some(guard) = self.guard.take() else { return };
        // One that lives all the same must not take the end of its channel for the server's.
        let _ = guard.quit();
        // The supervisor may have the same socket, so that closing it here would not take it out.
        let _ = self.poller.remove(guard.as_fd());
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.drop(GUARD);
        }
    }

    /// Those who keep what another worker would need.
    pub(super) fn keepers(&self) -> impl Iterator<Item = &Channel> {
        self.supervisor.iter().chain(&self.guard)
    }

    /// Every descriptor that another worker would need, by its label.
    pub(super) fn possessions(&self) -> Vec<(String, Vec<BorrowedFd<'_>>)> {
        let mut all = vec![
            (LOCK.to_owned(), vec![self.lock.as_fd()]),
            (CONTROL.to_owned(), vec![self.control.as_fd()]),
        ];
        all.extend(self.guard.iter().map(|guard| (GUARD.to_owned(), vec![guard.as_fd()])));
        for (listener, Place { ifindex, port, .. }) in &self.open {
            if let Some(sockets) = self.server.sockets(listener) {
                let label = label_of(&Wanted::new(listener, *ifindex), *port);
                all.push((label, vec![sockets.udp.as_fd(), sockets.tcp.as_fd()]));
            }
        }
        all
    }
}
