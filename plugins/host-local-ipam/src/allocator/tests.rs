//! The allocator by value: sequences of addresses, over a store in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::range::RangeSpec;
use crate::store::Held;

/// Leases in memory. An address in `hidden` is taken, though a search for free ones does not know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Memory {
    leases: BTreeMap<Point, (Attachment, Option<Life>)>,
    last: BTreeMap<usize, Point>,
    hidden: Vec<Point>,
}

impl Store for Memory {
    fn held_by(&mut self, attachment: &Attachment) -> Result<Vec<Held>, StoreError> {
        let held = self.leases.iter().filter(|(_, (holder, _))| holder == attachment);
        Ok(held.map(|(&address, (_, life))| Held { address, life: life.unwrap_or(Life::Possible) }).collect())
    }

    fn first_free(&mut self, span: Span) -> Result<Option<Point>, StoreError> {
        let mut rest = Some(span);
        while let Some(span) = rest {
            if !self.leases.contains_key(&span.first()) {
                return Ok(Some(span.first()));
            }
            rest = span.after(span.first());
        }
        Ok(None)
    }

    fn reserve(&mut self, address: Point, attachment: &Attachment) -> Result<Reservation, StoreError> {
        if self.hidden.contains(&address) {
            return Ok(Reservation::Taken { holder: None, life: Life::Possible });
        }
        match self.leases.get(&address) {
            Some((holder, life)) => Ok(Reservation::Taken {
                holder: Some(Holder::Attachment(holder.clone())),
                life: life.unwrap_or(Life::Possible),
            }),
            None => {
                self.leases.insert(address, (attachment.clone(), None));
                Ok(Reservation::Made)
            }
        }
    }

    fn release(&mut self, address: Point) -> Result<(), StoreError> {
        self.leases.remove(&address);
        Ok(())
    }

    fn reclaim(&mut self, within: &[Span]) -> Result<bool, StoreError> {
        let before = self.leases.len();
        self.leases.retain(|address, (_, life)| {
            *life != Some(Life::Over) || !within.iter().any(|span| span.contains(*address))
        });
        Ok(self.leases.len() < before)
    }

    fn last_reserved(&mut self, set: usize) -> Option<Point> {
        self.last.get(&set).copied()
    }

    fn set_last_reserved(&mut self, set: usize, address: Point) -> Result<(), StoreError> {
        self.last.insert(set, address);
        Ok(())
    }
}

fn point(text: &str) -> Point {
    Point::from(text.parse::<IpAddr>().unwrap())
}

fn attachment(id: &str) -> Attachment {
    Attachment::new(id, "eth0").unwrap()
}

/// Range sets separated by `|`, ranges by spaces; a range is `subnet` or `subnet=start-end`.
fn sets(text: &str) -> Vec<RangeSet> {
    text.split('|')
        .map(|set| {
            let specs: Vec<RangeSpec> = set
                .split_whitespace()
                .map(|range| {
                    let (subnet, bounds) = range.split_once('=').unwrap_or((range, ""));
                    let (start, end) = bounds.split_once('-').unzip();
                    RangeSpec {
                        subnet: Some(subnet.parse().unwrap()),
                        range_start: start.map(|start| start.parse().unwrap()),
                        range_end: end.map(|end| end.parse().unwrap()),
                        gateway: None,
                    }
                })
                .collect();
            RangeSet::new(&specs, &[]).unwrap()
        })
        .collect()
}

struct Scene {
    store: Memory,
    sets: Vec<RangeSet>,
    order: Order,
    requestable_from: RequestableFrom,
    preferred: Vec<Point>,
}

impl Scene {
    fn new(ranges: &str, taken: &str, last: &str) -> Self {
        let mut store = Memory::default();
        for (number, address) in taken.split_whitespace().enumerate() {
            store.leases.insert(point(address), (attachment(&format!("other{number}")), None));
        }
        if !last.is_empty() {
            store.last.insert(0, point(last));
        }
        Self {
            store,
            sets: sets(ranges),
            order: Order::RoundRobin,
            requestable_from: RequestableFrom::Range,
            preferred: Vec::new(),
        }
    }

