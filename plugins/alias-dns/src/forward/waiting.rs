//! Who waits for an answer from elsewhere.

use std::net::{IpAddr, SocketAddr};

use super::reply::{self, Client};
use crate::poller::Token;
use crate::serve::edns::Edns;
use crate::serve::query::{HEADER_LEN, Query};

/// Where a response goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recipient {
    /// A datagram from the gateway socket in this slot.
    Datagram { socket: Token, peer: SocketAddr },
    /// A message on this connection.
    Connection { connection: Token, peer: SocketAddr },
}

impl Recipient {
    /// The client.
    pub(crate) fn peer(self) -> SocketAddr {
        match self {
            Self::Datagram { peer, .. } | Self::Connection { peer, .. } => peer,
        }
    }

    /// The client's address.
    pub(crate) fn source(self) -> IpAddr {
        self.peer().ip()
    }
}

/// On whose account a question goes, however many addresses he asks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Party {
    /// The host.
    Host,
    /// The container with this number.
    Container(u32),
}

/// A client that waits for an answer, and what it has asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(super) party: Party,
    pub(super) recipient: Recipient,
    id: u16,
    flags: [u8; 2],
    pub(super) question: Box<[u8]>,
    edns: Option<Edns>,
    limit: usize,
}

impl Waiting {
    /// Whoever has sent `query`, whose octets are `packet`, on the account of `party`; a response may have `limit`
    /// octets.
    pub(crate) fn for_answer_to(
        query: &Query<'_>,
        packet: &[u8],
        party: Party,
        recipient: Recipient,
        limit: usize,
    ) -> Self {
        Self {
            party,
            recipient,
            id: query.header.id(),
            flags: [packet[2], packet[3]],
            question: packet[HEADER_LEN..HEADER_LEN + query.asked.name.len() + 4].into(),
            edns: query.edns,
            limit,
        }
    }

    pub(super) fn client(&self) -> Client<'_> {
        let Self { id, flags, ref question, edns, limit, .. } = *self;
        Client { id, flags, question, edns, limit }
    }

    pub(super) fn wants_dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// AD and CD.
    pub(super) fn wishes(&self) -> u8 {
        reply::wishes(self.flags[1])
    }
}
