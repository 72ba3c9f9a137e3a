//! Ingress policy: who may open a flow to the containers behind a bridge, and to its gateway addresses.
//!
//! Replies, the host itself and published ports (flows whose destination was translated) pass; going out is not
//! looked at. `isolated` is `same-bridge` without the way round by the gateway. Frames from port to port are kept apart
//! by the port flag, which is not set here and works below these rules. They come here too where
//! `bridge-nf-call-iptables` is 1, and look like routed packets but for their destination MAC: a container's. So do the
//! frames of VLANs on that bridge, with policies of their own or none; those on their way to or from a VLAN's gateway
//! are known by not being tracked ([`untracked`](super::untracked)).
//!
//! The chains go by the link that the network is routed by, and a policy holds as long as an attachment that came with
//! it: two networks on one bridge have the stricter one.

use nft_netlink::{
    CtState, Element, Field, Holds, KeyType, Rule, Set, Verdict, address_key, ifname_key, join_keys,
};

use super::content::{Content, NetworkChain, chain_name};
use super::skeleton::Member;
use super::{Attached, IngressPolicy, record};

pub(super) const ISOLATED: &str = "isolated";
pub(super) const SAME_BRIDGE: &str = "same-bridge";
pub(super) const GATEWAYS_V4: &str = "gateways4";
pub(super) const GATEWAYS_V6: &str = "gateways6";

/// The MACs of the containers that came with a policy, by their link; of those behind the gateway of a VLAN also by the
/// bridge.
pub(super) const MEMBERS: Set<'static> =
    Set { name: "members", key: &[KeyType::Ifname, KeyType::EtherAddr], holds: Holds::Keys };

/// The maps whose elements lead to a policy's chains.
pub(super) const MAPS: &[&str] = &[ISOLATED, SAME_BRIDGE, GATEWAYS_V4, GATEWAYS_V6];

/// For packets that are routed to another interface.
pub(super) fn forward() -> Vec<Rule> {
    vec![
        Rule::new().ct_state(&[CtState::Established, CtState::Related]).accept(),
        Rule::new().ct_dnat().accept(),
        Rule::new().vmap(&[Field::Oifname], ISOLATED),
        Rule::new().vmap(&[Field::Oifname], SAME_BRIDGE),
    ]
}

/// For packets to the host itself.
pub(super) fn input() -> Vec<Rule> {
    vec![
        Rule::new().ct_state(&[CtState::Established, CtState::Related]).accept(),
        Rule::new().ct_dnat().accept(),
        Rule::new().iifname("lo").accept(),
        Rule::new().ipv4().vmap(&[Field::Ip4Daddr], GATEWAYS_V4),
        Rule::new().ipv6().vmap(&[Field::Ip6Daddr], GATEWAYS_V6),
    ]
}

/// Adds the chains of the attachment's policy; returns the name of the one to refer to, if any.
pub(super) fn content(attached: &Attached<'_>, content: &mut Content) -> Option<String> {
    let is_open = attached.policy.ingress == IngressPolicy::Open;
    let routed_by = (!is_open).then_some(attached.gateway_link);
    for link in routed_by.into_iter().chain(attached.vlan_gateway.map(|gateway| gateway.bridge)) {
        let member = member(link, attached.mac).with_comment(&record::identity(&attached.owner));
        content.element(MEMBERS.name, member);
    }
    if is_open {
        return None;
    }
    let same_bridge = same_bridge(attached);
    let mut name = same_bridge.name.clone();
    content.chain(same_bridge);
    if attached.policy.ingress == IngressPolicy::Isolated {
        let isolated = isolated(attached.gateway_link, &name);
        name.clone_from(&isolated.name);
        content.chain(isolated);
    }
    Some(name)
}

/// The policy of an attachment that uses these chains.
pub(super) fn policy_of(chains: &[String]) -> IngressPolicy {
    let has = |what: &str| chains.iter().any(|chain| chain.starts_with(&format!("{what}-")));
    if has(ISOLATED) {
        IngressPolicy::Isolated
    } else if has(SAME_BRIDGE) {
        IngressPolicy::SameBridge
    } else {
        IngressPolicy::Open
    }
}

/// Whether an attachment has elements in [`MEMBERS`].
pub(super) fn is_member(attached: &Attached<'_>) -> bool {
    attached.policy.ingress != IngressPolicy::Open || attached.vlan_gateway.is_some()
}

/// The elements that a container with this MAC may have, behind a link or the VLAN of a bridge.
pub(super) fn members_of(link: &str, mac: [u8; 6]) -> impl Iterator<Item = Element> {
    let bridge = link.rsplit_once('.').map(|(bridge, _)| bridge);
    [link].into_iter().chain(bridge).map(move |link| member(link, mac))
}

/// The element of a container's MAC.
fn member(link: &str, mac: [u8; 6]) -> Element {
    Element::new(join_keys(&[&ifname_key(link), &mac]))
}

/// The chain that every policy on `link` has.
pub(super) fn chain_of(link: &str) -> String {
    chain_name(SAME_BRIDGE, link)
}

fn same_bridge(attached: &Attached<'_>) -> NetworkChain {
    let link = attached.gateway_link;
    let name = chain_of(link);
    let mut entries = vec![entry(SAME_BRIDGE, ifname_key(link), &name)];
    entries.extend(attached.gateways.iter().map(|gateway| {
        let map = if gateway.is_ipv4() { GATEWAYS_V4 } else { GATEWAYS_V6 };
        entry(map, address_key(*gateway), &name)
    }));
    NetworkChain {
        comment: format!("{link}: new flows come from its own containers"),
        rules: vec![Rule::new().iifname(link).accept(), Rule::new().drop()],
        entries,
        entry_rule: None,
        name,
    }
}

fn isolated(link: &str, same_bridge: &str) -> NetworkChain {
    let name = chain_name(ISOLATED, link);
    NetworkChain {
        comment: format!("{link}: its containers do not reach each other by the gateway either"),
        rules: vec![
            Rule::new().iifname(link).ct_state(&[CtState::Untracked]).accept(),
            Rule::new()
                .iifname(link)
                .ethernet()
                .not_in_set(&[Field::Iifname, Field::EtherDaddr], MEMBERS.name)
                .drop(),
            Rule::new().goto(same_bridge),
        ],
        entries: vec![entry(ISOLATED, ifname_key(link), &name)],
        entry_rule: None,
        name,
    }
}

fn entry(set: &'static str, key: Vec<u8>, chain: &str) -> Member {
    Member { set, element: Element::new(key).with_verdict(Verdict::Goto(chain.to_owned())) }
}
