//! Opening a gateway address for queries: the sockets, and the host's rules that would keep queries out. Needs the
//! rights of a plugin; whoever calls it has them.
//!
//! What stands in the rules carries the listener as its comment, so that it is found again by that alone. Nothing is
//! changed where nothing is in the way.

mod published;

use std::collections::{BTreeSet, HashSet};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use libc::{IPPROTO_TCP, IPPROTO_UDP};
use nft_netlink::{
    Base, Batch, Chain, ChainKind, Family, Field, FoundRule, Hook, Packet, Policy, Rule, Socket, Table,
};
use nix::poll::{PollTimeout, poll};

use super::control::{ListenerStatus, Open};
use crate::serve::listen::{self, PORT, Sockets};
use crate::zone::Listener;

/// Before the chains that publish ports (-100): a published port 53 does not take a network's names away.
const BEFORE_PUBLISHED_PORTS: i32 = -110;

/// How often a change is tried that somebody else's comes between each time.
const MAX_ATTEMPTS: usize = 100;

/// How long the sockets of a killed server are waited for, and in milliseconds how often they are looked at.
const CLOSING: Duration = Duration::from_millis(250);
const CLOSING_AGAIN: u16 = 2;

/// What comments begin with, and the names of tables.
const COMMENT: &str = "cni: names on ";
const PORT_WORD: &str = "port";
const TABLE: &str = "cni-names-";

/// The chains of such a table: for what comes in by the bridge, and for what the host itself asks. `redirect` is a word
/// of nft's language, and rules with a chain of that name cannot be loaded as they were listed.
const REDIRECT_BRIDGE: &str = "redirect-bridge";
const REDIRECT_OWN: &str = "redirect-own";

const PROTOCOLS: [u8; 2] = [IPPROTO_UDP as u8, IPPROTO_TCP as u8];

/// What [`open`] has opened.
pub(super) struct Opening {
    pub(super) sockets: Sockets,
    pub(super) port: u16,
}

