//! The table `inet cni-bridge`: what is routed between the networks, the host and the outside.
//!
//! Its map `attachments` is read by no rule. It is the record: who is attached, which addresses have elements, and what
//! the attachment uses. For that its verdict names a chain of the network that no packet enters: the jumps in it are
//! the list, and as long as a record refers to it, the kernel keeps everything that is on the list.

use nft_netlink::{
    Base, ChainKind, Element, Error, Holds, Hook, KeyType, Policy as ChainPolicy, Rule, Set, Socket, Verdict,
    address_key, ifname_key,
};

use crate::names;

use super::content::{self, Content, Doomed, NetworkChain, chain_name};
use super::skeleton::{Member, ROUTED, Skeleton, SkeletonChain};
use super::{Attached, accept, isolation, masquerade, ports, record};

const ATTACHMENTS: &str = "attachments";

pub(super) static SKELETON: Skeleton = Skeleton {
    table: ROUTED,
    comment: "CNI bridge networks: masquerade and ingress policy",
    sets: &[
        (verdicts(ATTACHMENTS, &[KeyType::Ifname]), "host veth: whose, its addresses, what it uses"),
        (keys(masquerade::ADDRESSES_V4, &[KeyType::Ipv4Addr]), "containers that are masqueraded"),
        (keys(masquerade::ADDRESSES_V6, &[KeyType::Ipv6Addr]), "containers that are masqueraded"),
        (isolation::MEMBERS, "MACs of the containers behind these bridges"),
        (verdicts(isolation::ISOLATED, &[KeyType::Ifname]), "bridges with ingressPolicy isolated"),
        (verdicts(isolation::SAME_BRIDGE, &[KeyType::Ifname]), "bridges with an ingressPolicy"),
        (verdicts(isolation::GATEWAYS_V4, &[KeyType::Ipv4Addr]), "gateway addresses of these bridges"),
        (verdicts(isolation::GATEWAYS_V6, &[KeyType::Ipv6Addr]), "gateway addresses of these bridges"),
    ],
    chains,
    entry_maps: isolation::MAPS,
    entry_chain: Some(masquerade::SUBNETS),
    records: ATTACHMENTS,
    members,
    delete_elsewhere: accept::remove,
};

const fn verdicts(name: &'static str, key: &'static [KeyType]) -> Set<'static> {
    Set { name, key, holds: Holds::Verdicts }
}

const fn keys(name: &'static str, key: &'static [KeyType]) -> Set<'static> {
    Set { name, key, holds: Holds::Keys }
}

fn chains() -> Vec<SkeletonChain> {
    /// `NF_IP_PRI_FILTER`, where `iptables` filters too.
    const FILTER: i32 = 0;
    /// `NF_IP_PRI_NAT_SRC`.
    const SOURCE_NAT: i32 = 100;
    let at = |kind, hook, priority| Some(Base { kind, hook, priority, policy: ChainPolicy::Accept });
    vec![
        SkeletonChain {
            name: masquerade::SUBNETS,
            comment: "what leaves its subnet is masqueraded",
            base: None,
            rules: Vec::new(),
        },
        SkeletonChain {
            name: "postrouting",
            comment: "masquerade",
            base: at(ChainKind::Nat, Hook::Postrouting, SOURCE_NAT),
            rules: masquerade::dispatch(),
        },
        SkeletonChain {
            name: "forward",
            comment: "who may open a flow to a container",
            base: at(ChainKind::Filter, Hook::Forward, FILTER),
            rules: isolation::forward(),
        },
        SkeletonChain {
            name: "input",
            comment: "who may open a flow to a gateway address",
            base: at(ChainKind::Filter, Hook::Input, FILTER),
            rules: isolation::input(),
        },
    ]
}

