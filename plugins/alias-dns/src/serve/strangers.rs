//! How often those are answered whom nobody knows, and how often it is found out who they are.
//!
//! Anybody on a bridge can write any address into a datagram. What is sent to one that nobody owns up to waits for
//! seconds in the socket's send buffer and takes places among the kernel's neighbours, until nothing is left of either
//! for the containers that are there. So strangers get few responses, and beyond those none.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::forward::Recipient;

/// Datagrams to strangers in a [`PERIOD`]. The kernel gives an address up after three seconds and keeps 1024 neighbours
/// (`gc_thresh3`, arp(7)).
const MAX_TOLD: u32 = 64;

/// Datagrams of strangers in a [`PERIOD`] whose source is looked for among the host's own addresses: each costs five
/// system calls.
const MAX_LOOKED_FOR: u32 = 512;

/// Addresses of the host that are remembered.
const MAX_OWN: usize = 16;

const PERIOD: Duration = Duration::from_secs(1);

/// How many have been told something in this period.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    told: u32,
    looked_for: u32,
    since: Option<Instant>,
    /// What was found to be the host's own: the host is heard also while somebody else makes addresses up.
    own: Vec<IpAddr>,
}

impl Strangers {
    /// Whether one more may be told something, which then counts. Over a connection everybody may: it has shown that
    /// the address is the client's.
    pub(crate) fn may_be_told(&mut self, recipient: Recipient, now: Instant) -> bool {
        if matches!(recipient, Recipient::Connection { .. }) {
            return true;
        }
        self.begin(now);
        self.told += 1;
        self.told <= MAX_TOLD
    }

    /// Whether the sender is the host itself, which `is_own` finds out; `false` where that has been asked too often.
    pub(crate) fn is_host(&mut self, recipient: Recipient, now: Instant, is_own: impl Fn() -> bool) -> bool {
        let source = recipient.source();
        let known = self.own.iter().position(|own| *own == source);
        if matches!(recipient, Recipient::Datagram { .. }) && known.is_none() {
            self.begin(now);
            self.looked_for = self.looked_for.saturating_add(1);
            if self.looked_for > MAX_LOOKED_FOR {
                return false;
            }
        }
        // Asked anew each time, for an address may move to somebody else.
        let is_own = is_own();
        match known {
            Some(at) if !is_own => drop(self.own.swap_remove(at)),
            None if is_own && self.own.len() < MAX_OWN => self.own.push(source),
            Some(_) | None => {}
        }
        is_own
    }

    /// Counts anew where a period is over.
    fn begin(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            (self.told, self.looked_for, self.since) = (0, 0, Some(now));
        }
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

    #[test]
    fn the_host_is_recognized_however_many_strangers_ask() {
        let socket = Token { kind: Kind::Datagrams, slot: 0, generation: 0 };
        let from = |source: [u8; 4]| Recipient::Datagram { socket, peer: (source, 4000).into() };
        let (host, now) = (from([172, 20, 0, 5]), Instant::now());
        let mut strangers = Strangers::default();
        assert!(strangers.is_host(host, now, || true));
        let looked_for = std::cell::Cell::new(0);
        for number in 0..2000_u32 {
            let [.., high, low] = number.to_be_bytes();
            let look = || {
                looked_for.set(looked_for.get() + 1);
                false
            };
            assert!(!strangers.is_host(from([172, 21, high, low]), now, look));
        }
        assert_eq!(looked_for.get(), 511);
        assert!(strangers.is_host(host, now, || true));
        // Not any more, once the address is somebody else's.
        assert!(!strangers.is_host(host, now, || false));
        assert!(!strangers.is_host(host, now, || true));
        assert!(strangers.is_host(host, now + PERIOD, || true));
    }
}
