//! Whoever asks without end is heard less often, so that everybody else is heard at all.
//!
//! The containers of a network share the receive buffer of a socket. One that fills it faster than the server empties
//! it takes the places of all others' queries, however little is made of its own. So a filter of the socket
//! (`SO_ATTACH_FILTER`, socket(7), `Documentation/networking/filter.rst`) turns most of its datagrams away before they
//! come there.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt};

/// Full batches, one after the other, from which on a socket may be flooded.
const FULL: u32 = 64;

/// Datagrams of one source in a batch of a flooded socket that are answered. One with more is a flooder.
const SHARE: usize = 2;

/// How long a flooder is held back before it is looked at anew.
const PERIOD: Duration = Duration::from_millis(250);

/// Of the datagrams of a flooder one in so many, a power of two, is let through.
const SAMPLE: u32 = 16;

/// Datagrams let through in a [`PERIOD`] from which on the flood goes on: 4096 a second before the filter.
const ONGOING: u32 = 64;

/// Flooders held back at once on one socket. The kernel takes 4096 instructions (`BPF_MAXINSNS`).
const MAX_HELD: usize = 64;

/// One that is held back.
#[derive(Debug)]
struct Flooder {
    source: IpAddr,
    until: Instant,
    /// Datagrams let through in this period.
    passed: u32,
}

/// What is known of the load of one socket.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    /// Batches that were full, one after the other.
    full: u32,
    held: Vec<Flooder>,
}

impl Flood {
    /// Takes note of a batch from `peers` that `socket` has given, and whether it was full. Tells which of its
    /// datagrams are to be left unanswered.
    pub(crate) fn received<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        peers: &'a [Option<SocketAddr>],
        is_full: bool,
        now: Instant,
    ) -> Unanswered<'a> {
        for flooder in &mut self.held {
            let passed = peers.iter().flatten().filter(|peer| peer.ip() == flooder.source).count();
            flooder.passed = flooder.passed.saturating_add(passed as u32);
        }
        self.full = if is_full { self.full.saturating_add(1) } else { 0 };
        if self.full < FULL || !is_half_full(socket) {
            return Unanswered(None);
        }
        let unanswered = Unanswered(Some(peers));
        let before = self.held.len();
        for (at, peer) in peers.iter().enumerate() {
            let Some(source) = peer.map(|peer| peer.ip()).filter(|_| unanswered.contains(at)) else {
                continue;
            };
            let is_held = self.held.iter().any(|flooder| flooder.source == source);
            if !is_held && self.held.len() < MAX_HELD {
                self.held.push(Flooder { source, until: now + PERIOD, passed: 0 });
            }
        }
        if self.held.len() > before {
            self.filter(socket);
        }
        unanswered
    }

    /// Lets those be heard again by `socket` whose flood is over at `now`.
    pub(crate) fn expire(&mut self, socket: BorrowedFd<'_>, now: Instant) {
        let before = self.held.len();
        self.held.retain_mut(|flooder| {
            if flooder.until > now {
                return true;
            }
            let goes_on = flooder.passed >= ONGOING;
            (flooder.until, flooder.passed) = (now + PERIOD, 0);
            goes_on
        });
        if self.held.len() < before {
            self.filter(socket);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.held.iter().map(|flooder| flooder.until).min()
    }

    fn filter(&self, socket: BorrowedFd<'_>) {
        let sources: Vec<IpAddr> = self.held.iter().map(|flooder| flooder.source).collect();
        // Without the filter those that are held back cost their reception, and are answered as little.
        let _ = if sources.is_empty() { detach(socket) } else { attach(socket, &program(&sources)) };
    }
}

/// The datagrams of a batch that get no answer: with a socket that is not flooded none, else those beyond the share of
/// their source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unanswered<'a>(Option<&'a [Option<SocketAddr>]>);

impl Unanswered<'_> {
    /// Whether the datagram number `at` is one of them.
    pub(crate) fn contains(self, at: usize) -> bool {
        let source = |peer: &Option<SocketAddr>| peer.map(|peer| peer.ip());
        self.0.is_some_and(|peers| {
            peers[..at].iter().filter(|peer| source(peer) == source(&peers[at])).count() >= SHARE
        })
    }
}

/// Takes a filter away that an earlier worker has left at `socket`.
///
/// # Errors
/// Whatever the kernel says; not that there is none.
pub(crate) fn detach(socket: BorrowedFd<'_>) -> nix::Result<()> {
    match setsockopt(&socket, option::DetachFilter, &0) {
        Err(Errno::ENOENT) => Ok(()),
        done => done,
    }
}

fn attach(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> nix::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // The kernel only reads it, and copies it.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    setsockopt(&socket, option::AttachFilter, &program)
}

/// A client that has a hundred questions open, or a thousand, fills no half of a buffer.
fn is_half_full(socket: BorrowedFd<'_>) -> bool {
    // SK_MEMINFO_RMEM_ALLOC and SK_MEMINFO_RCVBUF in linux/sock_diag.h. A kernel before 4.12 does not tell.
    getsockopt(&socket, option::MemoryInfo)
        .map_or(true, |[used, room, ..]| u64::from(used) * 2 > u64::from(room))
}