    /// The addresses that `id` gets, or the error.
    fn add(&mut self, id: &str, requested: &str) -> String {
        let requested: Vec<IpAddr> = requested.split_whitespace().map(|text| text.parse().unwrap()).collect();
        let attachment = attachment(id);
        let demand = Demand {
            attachment: &attachment,
            sets: &self.sets,
            order: self.order,
            requestable_from: self.requestable_from,
            requested: &requested,
            preferred: &self.preferred,
        };
        match allocate(&mut self.store, &demand) {
            Ok(made) => made
                .iter()
                .map(|allocation| allocation.range.with_prefix(allocation.address).to_string())
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        }
    }

    /// The addresses of as many containers as there are words.
    fn adds(&mut self, count: usize) -> String {
        (0..count).map(|number| self.add(&format!("c{number}"), "")).collect::<Vec<_>>().join(" ")
    }
}

#[track_caller]
fn check_next(ranges: &str, taken: &str, last: &str, next: &str) {
    assert_eq!(Scene::new(ranges, taken, last).add("c", ""), next, "{ranges} without {taken} after {last}");
}

#[test]
fn the_next_address_is_the_references() {
    check_next("10.0.0.0/29", "", "", "10.0.0.2/29");
    check_next("2001:db8:1::/64", "", "", "2001:db8:1::2/64");
    check_next("10.0.0.0/30", "", "", "10.0.0.2/30");
    check_next("10.0.0.0/29", "10.0.0.2", "", "10.0.0.3/29");
    check_next("10.0.0.0/29", "10.0.0.5", "10.0.0.5", "10.0.0.6/29");
    check_next("10.0.0.0/29", "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6", "10.0.0.4", "10.0.0.3/29");
    check_next("10.0.0.0/29", "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5", "10.0.0.3", "10.0.0.6/29");
    check_next("10.0.0.0/29", "", "10.0.0.128", "10.0.0.2/29");
    check_next("10.0.0.0/29", "10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6", "10.0.0.2", "10.0.0.2/29");
    check_next("10.0.0.0/29 10.0.1.0/29", "", "10.0.0.6", "10.0.1.2/29");
    check_next("10.0.0.0/29 10.0.1.0/29 10.0.2.0/29", "", "10.0.2.6", "10.0.0.2/29");
    check_next("10.0.0.0/29 10.0.1.0/29", "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6", "", "10.0.1.2/29");
}

#[test]
fn addresses_go_round_past_the_gateway_and_the_last_one_waits_longest() {
    let mut scene = Scene::new("10.0.0.0/29", "", "10.0.0.4");
    assert_eq!(scene.adds(5), "10.0.0.5/29 10.0.0.6/29 10.0.0.2/29 10.0.0.3/29 10.0.0.4/29");
    assert_eq!(
        scene.add("late", ""),
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6"
    );
    scene.store.release(point("10.0.0.3")).unwrap();
    assert_eq!(scene.add("late", ""), "10.0.0.3/29");
}

#[test]
fn a_range_written_up_to_its_broadcast_address_never_gives_it_away() {
    let mut scene = Scene::new("10.0.0.0/29=10.0.0.5-10.0.0.7", "", "");
    assert_eq!(scene.adds(2), "10.0.0.5/29 10.0.0.6/29");
    assert!(scene.add("c", "").ends_with("no IP addresses available in range set: 10.0.0.5-10.0.0.7"));
    let excluded = "failed to allocate for range 0: requested ip 10.0.0.7 is excluded, or names the network or its broadcast";
    assert_eq!(scene.add("c", "10.0.0.7"), excluded);
}

#[test]
fn the_lowest_free_address_comes_first_if_asked_so() {
    let mut scene = Scene::new("10.0.0.0/29", "10.0.0.2", "10.0.0.4");
    scene.order = Order::Lowest;
    assert_eq!(scene.adds(2), "10.0.0.3/29 10.0.0.4/29");
    scene.store.release(point("10.0.0.2")).unwrap();
    assert_eq!(scene.add("again", ""), "10.0.0.2/29");
}

#[test]
fn each_set_gives_one_address_and_keeps_its_own_cursor() {
    let mut scene = Scene::new("10.0.0.0/29|fd00::/64", "fd00::2", "10.0.0.3");
    assert_eq!(scene.add("c", ""), "10.0.0.4/29 fd00::3/64");
    assert_eq!(scene.store.last, BTreeMap::from([(0, point("10.0.0.4")), (1, point("fd00::3"))]));
}

