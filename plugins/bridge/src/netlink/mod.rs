//! rtnetlink, and how it is driven: one blocking socket, no runtime, no thread.
//!
//! The kernel answers a request while it is being sent, so there is nothing to wait for side by side. `rtnetlink` is
//! written for async sockets; [`Blocking`] is one whose every wait is a plain `recvfrom`.
//!
//! Above this folder no message and no attribute is named: [`link`], [`addr`], [`route`], [`neigh`],
//! [`nsid`], [`vlan`] and [`forwarding`] speak of links, addresses, routes, neighbours, namespaces, VLANs and the host's
//! forwarding. Nothing here decides what should exist.

pub(crate) mod addr;
pub(crate) mod events;
mod forwarding;
pub(crate) mod link;
mod message;
pub(crate) mod neigh;
pub(crate) mod nsid;
pub(crate) mod route;
mod unlink;
pub(crate) mod vlan;

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::io;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use futures_util::Stream as _;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::{Connection, ConnectionHandle, new_connection_with_socket};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, Socket, SocketAddr};

use self::message::Message;

/// Longest wait for one answer. The kernel answers at once unless the routing lock is held by somebody else.
const ANSWER_TIMEOUT_SECONDS: i64 = 20;

/// How often a dump that changed while it was read is read again.
const DUMP_ATTEMPTS: u32 = 16;

/// `NLM_F_DUMP_INTR`: the table changed during the dump, so entries may be missing or doubled.
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The kernel refused it.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// The socket could not be used.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel answered with something that is no answer to the request.
    #[error("the kernel gave no answer")]
    NoAnswer,
    /// The table kept changing while it was read.
    #[error("the kernel's table changed at each of {DUMP_ATTEMPTS} attempts to read it")]
    Unstable,
}

impl Failure {
    /// Whether the kernel refused the request with `errno`.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Refused(refusal) if *refusal == errno)
    }

    /// Whether what the request was about does not exist (any more).
    pub(crate) fn is_gone(&self) -> bool {
        [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL].iter().any(|errno| self.is(*errno))
    }

    /// Whether what was asked about by the number of its namespace is gone, or the namespace itself: the kernel knows
    /// one that it destroys by no number any more.
    pub(crate) fn is_gone_there(&self) -> bool {
        self.is_gone() || self.is(Errno::EINVAL)
    }
}

/// A connection to the kernel's routing tables, in the network namespace that it was opened in.
pub(crate) struct Netlink {
    connection: Connection<Message, Blocking>,
    handle: ConnectionHandle<Message>,
}

impl Netlink {
    /// Opens a connection in the namespace that the calling thread is in; it stays there wherever the thread goes.
    pub(crate) fn open() -> Result<Self, Failure> {
        let (connection, handle, _unsolicited) = new_connection_with_socket(NETLINK_ROUTE)?;
        Ok(Self { connection, handle })
    }

    /// Sends a request that makes something new; `EEXIST` if it is there.
    fn create(&mut self, message: RouteNetlinkMessage) -> Result<(), Failure> {
        self.acknowledged(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sends a request that makes a new link, and hands back what the kernel announces of it; `None` before Linux 6.2.
    fn create_link(&mut self, message: RouteNetlinkMessage) -> Result<Option<Box<[u8]>>, Failure> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        let (answers, _) = self.exchange(message, flags)?;
        Ok(answers.into_iter().find_map(Message::into_link))
    }

    /// Sends a request that is answered by an acknowledgement alone.
    fn acknowledged(&mut self, message: impl Into<Message>, flags: u16) -> Result<(), Failure> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object that is no link.
    fn get(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Failure> {
        self.one(message)?.into_typed().ok_or(Failure::NoAnswer)
    }

    /// Asks for one link.
    fn get_link(&mut self, message: RouteNetlinkMessage) -> Result<Box<[u8]>, Failure> {
        self.one(message)?.into_link().ok_or(Failure::NoAnswer)
    }

    fn one(&mut self, message: impl Into<Message>) -> Result<Message, Failure> {
        let (mut answers, _) = self.exchange(message, NLM_F_REQUEST)?;
        answers.pop().ok_or(Failure::NoAnswer)
    }

    /// Reads a whole table that is not the links', or the part of it that the request names.
    fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        Ok(self.table(message)?.into_iter().filter_map(Message::into_typed).collect())
    }

    /// Reads all links, or those that the request names.
    fn dump_links(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<Box<[u8]>>, Failure> {
        Ok(self.table(message)?.into_iter().filter_map(Message::into_link).collect())
    }

    fn table(&mut self, message: &(impl Into<Message> + Clone)) -> Result<Vec<Message>, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            let (answers, Dump { interrupted }) =
                self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(Failure::Unstable)
    }

    /// Whether one of the links that the request names is `wished`. The rest is not read, so the connection is of no use
    /// afterwards.
    fn any_link(
        mut self,
        message: &RouteNetlinkMessage,
        wished: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = false;
            let Dump { interrupted } =
                self.exchange_until(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, |answer| {
                    found = answer.into_link().is_some_and(|octets| wished(&octets));
                    if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })?;
            if found || !interrupted {
                return Ok(found);
            }
        }
        Err(Failure::Unstable)
    }

