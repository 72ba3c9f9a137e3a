//! How the upstream servers do.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::reply::Reply;

/// A server that was silent this short a time ago is asked last.
const GRUDGE: Duration = Duration::from_secs(30);

/// How long it is remembered of a server whether it answers what has EDNS: as long as unbound remembers it
/// (`infra-host-ttl`).
const EDNS_REMEMBERED: Duration = Duration::from_secs(900);

/// How an upstream server does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Questions sent to it.
    pub asked: u64,
    /// Answers that were taken.
    pub answered: u64,
    /// Times that it was silent, unreachable or failed.
    pub failed: u64,
    /// Whether it is passed over while another one answers.
    pub avoided: bool,
    /// Whether it is asked without EDNS, for with it there was no answer.
    pub without_edns: bool,
}

/// What is known of a server.
#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) health: Health,
    failed_last: Option<Instant>,
    edns: Option<SeenOfEdns>,
}

/// What an answer has shown of a server.
#[derive(Debug, Clone, Copy)]
struct SeenOfEdns {
    answers_it: bool,
    at: Instant,
}

impl Server {
    /// How it does by now.
    pub(super) fn health(&self, now: Instant) -> Health {
        Health {
            avoided: self.is_avoided(now),
            without_edns: self.answers_edns(now) == Some(false),
            ..self.health.clone()
        }
    }

    /// Takes note of an answer that was taken.
    pub(super) fn note_answer(&mut self) {
        self.health.answered += 1;
        self.failed_last = None;
    }

    /// Holds it against it that nothing came of a question.
    pub(super) fn blame(&mut self, now: Instant) {
        self.health.failed += 1;
        self.failed_last = Some(now);
    }

    /// Whether it was silent a short time ago.
    pub(super) fn is_avoided(&self, now: Instant) -> bool {
        self.failed_last.is_some_and(|failed| now.saturating_duration_since(failed) < GRUDGE)
    }

    /// Whether it is known to answer what has EDNS, or not to.
    pub(super) fn answers_edns(&self, now: Instant) -> Option<bool> {
        let seen = self.edns.filter(|seen| now.saturating_duration_since(seen.at) < EDNS_REMEMBERED);
        seen.map(|seen| seen.answers_it)
    }

    /// Takes note of what a message shows that came after the server was asked with EDNS, or first with it and then
    /// without. One that has answered with it does not understand this one question.
    pub(super) fn note_edns(&mut self, reply: &Reply, has_fallen_back: bool, now: Instant) {
        if reply.has_edns() {
            self.edns = Some(SeenOfEdns { answers_it: true, at: now });
        } else if has_fallen_back && !reply.is_failure() && self.answers_edns(now).is_none() {
            self.edns = Some(SeenOfEdns { answers_it: false, at: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::edns::{Edns, PAYLOAD};

    const QUESTION: [u8; 5] = [0, 0, 1, 0, 1];

    /// An answer of nothing, with an OPT record or without.
    fn reply(with_edns: bool) -> Reply {
        let mut octets = vec![0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_edns)];
        octets.extend(QUESTION);
        if with_edns {
            octets.extend(crate::serve::edns::opt_octets(
                Edns { payload: PAYLOAD, version: 0, dnssec_ok: false },
                domain::base::iana::OptRcode::NOERROR,
            ));
        }
        Reply::read(&octets, 1, &QUESTION).unwrap()
    }

    #[test]
    fn what_an_answer_shows_of_edns_is_remembered_for_a_while() {
        let (now, failure) = (Instant::now(), Reply::failure(&QUESTION));
        let seen = |earlier: Option<bool>, reply: &Reply, has_fallen_back| {
            let edns = earlier.map(|answers_it| SeenOfEdns { answers_it, at: now });
            let mut server = Server { edns, ..Server::default() };
            server.note_edns(reply, has_fallen_back, now);
            server.answers_edns(now + EDNS_REMEMBERED / 2)
        };
        assert_eq!(seen(None, &reply(true), false), Some(true));
        assert_eq!(seen(Some(false), &reply(true), false), Some(true));
        // Not every server that takes EDNS answers with it.
        assert_eq!(seen(None, &reply(false), false), None);
        assert_eq!(seen(None, &reply(false), true), Some(false));
        assert_eq!(seen(Some(true), &reply(false), true), Some(true));
        // It may fail for any reason.
        assert_eq!(seen(None, &failure, true), None);
        let mut server = Server::default();
        server.note_edns(&reply(false), true, now);
        assert_eq!(server.answers_edns(now + EDNS_REMEMBERED), None);
    }
}
