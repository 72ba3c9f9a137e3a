//! Rules that let a network's traffic through the forward chains of others which would drop it (`acceptForward`).
//!
//! The one thing that is written into other people's chains, and only when asked for. A rule stands behind every test
//! of theirs and before what becomes of the rest, so it decides nothing that they have decided; what comes in for the
//! network stands in `DOCKER-USER` where there is one. In the chains of `iptables-nft` it is written as that does it:
//! of anything else it says that the table cannot be read.
//!
//! The rules carry the name of a chain of our own table, and live as long as it does: as long as an attachment that
//! came with the key. That chain has no rules and no packet comes there.
//!
//! Nobody is let in whom the network's own policy refuses: these rules ask for the same, and those for a policy that the
//! network had before go. A table that is its owner's alone (`flags owner`) takes none.

use std::collections::BTreeSet;

use nft_netlink::{Batch, CtState, Error, Family, FoundRule, IptablesState, Packet, Rule, Socket, Table};

use crate::names;

use super::content::{self, NetworkChain, chain_name};
use super::foreign::{self, Barrier};
use super::skeleton::ROUTED;
use super::{Attached, IngressPolicy};

/// What the names of our own chains begin with.
const CHAIN: &str = "accept-forward";

/// What comments of the rules begin with.
const MARK: &str = "cni-bridge ";

/// The table and the chains of `iptables-nft` that take rules here.
const IPTABLES_TABLE: &str = "filter";
const IPTABLES_FORWARD: &str = "FORWARD";
const DOCKER_USER: &str = "DOCKER-USER";

/// The rules of one network, as their comment calls them.
pub(super) fn comment(chain: &str) -> String {
    format!("{MARK}{chain}")
}

/// Whether rules of some network have this comment.
pub(super) fn is_comment(comment: &str) -> bool {
    comment.strip_prefix(MARK).is_some_and(is_chain)
}

/// The chain of our own that the rules of a network live as long as.
pub(super) fn chain_of(network: &str) -> String {
    chain_name(CHAIN, &names::network(network))
}

/// Whether a chain of our own stands for such rules.
pub(super) fn is_chain(name: &str) -> bool {
    name.strip_prefix(CHAIN).is_some_and(|rest| rest.starts_with('-'))
}

/// The chain of our own, for an attachment that came with the key.
pub(super) fn content(network: &str) -> NetworkChain {
    NetworkChain {
        name: chain_of(network),
        comment: format!(
            "network {network} is let through the forward chains of others; no packet comes here"
        ),
        rules: Vec::new(),
        entries: Vec::new(),
        entry_rule: None,
    }
}

/// The way of a packet that a rule accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the network's link.
    Out,
    /// To it.
    In,
    /// From port to port of the bridge that a VLAN's gateway is on, where bridged frames pass iptables: also what is on
    /// its way to that gateway.
    Bridged,
}

/// The language that the rules of a chain are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Nft,
    Iptables,
}

/// A chain that takes rules for one way.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    table: Table<'a>,
    chain: &'a str,
    way: Way,
    /// The rule that they stand before; `None` at the end.
    before: Option<u64>,
    present: &'a [FoundRule],
}

/// A rule that is not there, or one for another policy that is.
#[derive(Debug)]
struct Change {
    family: Family,
    table: String,
    chain: String,
    way: Way,
    /// What the packets that it accepts come from or go to.
    link: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Add {
        rule: Rule,
        before: Option<u64>,
    },
    /// The rule's handle.
    Remove(u64),
}

impl Change {
    fn words(&self) -> String {
        let Self { family, table, chain, link, .. } = self;
        let way = match self.way {
            Way::Out => "comes from",
            Way::In => "goes to",
            Way::Bridged => "is bridged on",
        };
        let chain = format!("nf_tables chain {} {table} {chain}", family.name());
        match self.kind {
            Kind::Add { .. } => format!("{chain} lacks the rule that accepts what {way} {link}"),
            Kind::Remove(_) => {
                format!("{chain} has a rule of another ingressPolicy that accepts what {way} {link}")
            }
        }
    }
}

/// Each rule for the attachment's network that is missing, and each that is there for another policy, in words.
pub(super) fn differences(socket: &mut Socket, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
    Ok(changes(socket, attached)?.iter().map(Change::words).collect())
}

