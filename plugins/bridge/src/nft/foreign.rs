//! Firewalls of others that drop what containers forward. Only looks.
//!
//! An `accept` of ours cannot help against a `drop` in another base chain of the same hook: every base chain has to
//! let a packet pass. So the person is told which one does not.

use nft_netlink::{Chain, Error, Family, FoundRule, Hook, Packet, Socket, Table};

use super::skeleton::ROUTED;
use crate::flows::Flows;

/// A base chain that drops what our containers forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignDrop {
    /// As `nft` writes it: `ip filter FORWARD`; behind the program that shows it where that is another.
    pub(crate) chain: String,
    /// How it drops: `policy drop`, or the rule that does; and where it is so, that no rule can be written there.
    pub(crate) reason: String,
}

/// A base chain that drops forwarded packets which no test in it picks out.
#[derive(Debug)]
pub(super) struct Barrier {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) chain: String,
    /// Its rules.
    pub(super) rules: Vec<FoundRule>,
    /// The rule that drops, by its handle; `None` for the policy.
    pub(super) dropped_at: Option<u64>,
    /// Whether nobody but the owner of its table can write a rule there (`flags owner`).
    pub(super) is_closed: bool,
}

impl Barrier {
    pub(super) fn table(&self) -> Table<'_> {
        Table { family: self.family, name: &self.table }
    }
}

/// Those chains of others that drop the flows of a network, be it with the rest or by a rule of their own.
pub(super) fn drops(socket: &mut Socket, flows: &mut Flows<'_>) -> Result<Vec<ForeignDrop>, Error> {
    let mut drops = Vec::new();
    for chain in socket.chains()? {
        let Some(table) = forwards(&chain) else { continue };
        let mut packets = flows.packets();
        packets.retain(|packet| packet.is_seen_by(table.family));
        let followed = socket.follow_each(table, &chain.name, &packets)?;
        let policy_drops = chain.policy_drops();
        let mut reasons = followed.into_iter().filter_map(|way| way.fate.drops(&chain.name, policy_drops));
        let Some(mut reason) = reasons.next() else { continue };
        if is_closed(socket, table)? {
            reason.push_str(", in a table that only its owner can change");
        }
        let chain = format!("{} {} {}", table.family.name(), table.name, chain.name);
        drops.push(ForeignDrop { chain, reason });
    }
    Ok(drops)
}

/// Whether there are chains of others that filter what is forwarded.
pub(super) fn is_there_any(socket: &mut Socket) -> Result<bool, Error> {
    Ok(socket.chains()?.iter().any(|chain| forwards(chain).is_some()))
}

/// The base chains of others that drop the rest of what is forwarded.
pub(super) fn barriers(socket: &mut Socket) -> Result<Vec<Barrier>, Error> {
    let mut barriers = Vec::new();
    for chain in socket.chains()? {
        let Some(table) = forwards(&chain) else { continue };
        let undecided = socket.follow(table, &chain.name, &Packet::default())?;
        if undecided.fate.drops(&chain.name, chain.policy_drops()).is_none() {
            continue;
        }
        barriers.push(Barrier {
            family: table.family,
            is_closed: is_closed(socket, table)?,
            rules: socket.rules(table, &chain.name)?,
            dropped_at: undecided.at,
            table: chain.table,
            chain: chain.name,
        });
    }
    Ok(barriers)
}

/// Whether nobody but its owner can write to a table.
fn is_closed(socket: &mut Socket, table: Table<'_>) -> Result<bool, Error> {
    Ok(socket.table(table)?.is_some_and(|found| found.owned))
}

/// The table of a chain of somebody else's that filters what is forwarded.
pub(super) fn forwards(chain: &Chain) -> Option<Table<'_>> {
    let family =
        chain.family.filter(|family| matches!(family, Family::Inet | Family::Ipv4 | Family::Ipv6))?;
    let table = Table { family, name: &chain.table };
    // At this hook the kernel takes chains that filter, and no others.
    let filters = chain.base.as_ref()?.hook == Hook::Forward;
    (filters && table != ROUTED).then_some(table)
}
