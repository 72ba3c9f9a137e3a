//! How often those are answered whom nobody knows.
//!
//! Anybody on a bridge can write any address into a datagram. What is sent to one that nobody owns up to waits for
//! seconds in the socket's send buffer and takes places among the kernel's neighbours, until nothing is left of either
//! for the containers that are there. So strangers get few responses, and beyond those none.

use std::time::{Duration, Instant};

use crate::forward::Recipient;

/// Datagrams to strangers in a [`PERIOD`]. The kernel gives an address up after three seconds and keeps 1024 neighbours
/// (`gc_thresh3`, arp(7)).
const MAX_TOLD: u32 = 64;

const PERIOD: Duration = Duration::from_secs(1);

/// How many have been told something in this period.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    told: u32,
    since: Option<Instant>,
}

impl Strangers {
    /// Whether one more may be told something, which then counts. Over a connection everybody may: it has shown that
    /// the address is the client's.
    pub(crate) fn may_be_told(&mut self, recipient: Recipient, now: Instant) -> bool {
        if matches!(recipient, Recipient::Connection { .. }) {
            return true;
        }
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            *self = Self { told: 0, since: Some(now) };
        }
        self.told += 1;
        self.told <= MAX_TOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poller::{Kind, Token};

    #[test]
    fn strangers_are_told_little_in_a_second_and_everything_over_a_connection() {
        let peer = "172.20.7.7:4000".parse().unwrap();
        let socket = Token { kind: Kind::Datagrams, slot: 0, generation: 0 };
        let (datagram, now) = (Recipient::Datagram { socket, peer }, Instant::now());
        let mut strangers = Strangers::default();
        for second in 0..3 {
            let now = now + PERIOD * second;
            assert_eq!((0..1000).filter(|_| strangers.may_be_told(datagram, now)).count(), 64);
        }
        assert!(strangers.may_be_told(Recipient::Connection { connection: socket, peer }, now));
    }
}
