//! Frames on their way between a container and its VLAN's gateway interface, which is a port of the bridge like others.
//!
//! Where `bridge-nf-call-iptables` is 1, such a frame passes the rules for routed packets twice: as it is bridged, and
//! as it is routed. Connection tracking would take the first for the whole, and decide there that the flow keeps its
//! source: nothing would be masqueraded. So it sees the second alone.

use nft_netlink::{Element, Field, Holds, KeyType, Rule, Set, ifname_key, join_keys};

use super::Attached;

/// The ports, and where their frames go to.
pub(super) const WAYS: Set<'static> =
    Set { name: "to-gateway", key: &[KeyType::Ifname, KeyType::EtherAddr], holds: Holds::Keys };

/// Keeps connection tracking from these frames.
pub(super) fn rule() -> Rule {
    Rule::new().in_set(&[Field::Iifname, Field::EtherDaddr], WAYS.name).notrack()
}

/// The way to the gateway and the way back; none where the bridge itself is the gateway.
pub(super) fn ways(attached: &Attached<'_>) -> Vec<Element> {
    let Some(gateway) = attached.vlan_gateway else { return Vec::new() };
    [(attached.owner.host_veth, gateway.mac), (gateway.port, attached.mac)]
        .map(|(port, mac)| Element::new(join_keys(&[&ifname_key(port), &mac])))
        .into()
}
