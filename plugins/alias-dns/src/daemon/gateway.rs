//! Opening a gateway address for queries: the sockets, and the host's rules that would keep queries out. Needs the
//! rights of a plugin; whoever calls it has them.
//!
//! What stands in the rules carries the listener as its comment, so that it is found again by that alone. Nothing is
//! changed where nothing is in the way.

use std::io::{Error, ErrorKind};

use libc::{IPPROTO_TCP, IPPROTO_UDP};
use nft_netlink::{Base, Batch, Chain, ChainKind, End, Family, FoundRule, Hook, Policy, Rule, Socket, Table};

use crate::serve::listen::{self, PORT, Sockets};
use crate::zone::Listener;

/// Before the chains that publish ports (-100): a published port 53 does not take a network's names away.
const BEFORE_PUBLISHED_PORTS: i32 = -110;

const REDIRECT: &str = "redirect";

const PROTOCOLS: [u8; 2] = [IPPROTO_UDP as u8, IPPROTO_TCP as u8];

/// Opens `listener` on the DNS port; on another one, with a redirect for the bridge, where somebody else has it.
///
/// # Errors
/// When no socket can be had, or the redirect that it needs.
pub(super) fn open(listener: &Listener) -> Result<(Sockets, u16), Error> {
    let (sockets, port) = match listen::open(listener, PORT) {
        Ok(sockets) => (sockets, PORT),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let (sockets, port) = listen::open_anywhere(listener)?;
            redirect(listener, port).map_err(|error| {
                Error::other(format!("port {PORT} is taken, and the redirect to {port} fails: {error}"))
            })?;
            (sockets, port)
        }
        Err(error) => return Err(error),
    };
    if let Err(error) = admit(listener, port) {
        // Few hosts have a rule in the way; one that has is told by its own counters as well.
        log::warn!("let queries to {} through the host's firewall: {error}", listener.gateway);
    }
    Ok((sockets, port))
}

/// Takes back what [`open`] has put into the host's rules.
///
/// # Errors
/// What could not be taken back.
pub(super) fn close(listener: &Listener) -> Result<(), nft_netlink::Error> {
    let mut nft = Socket::open()?;
    let mut batch = Batch::new();
    let name = table_name(listener);
    if nft.table_uses(table(&name))?.is_some() {
        batch.delete_table(table(&name));
    }
    let comment = comment(listener);
    for chain in nft.chains()? {
        let Some(table) = table_of(&chain, listener) else { continue };
        for rule in nft.rules(table, &chain.name)? {
            if rule.comment() == Some(comment.as_str()) {
                batch.delete_rule(table, &chain.name, rule.handle);
            }
        }
    }
    if batch.is_empty() { Ok(()) } else { nft.commit(batch) }
}

/// Queries from the bridge pass every chain that drops what nobody lets in.
fn admit(listener: &Listener, port: u16) -> Result<(), nft_netlink::Error> {
    let mut nft = Socket::open()?;
    let mut batch = Batch::new();
    let comment = comment(listener);
    for chain in nft.chains()? {
        let Some(table) = table_of(&chain, listener) else { continue };
        let rules = nft.rules(table, &chain.name)?;
        let drops = chain.base.as_ref().is_some_and(|base| base.policy == Policy::Drop)
            || matches!(rules.last().and_then(FoundRule::end), Some(End::Drop | End::Reject));
        if !drops || rules.iter().any(|rule| rule.comment() == Some(comment.as_str())) {
            continue;
        }
        for protocol in PROTOCOLS {
            let rule = Rule::new().iifname(&listener.bridge).destination_port(protocol, port).accept();
            batch.insert_rule(table, &chain.name, &rule.comment(&comment));
        }
    }
    if batch.is_empty() { Ok(()) } else { nft.commit(batch) }
}

/// Queries from the bridge to the DNS port of the gateway go to `port`.
fn redirect(listener: &Listener, port: u16) -> Result<(), nft_netlink::Error> {
    let mut nft = Socket::open()?;
    let mut batch = Batch::new();
    let name = table_name(listener);
    let table = table(&name);
    let comment = comment(listener);
    if nft.table_uses(table)?.is_some() {
        batch.delete_table(table);
    }
    batch.create_table(table, &comment);
    let base = Base {
        kind: ChainKind::Nat,
        hook: Hook::Prerouting,
        priority: BEFORE_PUBLISHED_PORTS,
        policy: Policy::Accept,
    };
    batch.create_base_chain(table, REDIRECT, &base, &comment);
    for protocol in PROTOCOLS {
        let to_gateway = match listener.gateway {
            std::net::IpAddr::V4(address) => Rule::new()
                .iifname(&listener.bridge)
                .ipv4()
                .is(nft_netlink::Field::Ip4Daddr, &address.octets()),
            std::net::IpAddr::V6(address) => Rule::new()
                .iifname(&listener.bridge)
                .ipv6()
                .is(nft_netlink::Field::Ip6Daddr, &address.octets()),
        };
        let rule = to_gateway.destination_port(protocol, PORT).redirect_to(port).comment(&comment);
        batch.add_rule(table, REDIRECT, &rule);
    }
    nft.commit(batch)
}

/// The table of `chain` if it filters what comes to the host over the listener's family.
fn table_of<'c>(chain: &'c Chain, listener: &Listener) -> Option<Table<'c>> {
    let base = chain.base.as_ref()?;
    let own = if listener.gateway.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let family = chain.family.filter(|family| *family == Family::Inet || *family == own)?;
    let filters = base.hook == Hook::Input && base.kind == ChainKind::Filter;
    filters.then_some(Table { family, name: &chain.table })
}

fn comment(listener: &Listener) -> String {
    format!("cni: names on {} {}", listener.bridge, listener.gateway)
}

fn table_name(listener: &Listener) -> String {
    format!("cni-names-{}-{}", listener.bridge, if listener.gateway.is_ipv4() { 4 } else { 6 })
}

fn table(name: &str) -> Table<'_> {
    Table { family: Family::Inet, name }
}