    /// Sends `message` and collects its answers until the kernel says that there are no more.
    fn exchange(&mut self, message: impl Into<Message>, flags: u16) -> Result<(Vec<Message>, Dump), Failure> {
        let mut answers = Vec::new();
        let dump = self.exchange_until(message, flags, |answer| {
            answers.push(answer);
            ControlFlow::Continue(())
        })?;
        Ok((answers, dump))
    }

    /// Sends `message` and hands on its answers, until the kernel says that there are no more or `take` has enough.
    fn exchange_until(
        &mut self,
        message: impl Into<Message>,
        flags: u16,
        mut take: impl FnMut(Message) -> ControlFlow<()>,
    ) -> Result<Dump, Failure> {
        let mut request = NetlinkMessage::from(message.into());
        request.header.flags = flags;
        let responses = self.handle.request(request, SocketAddr::new(0, 0));
        let mut responses = pin!(responses.map_err(|error| io::Error::other(error.to_string()))?);
        let mut dump = Dump { interrupted: false };
        let mut context = Context::from_waker(Waker::noop());
        // The first turn sends; every later one is allowed one receive.
        self.turn(&mut context)?;
        loop {
            match responses.as_mut().poll_next(&mut context) {
                Poll::Ready(None) => return Ok(dump),
                Poll::Ready(Some(response)) => {
                    dump.interrupted |= response.header.flags & NLM_F_DUMP_INTR != 0;
                    let mut flow = ControlFlow::Continue(());
                    match response.payload {
                        NetlinkPayload::InnerMessage(answer) => flow = take(answer),
                        NetlinkPayload::Error(error) if error.code.is_some() => {
                            return Err(Failure::Refused(Errno::from_raw(error.raw_code().saturating_neg())));
                        }
                        _ => {}
                    }
                    if flow.is_break() {
                        return Ok(dump);
                    }
                }
                Poll::Pending => {
                    self.connection.socket_mut().owed.set(true);
                    self.turn(&mut context)?;
                }
            }
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        match Pin::new(&mut self.connection).poll(context) {
            Poll::Pending => Ok(()),
            // The connection ends only by an error of its socket, which it does not hand on.
            Poll::Ready(()) => {
                let error = self.connection.socket_mut().failure.take();
                Err(error.unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()).into())
            }
        }
    }
}

/// What the headers of a dump said about it as a whole.
struct Dump {
    interrupted: bool,
}

/// A netlink socket that blocks in `recvfrom`, once for each time that [`owed`](Self::owed) is set.
struct Blocking {
    socket: Socket,
    /// Whether an answer is outstanding, so that receiving will end.
    owed: Cell<bool>,
    /// The error that the connection met, which netlink-proto only logs.
    failure: RefCell<Option<io::Error>>,
}

impl Blocking {
    fn receive<T>(&self, mut receive: impl FnMut() -> io::Result<T>) -> Poll<io::Result<T>> {
        if !self.owed.replace(false) {
            return Poll::Pending;
        }
        Poll::Ready(self.uninterrupted(&mut receive))
    }

    fn uninterrupted<T>(&self, call: &mut impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let named = error.raw_os_error().map(io::Error::from_raw_os_error);
                    *self.failure.borrow_mut() = named.or_else(|| Some(error.kind().into()));
                    return Err(error);
                }
                done => return done,
            }
        }
    }
}

impl AsyncSocket for Blocking {
    fn socket_ref(&self) -> &Socket {
        &self.socket
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn new(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // So that dumps are filtered by the kernel, and a filter that it does not know is refused, not passed over.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECONDS))?;
        Ok(Self { socket, owed: Cell::new(false), failure: RefCell::new(None) })
    }

    fn poll_send(&self, _: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.uninterrupted(&mut || self.socket.send(buffer, 0)))
    }

    fn poll_send_to(
        &self,
        _: &mut Context<'_>,
        buffer: &[u8],
        address: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.uninterrupted(&mut || self.socket.send_to(buffer, address, 0)))
    }

    fn poll_recv<B: bytes::BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.receive(|| self.socket.recv(buffer, 0).map(drop))
    }

    fn poll_recv_from<B: bytes::BufMut>(
        &self,
        _: &mut Context<'_>,
        buffer: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        self.receive(|| self.socket.recv_from(buffer, 0).map(|(_, sender)| sender))
    }

    fn poll_recv_from_full(&self, _: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.receive(|| self.socket.recv_from_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_socket_is_named_as_the_kernel_names_it() {
        let socket = Blocking::new(0).unwrap();
        let failed: io::Result<()> = socket.uninterrupted(&mut || Err(Errno::ENOBUFS.into()));
        failed.unwrap_err();
        let kept = Failure::Socket(socket.failure.take().unwrap()).to_string();
        assert_eq!(kept, "netlink socket: No buffer space available (os error 105)");
    }
}
