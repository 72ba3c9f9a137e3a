//! Firewalls of others that drop what containers forward. Only looks.
//!
//! An `accept` of ours cannot help against a `drop` in another base chain of the same hook: every base chain has to
//! let a packet pass. So the person is told which one does not.

use std::collections::HashSet;

use nft_netlink::{ChainKind, End, Error, Family, Hook, Policy, Socket, Table};

use super::routed;

/// A base chain that drops what our containers forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignDrop {
    /// As `nft` writes it: `ip filter FORWARD`.
    pub(crate) chain: String,
    /// How it drops: `policy drop`, or its last rule's `drop` or `reject`.
    pub(crate) reason: &'static str,
}

/// Base chains that drop forwarded packets which nothing else in them decides, and that have no rule which accepts
/// those of `link`.
pub(super) fn drops(socket: &mut Socket, link: &str) -> Result<Vec<ForeignDrop>, Error> {
    let ours = routed::SKELETON.table;
    let mut drops = Vec::new();
    for chain in socket.chains()? {
        let Some(base) = &chain.base else { continue };
        let Some(family @ (Family::Inet | Family::Ipv4 | Family::Ipv6)) = chain.family else { continue };
        if base.hook != Hook::Forward || base.kind != ChainKind::Filter {
            continue;
        }
        let table = Table { family, name: &chain.table };
        if table == ours {
            continue;
        }
        let rules = socket.rules(table, &chain.name)?;
        let reason = match rules.last().and_then(|rule| rule.end()) {
            Some(End::Drop) => "its last rule is drop",
            Some(End::Reject) => "its last rule is reject",
            _ if base.policy == Policy::Drop => "policy drop",
            _ => continue,
        };
        if !accepts(socket, table, &chain.name, link)? {
            drops.push(ForeignDrop {
                chain: format!("{} {} {}", family.name(), chain.table, chain.name),
                reason,
            });
        }
    }
    Ok(drops)
}

/// Whether the chain, or one that it leads to, has a rule that accepts packets for no other reason than that they come
/// from or go to `link`.
fn accepts(socket: &mut Socket, table: Table<'_>, chain: &str, link: &str) -> Result<bool, Error> {
    let mut seen = HashSet::new();
    let mut open = vec![chain.to_owned()];
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        for rule in socket.rules(table, &name)? {
            if rule.accepts_link(link) {
                return Ok(true);
            }
            open.extend(rule.targets());
        }
    }
    Ok(false)
}
