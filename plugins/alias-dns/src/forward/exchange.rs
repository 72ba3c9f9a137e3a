//! One question to one server: a datagram, and a connection when the answer does not fit into one. Owns the socket and
//! how far the exchange has come; knows no patience and no other server.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use domain::base::iana::OptRcode;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, recv, send, socket,
};

use super::reply::{Rejected, Reply};
use crate::descriptors::{Descriptors, is_scarcity};
use crate::poller::{Interest, Poller, Token};
use crate::serve::edns::{Edns, opt_octets};
use crate::serve::query::HEADER_LEN;

/// The longest message, in octets (its length stands in two octets before it over TCP: RFC 1035, section 4.2.2).
pub(super) const MAX_MESSAGE: usize = 65_535;

/// Octets before a message over TCP.
const PREFIX_LEN: usize = 2;

/// Where the number of additional records ends in a query over TCP; it is 0 or 1.
const ADDITIONAL_COUNT: usize = PREFIX_LEN + 11;

#[derive(Debug)]
pub(super) struct Exchange {
    descriptors: Descriptors,
    /// The query over TCP, length first.
    framed: Vec<u8>,
    question_len: usize,
    /// Whether the query has lost its OPT record on the way.
    has_fallen_back: bool,
    transport: Option<Transport>,
    /// As much of the answer as the server has told.
    cut_off: Option<Reply>,
}

#[derive(Debug)]
enum Transport {
    Datagram {
        socket: OwnedFd,
        /// Whether a query with EDNS went out by it, which an error may be about.
        offered_edns: bool,
    },
    Connection {
        socket: OwnedFd,
        sent: usize,
        received: Vec<u8>,
    },
}

/// How far an exchange has come.
#[derive(Debug)]
pub(super) enum Progress {
    /// It goes on.
    Pending,
    /// The server does not know EDNS: to be begun again, without.
    WithoutEdns,
    /// The server answered.
    Reply(Reply),
    /// Nothing more will come of it.
    Broken,
    /// Nor of this, for a reason of this host's own.
    Starved,
}

impl Exchange {
    /// An exchange about `question` (name, type, class), not begun yet. `wishes` are AD and CD where they stand in a
    /// query; without `edns` it has no OPT record.
    pub(super) fn new(question: &[u8], edns: Option<Edns>, wishes: u8, descriptors: Descriptors) -> Self {
        let mut framed = vec![0, 0, 0, 0, 0x01, wishes, 0, 1, 0, 0, 0, 0, 0, 0];
        framed.extend_from_slice(question);
        if let Some(edns) = edns {
            framed[ADDITIONAL_COUNT] = 1;
            framed.extend_from_slice(&opt_octets(edns, OptRcode::NOERROR));
        }
        Self {
            descriptors,
            framed,
            question_len: question.len(),
            has_fallen_back: false,
            transport: None,
            cut_off: None,
        }
    }

    /// Whether the server was asked with EDNS first and without it then.
    pub(super) fn has_fallen_back(&self) -> bool {
        self.has_fallen_back
    }

    /// As much as there is of an answer that did not come whole.
    pub(super) fn take_cut_off(&mut self) -> Option<Reply> {
        self.cut_off.take().filter(Reply::has_some)
    }

    /// Name, type, class.
    pub(super) fn question(&self) -> &[u8] {
        let start = PREFIX_LEN + HEADER_LEN;
        &self.framed[start..start + self.question_len]
    }

    /// Asks `server`, from a new port and with a new id. An exchange that is under way is dropped.
    pub(super) fn begin(&mut self, poller: &Poller, token: Token, server: SocketAddr) -> Result<()> {
        self.transport = None;
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(|error| Error::other(error.to_string()))?;
        self.framed[PREFIX_LEN..PREFIX_LEN + 2].copy_from_slice(&id);
        let socket = self.open(server, SockType::Datagram)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
        send(socket.as_raw_fd(), self.query(), MsgFlags::MSG_NOSIGNAL)?;
        poller.add(&socket, token, Interest::Read)?;
        self.transport = Some(Transport::Datagram { socket, offered_edns: self.has_edns() });
        Ok(())
    }

    /// Whether the answer may still come.
    pub(super) fn is_under_way(&self) -> bool {
        self.transport.is_some()
    }

    /// The same as [`repeat`](Self::repeat) without EDNS, for there are boxes on the way that drop whatever has it.
    pub(super) fn repeat_without_edns(&mut self) -> Result<()> {
        if matches!(self.transport, Some(Transport::Datagram { .. })) {
            self.fall_back();
        }
        self.repeat()
    }

    /// Sends the datagram once more, that may be lost: from the same port and with the same id, so that the answer to
    /// an earlier one is still good. Over a connection nothing is lost.
    pub(super) fn repeat(&self) -> Result<()> {
        if let Some(Transport::Datagram { socket, .. }) = &self.transport {
            send(socket.as_raw_fd(), self.query(), MsgFlags::MSG_NOSIGNAL)?;
        }
        Ok(())
    }

