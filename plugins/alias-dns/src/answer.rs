//! [`answer`]: what a question is answered with, a pure function of the zones, who asks, and the question.
//!
//! It owns Docker's rules of which name means what to whom, and what belongs to us; it builds no packet, keeps no state
//! and allocates nothing. Duties of the protocol (header, class, EDNS, size) are the server's.
//!
//! A name `a.b.c` is tried whole on every network of the asker, then as `a.b` in domain `c`, then as `a` in domain
//! `b.c`. Each time the links of the asker come first, and the network that it joined first wins. What is below a
//! domain of ours, or in the reverse zone of a subnet of ours, is answered here for good, also when it does not exist;
//! single labels are never asked for elsewhere, but for what validates a top-level domain, nor is what ends in
//! `localhost`, which is the asker itself.
//!
//! A zone is described as RFC 6303 does for empty ones: it is its own name server. Negative answers may not be kept,
//! for the name may belong to a container that starts the next moment.

mod reverse;
mod split;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use domain::base::iana::Rtype;
use domain::base::{Name, RelativeName};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use self::reverse::{Reverse, Shape};
use self::split::Split;
use crate::zone::{RecordIx, Seat, Terms, Zones};

/// What a gateway address is reversed to, below the network's domain; it resolves, too. No container is called so by
/// accident: the runtimes let names begin with a letter or a digit.
const GATEWAY: &RelativeName<[u8]> = match RelativeName::from_slice(b"\x08_gateway") {
    Ok(name) => name,
    Err(_) => panic!("not a name"),
};

/// What every host calls itself, also below any name; no name server elsewhere is asked for it (RFC 6761, section 6.3).
const LOCALHOST: &[u8] = b"localhost";

/// What all reverse zones stand below.
const ARPA: &[u8] = b"\x04arpa";

/// What a resolver asks of each domain on the way from the root to a name that it validates (RFC 4035, section 5). Nobody
/// asks it of a container.
const VALIDATING: [Rtype; 2] = [Rtype::DS, Rtype::DNSKEY];

/// The addresses behind [`LOCALHOST`].
static LOOPBACK: [IpNetwork; 2] = match (
    Ipv4Network::new_checked(Ipv4Addr::LOCALHOST, 8),
    Ipv6Network::new_checked(Ipv6Addr::LOCALHOST, 128),
) {
    (Some(v4), Some(v6)) => [IpNetwork::V4(v4), IpNetwork::V6(v6)],
    _ => panic!("not prefixes"),
};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker<'q> {
    /// The bridge device that the query came in by; for a query of the host itself, the one of the address that it
    /// was sent to.
    pub bridge: &'q str,
    /// The gateway address that the query was sent to.
    pub gateway: IpAddr,
    /// Where it came from. A gateway address of the bridge is the host itself.
    pub source: IpAddr,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// The name, in any case.
    pub name: &'q Name<[u8]>,
    /// The type.
    pub rtype: Rtype,
}

/// Where a zone of ours begins within the question's name, which it is always a part of: the offset of its first label,
/// in octets. The root zone begins at the root label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apex(pub usize);

/// What a question is answered with.
#[derive(Debug, Clone)]
pub enum Answer<'z> {
    /// NOERROR with these addresses.
    Addresses(AddressSet<'z>),
    /// NOERROR with this name.
    Pointer(Pointer<'z>),
    /// NOERROR with the zone's SOA.
    Soa(Apex),
    /// NOERROR with the zone's NS: its own name.
    Ns(Apex),
    /// NOERROR without a record of this type; SOA of the zone as authority.
    NoData(Apex),
    /// NXDOMAIN; SOA of the zone as authority.
    NxDomain(Apex),
    /// Not ours: to be asked for at these name servers, the host's own when there are none.
    Forward(&'z [SocketAddr]),
    /// REFUSED: the asker is nobody we know.
    Refused,
}

/// Why an answer is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason<'z> {
    /// No container on this bridge has the asker's address.
    UnknownAsker,
    /// A link of the asker, to this name.
    Link {
        /// The network of the link.
        network: &'z str,
        /// What it stands for.
        target: &'z RelativeName<[u8]>,
    },
    /// A name of one or more containers.
    Name {
        /// The network that it was found on.
        network: &'z str,
    },
    /// The network's gateway.
    Gateway {
        /// The network.
        network: &'z str,
    },
    /// An address of a container.
    Address {
        /// The network that it is on.
        network: &'z str,
        /// Whose it is; who that is costs a look that only a person wants.
        record: RecordIx,
    },
    /// The asker itself.
    Localhost,
    /// Within a domain or a subnet of ours, and nothing there has that name.
    OurZone,
    /// A single label that no container has; nothing is asked for elsewhere but what validates a domain of that name.
    SingleLabel,
    /// Not ours, and the asker's networks are internal.
    NoForwarding,
    /// Not ours.
    Elsewhere,
}

/// The addresses of one family behind a name.
#[derive(Debug, Clone)]
pub struct AddressSet<'z> {
    source: Source<'z>,
    family: Family,
    len: usize,
    first: usize,
    ttl: u32,
}

