//! Whoever asks without end is heard less often, so that everybody else is heard at all.
//!
//! The containers of a network share the receive buffer of a socket. One that fills it faster than the server empties
//! it takes the places of all others' queries, however little is made of its own. So a filter of the socket
//! (`SO_ATTACH_FILTER`, socket(7), `Documentation/networking/filter.rst`) turns most of its datagrams away before they
//! come there.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt};

use super::udp::{BATCH, Skipped};

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

/// Flooders held back at once on one socket.
const MAX_HELD: usize = 64;

/// Who is known on the bridge of a socket.
pub(crate) trait Residents {
    /// Whether `source` is one of them.
    fn include(&self, source: IpAddr) -> bool;

    /// All of them that have an address of the family of the socket.
    fn all(&self) -> Vec<IpAddr>;
}

/// Whose datagrams are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Resident(IpAddr),
    /// Everybody else: whoever makes an address up can make up many.
    Strangers,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resident(address) => address.fmt(f),
            Self::Strangers => f.write_str("sources that no record names"),
        }
    }
}

/// One that is held back.
#[derive(Debug)]
struct Flooder {
    source: Source,
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
    /// Takes note of a batch from `peers` that `socket` has given, and tells which of its datagrams are to be left
    /// unanswered.
    pub(crate) fn received(
        &mut self,
        socket: BorrowedFd<'_>,
        peers: &[Option<SocketAddr>],
        residents: &impl Residents,
        now: Instant,
    ) -> Skipped {
        self.full = if peers.len() == BATCH { self.full.saturating_add(1) } else { 0 };
        let is_flooded = self.full >= FULL && is_nearly_full(socket);
        if !is_flooded && self.held.is_empty() {
            return Skipped::default();
        }
        let sources: Vec<Source> = peers.iter().map(|peer| source_of(*peer, residents)).collect();
        for flooder in &mut self.held {
            let passed = sources.iter().filter(|source| **source == flooder.source).count();
            flooder.passed = flooder.passed.saturating_add(passed as u32);
        }
        if is_flooded { self.skip(socket, &sources, residents, now) } else { Skipped::default() }
    }

    fn skip(
        &mut self,
        socket: BorrowedFd<'_>,
        sources: &[Source],
        residents: &impl Residents,
        now: Instant,
    ) -> Skipped {
        let mut skipped = Skipped::default();
        let before = self.held.len();
        for (at, source) in sources.iter().enumerate() {
            if sources[..at].iter().filter(|other| *other == source).count() < SHARE {
                continue;
            }
            skipped.insert(at);
            let is_held = self.held.iter().any(|flooder| flooder.source == *source);
            if !is_held && self.held.len() < MAX_HELD {
                log::info!("a flood of queries: holds back {source}");
                self.held.push(Flooder { source: *source, until: now + PERIOD, passed: 0 });
            }
        }
        if self.held.len() > before {
            self.filter(socket, residents);
        }
        skipped
    }

    /// Lets those be heard again by `socket` whose flood is over at `now`.
    pub(crate) fn expire(&mut self, socket: BorrowedFd<'_>, residents: &impl Residents, now: Instant) {
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
            self.filter(socket, residents);
        }
    }

    /// Lets strangers be heard again by `socket`, since one of them may become a resident.
    pub(crate) fn forget_strangers(&mut self, socket: BorrowedFd<'_>, residents: &impl Residents) {
        let before = self.held.len();
        self.held.retain(|flooder| flooder.source != Source::Strangers);
        if self.held.len() < before {
            self.filter(socket, residents);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.held.iter().map(|flooder| flooder.until).min()
    }

    /// Makes the filter anew. Without it those that are held back cost their reception, and are answered as little.
    fn filter(&self, socket: BorrowedFd<'_>, residents: &impl Residents) {
        let mut program = Vec::new();
        for flooder in &self.held {
            if let Source::Resident(source) = flooder.source {
                program.extend(unless_from(source, &SAMPLED));
            }
        }
        let of_residents = program.len();
        if self.held.iter().any(|flooder| flooder.source == Source::Strangers) {
            let room = libc::BPF_MAXINSNS as usize - program.len() - SAMPLED.len() - 1;
            let known = residents.all();
            let of_one =
                known.first().map_or(1, |one| unless_outside(Span { first: *one, last: *one }).len());
            let known = spans(known, room / of_one);
            program.extend(known.into_iter().flat_map(unless_outside));
            program.extend(SAMPLED);
        }
        // Where residents have so many prefixes, they cannot be told from strangers.
        if program.len() >= libc::BPF_MAXINSNS as usize {
            program.truncate(of_residents);
        }
        program.push(give(u32::MAX));
        let _ = if self.held.is_empty() { detach(socket) } else { attach(socket, &program) };
    }
}

