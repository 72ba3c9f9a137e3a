//! Masquerade: what a container sends out of its subnet leaves with the host's address. Multicast does not.
//!
//! One chain for each subnet of a network, and an element for each address. The elements carry no verdict: the kernel
//! walks through a map with verdicts whenever a transaction touches the table, and there may be thousands.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use nft_netlink::{Element, Field, Rule, Verdict, address_key};

use crate::names;

use super::content::{Content, NetworkChain, chain_name};
use super::skeleton::Member;
use super::{Owner, record};

pub(super) const ADDRESSES_V4: &str = "masquerade4";
pub(super) const ADDRESSES_V6: &str = "masquerade6";

/// The chain with one rule for each subnet.
pub(super) const SUBNETS: &str = "subnets";

/// What the names of the subnets' chains begin with.
const CHAIN: &str = "masquerade";

/// The rules that send what a masqueraded address sends to the subnets' rules.
pub(super) fn dispatch() -> Vec<Rule> {
    let multicast_v4 = Ipv4Network::new_checked([224, 0, 0, 0].into(), 4).map(IpNetwork::V4);
    let multicast_v6 = Ipv6Network::new_checked([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8).map(IpNetwork::V6);
    let leaves = |destination, multicast| match destination {
        Field::Ip6Daddr => Rule::new().ipv6().within(destination, multicast).then_verdict(&Verdict::Return),
        _ => Rule::new().ipv4().within(destination, multicast).then_verdict(&Verdict::Return),
    };
    let mut rules = Vec::new();
    // Nobody routes it, but as it is bridged it comes by here where `bridge-nf-call-iptables` is 1.
    let broadcast = address_key(Ipv4Addr::BROADCAST.into());
    rules.push(Rule::new().ipv4().is(Field::Ip4Daddr, &broadcast).then_verdict(&Verdict::Return));
    rules.extend(multicast_v4.map(|multicast| leaves(Field::Ip4Daddr, multicast)));
    rules.push(Rule::new().ipv4().in_set(&[Field::Ip4Saddr], ADDRESSES_V4).goto(SUBNETS));
    rules.extend(multicast_v6.map(|multicast| leaves(Field::Ip6Daddr, multicast)));
    rules.push(Rule::new().ipv6().in_set(&[Field::Ip6Saddr], ADDRESSES_V6).goto(SUBNETS));
    rules
}

/// The set that an address is an element of.
pub(super) fn addresses_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { ADDRESSES_V4 } else { ADDRESSES_V6 }
}

/// The address that is masqueraded by an element.
pub(super) fn address_of(member: &Member) -> Option<IpAddr> {
    let key = member.element.key.as_slice();
    match member.set {
        ADDRESSES_V4 => <[u8; 4]>::try_from(key).ok().map(IpAddr::from),
        ADDRESSES_V6 => <[u8; 16]>::try_from(key).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Adds the elements of the addresses and the chains of their subnets; returns the names of these.
pub(super) fn content(owner: &Owner<'_>, addresses: &[IpNetwork], content: &mut Content) -> Vec<String> {
    let identity = record::identity(owner);
    let mut chains = Vec::new();
    for address in addresses {
        let element = Element::new(address_key(address.ip())).with_comment(&identity);
        content.element(addresses_of(address.ip()), element);
        let chain = subnet_chain(&names::network(owner.network), *address);
        chains.push(chain.name.clone());
        content.chain(chain);
    }
    chains
}

/// Whether a chain is that of a subnet.
pub(super) fn is_chain(name: &str) -> bool {
    name.starts_with(&format!("{CHAIN}-"))
}

/// The chain of the subnet of `address` in a network.
pub(super) fn chain_of(network: &str, address: IpNetwork) -> String {
    let subnet = format!("{}/{}", address.network(), address.prefix());
    // No address has a hyphen, so it is clear where the network's name ends. `nft` reads no colons in names.
    format!("{}-{}", chain_name(CHAIN, network), subnet.replace(':', "_"))
}

fn subnet_chain(network: &str, address: IpNetwork) -> NetworkChain {
    let subnet = format!("{}/{}", address.network(), address.prefix());
    let name = chain_of(network, address);
    let within = |rule: Rule, v4, v6| match address {
        IpNetwork::V4(_) => rule.ipv4().within(v4, address),
        IpNetwork::V6(_) => rule.ipv6().within(v6, address),
    };
    NetworkChain {
        rules: vec![
            within(Rule::new(), Field::Ip4Daddr, Field::Ip6Daddr).then_verdict(&Verdict::Return),
            Rule::new().masquerade(),
        ],
        entries: Vec::new(),
        // A jump: the address may lie in another network's larger subnet as well.
        entry_rule: Some(
            within(Rule::new(), Field::Ip4Saddr, Field::Ip6Saddr)
                .jump(&name)
                .comment(&format!("network {network}")),
        ),
        comment: format!("network {network}, subnet {subnet}"),
        name,
    }
}
