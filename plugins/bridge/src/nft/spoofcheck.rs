//! MAC spoof check: from a container's port come only frames with the container's own MAC as source.

use nft_netlink::{Element, Field, Holds, KeyType, Rule, Set, join_keys};

/// The ports that are checked.
pub(super) const PORTS: Set<'static> = Set { name: "mac-check", key: &[KeyType::Ifname], holds: Holds::Keys };

/// The ports with the MAC that may send there.
pub(super) const SOURCES: Set<'static> =
    Set { name: "sources", key: &[KeyType::Ifname, KeyType::EtherAddr], holds: Holds::Keys };

/// Drops frames whose source MAC is not the port's.
pub(super) fn rule() -> Rule {
    Rule::new()
        .in_set(&[Field::Iifname], PORTS.name)
        .not_in_set(&[Field::Iifname, Field::EtherSaddr], SOURCES.name)
        .drop()
}

/// The element that lets the MAC send from the port with this key.
pub(super) fn source(port: &[u8], mac: [u8; 6]) -> Element {
    Element::new(join_keys(&[port, &mac]))
}
