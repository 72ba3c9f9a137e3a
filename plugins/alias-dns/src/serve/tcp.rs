//! Connections: messages with their length before them (RFC 1035, section 4.2.2; RFC 7766), any number on each, answered
//! as they come and in any order.
//!
//! Nobody can make the server wait, nor use up its memory or its descriptors: sockets never block, a silent client is
//! cut off, a client that reads nothing is not read from, and each address has a limited number of connections.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{SocketError, TcpNoDelay};
use nix::sys::socket::{
    MsgFlags, SockFlag, SockaddrStorage, accept4, getpeername, getsockopt, recv, send, setsockopt,
};
use slab::Slab;

use super::udp::internet;
use crate::poller::{Interest, Kind, Poller, Token};
use crate::tally::Tally;
use crate::zone::Listener;

/// How long a client may be silent, or not take what it asked for (RFC 7766, section 6.2.3: "a few seconds").
const IDLE: Duration = Duration::from_secs(5);

/// Connections of one address, and of all addresses together that nobody knows: whoever is on a bridge can take any
/// number of those.
const MAX_OF_SOURCE: usize = 32;

/// Connections altogether.
const MAX_CONNECTIONS: usize = 1024;

/// Octets of a query that are looked at. No question of ours to answer is near it; one that is longer can hardly be
/// read without its end, and gets an error like any other.
const MAX_QUERY: usize = 4096;

/// Octets that wait for a client; with more than that nothing is read from it.
const MAX_UNSENT: usize = 64 << 10;

/// Questions of one connection that are asked upstream at once.
const MAX_AWAITED: u32 = 32;

/// Connections taken in one go.
const ACCEPTED: usize = 16;

const PREFIX_LEN: usize = 2;

/// Stands for every address that nobody knows; no client has it.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Slab<Connection>,
    of_source: Tally<IpAddr>,
    deadlines: BinaryHeap<Reverse<(Instant, u32, u16)>>,
    resumed: Vec<Token>,
    generation: u16,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    peer: SocketAddr,
    /// As whose it is counted.
    source: IpAddr,
    listener: Rc<Listener>,
    token: Token,
    incoming: Vec<u8>,
    /// Octets that come next and belong to a query that was too long.
    excess: usize,
    outgoing: Vec<u8>,
    sent: usize,
    awaited: u32,
    deadline: Instant,
    interest: Interest,
    finished: bool,
}

/// What was made of one query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// The response is written, or there is none.
    Done,
    /// It comes later, by [`Connections::deliver`].
    Awaited,
}

/// Answers one query: who asks, on which connection, the query, and where the response goes.
pub(crate) type Respond<'r> = &'r mut dyn FnMut(&Listener, SocketAddr, Token, &[u8], &mut Vec<u8>) -> Made;

/// Whether a connection lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    On,
    Over,
}

impl Connections {
    /// Takes what waits at `socket`, which `listener` stands for; `knows` tells whether an address is anybody's.
    ///
    /// # Errors
    /// When the process or the system has no descriptor or memory left: then to be called later, and not at once.
    pub(crate) fn accept(
        &mut self,
        poller: &Poller,
        socket: BorrowedFd<'_>,
        listener: &Rc<Listener>,
        now: Instant,
        knows: impl Fn(IpAddr) -> bool,
    ) -> std::io::Result<()> {
        for _ in 0..ACCEPTED {
            let socket = match accept4(socket.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
                // SAFETY: accept4 has just made this descriptor, so nobody else owns it.
                #[allow(unsafe_code, reason = "nix returns accepted descriptors raw")]
                Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
                Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    return Err(errno.into());
                }
                Err(Errno::EAGAIN) => return Ok(()),
                // This one is broken already; the next one may not be.
                Err(_) => continue,
            };
            let peer: Option<SockaddrStorage> = getpeername(socket.as_raw_fd()).ok();
            let Some(peer) = peer.as_ref().and_then(internet) else { continue };
            let source = if knows(peer.ip()) { peer.ip() } else { STRANGER };
            if self.of_source.of(&source) >= MAX_OF_SOURCE || self.open.len() >= MAX_CONNECTIONS {
                continue;
            }
            let _ = setsockopt(&socket, TcpNoDelay, &true);
            self.generation = self.generation.wrapping_add(1);
            let entry = self.open.vacant_entry();
            let token =
                Token { kind: Kind::Connection, slot: entry.key() as u32, generation: self.generation };
            poller.add(&socket, token, Interest::Read)?;
            self.of_source.add(source);
            let deadline = now + IDLE;
            self.deadlines.push(Reverse((deadline, token.slot, token.generation)));
            entry.insert(Connection {
                socket,
                peer,
                source,
                listener: Rc::clone(listener),
                token,
                incoming: Vec::new(),
                excess: 0,
                outgoing: Vec::new(),
                sent: 0,
                awaited: 0,
                deadline,
                interest: Interest::Read,
                finished: false,
            });
        }
        Ok(())
    }

    /// Goes on with the connection of `token`.
    pub(crate) fn ready(&mut self, poller: &Poller, token: Token, now: Instant, respond: Respond<'_>) {
        if let Some(connection) = self.get(token)
            && connection.proceed(poller, now, respond) == Life::Over
        {
            self.close(token);
        }
    }

    /// Sends a response that the connection of `token` waits for, if it still does.
    pub(crate) fn deliver(&mut self, poller: &Poller, token: Token, now: Instant, response: &[u8]) {
        let Some(connection) = self.get(token) else { return };
        connection.awaited = connection.awaited.saturating_sub(1);
        connection.push(response);
        connection.deadline = now + IDLE;
        if connection.flush(now) == Life::Over || connection.rest(poller) == Life::Over {
            self.close(token);
        } else if connection.is_taking() && connection.whole_query().is_some() {
            // It was not taken while too much was awaited, and the socket will not become ready for it again.
            self.resumed.push(token);
        }
    }

    /// A connection that has to be gone on with although its socket tells nothing.
    pub(crate) fn resumed(&mut self) -> Option<Token> {
        self.resumed.pop()
    }

    /// Closes what has been silent for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(Reverse((deadline, slot, generation))) = self.deadlines.peek().copied() {
            if deadline > now {
                return;
            }
            self.deadlines.pop();
            let token = Token { kind: Kind::Connection, slot, generation };
            let Some(connection) = self.get(token) else { continue };
            if connection.deadline <= now && connection.awaited == 0 {
                self.close(token);
            } else {
                // The upstream servers' own time is over before this.
                let later = connection.deadline.max(now + Duration::from_secs(1));
                self.deadlines.push(Reverse((later, slot, generation)));
            }
        }
    }

    /// When [`expire`](Self::expire) has to be called next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((deadline, ..))| *deadline)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    fn get(&mut self, token: Token) -> Option<&mut Connection> {
        self.open.get_mut(token.slot as usize).filter(|connection| connection.token == token)
    }

    fn close(&mut self, token: Token) {
        let connection = self.open.remove(token.slot as usize);
        self.of_source.remove(&connection.source);
    }
}

