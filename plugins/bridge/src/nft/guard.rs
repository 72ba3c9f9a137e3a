//! RA guard: a container is no router, so a router advertisement that it sends enters no bridge port.
//!
//! Without it one container can give all others of its bridge an IPv6 default route by way of itself.
//!
//! The table `bridge cni-ra-guard` is the same for every network and every container: a port is guarded because its link
//! is in a [group](GUARDED), as it is from its first moment on. So an ADD that finds the table whole changes nothing in
//! nf_tables, and a DEL does only when no port is left. A change costs whoever makes it a wait for the kernel, and all
//! others who make one at that time.

use std::fmt;

use nft_netlink::{
    Base, Batch, ChainKind, Error, Family, FoundTable, Hook, Policy as ChainPolicy, Rule, Socket, Table,
};
use nix::libc;

use super::content;
use super::skeleton::do_same;

/// The group of the links that are guarded: "cni" in ASCII, a number that nobody chooses for something else.
pub(crate) const GUARDED: u32 = 0x0063_6e69;

const TABLE: Table<'_> = Table { family: Family::Bridge, name: "cni-ra-guard" };

const COMMENT: &str = "CNI bridge networks: containers are no routers";

const CHAIN: &str = "prerouting";

const BASE: Base = Base {
    kind: ChainKind::Filter,
    hook: Hook::Prerouting,
    // `NF_BR_PRI_NAT_DST_BRIDGED`: before anything else that sees a frame.
    priority: -300,
    policy: ChainPolicy::Accept,
};

/// ICMPv6 type, RFC 4861 section 4.2.
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Drops router advertisements, and the frames that would hide them: a receiver takes off every tag that names no VLAN,
/// a rule sees behind the first one only.
fn rules() -> [Rule; 3] {
    let guarded = || Rule::new().iifgroup(GUARDED);
    [
        guarded().icmpv6_frame(ROUTER_ADVERTISEMENT).drop(),
        guarded().second_tag_without_vlan(libc::ETH_P_8021Q as u16).drop(),
        guarded().second_tag_without_vlan(libc::ETH_P_8021AD as u16).drop(),
    ]
}

/// What is wrong with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    NoTable,
    Dormant,
    NoChain,
    OtherHook,
    OtherRules,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("{} {}", TABLE.family.name(), TABLE.name);
        match self {
            Self::NoTable => write!(f, "nf_tables table {table} is missing"),
            Self::Dormant => write!(f, "nf_tables table {table} is dormant"),
            Self::NoChain => write!(f, "nf_tables chain {table} {CHAIN} is missing"),
            Self::OtherHook => write!(f, "nf_tables chain {table} {CHAIN} has another hook or policy"),
            Self::OtherRules => write!(f, "nf_tables chain {table} {CHAIN} has other rules"),
        }
    }
}

/// Whether there is a table.
pub(super) fn exists(socket: &mut Socket) -> Result<bool, Error> {
    Ok(socket.table(TABLE)?.is_some())
}

/// Whether there is a table that sees frames.
pub(super) fn is_awake(socket: &mut Socket) -> Result<bool, Error> {
    Ok(socket.table(TABLE)?.is_some_and(|found| !found.dormant))
}

/// What is wrong with the chain, wherever its table is: two questions, for an ADD.
pub(super) fn fault_of_chain(socket: &mut Socket) -> Result<Option<Fault>, Error> {
    let Some(chain) = socket.chain(TABLE, CHAIN)? else { return Ok(Some(Fault::NoChain)) };
    if chain.base != Some(BASE) {
        return Ok(Some(Fault::OtherHook));
    }
    let found = socket.rules(TABLE, CHAIN)?;
    Ok((!do_same(&found, &rules())).then_some(Fault::OtherRules))
}

/// Everything that is wrong with the table.
pub(super) fn faults(socket: &mut Socket) -> Result<Vec<Fault>, Error> {
    let Some(FoundTable { dormant, .. }) = socket.table(TABLE)? else { return Ok(vec![Fault::NoTable]) };
    Ok(dormant.then_some(Fault::Dormant).into_iter().chain(fault_of_chain(socket)?).collect())
}

/// Makes the table, or mends it; returns what was wrong.
pub(super) fn install(socket: &mut Socket) -> Result<Vec<Fault>, Error> {
    content::change(socket, |socket, batch| {
        let faults = faults(socket)?;
        for fault in &faults {
            mend(*fault, batch);
        }
        Ok(faults)
    })
}

fn mend(fault: Fault, batch: &mut Batch) {
    match fault {
        Fault::NoTable => batch.create_table(TABLE, COMMENT),
        Fault::Dormant => return batch.wake_table(TABLE),
        Fault::NoChain => {}
        Fault::OtherHook => batch.delete_chain(TABLE, CHAIN),
        Fault::OtherRules => batch.flush_chain(TABLE, CHAIN),
    }
    if fault != Fault::OtherRules {
        batch.create_base_chain(TABLE, CHAIN, &BASE, "frames from container ports");
    }
    for rule in &rules() {
        batch.add_rule(TABLE, CHAIN, rule);
    }
}

/// Removes the table, or only the chain where somebody has put more into it.
pub(super) fn remove(socket: &mut Socket) -> Result<(), Error> {
    content::change(socket, |socket, batch| {
        let Some(FoundTable { uses, .. }) = socket.table(TABLE)? else { return Ok(()) };
        let chains = u32::from(socket.chain(TABLE, CHAIN)?.is_some());
        match uses == chains {
            true => batch.delete_table(TABLE),
            false if chains > 0 => batch.delete_chain(TABLE, CHAIN),
            false => {}
        }
        Ok(())
    })
}
