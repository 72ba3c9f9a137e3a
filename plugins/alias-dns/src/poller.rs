//! Waiting for many descriptors at once (epoll(7)), each under a [`Token`] that says what it is.

use std::io::Result;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Events taken in one go.
const EVENTS: usize = 64;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The control socket.
    Control,
    /// A connection to it.
    ControlConnection,
    /// The channel to the supervisor.
    Supervisor,
    /// The channel to the guard.
    Guard,
    /// Changes of the record directory.
    Records,
    /// A gateway's UDP socket.
    Datagrams,
    /// A gateway's listening TCP socket.
    Connections,
    /// A client's TCP connection.
    Connection,
    /// A question to an upstream server.
    Upstream,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Control,
        Self::ControlConnection,
        Self::Supervisor,
        Self::Guard,
        Self::Records,
        Self::Datagrams,
        Self::Connections,
        Self::Connection,
        Self::Upstream,
    ];
}

/// Which descriptor an event is for. The generation tells a new occupant of a slot from the old one, whose events may
/// still be on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) slot: u32,
    pub(crate) generation: u16,
}

impl Token {
    /// The only descriptor of its kind.
    pub(crate) const fn only(kind: Kind) -> Self {
        Self { kind, slot: 0, generation: 0 }
    }

    fn pack(self) -> u64 {
        u64::from(self.kind as u8) << 48 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let [_, kind, generation @ .., _, _, _, _] = packed.to_be_bytes();
        let kind = *Kind::ALL.get(usize::from(kind))?;
        Some(Self { kind, slot: packed as u32, generation: u16::from_be_bytes(generation) })
    }
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadWrite,
    /// Only the end of the connection.
    Nothing,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Self::Nothing => EpollFlags::empty(),
        }
    }
}

/// The set of descriptors. One that is closed leaves by itself.
#[derive(Debug)]
pub(crate) struct Poller(Epoll);

impl Poller {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(interest.flags(), token.pack()))?)
    }

    pub(crate) fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<()> {
        Ok(self.0.modify(fd, &mut EpollEvent::new(interest.flags(), token.pack()))?)
    }

    /// Takes out a descriptor that stays open elsewhere, in another process or under another number.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<()> {
        Ok(self.0.delete(fd)?)
    }

    /// What is ready, after `limit` at the latest; without a limit as long as it takes.
    pub(crate) fn wait(&self, limit: Option<Duration>, ready: &mut Vec<Token>) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        // Rounded up: to wake up early would mean to wait again for nothing.
        let limit = limit.map_or(EpollTimeout::NONE, |limit| {
            let millis = limit.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
            EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
        });
        ready.clear();
        match self.0.wait(&mut events, limit) {
            Ok(count) => {
                ready.extend(events[..count].iter().filter_map(|event| Token::unpack(event.data())));
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn tokens_survive_packing() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            let token = Token { kind, slot: u32::MAX - 7, generation: 0xfedc };
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn what_is_ready_is_told_by_its_token() {
        let poller = Poller::new().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let token = Token { kind: Kind::Upstream, slot: 3, generation: 9 };
        poller.add(&reader, token, Interest::Read).unwrap();
        let mut ready = vec![token];
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);
        writer.write_all(b"x").unwrap();
        poller.wait(None, &mut ready).unwrap();
        assert_eq!(ready, [token]);
    }
}
