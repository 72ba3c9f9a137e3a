//! Datagrams, a batch at a time: one system call receives many, one sends all the answers.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, recvmmsg, sendmmsg,
    sendto,
};

/// Datagrams in one batch at most.
pub(crate) const BATCH: usize = 32;

/// Octets of a datagram that are looked at. A query that is longer has to come over TCP; cut off it cannot be read.
const QUERY_LEN: usize = 1500;

/// Buffers for batches, made once.
pub(crate) struct Batch {
    queries: Box<[[u8; QUERY_LEN]; BATCH]>,
    lengths: [usize; BATCH],
    responses: [Vec<u8>; BATCH],
    // One for each family: the room for an address stays what the last one needed.
    v4: Headers<SockaddrIn>,
    v6: Headers<SockaddrIn6>,
}

struct Headers<S> {
    receive: MultiHeaders<S>,
    send: MultiHeaders<S>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            queries: vec![[0; QUERY_LEN]; BATCH]
                .into_boxed_slice()
                .try_into()
                .unwrap_or_else(|_| unreachable!()),
            lengths: [0; BATCH],
            responses: [const { Vec::new() }; BATCH],
            v4: Headers::new(),
            v6: Headers::new(),
        }
    }

    /// Receives what waits at `socket`, a gateway's of one family, and sends what `respond` makes of each datagram:
    /// nothing if it leaves the response empty.
    pub(crate) fn serve(
        &mut self,
        socket: BorrowedFd<'_>,
        ipv4: bool,
        respond: impl FnMut(&[u8], SocketAddr, &mut Vec<u8>),
    ) {
        let Self { queries, lengths, responses, v4, v6 } = self;
        let buffers = Buffers { queries, lengths, responses };
        if ipv4 {
            buffers.serve(socket, v4, |address| SocketAddr::V4((*address).into()), respond)
        } else {
            buffers.serve(socket, v6, |address| SocketAddr::V6((*address).into()), respond)
        }
    }
}

impl<S: SockaddrLike + Copy> Headers<S> {
    fn new() -> Self {
        Self { receive: MultiHeaders::preallocate(BATCH, None), send: MultiHeaders::preallocate(BATCH, None) }
    }
}

struct Buffers<'b> {
    queries: &'b mut [[u8; QUERY_LEN]; BATCH],
    lengths: &'b mut [usize; BATCH],
    responses: &'b mut [Vec<u8>; BATCH],
}

impl Buffers<'_> {
    fn serve<S: SockaddrLike + Copy>(
        self,
        socket: BorrowedFd<'_>,
        headers: &mut Headers<S>,
        peer_of: impl Fn(&S) -> SocketAddr,
        mut respond: impl FnMut(&[u8], SocketAddr, &mut Vec<u8>),
    ) {
        let Self { queries, lengths, responses } = self;
        let mut addresses: [Option<S>; BATCH] = [None; BATCH];
        let received = {
            let mut slices = queries.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let flags = MsgFlags::MSG_DONTWAIT;
            let Ok(results) = recvmmsg(socket.as_raw_fd(), &mut headers.receive, &mut slices, flags, None)
            else {
                // Nothing waits; or an ICMP error of an earlier answer, which is nobody's business.
                return;
            };
            let mut received = 0;
            for message in results {
                lengths[received] = message.bytes;
                addresses[received] = message.address;
                received += 1;
            }
            received
        };
        let mut sending = 0;
        for at in 0..received {
            let Some(address) = addresses[at] else { continue };
            let peer = peer_of(&address);
            // Responses and their addresses move up, so that what is sent is one run.
            responses[sending].clear();
            respond(&queries[at][..lengths[at]], peer, &mut responses[sending]);
            if !responses[sending].is_empty() {
                addresses[sending] = Some(address);
                sending += 1;
            }
        }
        let slices = responses.each_ref().map(|response| [IoSlice::new(response)]);
        let mut sent = 0;
        while sent < sending {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let rest = sendmmsg(
                socket.as_raw_fd(),
                &mut headers.send,
                &slices[sent..sending],
                &addresses[sent..sending],
                [],
                flags,
            );
            sent += match rest {
                Ok(results) => results.count().max(1),
                Err(Errno::EINTR) => 0,
                // This one cannot be sent; the next ones may have another way.
                Err(_) => 1,
            };
        }
    }
}

/// Sends one response. It may be lost, as every datagram may.
pub(crate) fn send(socket: BorrowedFd<'_>, peer: SocketAddr, response: &[u8]) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = sendto(socket.as_raw_fd(), response, &SockaddrStorage::from(peer), flags);
}
