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
//! Nobody is let in whom the network's own policy refuses: these rules ask for the same.

use std::collections::BTreeSet;

use nft_netlink::{Batch, CtState, Error, Family, FoundRule, IptablesState, Rule, Socket, Table};

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

/// A rule that is not there.
#[derive(Debug)]
struct Missing {
    family: Family,
    table: String,
    chain: String,
    before: Option<u64>,
    way: Way,
    /// What the packets that it accepts come from or go to.
    link: String,
    rule: Rule,
}

impl Missing {
    fn words(&self) -> String {
        let Self { family, table, chain, link, .. } = self;
        let way = match self.way {
            Way::Out => "comes from",
            Way::In => "goes to",
            Way::Bridged => "is bridged on",
        };
        format!(
            "nf_tables chain {} {table} {chain} lacks the rule that accepts what {way} {link}",
            family.name()
        )
    }
}

/// Each rule for the attachment's network that is missing, in words.
pub(super) fn differences(socket: &mut Socket, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
    Ok(missing(socket, attached)?.iter().map(Missing::words).collect())
}

/// Brings in the rules for the attachment's network; says which were missing.
pub(super) fn install(socket: &mut Socket, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
    content::change(socket, |socket, batch| {
        let missing = missing(socket, attached)?;
        for Missing { family, table, chain, before, rule, .. } in &missing {
            let table = Table { family: *family, name: table };
            match before {
                Some(handle) => batch.insert_rule_before(table, chain, *handle, rule),
                None => batch.add_rule(table, chain, rule),
            }
        }
        Ok(missing.iter().map(Missing::words).collect())
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

fn missing(socket: &mut Socket, attached: &Attached<'_>) -> Result<Vec<Missing>, Error> {
    let comment = comment(&chain_of(attached.owner.network));
    let mut missing = Vec::new();
    for barrier in foreign::barriers(socket)? {
        let Barrier { chain, rules, dropped_at, .. } = &barrier;
        let table = barrier.table();
        let docker_user = docker_user(socket, &barrier)?;
        let out = Place { table, chain, way: Way::Out, before: *dropped_at, present: rules };
        let inward = match &docker_user {
            Some(rules) => {
                let before = socket.follow(table, DOCKER_USER)?.at;
                Place { table, chain: DOCKER_USER, way: Way::In, before, present: rules }
            }
            None => Place { way: Way::In, ..out },
        };
        let bridged = attached.vlan_gateway.map(|_| Place { way: Way::Bridged, ..out });
        for place in [inward, out].into_iter().chain(bridged) {
            missing.extend(missing_at(&place, attached, &comment));
        }
    }
    Ok(missing)
}

fn missing_at(place: &Place<'_>, attached: &Attached<'_>, comment: &str) -> Vec<Missing> {
    let Place { table, chain, way, before, present } = place;
    let is_there =
        |rule: &Rule| present.iter().any(|found| found.comment() == Some(comment) && found.does(rule));
    let link = match (way, attached.vlan_gateway) {
        (Way::Bridged, Some(gateway)) => gateway.bridge,
        _ => attached.gateway_link,
    };
    rules(*way, dialect(*table, chain), link, attached.policy.ingress, comment)
        .into_iter()
        .filter(|rule| !is_there(rule))
        .map(|rule| Missing {
            family: table.family,
            table: table.name.to_owned(),
            chain: (*chain).to_owned(),
            before: *before,
            way: *way,
            link: link.to_owned(),
            rule,
        })
        .collect()
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
