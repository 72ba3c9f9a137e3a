//! What the reference plugins (containernetworking/plugins) made for an attachment, for a DEL after the change to this
//! one: their masquerade rules in either backend, and their MAC spoof check.
//!
//! `iptables-nft` keeps its rules in ordinary nf_tables tables (`ip nat`, `ip6 nat`), so they are removed like the rest,
//! without a process. Tables, base chains and what is not of the attachment are left alone.

use nft_netlink::{Batch, Error, Family, FoundRule, MAX_NAME, Socket, Table};
use sha2::{Digest as _, Sha512};

use super::Owner;
use crate::iptables::{self, Jumps};

const MASQUERADE: Table<'static> = Table { family: Family::Inet, name: "cni_plugins_masquerade" };
const MASQUERADE_CHAIN: &str = "masq_checks";
const SPOOF_CHECK: Table<'static> = Table { family: Family::Bridge, name: "nat" };
const SPOOF_CHECK_BASE: &str = "PREROUTING";
const IPTABLES: [Table<'static>; 2] =
    [Table { family: Family::Ipv4, name: "nat" }, Table { family: Family::Ipv6, name: "nat" }];
const IPTABLES_BASE: &str = "POSTROUTING";

/// Adds to `batch` the removal of what is there.
pub(super) fn remove(socket: &mut Socket, owner: &Owner<'_>, batch: &mut Batch) -> Result<(), Error> {
    let (id, ifname) = (owner.attachment.container_id(), owner.attachment.ifname());

    let mark = masquerade_mark(owner);
    for rule in socket.rules(MASQUERADE, MASQUERADE_CHAIN)? {
        if rule.comment().is_some_and(|comment| comment.starts_with(&mark)) {
            batch.delete_rule(MASQUERADE, MASQUERADE_CHAIN, rule.handle);
        }
    }

    let (port_chain, mac_chain) =
        (format!("cni-br-iface-{id}-{ifname}"), format!("cni-br-iface-{id}-{ifname}-mac"));
    // A name that the kernel refuses even to look for was never given.
    if mac_chain.len() <= MAX_NAME {
        remove_chain(socket, SPOOF_CHECK, SPOOF_CHECK_BASE, &port_chain, |_| true, batch)?;
        if socket.chain(SPOOF_CHECK, &mac_chain)?.is_some() {
            batch.delete_chain(SPOOF_CHECK, &mac_chain);
        }
    }

    // Ours through iptables are found here as well, when the configuration no longer says that there are any.
    let jumps = Jumps { network: owner.network, attachment: owner.attachment };
    let (container_chain, comments) = (iptables::chain(jumps), iptables::comments(jumps));
    for table in IPTABLES {
        let is_meant = |rule: &FoundRule| comments.iter().any(|comment| rule.comment() == Some(comment));
        remove_chain(socket, table, IPTABLES_BASE, &container_chain, is_meant, batch)?;
    }
    Ok(())
}

/// The comments of what the tables of `iptables-nft` have behind routing, where our jumps through it are.
pub(super) fn comments(socket: &mut Socket) -> Result<Vec<String>, Error> {
    let mut comments = Vec::new();
    for table in IPTABLES {
        let rules = socket.rules(table, IPTABLES_BASE)?;
        comments.extend(rules.iter().filter_map(FoundRule::comment).map(str::to_owned));
    }
    Ok(comments)
}

/// Removes from `base` the rules that lead to `chain` and that `is_meant` picks, and the chain when no other does.
fn remove_chain(
    socket: &mut Socket,
    table: Table<'_>,
    base: &str,
    chain: &str,
    is_meant: impl Fn(&FoundRule) -> bool,
    batch: &mut Batch,
) -> Result<(), Error> {
    let Some(found) = socket.chain(table, chain)? else { return Ok(()) };
    let mut own_uses = socket.rules(table, chain)?.len();
    for rule in socket.rules(table, base)? {
        if rule.targets().any(|target| target == chain) && is_meant(&rule) {
            batch.delete_rule(table, base, rule.handle);
            own_uses += 1;
        }
    }
    if found.uses as usize <= own_uses {
        batch.delete_chain(table, chain);
    }
    Ok(())
}

/// The start of the comment of the attachment's rules in the nftables backend.
fn masquerade_mark(owner: &Owner<'_>) -> String {
    let (id, ifname) = (owner.attachment.container_id(), owner.attachment.ifname());
    let network = hex_of_hash(&[owner.network]);
    let attachment = hex_of_hash(&[ifname, ":", id]);
    format!("{network}-{attachment},")
}

/// The first 16 digits of the SHA-512 of `parts`, as the reference derives its names.
fn hex_of_hash(parts: &[&str]) -> String {
    const DIGITS: usize = 16;
    let mut hash = Sha512::new();
    for part in parts {
        hash.update(part);
    }
    let nibbles = hash.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    nibbles.take(DIGITS).filter_map(|nibble| char::from_digit(u32::from(nibble), 16)).collect()
}

#[cfg(test)]
mod tests {
    use cni_types::Attachment;

    use super::*;

    #[test]
    fn names_are_the_references() {
        let attachment = Attachment::new("abc", "enft").unwrap();
        let owner = |network| Owner { network, attachment: &attachment, host_veth: "veth0" };
        assert_eq!(masquerade_mark(&owner("n-nftables")), "0dcdf0ea417a391a-f4ca8d5970fe4650,");
    }
}