#[derive(Debug, Clone, Copy)]
enum Source<'z> {
    Records(&'z Zones, &'z [RecordIx]),
    Fixed(&'z [IpNetwork]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// The name behind an address.
#[derive(Debug, Clone, Copy)]
pub struct Pointer<'z> {
    /// The name.
    pub name: &'z RelativeName<[u8]>,
    /// The domain that it stands in.
    pub domain: &'z RelativeName<[u8]>,
    /// In seconds.
    pub ttl: u32,
}

/// Whether `asker` is anybody: a container, or the host.
pub fn knows(zones: &Zones, asker: Asker<'_>) -> bool {
    zones.networks_of_gateway(asker.bridge, asker.source).next().is_some()
        || zones.container_at(asker.bridge, asker.source).is_some()
}

/// The answer to `question`. `rotation` tells which of several addresses comes first: a number that grows by one
/// each time that the question is asked takes turns.
pub fn answer<'z>(zones: &'z Zones, asker: Asker<'_>, question: Question<'_>, rotation: u32) -> Answer<'z> {
    explain(zones, asker, question, rotation).0
}

/// [`answer`], and why.
pub fn explain<'z>(
    zones: &'z Zones,
    asker: Asker<'_>,
    question: Question<'_>,
    rotation: u32,
) -> (Answer<'z>, Reason<'z>) {
    if zones.networks_of_gateway(asker.bridge, asker.source).next().is_some() {
        // The networks of the address that is asked, not of the one that asks: the bridge may have several.
        let host = || zones.networks_of_gateway(asker.bridge, asker.gateway);
        return Lookup { zones, seats: host, question, rotation }.run();
    }
    match zones.container_at(asker.bridge, asker.source) {
        Some(container) => Lookup { zones, seats: || container.seats(), question, rotation }.run(),
        None => (Answer::Refused, Reason::UnknownAsker),
    }
}

/// One question of somebody who is on the networks that `seats` lists, in the order in which they are asked.
struct Lookup<'z, 'q, F> {
    zones: &'z Zones,
    seats: F,
    question: Question<'q>,
    rotation: u32,
}

impl<'z, F: Fn() -> S, S: Iterator<Item = Seat<'z>>> Lookup<'z, '_, F> {
    fn run(&self) -> (Answer<'z>, Reason<'z>) {
        let name = Split::of(self.question.name);
        if let Some(reverse) = Reverse::of(&name) {
            return self.reverse(&name, &reverse);
        }
        // No domain at all at first, then one label of it, then two.
        for domain in (1..=name.labels()).rev() {
            if let Some(found) = self.named(&name, domain) {
                return found;
            }
        }
        self.unnamed(&name)
    }

    /// The name whose domain begins with label number `domain`; the whole name where that is the root label.
    fn named(&self, name: &Split<'_>, domain: usize) -> Option<(Answer<'z>, Reason<'z>)> {
        let (relative, suffix) = (name.before(domain), name.from(domain));
        let seats = || self.seats_in(suffix);
        let apex = Apex(name.offset(domain));
        let mut dangling = None;
        for seat in seats() {
            let Some(link) = seat.link(relative) else { continue };
            let target = link.target.for_slice();
            let reason = Reason::Link { network: self.zones.network_name(seat.network), target };
            let holders = self.zones.named(seat.network, target.as_slice());
            if !holders.is_empty() {
                return Some((self.addresses(Source::Records(self.zones, holders), apex), reason));
            }
            dangling.get_or_insert(reason);
        }
        // A link takes the name away even while its target is not there: what this container calls `db` is never a
        // stranger who calls itself so.
        if let Some(reason) = dangling {
            return Some((Answer::NxDomain(self.zone_of(name)), reason));
        }
        for seat in seats() {
            let network = self.zones.network_name(seat.network);
            let holders = self.zones.named(seat.network, relative);
            if !holders.is_empty() {
                let answer = self.addresses(Source::Records(self.zones, holders), apex);
                return Some((answer, Reason::Name { network }));
            }
            if !suffix.is_empty() && relative.eq_ignore_ascii_case(GATEWAY.as_slice()) {
                // The host sits once for each set of gateways that records of the network have.
                let alike = seats().filter(|other| other.network == seat.network);
                let mut answers =
                    alike.map(|other| self.addresses(Source::Fixed(&other.terms.gateways), apex));
                let found = answers.find(|answer| matches!(answer, Answer::Addresses(_)));
                return Some((found.unwrap_or(Answer::NoData(apex)), Reason::Gateway { network }));
            }
        }
        None
    }

