//! Connections: messages with their length before them (RFC 1035, section 4.2.2; RFC 7766), any number on each, answered
//! as they come and in any order.
//!
//! Nobody can make the server wait, nor use up its memory or its descriptors: sockets never block, a silent client is
//! cut off, a client that reads nothing is not read from, and each container has a limited number of connections, however
//! many addresses it comes from.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{SocketError, TcpNoDelay};
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, setsockopt};
use slab::Slab;

use crate::descriptors::{Descriptors, is_scarcity};
use crate::poller::{Interest, Kind, Poller, Token};
use crate::tally::Tally;
use crate::zone::Listener;

/// How long a client may be without a whole query, or not take what it asked for (RFC 7766, section 6.2.3: "a few
/// seconds"). Counted from when the last response was sent, not from when this process began to make it: on a busy
/// machine much may lie between, and the client knows nothing of it.
const IDLE: Duration = Duration::from_secs(5);

/// How long after its time a client is looked at again that may not be cut off yet: its answer has still to come, or what
/// it has asked to be read.
const AGAIN: Duration = Duration::from_secs(1);

/// Connections of one source.
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

/// On whose account a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The container with this number, however many addresses it comes from.
    Container(u32),
    /// This address of the host.
    Host(IpAddr),
    /// All addresses together that nobody knows: whoever is on a bridge can take any number of those.
    Strangers,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Connections {
    descriptors: Descriptors,
    open: Slab<Connection>,
    of_source: Tally<Source>,
    deadlines: BinaryHeap<Reverse<(Instant, u32, u16)>>,
    resumed: Vec<Token>,
    generation: u16,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    peer: SocketAddr,
    source: Source,
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
    /// Whether a query has been taken.
    is_heard: bool,
    /// Whether it ends as soon as nothing more is under way on it.
    is_leaving: bool,
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
    /// None yet, and never more than `descriptors` are enough for.
    pub(crate) fn new(descriptors: Descriptors) -> Self {
        Self {
            descriptors,
            open: Slab::new(),
            of_source: Tally::default(),
            deadlines: BinaryHeap::new(),
            resumed: Vec::new(),
            generation: 0,
        }
    }

    /// Takes those who are `waiting`, where `listener` is; `whose` tells whose an address is.
    ///
    /// # Errors
    /// When the process or the system has no descriptor or memory left: then to be called later, and not at once.
    pub(crate) fn accept(
        &mut self,
        poller: &Poller,
        waiting: &TcpListener,
        listener: &Rc<Listener>,
        whose: impl Fn(IpAddr) -> Source,
    ) -> std::io::Result<()> {
        for _ in 0..ACCEPTED {
            let (socket, peer) = match waiting.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_scarcity(&error) => return Err(error),
                // This one is broken already; the next one may not be.
                Err(_) => continue,
            };
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            let socket = OwnedFd::from(socket);
            let source = whose(peer.ip());
            let is_one_too_many =
                self.of_source.of(&source) >= MAX_OF_SOURCE || self.open.len() >= MAX_CONNECTIONS;
            if is_one_too_many || !self.descriptors.are_enough_for(&socket) {
                continue;
            }
            let _ = setsockopt(&socket, TcpNoDelay, &true);
            self.generation = self.generation.wrapping_add(1);
            let entry = self.open.vacant_entry();
            let token =
                Token { kind: Kind::Connection, slot: entry.key() as u32, generation: self.generation };
            poller.add(&socket, token, Interest::Read)?;
            self.of_source.add(source);
            let deadline = Instant::now() + IDLE;
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
                is_heard: false,
                is_leaving: false,
                finished: false,
            });
        }
        Ok(())
    }

    /// Goes on with the connection of `token`.
    pub(crate) fn ready(&mut self, poller: &Poller, token: Token, respond: Respond<'_>) {
        if let Some(connection) = self.get(token)
            && connection.proceed(poller, respond) == Life::Over
        {
            self.close(token);
        }
    }

    /// Sends a response that the connection of `token` waits for, if it still does.
    pub(crate) fn deliver(&mut self, poller: &Poller, token: Token, response: &[u8]) {
        let Some(connection) = self.get(token) else { return };
        connection.awaited = connection.awaited.saturating_sub(1);
        if connection.say(response) == Life::Over || connection.rest(poller) == Life::Over {
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
            if connection.deadline <= now && connection.awaited == 0 && !connection.has_unread() {
                self.close(token);
            } else {
                // Those who are waited for without a deadline of their own are looked at again in a while.
                let later = if connection.deadline > now { connection.deadline } else { now + AGAIN };
                self.deadlines.push(Reverse((later, slot, generation)));
            }
        }
    }

    /// When [`expire`](Self::expire) has to be called next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((deadline, ..))| *deadline)
    }

    /// Has each end as soon as nothing more is under way on it: what the client has sent by then is answered, also the rest
    /// of a query, and where it has not asked anything yet, its first question. Tells which are to be gone on with.
    pub(crate) fn leave(&mut self) -> Vec<Token> {
        let leave = |(_, connection): (usize, &mut Connection)| {
            connection.is_leaving = true;
            connection.token
        };
        self.open.iter_mut().map(leave).collect()
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
    fn proceed(&mut self, poller: &Poller, respond: Respond<'_>) -> Life {
        if self.flush() == Life::Over || self.fill() == Life::Over {
            return Life::Over;
        }
        while self.is_taking() {
            let Some(len) = self.whole_query() else { break };
            let query = &self.incoming[PREFIX_LEN..PREFIX_LEN + len];
            let mut response = Vec::new();
            if respond(&self.listener, self.peer, self.token, query, &mut response) == Made::Awaited {
                self.awaited += 1;
            }
            self.is_heard = true;
            self.excess = self.message_len().unwrap_or(len) - len;
            self.incoming.drain(..PREFIX_LEN + len);
            if self.say(&response) == Life::Over {
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

    /// Whether something has come in that will be read: where this process has been stopped for long, or has much to
    /// do, it is late and not the client.
    fn has_unread(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.is_taking() && recv(self.socket.as_raw_fd(), &mut [0], flags).is_ok_and(|len| len > 0)
    }

    /// Whether all that the client has sent is answered.
    fn has_nothing_under_way(&self) -> bool {
        self.is_heard
            && self.awaited == 0
            && self.incoming.is_empty()
            && self.excess == 0
            && !self.has_unread()
    }

    /// Whether more queries are taken now.
    fn is_taking(&self) -> bool {
        self.outgoing.len() - self.sent < MAX_UNSENT && self.awaited < MAX_AWAITED
    }

    /// Says `response`, with its length before it; nothing if it is empty.
    fn say(&mut self, response: &[u8]) -> Life {
        if let (false, Ok(len)) = (response.is_empty(), u16::try_from(response.len())) {
            self.outgoing.extend_from_slice(&len.to_be_bytes());
            self.outgoing.extend_from_slice(response);
        }
        self.flush()
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

    /// Sends what the client takes; with that its time begins anew.
    fn flush(&mut self) -> Life {
        while self.sent < self.outgoing.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.outgoing[self.sent..], flags) {
                Ok(len) => {
                    self.sent += len;
                    self.deadline = Instant::now() + IDLE;
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
        self.finished |= self.is_leaving && !unsent && self.has_nothing_under_way();
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A server with so many clients that have just connected.
    fn accepted(count: usize) -> (Poller, Connections, Vec<TcpStream>) {
        accepted_by(count, Descriptors::of_process())
    }

    fn accepted_by(count: usize, descriptors: Descriptors) -> (Poller, Connections, Vec<TcpStream>) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let clients = (0..count).map(|_| TcpStream::connect(socket.local_addr().unwrap()).unwrap()).collect();
        let (poller, mut connections) = (Poller::new().unwrap(), Connections::new(descriptors));
        let listener = Rc::new(Listener { bridge: "br0".to_owned(), gateway: [127, 0, 0, 1].into() });
        for _ in 0..=count / ACCEPTED {
            connections.accept(&poller, &socket, &listener, |_| Source::Container(7)).unwrap();
        }
        (poller, connections, clients)
    }

    fn tokens(connections: &Connections) -> Vec<Token> {
        connections.open.iter().map(|(_, connection)| connection.token).collect()
    }

    #[test]
    fn the_time_of_a_client_begins_when_it_has_got_what_it_asked_for() {
        let connected = Instant::now();
        let (poller, mut connections, mut clients) = accepted(1);
        let [token] = tokens(&connections)[..] else { panic!("one is open") };
        assert!(connections.deadline().unwrap() >= connected + IDLE);
        clients[0].write_all(&[0, 1, 7]).unwrap();
        let mut made = None;
        connections.ready(&poller, token, &mut |_, _, _, query, out| {
            out.extend([query[0]; 2]);
            made = Some(Instant::now());
            Made::Done
        });
        let mut response = [0; 4];
        clients[0].read_exact(&mut response).unwrap();
        assert_eq!(response, [0, 2, 7, 7]);
        assert!(connections.get(token).unwrap().deadline >= made.unwrap() + IDLE);
        connections.deliver(&poller, token, &[8]);
        assert!(connections.get(token).unwrap().deadline >= made.unwrap() + IDLE);
        clients[0].read_exact(&mut response[..3]).unwrap();
        assert_eq!(response[..3], [0, 1, 8]);
    }

    #[test]
    fn a_client_whose_query_waits_to_be_read_is_not_cut_off_and_a_silent_one_is() {
        let (poller, mut connections, mut clients) = accepted(3);
        let before = tokens(&connections);
        clients[1].write_all(&[0, 1, 7]).unwrap();
        // One that has left has nothing to say either.
        clients[2].shutdown(std::net::Shutdown::Write).unwrap();
        let deadline = connections.deadline().unwrap();
        connections.expire(deadline - Duration::from_nanos(1));
        assert_eq!(connections.len(), 3);
        connections.expire(deadline + IDLE);
        assert_eq!(tokens(&connections), before[1..2]);
        assert_eq!(clients[0].read(&mut [0]).unwrap(), 0);
        // It gets its answer, and its time begins anew.
        connections.ready(&poller, before[1], &mut |_, _, _, query, out| {
            out.extend(query);
            Made::Done
        });
        let mut response = [0; 3];
        clients[1].read_exact(&mut response).unwrap();
        assert_eq!(response, [0, 1, 7]);
        connections.expire(deadline + IDLE * 4);
        assert_eq!((connections.len(), connections.deadline()), (0, None));
        assert!(connections.of_source.is_empty());
    }

    #[test]
    fn no_more_is_awaited_for_a_client_than_its_share_and_the_rest_comes_after() {
        let (poller, mut connections, mut clients) = accepted(1);
        let [token] = tokens(&connections)[..] else { panic!("one is open") };
        let asked = MAX_AWAITED as u8 + 3;
        (0..asked).for_each(|number| clients[0].write_all(&[0, 1, number]).unwrap());
        clients[0].shutdown(std::net::Shutdown::Write).unwrap();
        let mut taken = Vec::new();
        let mut ready = |connections: &mut Connections| {
            connections.ready(&poller, token, &mut |_, _, _, query, _| {
                taken.push(query[0]);
                Made::Awaited
            });
            taken.len()
        };
        // Once for what was sent, and once for the end of it.
        assert_eq!([ready(&mut connections), ready(&mut connections)], [MAX_AWAITED as usize; 2]);
        // However long that takes.
        connections.expire(Instant::now() + IDLE * 2);
        assert_eq!(connections.len(), 1);
        for number in 0..asked {
            assert_eq!(connections.resumed(), None);
            connections.deliver(&poller, token, &[number]);
            let mut response = [0; 3];
            clients[0].read_exact(&mut response).unwrap();
            assert_eq!(response, [0, 1, number]);
            while let Some(resumed) = connections.resumed() {
                assert_eq!(resumed, token);
                ready(&mut connections);
            }
        }
        assert_eq!(taken, (0..asked).collect::<Vec<_>>());
        // Nothing can happen on it any more.
        assert_eq!(connections.len(), 0);
        assert_eq!(clients[0].read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_source_has_its_share_of_the_connections() {
        let (_, connections, mut clients) = accepted(MAX_OF_SOURCE + 1);
        assert_eq!(connections.len(), MAX_OF_SOURCE);
        assert_eq!(clients[MAX_OF_SOURCE].read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_last_descriptors_are_for_nobody_from_the_network() {
        let (_, connections, mut clients) = accepted_by(2, Descriptors::up_to(0));
        assert_eq!((connections.len(), connections.deadline()), (0, None));
        assert_eq!(clients[0].read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_client_that_reads_nothing_is_cut_off_however_much_it_says() {
        let (poller, mut connections, mut clients) = accepted(1);
        let [token] = tokens(&connections)[..] else { panic!("one is open") };
        clients[0].set_nonblocking(true).unwrap();
        // Until neither side takes any more.
        while clients[0].write_all(&[0, 1, 7].repeat(1000)).is_ok() {
            connections.ready(&poller, token, &mut |_, _, _, _, out| {
                out.resize(60_000, 0);
                Made::Done
            });
            assert!(connections.get(token).unwrap().outgoing.len() < 2 * MAX_UNSENT);
        }
        connections.expire(Instant::now() + IDLE);
        assert_eq!(connections.len(), 0);
    }
}
