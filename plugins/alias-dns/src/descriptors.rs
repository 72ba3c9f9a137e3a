//! [`Descriptors`]: of those that this process may have open, the last ones are kept for whoever brings a record, and the
//! very last for the record itself.
//!
//! What comes from the network takes descriptors, too: connections, and questions to other servers. Where a process may
//! have few of them, a container could else use up all, and no other one could be attached any more. Nor could one be
//! detached, or attached to a network that is listened for already, where the gateways of many networks had taken them
//! all: to read a record takes a descriptor, too.

use std::io::Error;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

/// Descriptors that are kept; where there are few, a quarter of them.
const KEPT: RawFd = 64;

/// One of so many of those that are kept is so from gateways, too.
const SHARE_OF_RECORDS: RawFd = 2;

/// How far the network may go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    /// The first number that is kept.
    kept_from: RawFd,
    /// The first number that no gateway gets.
    for_records_from: RawFd,
}

impl Descriptors {
    /// Those of this process, as many as it may have now.
    pub(crate) fn of_process() -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok().and_then(|(now, _)| now.try_into().ok());
        Self::up_to(limit.unwrap_or(RawFd::MAX))
    }

    /// Those of a process that may have `limit` of them.
    pub(crate) fn up_to(limit: RawFd) -> Self {
        let kept = KEPT.min(limit / 4);
        Self { kept_from: limit - kept, for_records_from: limit - kept / SHARE_OF_RECORDS }
    }

    /// Whether `fd`, which has just been made, may be the network's. The kernel gives the lowest number that is free
    /// (open(2)), so that no lower one was.
    pub(crate) fn are_enough_for(self, fd: &impl AsRawFd) -> bool {
        fd.as_raw_fd() < self.kept_from
    }

    /// Whether the two sockets of a gateway, which have just come in, may stay.
    pub(crate) fn are_enough_to_listen(self, one: &impl AsRawFd, other: &impl AsRawFd) -> bool {
        one.as_raw_fd().max(other.as_raw_fd()) < self.for_records_from
    }
}

/// Whether `error` says that descriptors, memory or ports have run out on this host: later it may go well, and nobody else
/// is to blame.
pub(crate) fn is_scarcity(error: &Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    match errno {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => true,
        // From connect(2), of datagrams and of connections: no port is free (ip(7), `ip_local_port_range`).
        Some(Errno::EAGAIN | Errno::EADDRNOTAVAIL) => true,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_of_few_a_quarter() {
        let first_kept = |limit| Descriptors::up_to(limit).kept_from;
        assert_eq!([20, 256, 257, 1024, 16_384].map(first_kept), [15, 192, 193, 960, 16_320]);
        assert!(Descriptors::of_process().are_enough_for(&0));
        assert!(!Descriptors::up_to(20).are_enough_for(&15) && Descriptors::up_to(20).are_enough_for(&14));
    }

    #[test]
    fn gateways_get_half_of_what_is_kept() {
        let descriptors = Descriptors::up_to(1024);
        let are_enough = |one, other| descriptors.are_enough_to_listen(&one, &other);
        assert!(are_enough(990, 991) && !are_enough(991, 992) && !are_enough(992, 991));
    }
}