/// What the attachments need here; nothing when none of them is masqueraded, has an ingress policy, is behind the gateway
/// of a VLAN or is let through the chains of others.
pub(super) fn content(attached: &[Attached<'_>]) -> Content {
    let mut content = Content::new(&SKELETON);
    let edition = edition(&[(SKELETON.chains)(), (ports::SKELETON.chains)()]);
    for attachment in attached {
        let owner = &attachment.owner;
        let masqueraded = if attachment.policy.masquerade { attachment.addresses } else { &[] };
        let mut uses = masquerade::content(owner, masqueraded, &mut content);
        uses.extend(isolation::content(attachment, &mut content));
        if attachment.policy.accept_forward {
            let accept = accept::content(owner.network);
            uses.push(accept.name.clone());
            content.chain(accept);
        }
        let is_member = isolation::is_member(attachment);
        if uses.is_empty() && !is_member {
            continue;
        }
        let list = list(&names::network(owner.network), &uses, attachment.port_words, edition);
        let mac = is_member.then_some(attachment.mac);
        let link = is_member.then_some(attachment.gateway_link);
        content.element(
            ATTACHMENTS,
            Element::new(ifname_key(owner.host_veth))
                .with_verdict(Verdict::Goto(list.name.clone()))
                .with_comment(&record::with(owner, masqueraded, mac, link)),
        );
        content.chain(list);
    }
    content
}

/// Chains that there may be of an attachment's network, or of its link, whatever it needs by now.
pub(super) fn possible_chains(attached: &Attached<'_>) -> Vec<String> {
    let Attached { owner, gateway_link, addresses, .. } = attached;
    let network = names::network(owner.network);
    let masquerade = addresses.iter().map(|address| masquerade::chain_of(&network, *address));
    [isolation::chain_of(gateway_link), accept::chain_of(owner.network)]
        .into_iter()
        .chain(masquerade)
        .collect()
}

/// A number for the rules that the tables themselves have, another for each build that has others. It is part of the
/// names of lists, so that the first ADD of such a build misses that of its network and has all rules mended, at no cost
/// to the others.
fn edition(tables: &[Vec<SkeletonChain>]) -> u64 {
    content::stable_hash(tables)
}

/// The chain that lists what an attachment uses. A network has one for each different list, and for each way that its
/// ports are set up: its subnets, its policy or the flags of its ports may have changed.
fn list(network: &str, uses: &[String], port_words: &[String], edition: u64) -> NetworkChain {
    let parts: Vec<&String> = uses.iter().chain(port_words).collect();
    let hash = content::stable_hash((parts, edition)) as u32;
    NetworkChain {
        name: format!("{}-{hash:08x}", chain_name("network", network)),
        comment: format!("network {network}: what it uses; no packet comes here"),
        rules: uses.iter().map(|chain| Rule::new().jump(chain)).collect(),
        entries: Vec::new(),
        entry_rule: None,
    }
}

/// What goes with the attachment that has `host_veth`.
pub(super) fn doomed(socket: &mut Socket, host_veth: &str) -> Result<Option<Doomed>, Error> {
    let Some(found) = socket.element(ROUTED, ATTACHMENTS, &ifname_key(host_veth))? else {
        return Ok(None);
    };
    Doomed::with_records(socket, &Content::new(&SKELETON), vec![found]).map(Some)
}

/// The addresses and the MAC that belong to a record.
fn members(socket: &mut Socket, record: &Element) -> Result<Vec<Member>, Error> {
    let table = ROUTED;
    let comment = record.comment.as_deref().unwrap_or_default();
    let mut members = Vec::new();
    if record::is_cut(comment) {
        for set in [masquerade::ADDRESSES_V4, masquerade::ADDRESSES_V6, isolation::MEMBERS.name] {
            let elements = socket.elements(table, set)?.into_iter();
            members.extend(elements.map(|element| Member { set, element }));
        }
    } else {
        let addresses = record::addresses(comment)
            .map(|address| (masquerade::addresses_of(address), address_key(address)));
        let of_mac = record::link(comment)
            .zip(record::mac(comment))
            .into_iter()
            .flat_map(|(link, mac)| isolation::members_of(link, mac))
            .map(|member| (isolation::MEMBERS.name, member.key));
        for (set, key) in addresses.chain(of_mac) {
            members.extend(socket.element(table, set, &key)?.map(|element| Member { set, element }));
        }
    }
    // An address may have been leased to somebody else since.
    let identity = record::identity_of(comment);
    members.retain(|member| member.element.comment.as_deref() == Some(identity));
    Ok(members)
}

/// The chains that the attachment with `host_veth` uses; `None` without a record.
pub(super) fn uses(socket: &mut Socket, host_veth: &str) -> Result<Option<Vec<String>>, Error> {
    let Some(record) = socket.element(ROUTED, ATTACHMENTS, &ifname_key(host_veth))? else {
        return Ok(None);
    };
    let Some(Verdict::Goto(list)) = record.verdict else { return Ok(Some(Vec::new())) };
    let rules = socket.rules(ROUTED, &list)?;
    Ok(Some(rules.iter().flat_map(|rule| rule.targets()).collect()))
}

/// The elements that are records.
pub(super) fn records(socket: &mut Socket) -> Result<Vec<Element>, Error> {
    socket.elements(ROUTED, ATTACHMENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_another_name_where_the_tables_have_other_rules() {
        let own = || [(SKELETON.chains)(), (ports::SKELETON.chains)()];
        let name = |tables: &[Vec<SkeletonChain>]| list("n", &["x".to_owned()], &[], edition(tables)).name;
        for table in 0..own().len() {
            let mut changed = own();
            changed[table].iter_mut().find_map(|chain| chain.rules.pop()).unwrap();
            assert_ne!(name(&changed), name(&own()));
        }
        assert_eq!(name(&own()), name(&own()));
    }

    #[test]
    fn a_list_has_another_name_where_ports_are_set_up_otherwise() {
        let name = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            list("n", &["x".to_owned()], &words, 1).name
        };
        let names = [name(&[]), name(&["isolation on"]), name(&["hairpin mode on"]), name(&["VLAN 5"])];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }
}
