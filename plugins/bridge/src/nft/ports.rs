//! The table `bridge cni-bridge`: what enters a bridge by a container's port.
//!
//! Its map `ports` sends the frames of a port to the chain with the checks that were asked for, and is the record of
//! the port as well: whose it is, and its MAC where that is checked.

use nft_netlink::{
    Base, ChainKind, Element, Error, Family, Field, Holds, Hook, KeyType, Policy as ChainPolicy, Rule, Set,
    Socket, Table, Verdict, ifname_key,
};

use super::content::{self, Content, Member, Skeleton, SkeletonChain};
use super::{Attached, Owner, Policy, guard, record, spoofcheck};

const PORTS: &str = "ports";

const GUARD: &str = "ra-guard";
const CHECK: &str = "mac-check";
const GUARD_AND_CHECK: &str = "ra-guard-mac-check";

pub(super) static SKELETON: Skeleton = Skeleton {
    table: Table { family: Family::Bridge, name: "cni-bridge" },
    comment: "CNI bridge networks: what containers may send",
    sets: &[
        (
            Set { name: PORTS, key: &[KeyType::Ifname], holds: Holds::Verdicts },
            "host veth: whose, MAC, what is checked",
        ),
        (spoofcheck::SOURCES, "host veth and the MAC that may send there"),
    ],
    chains,
};

fn chains() -> Vec<SkeletonChain> {
    let checks = |name, comment, rules| SkeletonChain { name, comment, base: None, rules };
    /// `NF_BR_PRI_NAT_DST_BRIDGED`: before anything else that sees a frame.
    const BEFORE_ALL: i32 = -300;
    vec![
        checks(GUARD, "no router advertisements", vec![guard::rule()]),
        checks(CHECK, "no foreign source MAC", vec![spoofcheck::rule()]),
        checks(GUARD_AND_CHECK, "neither", vec![guard::rule(), spoofcheck::rule()]),
        SkeletonChain {
            name: "prerouting",
            comment: "frames from container ports",
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Prerouting,
                priority: BEFORE_ALL,
                policy: ChainPolicy::Accept,
            }),
            rules: vec![Rule::new().vmap(&[Field::Iifname], PORTS)],
        },
    ]
}

/// What the attachments need here; nothing when no port of theirs is checked.
pub(super) fn content(attached: &[Attached<'_>]) -> Option<Content> {
    let mut content = Content::new(&SKELETON);
    for Attached { owner, mac, policy, .. } in attached {
        let Some(chain) = chain_of(*policy) else { continue };
        let comment =
            if policy.mac_spoof_check { record::with_mac(owner, *mac) } else { record::identity(owner) };
        content.element(
            PORTS,
            Element::new(ifname_key(owner.host_veth))
                .with_verdict(Verdict::Goto(chain.to_owned()))
                .with_comment(&comment),
        );
        if policy.mac_spoof_check {
            content.element(
                spoofcheck::SOURCES.name,
                spoofcheck::source(owner.host_veth, *mac, &record::identity(owner)),
            );
        }
    }
    (!content.elements.is_empty()).then_some(content)
}

fn chain_of(policy: Policy) -> Option<&'static str> {
    match (policy.ra_guard, policy.mac_spoof_check) {
        (false, false) => None,
        (true, false) => Some(GUARD),
        (false, true) => Some(CHECK),
        (true, true) => Some(GUARD_AND_CHECK),
    }
}

/// Removes the elements of `owner`, and the table after its last port.
pub(super) fn remove(socket: &mut Socket, owner: &Owner<'_>) -> Result<(), Error> {
    let table = SKELETON.table;
    let removed = content::unless_raced(|| {
        let Some(port) = socket.element(table, PORTS, &ifname_key(owner.host_veth))? else {
            return Ok(false);
        };
        let mac = port.comment.as_deref().and_then(record::mac);
        let mut members = vec![Member { set: PORTS, element: port }];
        if let Some(mac) = mac
            && let Some(element) =
                socket.element(table, spoofcheck::SOURCES.name, &spoofcheck::key(owner.host_veth, mac))?
        {
            members.push(Member { set: spoofcheck::SOURCES.name, element });
        }
        content::delete(socket, table, &members)?;
        Ok(true)
    })?;
    if !removed {
        return Ok(());
    }
    content::sweep_table(socket, &SKELETON, is_empty)
}

/// Whether no port refers to the chains with the checks.
fn is_empty(socket: &mut Socket) -> Result<bool, Error> {
    for chain in [GUARD, CHECK, GUARD_AND_CHECK] {
        let Some(found) = socket.chain(SKELETON.table, chain)? else { continue };
        if found.uses as usize > socket.rules(SKELETON.table, chain)?.len() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The elements that are records.
pub(super) fn records(socket: &mut Socket) -> Result<Vec<Element>, Error> {
    socket.elements(SKELETON.table, PORTS)
}
