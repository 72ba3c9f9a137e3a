//! Firewalls of others that drop what containers forward. Only looks.
//!
//! An `accept` of ours cannot help against a `drop` in another base chain of the same hook: every base chain has to
//! let a packet pass. So the person is told which one does not.

use nft_netlink::{Chain, ChainKind, Error, Family, FoundRule, Hook, Packet, Socket, Table};

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
    /// How it drops.
    reason: String,
    /// Its rules.
    pub(super) rules: Vec<FoundRule>,
    /// The rule that drops, by its handle; `None` for the policy.
    pub(super) dropped_at: Option<u64>,
    policy_drops: bool,
    /// Whether nobody but the owner of its table can write a rule there (`flags owner`).
    pub(super) is_closed: bool,
}

impl Barrier {
    pub(super) fn table(&self) -> Table<'_> {
        Table { family: self.family, name: &self.table }
    }
}

/// Those chains of others that drop the rest, and the flows of a network with it.
pub(super) fn drops(socket: &mut Socket, flows: &mut Flows<'_>) -> Result<Vec<ForeignDrop>, Error> {
    let mut drops = Vec::new();
    for barrier in barriers(socket)? {
        let (table, chain) = (barrier.table(), &barrier.chain);
        let mut passes = |packet: &Packet<'_>| {
            let undecided = socket.follow(table, chain, packet)?;
            Ok::<_, Error>(undecided.fate.drops(chain, barrier.policy_drops).is_none())
        };
        if !flows.pass(&mut passes)? {
            let Barrier { family, table, chain, reason, is_closed, .. } = barrier;
            let chain = format!("{} {table} {chain}", family.name());
            let reason = match is_closed {
                true => format!("{reason}, in a table that only its owner can change"),
                false => reason,
            };
            drops.push(ForeignDrop { chain, reason });
        }
    }
    Ok(drops)
}

/// The base chains of others that drop the rest of what is forwarded.
pub(super) fn barriers(socket: &mut Socket) -> Result<Vec<Barrier>, Error> {
    let mut barriers = Vec::new();
    for chain in socket.chains()? {
        let Some(table) = forwards(&chain) else { continue };
        let undecided = socket.follow(table, &chain.name, &Packet::default())?;
        let policy_drops = chain.policy_drops();
        let Some(reason) = undecided.fate.drops(&chain.name, policy_drops) else { continue };
        barriers.push(Barrier {
            family: table.family,
            is_closed: socket.table(table)?.is_some_and(|found| found.owned),
            reason,
            rules: socket.rules(table, &chain.name)?,
            dropped_at: undecided.at,
            policy_drops,
            table: chain.table,
            chain: chain.name,
        });
    }
    Ok(barriers)
}

/// The table of a chain of somebody else's that filters what is forwarded.
pub(super) fn forwards(chain: &Chain) -> Option<Table<'_>> {
    let family =
        chain.family.filter(|family| matches!(family, Family::Inet | Family::Ipv4 | Family::Ipv6))?;
    let base = chain.base.as_ref()?;
    let table = Table { family, name: &chain.table };
    let filters = base.hook == Hook::Forward && base.kind == ChainKind::Filter;
    (filters && table != ROUTED).then_some(table)
}
