//! MAC spoof check: from a container's port come only frames with the container's own MAC as source.

use nft_netlink::{Element, Field, Holds, KeyType, Rule, Set, ifname_key};

/// The ports with the MAC that may send there.
pub(super) const SOURCES: Set<'static> =
    Set { name: "sources", key: &[KeyType::Ifname, KeyType::EtherAddr], holds: Holds::Keys };

/// Drops frames whose source MAC is not the port's.
pub(super) fn rule() -> Rule {
    Rule::new().not_in_set(&[Field::Iifname, Field::EtherSaddr], SOURCES.name).drop()
}

/// The key of a port's MAC.
pub(super) fn key(host_veth: &str, mac: [u8; 6]) -> Vec<u8> {
    let mut key = ifname_key(host_veth);
    key.extend(mac);
    key.resize(key.len().next_multiple_of(4), 0);
    key
}

/// The element that lets the MAC send from the port.
pub(super) fn source(host_veth: &str, mac: [u8; 6], comment: &str) -> Element {
    Element::new(key(host_veth, mac)).with_comment(comment)
}