    /// A name that nobody has.
    fn unnamed(&self, name: &Split<'_>) -> (Answer<'z>, Reason<'z>) {
        let apex = self.zone_of(name);
        if apex == Apex(0) && name.labels() > 0 {
            return (self.at_apex(apex), Reason::OurZone);
        }
        let reason = match name.labels() {
            _ if apex != name.root() => Reason::OurZone,
            labels @ 1.. if name.label(labels - 1).eq_ignore_ascii_case(LOCALHOST) => {
                let zone = Apex(name.offset(labels - 1));
                let answer = match self.addresses(Source::Fixed(&LOOPBACK), zone) {
                    Answer::NoData(zone) if zone == Apex(0) => self.at_apex(zone),
                    answer => answer,
                };
                return (answer, Reason::Localhost);
            }
            1 if !VALIDATING.contains(&self.question.rtype) || self.is_above_names(name) => {
                Reason::SingleLabel
            }
            _ => return self.elsewhere(name),
        };
        (self.absent(name, apex), reason)
    }

    /// The answer to a name in the zone `apex` that nobody has. Names below it may exist, which NXDOMAIN would deny
    /// (RFC 8020).
    fn absent(&self, name: &Split<'_>, apex: Apex) -> Answer<'z> {
        let is_above = self.is_above_names(name) || self.is_above_subnet(name);
        if is_above { Answer::NoData(apex) } else { Answer::NxDomain(apex) }
    }

    /// Whether a domain of the asker, or a name that it sees, stands below `name`.
    fn is_above_names(&self, name: &Split<'_>) -> bool {
        (self.seats)().any(|seat| seat.terms.has_domain_below(name.from(0)))
            || (1..=name.labels()).any(|domain| self.is_above(name.before(domain), name.from(domain)))
    }

    /// Whether the reverse zone of a subnet of the asker stands below `name`.
    fn is_above_subnet(&self, name: &Split<'_>) -> bool {
        if name.from(0).eq_ignore_ascii_case(ARPA) {
            return true;
        }
        let beginning = Reverse::of(name).filter(|reverse| reverse.shape == Shape::Prefix);
        let prefix = beginning.and_then(|reverse| IpNetwork::new(reverse.ip, reverse.bits).ok());
        prefix.is_some_and(|prefix| {
            (self.seats)().any(|seat| seat.terms.gateways.iter().any(|gateway| prefix.contains(gateway.ip())))
        })
    }

    /// Whether names below `relative` stand in the domain `suffix`, or as they are where that is empty.
    fn is_above(&self, relative: &[u8], suffix: &[u8]) -> bool {
        self.seats_in(suffix)
            .any(|seat| self.zones.has_below(seat.network, relative) || seat.has_link_below(relative))
    }

    /// The networks with the domain `suffix`; all where that is empty.
    fn seats_in(&self, suffix: &[u8]) -> impl Iterator<Item = Seat<'z>> {
        (self.seats)().filter(move |seat| suffix.is_empty() || seat.terms.is_domain(suffix))
    }

    /// A name that is none of our business.
    fn elsewhere(&self, name: &Split<'_>) -> (Answer<'z>, Reason<'z>) {
        let forwarding =
            || (self.seats)().filter(|seat| seat.terms.forward).map(|seat| &*seat.terms.upstreams);
        let Some(first) = forwarding().next() else {
            // Without anything else there still is a root.
            let answer =
                if name.labels() == 0 { self.at_apex(name.root()) } else { self.absent(name, name.root()) };
            return (answer, Reason::NoForwarding);
        };
        let upstreams = forwarding().find(|upstreams| !upstreams.is_empty()).unwrap_or(first);
        (Answer::Forward(upstreams), Reason::Elsewhere)
    }

    /// The innermost domain of ours that `name` is in, or the root.
    fn zone_of(&self, name: &Split<'_>) -> Apex {
        let ours = (0..name.labels()).find(|label| self.zones.is_domain(name.from(*label)));
        ours.map_or(name.root(), |label| Apex(name.offset(label)))
    }

