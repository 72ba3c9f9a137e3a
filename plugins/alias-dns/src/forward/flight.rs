//! One question on its way.

use std::net::SocketAddr;
use std::time::Instant;

use super::exchange::Exchange;
use super::reply::Reply;
use super::waiting::{Party, Recipient, Waiting};

/// Clients that wait for one question at once.
pub(super) const MAX_WAITING: usize = 256;

/// Of these, clients of one party.
pub(super) const MAX_WAITING_OF_PARTY: usize = 128;

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The response has been written.
    Answered,
    /// The response comes later.
    Waiting,
    /// Nobody can be asked: SERVFAIL.
    Failed,
}

/// A question that one or more servers have been asked.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) key: Box<[u8]>,
    /// As whoever asked first has written it.
    pub(super) question: Box<[u8]>,
    pub(super) dnssec_ok: bool,
    /// AD and CD.
    pub(super) wishes: u8,
    pub(super) servers: Box<[SocketAddr]>,
    /// With the first of the servers, in their order; each is listened to until the question is over.
    pub(super) talks: Vec<Talk>,
    /// Whose turn it is.
    pub(super) current: usize,
    /// Of the last attempt.
    pub(super) generation: u16,
    pub(super) began: Instant,
    pub(super) party: Party,
    pub(super) waiting: Vec<Waiting>,
    /// A failure that some server has told, for the case that no other one knows better.
    pub(super) failure: Option<Reply>,
}

/// What is said with one server about one question.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) exchange: Exchange,
    /// Of the socket.
    pub(super) generation: u16,
    /// Whether the server has told a failure, cannot be reached or has broken off, which it would do again.
    pub(super) has_failed: bool,
}

impl Flight {
    /// Has `client` wait for the answer, too.
    pub(super) fn join(&mut self, client: Waiting) -> Asked {
        // A client that asks again what it still waits for gets one response.
        if self.waiting.contains(&client) {
            return Asked::Waiting;
        }
        let own = self.waiting.iter().filter(|other| other.party == client.party).count();
        if !has_room(own, MAX_WAITING_OF_PARTY, MAX_WAITING - self.waiting.len()) {
            return Asked::Failed;
        }
        self.waiting.push(client);
        Asked::Waiting
    }

    /// The next server that may know better.
    pub(super) fn next(&self) -> Option<usize> {
        let count = self.servers.len();
        (1..=count)
            .map(|step| (self.current + step) % count)
            .find(|server| self.talks.get(*server).is_none_or(|talk| !talk.has_failed))
    }

    /// What is said where no server has given a whole answer: as much as one has told, or else that it failed.
    pub(super) fn take_last_resort(&mut self) -> Reply {
        let cut_off = self.talks.iter_mut().find_map(|talk| talk.exchange.take_cut_off());
        cut_off.or_else(|| self.failure.take()).unwrap_or_else(|| Reply::failure(&self.question))
    }

    /// Has `deliver` bring `reply` to everybody who waits.
    pub(super) fn respond(&self, reply: &Reply, deliver: &mut dyn FnMut(Recipient, &[u8])) {
        let mut out = Vec::new();
        for waiting in &self.waiting {
            reply.compose(&mut out, &waiting.client(), 0);
            deliver(waiting.recipient, &out);
        }
    }
}

/// Whether a party with `own` places may have one more: of `share` at most, and never more than are still `free`, so that
/// a few of them do not take all, and whoever has none yet finds one. As what is under way ends, all those who want more
/// than they get come to have the same (A. K. Choudhury, E. L. Hahne, "Dynamic queue length thresholds for shared-memory
/// packet switches", 1998).
pub(super) fn has_room(own: usize, share: usize, free: usize) -> bool {
    own < share.min(free)
}
