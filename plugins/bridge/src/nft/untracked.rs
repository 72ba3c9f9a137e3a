//! Frames on their way between a container and its VLAN's gateway interface, which is a port of the bridge like others.
//!
//! Where `bridge-nf-call-iptables` is 1, such a frame passes the rules for routed packets twice: as it is bridged, and
//! as it is routed. Connection tracking would take the first for the whole, and decide there that the flow keeps its
//! source: nothing would be masqueraded. So it sees the second alone.

use std::collections::{BTreeMap, BTreeSet};

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

/// The hardware address of the gateway behind `port` that most of `ways` lead to; `None` without any.
pub(super) fn gateway_mac(ways: &[Element], port: &str) -> Option<[u8; 6]> {
    let port = ifname_key(port);
    let split = |way: &Element| {
        way.key.split_at_checked(port.len()).map(|(from, mac)| (from == port, mac.to_owned()))
    };
    let comes_back = |way: &&Element| split(way).is_some_and(|(comes_back, _)| comes_back);
    let behind: BTreeSet<&str> =
        ways.iter().filter(comes_back).filter_map(|way| way.comment.as_deref()).collect();
    let mut known: BTreeMap<[u8; 6], usize> = BTreeMap::new();
    for way in ways.iter().filter(|way| way.comment.as_deref().is_some_and(|of| behind.contains(of))) {
        if let Some((false, mac)) = split(way)
            && let Some(mac) = mac.first_chunk()
        {
            *known.entry(*mac).or_default() += 1;
        }
    }
    known.into_iter().max_by_key(|(_, count)| *count).map(|(mac, _)| mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_one_that_most_of_those_behind_its_port_lead_to() {
        let way = |of: &str, from: &str, mac: u8| {
            Element::new(join_keys(&[&ifname_key(from), &[2, 0, 0, 0, 0, mac]])).with_comment(of)
        };
        let mut ways = vec![way("a", "va", 9), way("a", "port", 1), way("x", "vx", 7), way("x", "other", 3)];
        let mac = |ways: &[Element], port| gateway_mac(ways, port).map(|mac| mac[5]);
        assert_eq!((mac(&ways, "port"), mac(&ways, "other"), mac(&ways, "none")), (Some(9), Some(7), None));
        for name in ["b", "c"] {
            ways.extend([way(name, &format!("v{name}"), 8), way(name, "port", 2)]);
        }
        assert_eq!(mac(&ways, "port"), Some(8));
        assert_eq!(mac(&[], "port"), None);
    }
}