    fn at_apex(&self, apex: Apex) -> Answer<'z> {
        match self.question.rtype {
            Rtype::SOA | Rtype::ANY => Answer::Soa(apex),
            Rtype::NS => Answer::Ns(apex),
            _ => Answer::NoData(apex),
        }
    }

    fn addresses(&self, source: Source<'z>, apex: Apex) -> Answer<'z> {
        // One set is enough for ANY (RFC 8482, section 4.1).
        let families: &[Family] = match self.question.rtype {
            Rtype::A => &[Family::V4],
            Rtype::AAAA => &[Family::V6],
            Rtype::ANY => &[Family::V4, Family::V6],
            _ => &[],
        };
        let sets = families.iter().map(|family| AddressSet::of(source, *family, self.rotation));
        match sets.into_iter().find(|set| set.len > 0) {
            Some(set) => Answer::Addresses(set),
            None => Answer::NoData(apex),
        }
    }

    fn reverse(&self, name: &Split<'_>, reverse: &Reverse) -> (Answer<'z>, Reason<'z>) {
        let pointed = reverse.address().and_then(|ip| (self.seats)().find_map(|seat| self.pointed(seat, ip)));
        let subnet = self.zones.subnet_around(reverse.ip, reverse.bits);
        let apex = match subnet {
            Some(subnet) => Apex(name.offset(name.labels() - reverse.zone_labels(subnet))),
            // A container outside of its gateway's subnet, on a point-to-point link: a zone of its own.
            None if pointed.is_some() => Apex(0),
            None => return self.elsewhere(name),
        };
        if let Some((pointer, reason)) = pointed {
            return match self.question.rtype {
                Rtype::PTR | Rtype::ANY => (Answer::Pointer(pointer), reason),
                _ if apex == Apex(0) => (self.at_apex(apex), reason),
                _ => (Answer::NoData(apex), reason),
            };
        }
        let answer = match (reverse.shape, apex) {
            // Where a subnet ends within the last label, each of its addresses is a zone, and no zone denies itself.
            (Shape::Prefix | Shape::Address, Apex(0)) => self.at_apex(apex),
            (Shape::Prefix, _) => Answer::NoData(apex),
            (Shape::Address | Shape::Below, _) => Answer::NxDomain(apex),
        };
        (answer, Reason::OurZone)
    }

    /// What `ip` is reversed to on the network of `seat`.
    fn pointed(&self, seat: Seat<'z>, ip: IpAddr) -> Option<(Pointer<'z>, Reason<'z>)> {
        let network = self.zones.network_name(seat.network);
        if let Some(record) = self.zones.newest_holder(seat.network, ip) {
            let terms = self.zones.terms(record);
            let name = self.zones.first_name(record)?;
            return Some((Pointer::of(name, terms)?, Reason::Address { network, record }));
        }
        let is_gateway = seat.terms.gateways.iter().any(|gateway| gateway.ip() == ip);
        is_gateway
            .then(|| Pointer::of(GATEWAY, seat.terms))
            .flatten()
            .map(|pointer| (pointer, Reason::Gateway { network }))
    }
}

impl<'z> Pointer<'z> {
    fn of(name: &'z RelativeName<[u8]>, terms: &'z Terms) -> Option<Self> {
        Some(Self { name, domain: terms.domain()?.for_slice(), ttl: terms.ttl })
    }
}

impl<'z> AddressSet<'z> {
    fn of(source: Source<'z>, family: Family, rotation: u32) -> Self {
        let len = source.addresses().filter(|ip| family.has(*ip)).count();
        let first = if len > 1 { rotation as usize % len } else { 0 };
        Self { source, family, len, first, ttl: source.ttl() }
    }

    /// [`Rtype::A`] or [`Rtype::AAAA`].
    pub fn rtype(&self) -> Rtype {
        match self.family {
            Family::V4 => Rtype::A,
            Family::V6 => Rtype::AAAA,
        }
    }

    /// In seconds.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// How many addresses there are; never none.
    #[allow(clippy::len_without_is_empty, reason = "a set without addresses is NODATA")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The addresses, rotated.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + 'z {
        let Self { source, family, len, first, .. } = *self;
        let own = move || source.addresses().filter(move |ip| family.has(*ip));
        own().skip(first).chain(own().take(first)).take(len)
    }
}

impl<'z> Source<'z> {
    fn addresses(self) -> impl Iterator<Item = IpAddr> + 'z {
        let (zones, records, fixed) = match self {
            Self::Records(zones, records) => (Some(zones), records, &[][..]),
            Self::Fixed(fixed) => (None, &[][..], fixed),
        };
        let of_records =
            zones.into_iter().flat_map(|zones| records.iter().flat_map(|record| zones.addresses_of(*record)));
        of_records.chain(fixed.iter().map(IpNetwork::ip))
    }

    /// One set has one TTL (RFC 2181, section 5.2): the shortest.
    fn ttl(self) -> u32 {
        match self {
            Self::Records(zones, records) => {
                records.iter().map(|record| zones.terms(*record).ttl).min().unwrap_or(0)
            }
            Self::Fixed(_) => 0,
        }
    }
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        match self {
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

#[cfg(test)]
mod tests;