/// Lets through one in [`SAMPLE`] of what comes from each of `sources`, and everything else.
fn program(sources: &[IpAddr]) -> Vec<libc::sock_filter> {
    let mut program = Vec::new();
    for source in sources {
        // Where the source is in the header: RFC 791 section 3.1, RFC 8200 section 3.
        let (at, octets): (i32, Vec<u8>) = match source {
            IpAddr::V4(source) => (12, source.octets().into()),
            IpAddr::V6(source) => (8, source.octets().into()),
        };
        let words: Vec<u32> =
            octets.as_chunks().0.iter().map(|octets: &[u8; 4]| u32::from_be_bytes(*octets)).collect();
        for (number, word) in words.iter().enumerate() {
            let to_the_next_source = (words.len() - number) * 2 + 2;
            program.push(load(libc::SKF_NET_OFF + at + 4 * number as i32));
            program.push(jump(libc::BPF_JEQ, *word, 0, to_the_next_source as u8));
        }
        program.push(load(libc::SKF_AD_OFF + libc::SKF_AD_RANDOM));
        program.push(jump(libc::BPF_JSET, SAMPLE - 1, 0, 1));
        program.push(give(0));
        program.push(give(u32::MAX));
    }
    program.push(give(u32::MAX));
    program
}

/// Loads the word at an offset of the packet, or what the kernel gives at its own offsets.
fn load(at: i32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at.cast_unsigned(), 0, 0)
}

/// Compares what is loaded with `with`; passes over so many instructions.
fn jump(condition: u32, with: u32, if_so: u8, if_not: u8) -> libc::sock_filter {
    statement(libc::BPF_JMP | libc::BPF_K | condition, with, if_so, if_not)
}

/// Lets so many octets through; none means that the packet is turned away.
fn give(octets: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, octets, 0, 0)
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Options of sockets that nix has no names for.
#[allow(unsafe_code, reason = "the macro calls the C library; lengths are those of the types")]
mod option {
    use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

    sockopt_impl!(AttachFilter, SetOnly, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, libc::sock_fprog);
    sockopt_impl!(DetachFilter, SetOnly, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, libc::c_int);
    sockopt_impl!(MemoryInfo, GetOnly, libc::SOL_SOCKET, libc::SO_MEMINFO, [u32; 9]);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;

    const SENT: usize = 1000;

    /// Datagrams that come through the filter against `flooders` when a client at `from` sends [`SENT`] of them.
    fn through(flooders: &[&str], from: &str) -> usize {
        let server = UdpSocket::bind((from, 0)).unwrap();
        server.set_nonblocking(true).unwrap();
        let sources: Vec<IpAddr> = flooders.iter().map(|source| source.parse().unwrap()).collect();
        attach(server.as_fd(), &program(&sources)).unwrap();
        let client = UdpSocket::bind((from, 0)).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let received = (0..SENT).filter(|_| {
            client.send(b"?").unwrap();
            server.recv(&mut [0; 8]).is_ok()
        });
        let received = received.count();
        detach(server.as_fd()).unwrap();
        detach(server.as_fd()).unwrap();
        client.send(b"?").unwrap();
        assert_eq!(server.recv(&mut [0; 8]).unwrap(), 1, "without a filter");
        received
    }

    #[test]
    fn the_filter_lets_some_of_a_flooder_through_and_all_of_the_others() {
        let many: Vec<String> = (0..MAX_HELD - 1).map(|n| format!("fd00::{n:x}")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        // One word of the address is another.
        assert_eq!(through(&["127.0.0.2", "126.0.0.1"], "127.0.0.1"), SENT);
        assert_eq!(through(&many, "::1"), SENT);
        many.push("::1");
        for (flooders, from) in [(&["127.0.0.2", "127.0.0.1"][..], "127.0.0.1"), (&many, "::1")] {
            let some = through(flooders, from);
            // 62.5 are to be expected, 7.7 is the standard deviation.
            assert!((1..200).contains(&some), "{some} from {from}");
        }
    }

    #[test]
    fn only_a_buffer_that_fills_makes_a_flooder_and_only_for_as_long_as_it_goes_on() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let peer = |host| Some(SocketAddr::from(([127, 0, 0, host], 4000)));
        let peers = [peer(1), peer(1), peer(2), peer(1)];
        let mut flood = Flood::default();
        let now = Instant::now();
        let unanswered = |flood: &mut Flood| {
            let unanswered = flood.received(server.as_fd(), &peers, true, now);
            (0..peers.len()).filter(|at| unanswered.contains(*at)).collect::<Vec<_>>()
        };
        for _ in 0..FULL * 2 {
            assert!(unanswered(&mut flood).is_empty());
        }
        assert_eq!(flood.deadline(), None);
        // Its own buffer may be as small as the system's default, and each datagram counts for hundreds of octets.
        for _ in 0..100_000 {
            client.send(b"?").unwrap();
        }
        assert!(is_half_full(server.as_fd()));
        assert_eq!(unanswered(&mut flood), [3]);
        assert_eq!(flood.deadline(), Some(now + PERIOD));
        flood.expire(server.as_fd(), now + PERIOD / 2);
        assert_eq!(flood.held.len(), 1);
        for _ in 0..ONGOING {
            flood.received(server.as_fd(), &peers, false, now);
        }
        flood.expire(server.as_fd(), now + PERIOD);
        assert_eq!(flood.deadline(), Some(now + PERIOD * 2));
        flood.expire(server.as_fd(), now + PERIOD * 2);
        assert_eq!(flood.deadline(), None);
    }
}
