//! The table `bridge cni-bridge`: what enters a bridge by the port of a container whose network asks for that.
//!
//! Its map `ports` is read by no rule. It is the record: whose a port is, and its MAC where that is checked. Its verdict
//! names a chain of the network that no frame enters, so that the next attachment sees whether somebody has removed it
//! together with the others' elements. These chains lead to one that is there to be counted: when nothing refers to it,
//! the table can go.

use nft_netlink::{
    Base, ChainKind, Element, Error, Family, Holds, Hook, KeyType, Policy as ChainPolicy, Rule, Set, Socket,
    Table, Verdict, ifname_key,
};

use crate::names;

use super::content::{Content, Doomed, NetworkChain, chain_name, stable_hash};
use super::skeleton::{Member, Skeleton, SkeletonChain};
use super::{Attached, record, spoofcheck, untracked};

const PORTS: &str = "ports";
const PORT: &str = "port";

pub(super) static SKELETON: Skeleton = Skeleton {
    table: Table { family: Family::Bridge, name: "cni-bridge" },
    comment: "CNI bridge networks: what containers may send",
    sets: &[
        (Set { name: PORTS, key: &[KeyType::Ifname], holds: Holds::Verdicts }, "host veth: whose, its MAC"),
        (spoofcheck::PORTS, "host veths that send with their own MAC only"),
        (spoofcheck::SOURCES, "and these MACs"),
        (untracked::WAYS, "ports and MACs between containers and the gateway of their VLAN"),
    ],
    chains,
    entry_maps: &[],
    entry_chain: None,
    records: PORTS,
    members,
    delete_elsewhere: |_, _, _| Ok(()),
};

fn chains() -> Vec<SkeletonChain> {
    /// `NF_BR_PRI_NAT_DST_BRIDGED`: before anything else that sees a frame.
    const BEFORE_ALL: i32 = -300;
    vec![
        SkeletonChain {
            name: PORT,
            comment: "counts the ports; no frame comes here",
            base: None,
            rules: Vec::new(),
        },
        SkeletonChain {
            name: "prerouting",
            comment: "frames from container ports",
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Prerouting,
                priority: BEFORE_ALL,
                policy: ChainPolicy::Accept,
            }),
            rules: vec![spoofcheck::rule(), untracked::rule()],
        },
    ]
}

