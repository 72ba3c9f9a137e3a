//! Datagrams, a batch at a time: one system call receives many, one sends all the answers.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrLike as _, SockaddrStorage, sendto};

/// Datagrams in one batch at most.
pub(crate) const BATCH: usize = 32;

/// Octets of a datagram that are looked at. A query that is longer has to come over TCP; cut off it cannot be read.
const QUERY_LEN: usize = 1500;

/// The datagrams of a batch that get no answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Skipped(u32);

const _: () = assert!(BATCH == u32::BITS as usize);

impl Skipped {
    /// Leaves the datagram number `at` unanswered.
    pub(crate) fn insert(&mut self, at: usize) {
        self.0 |= 1 << at;
    }

    /// Whether the datagram number `at` is one of them.
    pub(crate) fn contains(self, at: usize) -> bool {
        self.0 >> at & 1 == 1
    }
}

/// Buffers for batches, made once.
pub(crate) struct Batch {
    queries: Box<[[u8; QUERY_LEN]; BATCH]>,
    lengths: [usize; BATCH],
    peers: [Option<SocketAddr>; BATCH],
    received: usize,
    /// Of the queries; then, moved up, of the responses.
    addresses: [SockaddrStorage; BATCH],
    responses: [Vec<u8>; BATCH],
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            queries: Box::new([[0; QUERY_LEN]; BATCH]),
            lengths: [0; BATCH],
            peers: [None; BATCH],
            received: 0,
            addresses: [SockaddrStorage::from(SocketAddr::from(([0; 4], 0))); BATCH],
            responses: [const { Vec::new() }; BATCH],
        }
    }

    /// Receives what waits at `socket`, in place of what was received before.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) {
        // On an error nothing waits; or it is the ICMP error of an earlier response, which is nobody's business.
        self.received = self.receive_some(socket).unwrap_or(0);
        for (peer, address) in self.peers.iter_mut().zip(&self.addresses[..self.received]) {
            *peer = internet(address);
        }
    }

    /// Who has sent what was received, in turn.
    pub(crate) fn peers(&self) -> &[Option<SocketAddr>] {
        &self.peers[..self.received]
    }

    /// Sends by `socket` what `respond` makes of each datagram received but those that `skipped` names: nothing if it
    /// leaves the response empty.
    pub(crate) fn answer(
        &mut self,
        socket: BorrowedFd<'_>,
        skipped: Skipped,
        mut respond: impl FnMut(&[u8], SocketAddr, &mut Vec<u8>),
    ) {
        let mut sending = 0;
        for at in (0..self.received).filter(|at| !skipped.contains(*at)) {
            let Some(peer) = self.peers[at] else { continue };
            let response = &mut self.responses[sending];
            response.clear();
            respond(&self.queries[at][..self.lengths[at]], peer, response);
            if !response.is_empty() {
                self.addresses[sending] = self.addresses[at];
                sending += 1;
            }
        }
        let mut sent = 0;
        while sent < sending {
            sent += match self.transmit(socket, sent, sending) {
                Ok(count) => count.max(1),
                Err(Errno::EINTR) => 0,
                // This one cannot be sent; the next ones may have another way.
                Err(_) => 1,
            };
        }
    }

    /// recvmmsg(2). nix's own keeps the address lengths of the call before, and those differ between the families.
    fn receive_some(&mut self, socket: BorrowedFd<'_>) -> nix::Result<usize> {
        let mut slices = self
            .queries
            .each_mut()
            .map(|query| libc::iovec { iov_base: query.as_mut_ptr().cast(), iov_len: QUERY_LEN });
        let mut headers = [EMPTY_HEADER; BATCH];
        for ((header, slice), address) in headers.iter_mut().zip(&mut slices).zip(&mut self.addresses) {
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = size_of::<SockaddrStorage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every header points to an address and a slice, and every slice to a buffer, that live until the call
        // is over and have the lengths given with them.
        #[allow(unsafe_code, reason = "see above")]
        let received = unsafe {
            libc::syscall(
                libc::SYS_recvmmsg,
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let received = Errno::result(received)? as usize;
        for (length, header) in self.lengths.iter_mut().zip(&headers[..received]) {
            *length = header.msg_len as usize;
        }
        Ok(received)
    }

    /// Sends the responses from `first` to `end`, or the first of them; tells how many were sent.
    ///
    /// One goes by sendto(2), which does not offer the processor to others on the way back; more by sendmmsg(2). The C
    /// library's own sends them one by one on 64-bit systems (musl), and so does nix.
    fn transmit(&self, socket: BorrowedFd<'_>, first: usize, end: usize) -> nix::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let count = end - first;
        if count == 1 {
            return sendto(socket.as_raw_fd(), &self.responses[first], &self.addresses[first], flags)
                .map(|_| 1);
        }
        let mut slices = self.responses.each_ref().map(|response| libc::iovec {
            iov_base: response.as_ptr().cast_mut().cast(),
            iov_len: response.len(),
        });
        let mut headers = [EMPTY_HEADER; BATCH];
        let all = headers.iter_mut().zip(&mut slices[first..end]).zip(&self.addresses[first..end]);
        for ((header, slice), address) in all {
            header.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = address.len();
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers point to an address and a slice, and every slice to a buffer, that live
        // until the call is over and have the lengths given with them; the kernel only reads them.
        #[allow(unsafe_code, reason = "see above")]
        let sent = unsafe {
            libc::syscall(libc::SYS_sendmmsg, socket.as_raw_fd(), headers.as_mut_ptr(), count, flags.bits())
        };
        Ok(Errno::result(sent)? as usize)
    }
}

/// A header without anything; some of its fields are the C library's own.
const EMPTY_HEADER: libc::mmsghdr = {
    // SAFETY: numbers and pointers, for all of which zero is a value.
    #[allow(unsafe_code, reason = "the type has fields that cannot be named")]
    unsafe {
        std::mem::zeroed()
    }
};

/// An address as the kernel gives it, if it is one of the Internet.
pub(super) fn internet(address: &SockaddrStorage) -> Option<SocketAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::V4((*v4).into())),
        (_, Some(v6)) => Some(SocketAddr::V6((*v6).into())),
        _ => None,
    }
}

/// Sends one response. It may be lost, as every datagram may.
pub(crate) fn send(socket: BorrowedFd<'_>, peer: SocketAddr, response: &[u8]) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = sendto(socket.as_raw_fd(), response, &SockaddrStorage::from(peer), flags);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn each_datagram_gets_its_own_response_in_turn_of_families() {
        let mut batch = Batch::new();
        for address in ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"] {
            let server = UdpSocket::bind(address).unwrap();
            let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind(address).unwrap()).collect();
            for (number, client) in clients.iter().enumerate() {
                client.connect(server.local_addr().unwrap()).unwrap();
                client.send(&[number as u8]).unwrap();
            }
            let mut peers = Vec::new();
            batch.receive(server.as_fd());
            batch.answer(server.as_fd(), Skipped::default(), |query, peer, out| {
                peers.push(peer);
                if query != [1] {
                    out.extend([query[0], query[0]]);
                }
            });
            let addresses: Vec<SocketAddr> =
                clients.iter().map(|client| client.local_addr().unwrap()).collect();
            assert_eq!(peers, addresses);
            for (number, client) in clients.iter().enumerate() {
                client.set_nonblocking(true).unwrap();
                let mut buffer = [0; 8];
                let got = client.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec());
                assert_eq!(got, (number != 1).then(|| vec![number as u8; 2]));
            }
        }
    }
}
