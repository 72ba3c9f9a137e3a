//! Masquerade: what a container sends out of its subnet leaves with the host's address. Multicast does not.
//!
//! One chain for each subnet of a network, and an element for each address; the chain goes with its last address.

use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use nft_netlink::{Element, Field, Rule, Verdict, address_key};

use super::content::{Content, NetworkChain};
use super::{Owner, record};

pub(super) const ADDRESSES_V4: &str = "masquerade4";
pub(super) const ADDRESSES_V6: &str = "masquerade6";

/// The rules that send a packet to its subnet's chain.
pub(super) fn dispatch() -> Vec<Rule> {
    let multicast_v4 = Ipv4Network::new_checked([224, 0, 0, 0].into(), 4).map(IpNetwork::V4);
    let multicast_v6 = Ipv6Network::new_checked([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8).map(IpNetwork::V6);
    let mut rules = Vec::new();
    if let Some(multicast) = multicast_v4 {
        rules.push(Rule::new().ipv4().within(Field::Ip4Daddr, multicast).then_verdict(&Verdict::Return));
    }
    rules.push(Rule::new().ipv4().vmap(&[Field::Ip4Saddr], ADDRESSES_V4));
    if let Some(multicast) = multicast_v6 {
        rules.push(Rule::new().ipv6().within(Field::Ip6Daddr, multicast).then_verdict(&Verdict::Return));
    }
    rules.push(Rule::new().ipv6().vmap(&[Field::Ip6Saddr], ADDRESSES_V6));
    rules
}

/// The map that an address is an element of.
pub(super) fn addresses_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { ADDRESSES_V4 } else { ADDRESSES_V6 }
}

/// The elements of the addresses, and the chains of their subnets.
pub(super) fn content(owner: &Owner<'_>, addresses: &[IpNetwork], content: &mut Content) {
    for address in addresses {
        let chain = subnet_chain(owner.network, *address);
        content.element(
            addresses_of(address.ip()),
            Element::new(address_key(address.ip()))
                .with_verdict(Verdict::Goto(chain.name.clone()))
                .with_comment(&record::identity(owner)),
        );
        content.chain(chain);
    }
}

fn subnet_chain(network: &str, address: IpNetwork) -> NetworkChain {
    // Neither a network's name nor an address contains a slash, and no address a hyphen: the name is unambiguous.
    // Names in nft have no colons.
    let subnet = format!("{}/{}", address.network(), address.prefix());
    let name = super::content::chain_name("masquerade", &[network, &subnet.replace(':', "_")]);
    let destination = Rule::new();
    let destination = match address {
        IpNetwork::V4(_) => destination.ipv4().within(Field::Ip4Daddr, address),
        IpNetwork::V6(_) => destination.ipv6().within(Field::Ip6Daddr, address),
    };
    NetworkChain {
        name,
        comment: format!("network {network}, subnet {subnet}"),
        rules: vec![destination.then_verdict(&Verdict::Return), Rule::new().masquerade()],
        entries: Vec::new(),
    }
}