/// Opens `listener` on the DNS port; on another one, with a redirect, where somebody else has it.
///
/// # Errors
/// When no socket can be had, or the redirect that it needs.
pub(super) fn open(listener: &Listener) -> Result<Opening, Error> {
    let (sockets, port) = match open_at_dns_port(listener) {
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
    Ok(Opening { sockets, port })
}

/// Whoever has the address on this bridge alone is waited for a moment: most likely an earlier server, killed, of which
/// the kernel closes one descriptor after another. Anybody else stays.
fn open_at_dns_port(listener: &Listener) -> Result<Sockets, Error> {
    let deadline = Instant::now() + CLOSING;
    loop {
        match listen::open(listener, PORT) {
            Err(error)
                if error.kind() == ErrorKind::AddrInUse
                    && !listen::is_taken_on_every_device(listener, PORT)
                    && Instant::now() < deadline =>
            {
                let _ = poll(&mut [], PollTimeout::from(CLOSING_AGAIN));
            }
            opened => return opened,
        }
    }
}

/// Takes back what [`open`] has put into the host's rules.
///
/// # Errors
/// What could not be taken back.
pub(super) fn close(listener: &Listener) -> Result<(), nft_netlink::Error> {
    change(|nft, batch| {
        let name = table_name(listener);
        if nft.table(table(&name))?.is_some() {
            batch.delete_table(table(&name));
        }
        for chain in nft.chains()? {
            let Some(table) = table_of(&chain, listener) else { continue };
            for rule in nft.rules(table, &chain.name)? {
                if Opened::by(&rule).is_some_and(|opened| opened.listener == *listener) {
                    batch.delete_rule(table, &chain.name, rule.handle);
                }
            }
        }
        published::release(nft, |opened| opened.listener == *listener, batch)
    })
}

/// Makes the changes that `find` finds in the rules as they are, provided that nobody else changes them meanwhile.
fn change(
    find: impl Fn(&mut Socket, &mut Batch) -> Result<(), nft_netlink::Error>,
) -> Result<(), nft_netlink::Error> {
    let mut nft = Socket::open()?;
    for _ in 0..MAX_ATTEMPTS {
        let mut batch = Batch::since(nft.settled_generation()?);
        find(&mut nft, &mut batch)?;
        match nft.commit(batch) {
            Err(error) if error.is_stale() => {}
            committed => return committed,
        }
    }
    Err(nft_netlink::Error::Restless)
}

/// Takes back what [`open`] has put into the rules of this network namespace for other listeners than `needed`, which
/// nobody serves any more: another mount namespace may have a server here, too.
///
/// # Errors
/// What could not be taken back.
pub(super) fn sweep(needed: &BTreeSet<Listener>) -> Result<(), nft_netlink::Error> {
    let is_stale = |opened: &Opened| !needed.contains(&opened.listener) && !opened.is_served();
    let is_for_stale = |rule: &FoundRule| Opened::by(rule).is_some_and(|opened| is_stale(&opened));
    change(|nft, batch| {
        for chain in nft.chains()? {
            let Some(family) = chain.family else { continue };
            let table = Table { family, name: &chain.table };
            let is_own = is_redirect(&chain);
            if !is_own && !filters_input(&chain) {
                continue;
            }
            let mut stale = nft.rules(table, &chain.name)?.into_iter().filter(is_for_stale);
            if is_own {
                stale.next().into_iter().for_each(|_| batch.delete_table(table));
            } else {
                stale.for_each(|rule| batch.delete_rule(table, &chain.name, rule.handle));
            }
        }
        published::release(nft, is_stale, batch)
    })
}

/// Whether nothing in the host's rules keeps queries away from these.
///
/// # Errors
/// When the rules cannot be read.
pub(super) fn are_let_in(opened: &[Opened]) -> Result<bool, nft_netlink::Error> {
    Ok(obstacles(&mut Socket::open()?, opened)?.is_empty())
}

/// Lets queries to these pass what is in their way.
///
/// # Errors
/// When the rules cannot be read, or not be changed.
pub(super) fn let_in(opened: &[Opened]) -> Result<(), nft_netlink::Error> {
    let mut nft = Socket::open()?;
    let changes = obstacles(&mut nft, opened)?;
    changes.into_iter().filter_map(|change| nft.commit(change).err()).last().map_or(Ok(()), Err)
}

/// What has to be changed, so that queries from the bridges pass every chain that drops what nobody lets in, and come to
/// the ports where the servers are. A change that somebody does not allow, whose table it is (`flags owner`), keeps no
/// other one from being made.
fn obstacles(nft: &mut Socket, opened: &[Opened]) -> Result<Vec<Batch>, nft_netlink::Error> {
    let mut redirection = Batch::new();
    let chains = nft.chains()?;
    let redirects = chains.iter().filter(|chain| is_redirect(chain));
    for opened in opened {
        let Opened { listener, port } = opened;
        if *port != PORT {
            if !is_redirected(nft, opened)? {
                put_redirect(nft, listener, *port, &mut redirection)?;
            }
        } else if let Some(old) = redirects.clone().find(|chain| chain.table == table_name(listener)) {
            // Of an earlier server, which was killed, and had to leave the port to somebody who is gone as well.
            redirection.delete_table(table(&old.table));
        }
    }
    let mut changes = vec![redirection];
    changes.extend(published::passed_by(nft, &chains, opened)?);
    for chain in &chains {
        let concerned: Vec<(Table<'_>, &Opened)> = opened
            .iter()
            .filter_map(|opened| table_of(chain, &opened.listener).map(|table| (table, opened)))
            .collect();
        let Some((table, _)) = concerned.first() else { continue };
        let fate = nft.follow(*table, &chain.name, &Packet::default())?.fate;
        if fate.drops(&chain.name, chain.policy_drops()).is_none() {
            continue;
        }
        let mut accept = Batch::new();
        let rules = nft.rules(*table, &chain.name)?;
        let let_in: HashSet<&str> = rules.iter().filter_map(FoundRule::comment).collect();
        for (table, Opened { listener, port }) in concerned {
            let comment = comment(listener, *port);
            if let_in.contains(comment.as_str()) {
                continue;
            }
            for protocol in PROTOCOLS {
                let rule = Rule::new().iifname(&listener.bridge).destination_port(protocol, *port).accept();
                accept.insert_rule(table, &chain.name, &rule.comment(&comment));
            }
        }
        changes.push(accept);
    }
    changes.retain(|change| !change.is_empty());
    Ok(changes)
}

/// Queries to the DNS port of the gateway go to `port` of it: those from the bridge, and the host's own.
fn redirect(listener: &Listener, port: u16) -> Result<(), nft_netlink::Error> {
    let mut nft = Socket::open()?;
    let mut batch = Batch::new();
    put_redirect(&mut nft, listener, port, &mut batch)?;
    nft.commit(batch)
}

fn put_redirect(
    nft: &mut Socket,
    listener: &Listener,
    port: u16,
    batch: &mut Batch,
) -> Result<(), nft_netlink::Error> {
    let name = table_name(listener);
    let table = table(&name);
    let comment = comment(listener, port);
    if nft.table(table)?.is_some() {
        batch.delete_table(table);
    }
    batch.create_table(table, &comment);
    let from_bridge = Rule::new().iifname(&listener.bridge);
    for (chain, hook, from) in
        [(REDIRECT_BRIDGE, Hook::Prerouting, from_bridge), (REDIRECT_OWN, Hook::Output, Rule::new())]
    {
        let base =
            Base { kind: ChainKind::Nat, hook, priority: BEFORE_PUBLISHED_PORTS, policy: Policy::Accept };
        batch.create_base_chain(table, chain, &base, &comment);
        for protocol in PROTOCOLS {
            let to_gateway = match listener.gateway {
                IpAddr::V4(address) => from.clone().ipv4().is(Field::Ip4Daddr, &address.octets()),
                IpAddr::V6(address) => from.clone().ipv6().is(Field::Ip6Daddr, &address.octets()),
            };
            // Not nf_tables' redirect: that goes to the first address of the device, or to loopback.
            let rule = to_gateway
                .destination_port(protocol, PORT)
                .dnat_to(SocketAddr::new(listener.gateway, port))
                .comment(&comment);
            batch.add_rule(table, chain, &rule);
        }
    }
    Ok(())
}

/// The table of `chain` if it filters what comes to the host over the listener's family.
fn table_of<'c>(chain: &'c Chain, listener: &Listener) -> Option<Table<'c>> {
    let own = if listener.gateway.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let family = chain.family.filter(|family| *family == Family::Inet || *family == own)?;
    filters_input(chain).then_some(Table { family, name: &chain.table })
}