    /// Goes on after `server`'s socket has become ready. `room` is for a message of any length: to clear as much for each
    /// would cost more than to read it.
    pub(super) fn proceed(
        &mut self,
        poller: &Poller,
        token: Token,
        server: SocketAddr,
        room: &mut [u8],
    ) -> Progress {
        let step = match self.transport.take() {
            Some(Transport::Datagram { socket, offered_edns }) => {
                self.datagram(socket, offered_edns, poller, token, server, room)
            }
            Some(Transport::Connection { socket, sent, received }) => {
                self.connection(socket, sent, received, poller, token)
            }
            None => Ok(Progress::Broken),
        };
        step.unwrap_or_else(|error| if is_scarcity(&error) { Progress::Starved } else { Progress::Broken })
    }

    fn query(&self) -> &[u8] {
        &self.framed[PREFIX_LEN..]
    }

    fn datagram(
        &mut self,
        socket: OwnedFd,
        offered_edns: bool,
        poller: &Poller,
        token: Token,
        server: SocketAddr,
        room: &mut [u8],
    ) -> Result<Progress> {
        // There are servers that send more than they were told to.
        let message = match recv(socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => &room[..len],
            Err(Errno::EAGAIN | Errno::EINTR) => &[],
            Err(errno) => return Err(errno.into()),
        };
        match self.read(message) {
            Ok(reply) if reply.is_cut_off() => {
                self.cut_off = Some(reply);
                let socket = self.open(server, SockType::Stream)?;
                match connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
                    Ok(()) | Err(Errno::EINPROGRESS) => {}
                    Err(errno) => return Err(errno.into()),
                }
                poller.add(&socket, token, Interest::Write)?;
                self.transport = Some(Transport::Connection { socket, sent: 0, received: Vec::new() });
                Ok(Progress::Pending)
            }
            // The right answer may still come.
            Err(Rejected::Foreign) => {
                self.transport = Some(Transport::Datagram { socket, offered_edns });
                Ok(Progress::Pending)
            }
            Err(Rejected::Malformed) => Ok(Progress::Broken),
            Ok(reply) => Ok(self.judged(reply, offered_edns)),
        }
    }

    fn connection(
        &mut self,
        socket: OwnedFd,
        mut sent: usize,
        mut received: Vec<u8>,
        poller: &Poller,
        token: Token,
    ) -> Result<Progress> {
        if sent < self.framed.len() {
            let len = (self.framed.len() - PREFIX_LEN) as u16;
            self.framed[..PREFIX_LEN].copy_from_slice(&len.to_be_bytes());
            match send(
                socket.as_raw_fd(),
                &self.framed[sent..],
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(len) => sent += len,
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if sent == self.framed.len() {
                poller.change(&socket, token, Interest::Read)?;
            }
        } else {
            let mut buffer = [0; 4096];
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => received.extend_from_slice(&buffer[..len]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if let Some((prefix, rest)) = received.split_first_chunk::<PREFIX_LEN>()
                && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*prefix)))
            {
                let offered_edns = self.has_edns();
                return Ok(match self.read(message) {
                    Ok(reply) if reply.is_cut_off() => {
                        self.cut_off = Some(reply);
                        Progress::Broken
                    }
                    Ok(reply) => self.judged(reply, offered_edns),
                    Err(_) => Progress::Broken,
                });
            }
        }
        self.transport = Some(Transport::Connection { socket, sent, received });
        Ok(Progress::Pending)
    }

    fn read(&self, message: &[u8]) -> std::result::Result<Reply, Rejected> {
        let query = self.query();
        Reply::read(message, u16::from_be_bytes([query[0], query[1]]), self.question())
    }

    /// RFC 6891, section 6.2.2: a server that answers FORMERR is asked without EDNS.
    fn judged(&mut self, reply: Reply, offered_edns: bool) -> Progress {
        if !reply.refuses_edns() || !offered_edns {
            return Progress::Reply(reply);
        }
        self.fall_back();
        Progress::WithoutEdns
    }

    fn has_edns(&self) -> bool {
        self.framed[ADDITIONAL_COUNT] > 0
    }

    /// Takes the OPT record out of the query.
    fn fall_back(&mut self) {
        self.has_fallen_back |= self.has_edns();
        self.framed.truncate(PREFIX_LEN + HEADER_LEN + self.question_len);
        self.framed[ADDITIONAL_COUNT] = 0;
    }

    fn open(&self, server: SocketAddr, kind: SockType) -> Result<OwnedFd> {
        let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let opened = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        if self.descriptors.are_enough_for(&opened) { Ok(opened) } else { Err(Errno::EMFILE.into()) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::poller::Kind;

    #[test]
    fn the_last_descriptors_are_for_no_question() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (poller, token) = (Poller::new().unwrap(), Token::only(Kind::Upstream));
        let begin = |descriptors| {
            let mut exchange = Exchange::new(&[0, 0, 1, 0, 1], None, 0, descriptors);
            exchange.begin(&poller, token, server.local_addr().unwrap()).is_ok() && exchange.is_under_way()
        };
        assert!(begin(Descriptors::of_process()) && !begin(Descriptors::up_to(0)));
    }
}
