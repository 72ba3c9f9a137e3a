//! A range set: one address of it goes to each attachment. Pure.

use std::fmt;

use crate::range::{Range, RangeError, RangeSpec};
use crate::span::{Point, Span};

/// Ranges of one family that do not overlap, at least one.
#[derive(Debug, Clone)]
pub(crate) struct RangeSet {
    ranges: Vec<Range>,
}

/// Why a range set is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangeSetError {
    #[error("empty range set")]
    Empty,
    #[error("mixed address families ({0} and {1})")]
    MixedFamilies(Span, Span),
    #[error("subnets {0} and {1} overlap")]
    Overlap(Span, Span),
    #[error("{error}")]
    Range { index: usize, error: RangeError },
}

impl RangeSet {
    /// Checks `specs`; no address of `excluded` is ever leased.
    pub(crate) fn new(specs: &[RangeSpec], excluded: &[Span]) -> Result<Self, RangeSetError> {
        let mut ranges: Vec<Range> = Vec::with_capacity(specs.len());
        for (index, spec) in specs.iter().enumerate() {
            let range = Range::new(spec, excluded).map_err(|error| RangeSetError::Range { index, error })?;
            ranges.push(range);
        }
        let Some(first) = ranges.first() else { return Err(RangeSetError::Empty) };
        if let Some(other) = ranges.iter().find(|range| range.is_ipv4() != first.is_ipv4()) {
            return Err(RangeSetError::MixedFamilies(first.span(), other.span()));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[index + 1..].iter().find(|other| other.span().overlaps(range.span()))
            {
                return Err(RangeSetError::Overlap(range.span(), other.span()));
            }
        }
        Ok(Self { ranges })
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.ranges.iter().all(Range::is_ipv4)
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.ranges.iter().any(|ours| other.ranges.iter().any(|theirs| ours.span().overlaps(theirs.span())))
    }

    /// The range that `point` is leased from.
    pub(crate) fn range_of(&self, point: Point) -> Option<&Range> {
        self.ranges.iter().find(|range| range.span().contains(point))
    }

    /// The range whose subnet has `point`, preferably one that leases it.
    pub(crate) fn subnet_of(&self, point: Point) -> Option<&Range> {
        self.range_of(point).or_else(|| self.ranges.iter().find(|range| range.subnet_contains(point)))
    }

    pub(crate) fn contains(&self, point: Point) -> bool {
        self.range_of(point).is_some()
    }

    /// Every address that may be leased, range by range.
    pub(crate) fn leasable(&self) -> impl Iterator<Item = Span> {
        self.ranges.iter().flat_map(|range| range.leasable().iter().copied())
    }

    /// Every address that may be leased, from the one after `cursor` on, round to `cursor` itself. A cursor in none of
    /// the ranges starts at the beginning.
    pub(crate) fn leasable_after(&self, cursor: Point) -> Vec<Span> {
        let Some(index) = self.ranges.iter().position(|range| range.span().contains(cursor)) else {
            return self.leasable().collect();
        };
        let (before, from) = self.ranges.split_at(index);
        let current = from.iter().take(1).flat_map(|range| range.leasable());
        let others = from.iter().skip(1).chain(before).flat_map(|range| range.leasable().iter().copied());
        let ahead = current.clone().filter_map(|span| span.after(cursor));
        let behind = current.filter_map(|span| span.up_to(cursor));
        ahead.chain(others).chain(behind).collect()
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// A range is `subnet` or `subnet start end`.
    fn set(ranges: &[&str]) -> Result<RangeSet, RangeSetError> {
        let specs: Vec<RangeSpec> = ranges
            .iter()
            .map(|text| {
                let words: Vec<&str> = text.split(' ').collect();
                RangeSpec {
                    subnet: Some(words[0].parse().unwrap()),
                    range_start: words.get(1).map(|word| word.parse().unwrap()),
                    range_end: words.get(2).map(|word| word.parse().unwrap()),
                    gateway: None,
                }
            })
            .collect();
        RangeSet::new(&specs, &[])
    }

    fn walk(set: &RangeSet, cursor: &str) -> String {
        let cursor = Point::from(cursor.parse::<IpAddr>().unwrap());
        set.leasable_after(cursor).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn sets_are_refused_in_the_references_words() {
        for (ranges, text) in [
            (&[][..], "empty range set"),
            (
                &["10.0.0.0/24", "fd00::/64"],
                "mixed address families (10.0.0.1-10.0.0.254 and fd00::1-fd00::ffff:ffff:ffff:ffff)",
            ),
            (&["10.0.0.0/24", "10.0.0.0/25"], "subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126 overlap"),
            (
                &["10.0.1.0/24", "10.0.0.5/24"],
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0 \
                 (given: 10.0.0.5/24)",
            ),
        ] {
            assert_eq!(set(ranges).unwrap_err().to_string(), text);
        }
        set(&["10.0.0.0/24 10.0.0.2 10.0.0.9", "10.0.0.0/24 10.0.0.10 10.0.0.19"]).unwrap();
    }

    #[test]
    fn the_walk_starts_after_the_cursor_and_ends_with_it() {
        let one = set(&["10.0.0.0/29"]).unwrap();
        assert_eq!(walk(&one, "10.0.0.4"), "10.0.0.5-10.0.0.6 10.0.0.2-10.0.0.4");
        assert_eq!(walk(&one, "10.0.0.6"), "10.0.0.2-10.0.0.6");
        assert_eq!(walk(&one, "10.0.0.1"), "10.0.0.2-10.0.0.6");
        assert_eq!(walk(&one, "10.9.9.9"), "10.0.0.2-10.0.0.6");
        let two = set(&["10.0.0.0/29", "10.0.1.0/29"]).unwrap();
        assert_eq!(walk(&two, "10.0.1.3"), "10.0.1.4-10.0.1.6 10.0.0.2-10.0.0.6 10.0.1.2-10.0.1.3");
        assert_eq!(two.to_string(), "10.0.0.1-10.0.0.6,10.0.1.1-10.0.1.6");
    }
}