/// What the attachments need here; nothing when no port of theirs is checked.
pub(super) fn content(attached: &[Attached<'_>]) -> Content {
    content_with(attached, Some(edition()))
}

/// Chains that there may be of an attachment's network, whatever it needs by now.
pub(super) fn possible_chains(attached: &Attached<'_>) -> Vec<String> {
    let ways = [(true, false), (true, true), (false, true)];
    ways.map(|(is_checked, has_ways)| chain_name_of(attached, is_checked, has_ways, edition())).into()
}

/// The same as builds before there were chains of networks had it.
pub(super) fn content_without_chains(attached: &[Attached<'_>]) -> Content {
    content_with(attached, None)
}

/// A number for the rules that the table itself has. It is part of the names of the networks' chains, so that the first
/// ADD of a build that has others has all of its network mended.
fn edition() -> u64 {
    stable_hash((SKELETON.chains)())
}

/// With a chain for each network, where there is an edition.
fn content_with(attached: &[Attached<'_>], edition: Option<u64>) -> Content {
    let mut content = Content::new(&SKELETON);
    for attached in attached {
        let Attached { owner, mac, policy, .. } = attached;
        let port = || Element::new(ifname_key(owner.host_veth));
        let identity = record::identity(owner);
        if policy.mac_spoof_check {
            content.element(spoofcheck::PORTS.name, port().with_comment(&identity));
            let source = spoofcheck::source(&ifname_key(owner.host_veth), *mac).with_comment(&identity);
            content.element(spoofcheck::SOURCES.name, source);
        }
        let ways = untracked::ways(attached);
        if policy.mac_spoof_check || !ways.is_empty() {
            let link = (!ways.is_empty()).then_some(attached.gateway_link);
            let chain = edition.map(|edition| chain_of(attached, link.is_some(), edition));
            for way in ways {
                content.element(untracked::WAYS.name, way.with_comment(&identity));
            }
            let comment = record::with(owner, &[], policy.mac_spoof_check.then_some(*mac), link);
            let target = chain.as_ref().map_or(PORT, |chain| &chain.name).to_owned();
            content.element(PORTS, port().with_verdict(Verdict::Goto(target)).with_comment(&comment));
            chain.into_iter().for_each(|chain| content.chain(chain));
        }
    }
    content
}

/// The chain of an attachment's network.
fn chain_of(attached: &Attached<'_>, has_ways: bool, edition: u64) -> NetworkChain {
    NetworkChain {
        name: chain_name_of(attached, attached.policy.mac_spoof_check, has_ways, edition),
        comment: format!(
            "network {}: its ports; no frame comes here",
            names::network(attached.owner.network)
        ),
        rules: vec![Rule::new().jump(PORT)],
        entries: Vec::new(),
        entry_rule: None,
    }
}

/// A network has a chain for each different way of its ports: its configuration may have changed.
fn chain_name_of(attached: &Attached<'_>, is_checked: bool, has_ways: bool, edition: u64) -> String {
    let what = if is_checked { "checked" } else { "network" };
    let hash = stable_hash((edition, has_ways)) as u32;
    format!("{}-{hash:08x}", chain_name(what, &names::network(attached.owner.network)))
}

/// The hardware address of the gateway interface behind the bridge port `port`, by the elements of those that it is the
/// gateway of: the one that most of them know.
pub(super) fn gateway_mac(socket: &mut Socket, port: &str) -> Result<Option<[u8; 6]>, Error> {
    Ok(untracked::gateway_mac(&socket.elements(SKELETON.table, untracked::WAYS.name)?, port))
}

/// What goes with the attachment that has `host_veth`.
pub(super) fn doomed(socket: &mut Socket, host_veth: &str) -> Result<Option<Doomed>, Error> {
    let Some(record) = socket.element(SKELETON.table, PORTS, &ifname_key(host_veth))? else {
        return Ok(None);
    };
    Doomed::with_records(socket, &Content::new(&SKELETON), vec![record]).map(Some)
}

/// The elements of the port that a record is of. The ways of a VLAN are searched for: the record does not spell them.
fn members(socket: &mut Socket, record: &Element) -> Result<Vec<Member>, Error> {
    let mut lookups = vec![(spoofcheck::PORTS.name, record.key.clone())];
    if let Some(mac) = record.comment.as_deref().and_then(record::mac) {
        lookups.push((spoofcheck::SOURCES.name, spoofcheck::source(&record.key, mac).key));
    }
    let mut members = Vec::new();
    for (set, key) in lookups {
        members.extend(socket.element(SKELETON.table, set, &key)?.map(|element| Member { set, element }));
    }
    let comment = record.comment.as_deref().unwrap_or_default();
    if record::link(comment).is_some() || record::is_cut(comment) {
        let set = untracked::WAYS.name;
        let identity = record::identity_of(comment);
        let own = socket.elements(SKELETON.table, set)?.into_iter();
        let own = own.filter(|element| element.comment.as_deref() == Some(identity));
        members.extend(own.map(|element| Member { set, element }));
    }
    Ok(members)
}

/// Whether the MAC is checked at the port `host_veth`; `None` without a record.
pub(super) fn checks_mac(socket: &mut Socket, host_veth: &str) -> Result<Option<bool>, Error> {
    let (table, key) = (SKELETON.table, ifname_key(host_veth));
    if socket.element(table, PORTS, &key)?.is_none() {
        return Ok(None);
    }
    Ok(Some(socket.element(table, spoofcheck::PORTS.name, &key)?.is_some()))
}

/// The elements that are records.
pub(super) fn records(socket: &mut Socket) -> Result<Vec<Element>, Error> {
    socket.elements(SKELETON.table, PORTS)
}
