//! The table `bridge cni-bridge`: what enters a bridge by the port of a container whose network asks for that.
//!
//! Its map `ports` is read by no rule. It is the record: whose a port is, and its MAC where that is checked. The chain
//! that its verdicts name is there to be counted: when nothing refers to it, the table can go.

use nft_netlink::{
    Base, ChainKind, Element, Error, Family, Holds, Hook, KeyType, Policy as ChainPolicy, Set, Socket, Table,
    Verdict, ifname_key,
};

use super::content::{Content, Doomed};
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
            for way in ways {
                content.element(untracked::WAYS.name, way.with_comment(&identity));
            }
            let comment = record::with(owner, &[], policy.mac_spoof_check.then_some(*mac), link);
            let record = port().with_verdict(Verdict::Goto(PORT.to_owned())).with_comment(&comment);
            content.element(PORTS, record);
        }
    }
    content
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
