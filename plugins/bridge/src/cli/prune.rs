//! `bridge prune`: bridges of ours that nobody is attached to, and rules of attachments that are gone.

use std::collections::BTreeSet;

use anyhow::Context as _;

use crate::attachment::{Identity, is_gateway_port, is_marked};
use crate::iptables::{self, Told};
use crate::netlink::Netlink;
use crate::netlink::link::{Kind, Link};
use crate::netns::Netns;
use crate::nft::{Record, Rules};
use crate::{rules, survey};

/// Removes them; says what was removed.
pub(super) fn prune() -> anyhow::Result<String> {
    let mut removed = String::new();
    let home = Netns::own()?;
    // While nobody is about to put a port on one of them.
    let alone = home.exclude()?;
    let mut host = Netlink::open().context("netlink")?;
    let links = host.links().context("list links")?;
    for bridge in links.iter().filter(|link| link.kind == Kind::Bridge && is_marked(&link.alias)) {
        let is_used = links
            .iter()
            // The gateway interfaces of its VLANs are no use of it.
            .any(|link| link.controller == Some(bridge.index) && !is_gateway_port(&link.alias));
        if is_used {
            continue;
        }
        for port in links.iter().filter(|link| link.controller == Some(bridge.index)) {
            host.delete_link(port.index).with_context(|| format!("remove {}", port.name))?;
        }
        host.delete_link(bridge.index).with_context(|| format!("remove bridge {}", bridge.name))?;
        removed += &format!("removed bridge {}\n", bridge.name);
    }
    let mut rules = Rules::open()?;
    let mut gone = Vec::new();
    for record in rules.records()? {
        if survey::is_alive(&record, &links) {
            continue;
        }
        let departed = rules.remove_recorded(&record)?;
        let Record { network, container_id, ifname, .. } = record;
        removed += &format!("removed rules of {network}/{container_id}/{ifname}\n");
        gone.push((network, departed));
    }
    rules::remove_unneeded_guard(&mut rules, &alone)?;
    removed += &prune_iptables(&mut rules, &links)?;
    // What comes now sees for itself who is attached.
    drop(alone);
    for (network, departed) in gone {
        rules::forget(&mut rules, &network, &departed)?;
    }
    rules::remove_orphans(&mut rules, &mut host)?;
    Ok(removed)
}

/// Removes masquerade rules through iptables of attachments that are gone; says whose. Nothing is started where there
/// are none.
fn prune_iptables(rules: &mut Rules, links: &[Link]) -> anyhow::Result<String> {
    let alive: Vec<Identity> = survey::identities(links).collect();
    let is_gone = |told: &Told<'_>| !alive.iter().any(|identity| told.is(identity.jumps()));
    let comments = rules::iptables_comments(rules)?;
    let gone: BTreeSet<Told<'_>> =
        comments.iter().filter_map(|comment| Told::by(comment)).filter(|told| is_gone(told)).collect();
    if !gone.is_empty() {
        iptables::remove_gone(is_gone)?;
    }
    let words = |Told { network, container_id, ifname }| {
        format!("removed iptables rules of {network}/{container_id}/{ifname}\n")
    };
    Ok(gone.into_iter().map(words).collect())
}
