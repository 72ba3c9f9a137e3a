//! `bridge prune`: bridges of ours that nobody is attached to, and rules of attachments that are gone.

use anyhow::Context as _;

use crate::attachment::{is_gateway_port, is_marked};
use crate::netlink::Netlink;
use crate::netlink::link::Kind;
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
        let is_used = links.iter().any(|link| {
            // The gateway interfaces of its VLANs are no use of it.
            let is_port = link.controller == Some(bridge.index) && !is_gateway_port(&link.alias);
            // Such as a macvlan or a VLAN of somebody else's: the kernel would delete it with the bridge.
            let stands_on_it = link.peer == Some(bridge.index) && link.peer_netns.is_none();
            is_port || stands_on_it
        });
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
    for [network, container_id, ifname] in rules::collect_iptables(&mut host, None)? {
        removed += &format!("removed iptables rules of {network}/{container_id}/{ifname}\n");
    }
    // What comes now sees for itself who is attached.
    drop(alone);
    for (network, departed) in gone {
        rules::forget(&mut rules, &network, &departed)?;
    }
    rules::remove_orphans(&mut rules, &mut host)?;
    Ok(removed)
}