/// Brings in the rules for the attachment's network and removes those for another policy; says what was wrong.
pub(super) fn install(socket: &mut Socket, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
    content::change(socket, |socket, batch| {
        let changes = changes(socket, attached)?;
        for Change { family, table, chain, kind, .. } in &changes {
            let table = Table { family: *family, name: table };
            match kind {
                Kind::Add { rule, before: Some(handle) } => {
                    batch.insert_rule_before(table, chain, *handle, rule);
                }
                Kind::Add { rule, before: None } => batch.add_rule(table, chain, rule),
                Kind::Remove(handle) => batch.delete_rule(table, chain, *handle),
            }
        }
        Ok(changes.iter().map(Change::words).collect())
    })
}

/// Adds to `batch` the removal of the rules that stand for a chain of our own, if it is one that has any.
pub(super) fn remove(socket: &mut Socket, chain: &str, batch: &mut Batch) -> Result<(), Error> {
    if !is_chain(chain) {
        return Ok(());
    }
    let comment = comment(chain);
    each_marked(socket, |table, chain, rule| {
        if rule.comment() == Some(comment.as_str()) {
            batch.delete_rule(table, chain, rule.handle);
        }
    })
}

/// The chains of our own that there are rules for and that are gone themselves: somebody has removed our table, and not
/// the rules.
pub(super) fn orphans(socket: &mut Socket) -> Result<BTreeSet<String>, Error> {
    let mut chains = BTreeSet::new();
    each_marked(socket, |_, _, rule| {
        let chain = rule.comment().and_then(|comment| comment.strip_prefix(MARK));
        chains.extend(chain.filter(|chain| is_chain(chain)).map(str::to_owned));
    })?;
    let mut orphans = BTreeSet::new();
    for chain in chains {
        if socket.chain(ROUTED, &chain)?.is_none() {
            orphans.insert(chain);
        }
    }
    Ok(orphans)
}

/// Adds to `batch` the removal of the rules of all [`orphans`] that are not of one of `networks`.
pub(super) fn remove_orphans(
    socket: &mut Socket,
    networks: &BTreeSet<String>,
    batch: &mut Batch,
) -> Result<(), Error> {
    let kept: BTreeSet<String> = networks.iter().map(|network| chain_of(network)).collect();
    for chain in orphans(socket)?.difference(&kept) {
        remove(socket, chain, batch)?;
    }
    Ok(())
}