/// Whether `chain` is what a redirect is found by.
fn is_redirect(chain: &Chain) -> bool {
    chain.family == Some(Family::Inet) && chain.table.starts_with(TABLE) && chain.name == REDIRECT_OWN
}

/// Whether the redirect to `opened` is there, and leads to that port.
fn is_redirected(nft: &mut Socket, opened: &Opened) -> Result<bool, nft_netlink::Error> {
    let rules = nft.rules_at_once(table(&table_name(&opened.listener)))?.unwrap_or_default();
    let lead_there = |rules: &Vec<FoundRule>| {
        rules.len() == PROTOCOLS.len() && rules.iter().all(|rule| Opened::by(rule).as_ref() == Some(opened))
    };
    Ok([REDIRECT_BRIDGE, REDIRECT_OWN].into_iter().all(|chain| rules.get(chain).is_some_and(lead_there)))
}

fn filters_input(chain: &Chain) -> bool {
    chain.base.as_ref().is_some_and(|base| base.hook == Hook::Input && base.kind == ChainKind::Filter)
}

/// A listener that was opened, and at which port; rules that are there for it say so.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) listener: Listener,
    pub(super) port: u16,
}

impl From<Open> for Opened {
    fn from(open: Open) -> Self {
        Self { listener: open.wanted.listener(), port: open.port }
    }
}

impl Opened {
    /// The listener of a server's status, if it is open.
    pub(super) fn told(status: &ListenerStatus) -> Option<Self> {
        let ListenerStatus { bridge, gateway, port, .. } = status;
        Some(Self { listener: Listener { bridge: bridge.clone(), gateway: *gateway }, port: (*port)? })
    }

    fn by(rule: &FoundRule) -> Option<Self> {
        Self::parse(rule.comment()?)
    }

    fn parse(comment: &str) -> Option<Self> {
        let mut words = comment.strip_prefix(COMMENT)?.split(' ');
        let listener = Listener { bridge: words.next()?.to_owned(), gateway: words.next()?.parse().ok()? };
        let port = words.next().filter(|word| *word == PORT_WORD).and(words.next())?.parse().ok()?;
        words.next().is_none().then_some(Self { listener, port })
    }

    /// Whether any socket is bound there, and not only to the port.
    fn is_served(&self) -> bool {
        let place = as_in_proc(self.listener.gateway, self.port);
        let is_bound = |protocol: &str, state: &str| {
            let family = if self.listener.gateway.is_ipv4() { "" } else { "6" };
            let sockets =
                std::fs::read_to_string(format!("/proc/net/{protocol}{family}")).unwrap_or_default();
            sockets.lines().any(|line| {
                let mut words = line.split_whitespace().skip(1);
                words.next() == Some(place.as_str()) && words.nth(1) == Some(state)
            })
        };
        is_bound("udp", UNCONNECTED) || is_bound("tcp", LISTEN)
    }
}

/// States of sockets as `/proc/net` writes them (`include/net/tcp_states.h`).
const UNCONNECTED: &str = "07";
const LISTEN: &str = "0A";

/// An address as `/proc/net` writes it: 32-bit words in the order of this machine (proc(5)).
fn as_in_proc(ip: IpAddr, port: u16) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.as_chunks::<4>().0.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{port:04X}", words.collect::<String>())
}

fn comment(listener: &Listener, port: u16) -> String {
    format!("{COMMENT}{} {} {PORT_WORD} {port}", listener.bridge, listener.gateway)
}

/// One for each gateway: a bridge may have several. In nft's language a name has no colon.
fn table_name(Listener { bridge, gateway }: &Listener) -> String {
    format!("{TABLE}{bridge}-{}", gateway.to_string().replace(':', "_"))
}

fn table(name: &str) -> Table<'_> {
    Table { family: Family::Inet, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_what_was_opened() {
        for (gateway, port) in [("172.20.0.1", 53), ("fd00:20::1", 40_001)] {
            let listener = Listener { bridge: "br-testnet".to_owned(), gateway: gateway.parse().unwrap() };
            assert_eq!(Opened::parse(&comment(&listener, port)), Some(Opened { listener, port }));
        }
        for other in ["", "cni: names on br0", "cni: names on br0 172.20.0.1 port x", "cni: testnet"] {
            assert_eq!(Opened::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_bound_socket_is_seen() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(socket) = std::net::UdpSocket::bind((ip, 0)) else { continue };
            let port = socket.local_addr().unwrap().port();
            let listener = Listener { bridge: "lo".to_owned(), gateway: ip.parse().unwrap() };
            let opened = Opened { listener, port };
            assert!(opened.is_served(), "{ip}");
            drop(socket);
            assert!(!opened.is_served(), "{ip}");
        }
    }
}