impl Connection {
    fn proceed(&mut self, poller: &Poller, now: Instant, respond: Respond<'_>) -> Life {
        if self.flush(now) == Life::Over || self.fill() == Life::Over {
            return Life::Over;
        }
        while self.is_taking() {
            let Some(len) = self.whole_query() else { break };
            let query = &self.incoming[PREFIX_LEN..PREFIX_LEN + len];
            let mut response = Vec::new();
            if respond(&self.listener, self.peer, self.token, query, &mut response) == Made::Awaited {
                self.awaited += 1;
            }
            self.excess = self.message_len().unwrap_or(len) - len;
            self.incoming.drain(..PREFIX_LEN + len);
            self.push(&response);
            self.deadline = now + IDLE;
            if self.flush(now) == Life::Over {
                return Life::Over;
            }
        }
        self.rest(poller)
    }

    /// The length of the query that has come in as far as it is looked at.
    fn whole_query(&self) -> Option<usize> {
        let len = self.message_len()?.min(MAX_QUERY);
        (self.incoming.len() >= PREFIX_LEN + len).then_some(len)
    }

    /// The length of the message that comes in, as it says itself.
    fn message_len(&self) -> Option<usize> {
        self.incoming.first_chunk::<PREFIX_LEN>().map(|prefix| usize::from(u16::from_be_bytes(*prefix)))
    }

    /// Whether more queries are taken now.
    fn is_taking(&self) -> bool {
        self.outgoing.len() - self.sent < MAX_UNSENT && self.awaited < MAX_AWAITED
    }

    /// Appends a message with its length before it.
    fn push(&mut self, response: &[u8]) {
        if let (false, Ok(len)) = (response.is_empty(), u16::try_from(response.len())) {
            self.outgoing.extend_from_slice(&len.to_be_bytes());
            self.outgoing.extend_from_slice(response);
        }
    }

    /// Reads what fits beside what is there already: one whole query at least.
    fn fill(&mut self) -> Life {
        if self.finished || !self.is_taking() {
            // The kernel tells again and again that the client has broken off, until somebody hears it.
            return match getsockopt(&self.socket, SocketError) {
                Ok(0) => Life::On,
                Ok(_) | Err(_) => Life::Over,
            };
        }
        let mut buffer = [0; PREFIX_LEN + MAX_QUERY];
        let room = buffer.len().saturating_sub(self.incoming.len());
        match recv(self.socket.as_raw_fd(), &mut buffer[..room], MsgFlags::MSG_DONTWAIT) {
            Ok(0) if room > 0 => self.finished = true,
            Ok(len) => {
                let excess = self.excess.min(len);
                self.excess -= excess;
                self.incoming.extend_from_slice(&buffer[excess..len]);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => return Life::Over,
        }
        Life::On
    }

    /// Sends what the client takes.
    fn flush(&mut self, now: Instant) -> Life {
        while self.sent < self.outgoing.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.outgoing[self.sent..], flags) {
                Ok(len) => {
                    self.sent += len;
                    self.deadline = now + IDLE;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Life::On,
                Err(_) => return Life::Over,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Life::On
    }

    /// Waits for what can happen next; a connection that nothing can happen on any more is over.
    fn rest(&mut self, poller: &Poller) -> Life {
        let unsent = self.sent < self.outgoing.len();
        if self.finished && !unsent && self.awaited == 0 {
            return Life::Over;
        }
        let interest = match (!self.finished && self.is_taking(), unsent) {
            (true, true) => Interest::ReadWrite,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (false, false) => Interest::Nothing,
        };
        if interest != self.interest {
            if poller.change(&self.socket, self.token, interest).is_err() {
                return Life::Over;
            }
            self.interest = interest;
        }
        Life::On
    }
}
