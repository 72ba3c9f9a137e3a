//! Addresses as points on one line, and stretches of that line. Pure arithmetic; knows nothing of subnets or leases.
//!
//! An IPv4 address sits where IPv6 maps it (`::ffff:0:0/96`), so both families share one order and one arithmetic.

use std::fmt;
use std::net::IpAddr;

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Point(u128);

impl Point {
    /// The point whose bits, as an IPv6 or IPv4-mapped address, are `bits`.
    pub(crate) const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u128 {
        self.0
    }

    /// The address, IPv4 again where it was.
    pub(crate) fn address(self) -> IpAddr {
        IpAddr::V6(self.0.into()).to_canonical()
    }

    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl From<IpAddr> for Point {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

/// The addresses from `first` to `last`, both included; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    first: Point,
    last: Point,
}

impl Span {
    /// `None` when `last` comes before `first`.
    pub(crate) fn new(first: Point, last: Point) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    pub(crate) fn of_one(point: Point) -> Self {
        Self { first: point, last: point }
    }

    pub(crate) fn first(self) -> Point {
        self.first
    }

    pub(crate) fn last(self) -> Point {
        self.last
    }

    pub(crate) fn contains(self, point: Point) -> bool {
        (self.first..=self.last).contains(&point)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What comes after `point`.
    pub(crate) fn after(self, point: Point) -> Option<Self> {
        Self::new(self.first.max(point.next()?), self.last)
    }

    /// What comes before `point`, and `point` itself.
    pub(crate) fn up_to(self, point: Point) -> Option<Self> {
        Self::new(self.first, self.last.min(point))
    }

    /// What is left without any address of `holes`, in ascending order.
    pub(crate) fn without_all(self, holes: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut holes: Vec<Self> = holes.into_iter().collect();
        holes.sort_unstable_by_key(|hole| hole.first);
        let mut left = Vec::new();
        let mut rest = Some(self);
        for hole in holes {
            let Some(span) = rest else { break };
            left.extend(hole.first.previous().and_then(|end| span.up_to(end)));
            rest = span.after(hole.last);
        }
        left.extend(rest);
        left
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(first: u128, last: u128) -> Span {
        Span::new(Point(first), Point(last)).unwrap()
    }

    #[test]
    fn an_address_is_read_back_from_its_point() {
        for text in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "fd00::1", "::1:2", "ffff::ffff"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Point::from(address).address(), address);
        }
    }

    #[test]
    fn the_ends_of_the_line_have_no_neighbour_beyond() {
        assert_eq!(Point(u128::MAX).next(), None);
        assert_eq!(span(0, u128::MAX).after(Point(u128::MAX)), None);
        assert_eq!(span(0, 3).without_all([span(0, 0)]), [span(1, 3)]);
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_no_hole_covers(
            first in 0u128..64, length in 0u128..64, holes in prop::collection::vec((0u128..140, 0u128..20), 0..6),
        ) {
            let whole = span(first, first + length);
            let holes: Vec<Span> = holes.into_iter().map(|(first, length)| span(first, first + length)).collect();
            let left = whole.without_all(holes.iter().copied());
            for point in (0..160).map(Point) {
                let wanted = whole.contains(point) && !holes.iter().any(|hole| hole.contains(point));
                prop_assert_eq!(left.iter().filter(|span| span.contains(point)).count(), usize::from(wanted));
            }
            prop_assert!(left.is_sorted_by_key(|span| span.first()));
        }
    }
}