fn source_of(peer: Option<SocketAddr>, residents: &impl Residents) -> Source {
    let resident = peer.map(|peer| peer.ip()).filter(|source| residents.include(*source));
    resident.map_or(Source::Strangers, Source::Resident)
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

/// Whether three quarters of the receive buffer are taken, which a client that has a thousand questions open does not
/// manage: each takes 0.8 KiB, and of what has been read the kernel still counts up to a quarter of the buffer
/// (`udp_rmem_release` in net/ipv4/udp.c).
fn is_nearly_full(socket: BorrowedFd<'_>) -> bool {
    // SK_MEMINFO_RMEM_ALLOC and SK_MEMINFO_RCVBUF in linux/sock_diag.h. A kernel before 4.12 does not tell.
    getsockopt(&socket, option::MemoryInfo)
        .map_or(true, |[used, room, ..]| u64::from(used) * 4 > u64::from(room) * 3)
}

/// Lets one of [`SAMPLE`] through.
const SAMPLED: [libc::sock_filter; 4] = [
    load(libc::SKF_AD_OFF + libc::SKF_AD_RANDOM),
    jump(libc::BPF_JSET, SAMPLE - 1, 0, 1),
    give(0),
    give(u32::MAX),
];

/// Does `what` with what comes from `source`, and passes over that for everything else.
fn unless_from(source: IpAddr, what: &[libc::sock_filter]) -> Vec<libc::sock_filter> {
    let (words, at) = words_of(source);
    unless_words(&words, at, what)
}

/// The words of an address, and where the source address is in a packet's header (RFC 791 section 3.1, RFC 8200
/// section 3).
fn words_of(source: IpAddr) -> (Vec<u32>, i32) {
    match source {
        IpAddr::V4(source) => (vec![source.to_bits()], 12),
        IpAddr::V6(source) => {
            let octets = source.octets();
            let (words, _) = octets.as_chunks();
            (words.iter().map(|word| u32::from_be_bytes(*word)).collect(), 8)
        }
    }
}

/// Does `what` with a packet that has `words` from the offset `at` on, and passes over that for everything else.
fn unless_words(words: &[u32], at: i32, what: &[libc::sock_filter]) -> Vec<libc::sock_filter> {
    let mut program = Vec::new();
    for (number, word) in words.iter().enumerate() {
        let to_the_end = (words.len() - number - 1) * 2 + what.len();
        program.push(load(libc::SKF_NET_OFF + at + 4 * number as i32));
        program.push(jump(libc::BPF_JEQ, *word, 0, to_the_end as u8));
    }
    program.extend(what);
    program
}

/// Addresses of one prefix that differ in their last word only: from one to the other, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: IpAddr,
    last: IpAddr,
}

/// At most `most` spans that all `addresses` are in, and as little else as can be: what an allocator gives in turn
/// makes one, and where there are too many, the smallest gaps are closed. A stranger with an address in such a gap is
/// not held back, but answered as little as the others. More than `most` where the prefixes alone are more.
fn spans(mut addresses: Vec<IpAddr>, most: usize) -> Vec<Span> {
    addresses.sort_unstable();
    addresses.dedup();
    let gap = |pair: &[IpAddr]| {
        let [(prefix, number), (next_prefix, next_number)] = [split(*pair.first()?), split(*pair.last()?)];
        (prefix == next_prefix).then(|| next_number - number)
    };
    let mut gaps: Vec<u32> = addresses.windows(2).filter_map(gap).filter(|gap| *gap > 1).collect();
    let prefixes = addresses.windows(2).filter(|pair| gap(pair).is_none()).count() + 1;
    // As many of the widest gaps are left open as there is room for.
    let open = most.saturating_sub(prefixes);
    let closed = match gaps.len().checked_sub(open) {
        None | Some(0) => 1,
        Some(surplus) => *gaps.select_nth_unstable(surplus - 1).1,
    };
    let mut spans: Vec<Span> = Vec::new();
    for address in addresses {
        match spans.last_mut() {
            Some(span) if gap(&[span.last, address]).is_some_and(|gap| gap <= closed) => span.last = address,
            _ => spans.push(Span { first: address, last: address }),
        }
    }
    spans
}