/// Every rule of others' chains that has a comment which begins as ours do.
fn each_marked(socket: &mut Socket, mut visit: impl FnMut(Table<'_>, &str, &FoundRule)) -> Result<(), Error> {
    for chain in socket.chains()? {
        let docker_user = chain
            .family
            .map(|family| Table { family, name: &chain.table })
            .filter(|table| is_iptables(*table) && chain.name == DOCKER_USER);
        let Some(table) = foreign::forwards(&chain).or(docker_user) else { continue };
        for rule in socket.rules(table, &chain.name)? {
            if rule.comment().is_some_and(|comment| comment.starts_with(MARK)) {
                visit(table, &chain.name, &rule);
            }
        }
    }
    Ok(())
}

fn changes(socket: &mut Socket, attached: &Attached<'_>) -> Result<Vec<Change>, Error> {
    let comment = comment(&chain_of(attached.owner.network));
    let mut changes = Vec::new();
    for barrier in foreign::barriers(socket)? {
        if barrier.is_closed {
            continue;
        }
        let Barrier { chain, rules, dropped_at, .. } = &barrier;
        let table = barrier.table();
        let docker_user = docker_user(socket, &barrier)?;
        let out = Place { table, chain, way: Way::Out, before: *dropped_at, present: rules };
        let inward = match &docker_user {
            Some(rules) => {
                let before = socket.follow(table, DOCKER_USER, &Packet::default())?.at;
                Place { table, chain: DOCKER_USER, way: Way::In, before, present: rules }
            }
            None => Place { way: Way::In, ..out },
        };
        let bridged = attached.vlan_gateway.map(|_| Place { way: Way::Bridged, ..out });
        for place in [inward, out].into_iter().chain(bridged) {
            changes.extend(changes_at(&place, attached, &comment));
        }
    }
    Ok(changes)
}

fn changes_at(place: &Place<'_>, attached: &Attached<'_>, comment: &str) -> Vec<Change> {
    let Place { table, chain, way, before, present } = place;
    let link = match (way, attached.vlan_gateway) {
        (Way::Bridged, Some(gateway)) => gateway.bridge,
        _ => attached.gateway_link,
    };
    let own: Vec<&FoundRule> = present.iter().filter(|found| found.comment() == Some(comment)).collect();
    let rules_for = |ingress| rules(*way, dialect(*table, chain), link, ingress, comment);
    let wished = rules_for(attached.policy.ingress);
    let of_any_policy: Vec<Rule> = IngressPolicy::ALL.into_iter().flat_map(rules_for).collect();
    let is_one_of = |found: &FoundRule, rules: &[Rule]| rules.iter().any(|rule| found.does(rule));
    let unwished = own.iter().filter(|found| is_one_of(found, &of_any_policy) && !is_one_of(found, &wished));
    let remove = unwished.map(|found| Kind::Remove(found.handle));
    let missing = wished.iter().filter(|rule| !own.iter().any(|found| found.does(rule)));
    let add = missing.map(|rule| Kind::Add { rule: rule.clone(), before: *before });
    let change = |kind| Change {
        family: table.family,
        table: table.name.to_owned(),
        chain: (*chain).to_owned(),
        way: *way,
        link: link.to_owned(),
        kind,
    };
    add.chain(remove).map(change).collect()
}

/// The rules of `DOCKER-USER`, if the chain that drops leads there.
fn docker_user(socket: &mut Socket, barrier: &Barrier) -> Result<Option<Vec<FoundRule>>, Error> {
    let leads_there = || barrier.rules.iter().any(|rule| rule.targets().any(|target| target == DOCKER_USER));
    if is_iptables(barrier.table()) && barrier.chain == IPTABLES_FORWARD && leads_there() {
        return socket.rules(barrier.table(), DOCKER_USER).map(Some);
    }
    Ok(None)
}

fn is_iptables(table: Table<'_>) -> bool {
    matches!(table.family, Family::Ipv4 | Family::Ipv6) && table.name == IPTABLES_TABLE
}

fn dialect(table: Table<'_>, chain: &str) -> Dialect {
    match is_iptables(table) && [IPTABLES_FORWARD, DOCKER_USER].contains(&chain) {
        true => Dialect::Iptables,
        false => Dialect::Nft,
    }
}

/// What is accepted: whatever leaves the network's link, and what may come in by the network's policy.
fn rules(way: Way, dialect: Dialect, link: &str, ingress: IngressPolicy, comment: &str) -> Vec<Rule> {
    // `iptables` compares names up to their NUL.
    let name = match dialect {
        Dialect::Nft => nft_netlink::ifname_key(link),
        Dialect::Iptables => [link.as_bytes(), &[0]].concat(),
    };
    let from = || Rule::new().is(nft_netlink::Field::Iifname, &name);
    let to = || Rule::new().is(nft_netlink::Field::Oifname, &name);
    let tests = match (way, ingress, dialect) {
        (Way::Out, IngressPolicy::Isolated, _) => vec![from().is_not(nft_netlink::Field::Oifname, &name)],
        (Way::Out, IngressPolicy::Open | IngressPolicy::SameBridge, _) => vec![from()],
        (Way::In, IngressPolicy::Open, _) => vec![to()],
        // Isolated ports are kept apart below.
        (Way::Bridged, ..) => vec![from().is(nft_netlink::Field::Oifname, &name)],
        (Way::In, IngressPolicy::SameBridge | IngressPolicy::Isolated, Dialect::Nft) => {
            vec![to().ct_state(&[CtState::Established, CtState::Related]), to().ct_dnat()]
        }
        (Way::In, IngressPolicy::SameBridge | IngressPolicy::Isolated, Dialect::Iptables) => {
            vec![to().iptables_state(&[
                IptablesState::Related,
                IptablesState::Established,
                IptablesState::Dnat,
            ])]
        }
    };
    let complete = |rule: Rule| match dialect {
        Dialect::Nft => rule.accept().comment(comment),
        Dialect::Iptables => rule.iptables_comment(comment).counter().accept(),
    };
    tests.into_iter().map(complete).collect()
}