#[test]
fn a_requested_address_is_had_moves_the_cursor_and_goes_to_the_set_that_has_it() {
    let mut scene = Scene::new("10.0.0.0/29|10.0.1.0/29", "", "");
    assert_eq!(scene.add("c", "10.0.1.5"), "10.0.0.2/29 10.0.1.5/29");
    assert_eq!(scene.store.last[&1], point("10.0.1.5"));
    assert_eq!(scene.add("d", "10.0.1.3 10.0.0.6"), "10.0.0.6/29 10.0.1.3/29");
}

#[test]
fn what_cannot_be_had_is_named_in_the_references_words_and_nothing_is_kept() {
    for (ranges, requested, text) in [
        (
            "10.0.0.0/29",
            "10.0.0.2",
            "failed to allocate for range 0: requested IP address 10.0.0.2 is not available in range set 10.0.0.1-10.0.0.6",
        ),
        (
            "10.0.0.0/29",
            "10.0.0.1",
            "failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway",
        ),
        ("10.0.0.0/29", "10.0.1.77", "failed to allocate all requested IPs: 10.0.1.77"),
        (
            "10.0.0.0/29",
            "10.0.0.3 10.0.0.4 10.0.1.9",
            "failed to allocate all requested IPs: 10.0.0.4 10.0.1.9",
        ),
        ("10.0.0.0/29=10.0.0.2-10.0.0.3", "10.0.0.5", "failed to allocate all requested IPs: 10.0.0.5"),
        (
            "10.0.1.0/29|10.0.0.0/29",
            "10.0.0.2",
            "failed to allocate for range 1: requested IP address 10.0.0.2 is not available in range set 10.0.0.1-10.0.0.6",
        ),
    ] {
        let mut scene = Scene::new(ranges, "10.0.0.2", "");
        let before = scene.store.clone();
        assert_eq!(scene.add("c", requested), text);
        assert_eq!(scene.store, before, "{text}");
    }
}

#[test]
fn an_attachment_that_has_an_address_gets_no_second_one_and_keeps_the_first() {
    let mut scene = Scene::new("10.0.0.0/29|10.0.1.0/29", "", "");
    scene.add("c", "");
    let before = scene.store.clone();
    let text = "failed to allocate for range 0: 10.0.0.2 has been allocated to c, duplicate allocation is not allowed";
    for requested in ["", "10.0.0.5", "10.0.0.2", "10.0.1.4"] {
        assert_eq!(scene.add("c", requested), text);
    }
    assert_eq!(scene.store, before);
}

#[test]
fn a_lease_of_an_earlier_boot_gives_way_where_it_is_in_the_way_and_only_there() {
    let dead = |scene: &mut Scene, id: &str, address: &str| {
        scene.store.leases.insert(point(address), (attachment(id), Some(Life::Over)));
    };
    // to the same attachment
    let mut scene = Scene::new("10.0.0.0/29", "10.0.0.3", "10.0.0.3");
    dead(&mut scene, "c", "10.0.0.2");
    assert_eq!(scene.add("c", ""), "10.0.0.4/29");
    assert!(!scene.store.leases.contains_key(&point("10.0.0.2")));
    // to whoever asks for it
    dead(&mut scene, "old", "10.0.0.5");
    dead(&mut scene, "older", "10.0.0.6");
    assert_eq!(scene.add("d", "10.0.0.5"), "10.0.0.5/29");
    // not to somebody who can have another
    assert_eq!(scene.add("e", ""), "10.0.0.2/29");
    assert!(scene.store.leases.contains_key(&point("10.0.0.6")));
    // when nothing else is left
    assert_eq!(scene.add("f", ""), "10.0.0.6/29");
    assert!(scene.add("g", "").contains("no IP addresses available"));
}

#[test]
fn an_address_that_turns_out_to_be_taken_is_passed_over() {
    let mut scene = Scene::new("10.0.0.0/29", "", "");
    scene.store.hidden = vec![point("10.0.0.2"), point("10.0.0.3"), point("10.0.0.5")];
    assert_eq!(scene.adds(2), "10.0.0.4/29 10.0.0.6/29");
    assert!(scene.add("late", "").contains("no IP addresses available"));
}