/// The last word of an address, and what is before it; addresses of the two families never have that in common.
fn split(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::MAX, address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 32, address.to_bits() as u32),
    }
}

/// Lets through what comes from an address in `span`, and goes on with everything else.
fn unless_outside(span: Span) -> Vec<libc::sock_filter> {
    let give_all = [give(u32::MAX)];
    let (words, at) = words_of(span.first);
    let (last, _) = words_of(span.last);
    let Some((low, prefix)) = words.split_last() else { return Vec::new() };
    let high = last.last().unwrap_or(low);
    let in_range = [
        load(libc::SKF_NET_OFF + at + 4 * prefix.len() as i32),
        jump(libc::BPF_JGE, *low, 0, 2),
        jump(libc::BPF_JGT, *high, 1, 0),
    ];
    let then = [&in_range[..], &give_all].concat();
    unless_words(prefix, at, &then)
}

/// Loads the word at an offset of the packet, or what the kernel gives at its own offsets.
const fn load(at: i32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at.cast_unsigned(), 0, 0)
}

/// Compares what is loaded with `with`; passes over so many instructions.
const fn jump(condition: u32, with: u32, if_so: u8, if_not: u8) -> libc::sock_filter {
    statement(libc::BPF_JMP | libc::BPF_K | condition, with, if_so, if_not)
}

/// Lets so many octets through; none means that the packet is turned away.
const fn give(octets: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, octets, 0, 0)
}

const fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
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

    use proptest::prelude::*;

    use super::*;

    const SENT: usize = 1000;

    impl Residents for Vec<IpAddr> {
        fn include(&self, source: IpAddr) -> bool {
            self.contains(&source)
        }

        fn all(&self) -> Vec<IpAddr> {
            self.clone()
        }
    }

    fn held(source: Source) -> Flooder {
        Flooder { source, until: Instant::now(), passed: 0 }
    }

    /// Datagrams that come through the filter when a client at `from` sends [`SENT`] of them.
    fn through(flood: &Flood, residents: &Vec<IpAddr>, from: IpAddr) -> usize {
        let server = UdpSocket::bind((from, 0)).unwrap();
        server.set_nonblocking(true).unwrap();
        flood.filter(server.as_fd(), residents);
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

    #[track_caller]
    fn assert_sampled(through: usize) {
        // 62.5 are to be expected, 7.7 is the standard deviation.
        assert!((1..200).contains(&through), "{through}");
    }

    fn all_but(answered: &[usize]) -> Skipped {
        let mut skipped = Skipped::default();
        (0..BATCH).filter(|at| !answered.contains(at)).for_each(|at| skipped.insert(at));
        skipped
    }

    #[test]
    fn the_filter_lets_some_of_a_flooder_through_and_all_of_the_others() {
        let own = ["127.0.0.1", "::1"].map(|own| own.parse::<IpAddr>().unwrap());
        // One word of the address is another.
        let others: Vec<IpAddr> =
            (0..MAX_HELD - 2).map(|n| format!("fd00::{n:x}").parse().unwrap()).collect();
        let others = [others, vec![[126, 0, 0, 1].into(), [127, 0, 0, 2].into()]].concat();
        for own in own {
            let residents = [others.clone(), vec![own]].concat();
            let held_back = others.iter().map(|other| held(Source::Resident(*other)));
            let mut flood = Flood { full: 0, held: held_back.collect() };
            assert_eq!(through(&flood, &residents, own), SENT);
            flood.held.push(held(Source::Strangers));
            assert_eq!(through(&flood, &residents, own), SENT);
            assert_sampled(through(&flood, &others, own));
            flood.held[7].source = Source::Resident(own);
            assert_sampled(through(&flood, &residents, own));
            flood.held.truncate(8);
            assert_sampled(through(&flood, &residents, own));
        }
    }

    #[test]
    fn with_any_number_of_residents_strangers_are_held_back() {
        let own = IpAddr::from([127, 0, 0, 1]);
        let strangers = Flood { full: 0, held: vec![held(Source::Strangers)] };
        // In turn as an allocator gives them, and with gaps.
        for step in [1, 7] {
            let mut residents: Vec<IpAddr> =
                (0..20_000_u32).map(|n| IpAddr::V4((0x0a00_0000 + n * step).into())).collect();
            assert_sampled(through(&strangers, &residents, own));
            residents.push(own);
            assert_eq!(through(&strangers, &residents, own), SENT);
        }
        let mut residents: Vec<IpAddr> =
            (0..20_000_u32).map(|n| format!("fd00::{:x}", n * 3).parse().unwrap()).collect();
        let own = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
        assert_sampled(through(&strangers, &residents, own));
        residents.push(own);
        assert_eq!(through(&strangers, &residents, own), SENT);
        // Each with a prefix of its own.
        let residents: Vec<IpAddr> =
            (0..2000_u32).map(|n| format!("fd00:{n:x}::1").parse().unwrap()).collect();
        let flood = Flood { full: 0, held: vec![held(Source::Strangers), held(Source::Resident(own))] };
        assert_eq!(through(&strangers, &residents, own), SENT);
        assert_sampled(through(&flood, &residents, own));
    }

    proptest! {
        #[test]
        fn spans_hold_every_address_and_nothing_else_while_there_is_room(
            numbers in proptest::collection::btree_set(0_u32..200, 1..60),
            prefixes in 1_u32..4,
            most in 1_usize..60,
        ) {
            let numbers = numbers.into_iter().flat_map(|n| (0..prefixes).map(move |prefix| (prefix, n)));
            let addresses: Vec<IpAddr> =
                numbers.map(|(prefix, n)| format!("fd00:{prefix:x}::{n:x}").parse().unwrap()).collect();
            let held = |spans: &[Span], address: &IpAddr| {
                spans.iter().any(|span| (span.first..=span.last).contains(address))
            };
            let exact = spans(addresses.clone(), usize::MAX);
            let some = spans(addresses.clone(), most);
            prop_assert!(some.len() <= most.max(prefixes as usize));
            for span in &some {
                prop_assert_eq!(split(span.first).0, split(span.last).0);
            }
            for (prefix, n) in (0..4).flat_map(|prefix| (0..200).map(move |n| (prefix, n))) {
                let address: IpAddr = format!("fd00:{prefix:x}::{n:x}").parse().unwrap();
                let is_there = addresses.contains(&address);
                prop_assert_eq!(held(&exact, &address), is_there);
                prop_assert!(held(&some, &address) || !is_there);
            }
        }
    }

    #[test]
    fn only_a_buffer_that_fills_makes_flooders_and_only_for_as_long_as_they_go_on() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let peer = |host| Some(SocketAddr::from(([127, 0, 0, host], 4000)));
        let residents: Vec<IpAddr> = vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
        let mut peers = vec![peer(1); BATCH];
        peers[4] = peer(2);
        let mut flood = Flood::default();
        let now = Instant::now();
        for _ in 0..FULL * 2 {
            assert_eq!(flood.received(server.as_fd(), &peers, &residents, now), Skipped::default());
        }
        assert_eq!(flood.deadline(), None);
        // Each datagram counts for hundreds of octets.
        for _ in 0..100_000 {
            client.send(b"?").unwrap();
        }
        assert!(is_nearly_full(server.as_fd()));
        assert_eq!(flood.received(server.as_fd(), &peers, &residents, now), all_but(&[0, 1, 4]));
        assert_eq!(flood.deadline(), Some(now + PERIOD));
        // Strangers are one.
        peers[4..9].copy_from_slice(&[peer(4), peer(2), peer(5), peer(6), peer(7)]);
        assert_eq!(flood.received(server.as_fd(), &peers, &residents, now), all_but(&[0, 1, 4, 5, 6]));
        assert_eq!(flood.held.len(), 2);
        flood.forget_strangers(server.as_fd(), &residents);
        flood.expire(server.as_fd(), &residents, now + PERIOD / 2);
        assert_eq!(flood.held.len(), 1);
        for _ in 0..ONGOING {
            flood.received(server.as_fd(), &peers[..1], &residents, now);
        }
        flood.expire(server.as_fd(), &residents, now + PERIOD);
        assert_eq!(flood.deadline(), Some(now + PERIOD * 2));
        flood.expire(server.as_fd(), &residents, now + PERIOD * 2);
        assert_eq!(flood.deadline(), None);
    }
}