#[test]
fn a_preferred_address_is_had_while_it_is_free_and_ours_to_give() {
    let mut scene = Scene::new("10.0.0.0/29", "", "");
    scene.preferred = vec![point("10.9.9.9"), point("10.0.0.1"), point("10.0.0.5")];
    assert_eq!(scene.add("c", ""), "10.0.0.5/29");
    assert_eq!(scene.add("d", ""), "10.0.0.6/29");
    assert_eq!(scene.add("e", "10.0.0.3"), "10.0.0.3/29");
    let dead = (attachment("old"), Some(Life::Over));
    scene.store.leases.insert(point("10.0.0.5"), dead);
    assert_eq!(scene.add("f", ""), "10.0.0.5/29");
}

#[test]
fn a_preferred_address_may_be_where_it_could_be_asked_for() {
    let mut scene = Scene::new("10.0.0.0/24=10.0.0.100-10.0.0.200|10.0.1.0/24", "", "");
    scene.preferred = vec![point("10.0.0.1"), point("10.0.0.255"), point("10.0.0.5"), point("10.0.1.7")];
    assert_eq!(scene.add("c", ""), "10.0.0.100/24 10.0.1.7/24");
    scene.requestable_from = RequestableFrom::Subnet;
    assert_eq!(scene.add("d", ""), "10.0.0.5/24 10.0.1.8/24");
}

#[test]
fn the_subnet_outside_of_the_range_can_be_asked_for_only_where_that_is_allowed() {
    let mut scene = Scene::new("10.0.0.0/24=10.0.0.100-10.0.0.200|10.0.1.0/24=10.0.1.9-10.0.1.9", "", "");
    assert_eq!(scene.add("c", "10.0.0.5"), "failed to allocate all requested IPs: 10.0.0.5");
    scene.requestable_from = RequestableFrom::Subnet;
    assert_eq!(scene.add("c", "10.0.0.5"), "10.0.0.5/24 10.0.1.9/24");
    assert!(scene.add("c", "").contains("10.0.0.5 has been allocated to c"));
    assert_eq!(scene.add("d", "10.0.1.8"), "10.0.0.100/24 10.0.1.8/24");
    for (address, text) in
        [("10.0.0.1", "subnet's gateway"), ("10.0.0.255", "excluded"), ("10.0.0.0", "excluded")]
    {
        assert!(scene.add("e", address).contains(text), "{address}");
    }
    assert_eq!(
        scene.add("e", "10.0.2.2"),
        "failed to allocate for range 1: no IP addresses available in range set: 10.0.1.9-10.0.1.9"
    );
}

#[test]
fn an_address_of_a_subnet_that_sets_share_belongs_to_the_range_that_has_it_or_to_the_first_set() {
    let mut scene = Scene::new("10.0.0.0/24=10.0.0.10-10.0.0.19|10.0.0.0/24=10.0.0.20-10.0.0.29", "", "");
    scene.requestable_from = RequestableFrom::Subnet;
    assert_eq!(scene.add("c", "10.0.0.25"), "10.0.0.10/24 10.0.0.25/24");
    scene.preferred = vec![point("10.0.0.100"), point("10.0.0.101")];
    assert_eq!(scene.add("d", ""), "10.0.0.100/24 10.0.0.26/24");
}

proptest! {
    /// Adds and releases in any order: nobody shares an address, and a container is refused only when none is left.
    #[test]
    fn no_address_is_given_twice_and_none_is_lost(
        steps in prop::collection::vec((any::<bool>(), 0usize..12, prop::option::of(0u8..16)), 1..60),
        lowest in any::<bool>(),
    ) {
        let mut scene = Scene::new("10.0.0.0/29 10.0.0.8/29", "", "");
        scene.order = if lowest { Order::Lowest } else { Order::RoundRobin };
        let pool = 10;
        for (add, who, requested) in steps {
            let id = format!("c{who}");
            let held = scene.store.held_by(&attachment(&id)).unwrap();
            if !add {
                for lease in held {
                    scene.store.release(lease.address).unwrap();
                }
                continue;
            }
            let before = scene.store.leases.clone();
            let requested = requested.map(|low| format!("10.0.0.{low}")).unwrap_or_default();
            let outcome = scene.add(&id, &requested);
            if outcome.starts_with("10.0.0.") {
                prop_assert!(held.is_empty());
                prop_assert_eq!(scene.store.leases.len(), before.len() + 1);
                for (address, holder) in &before {
                    prop_assert_eq!(&scene.store.leases[address], holder);
                }
            } else {
                prop_assert_eq!(&scene.store.leases, &before);
                prop_assert!(!held.is_empty() || before.len() == pool || !requested.is_empty(), "{}", outcome);
            }
        }
    }
}
