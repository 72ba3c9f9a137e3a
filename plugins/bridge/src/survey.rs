//! What is attached, as the kernel shows it: the host veths that carry our mark, and what their other ends have.
//!
//! No path and no file is needed for that: the kernel answers for the namespace of a link's other end by its number.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::attachment::{self, Identity};
use crate::mac::Mac;
use crate::maker::{self, Progress};
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::nft::Record;

/// An attachment that exists.
#[derive(Debug)]
pub(crate) struct Found {
    /// Whose it is.
    pub(crate) identity: Identity,
    /// Its host end.
    pub(crate) host: Link,
    /// Its container end, if that could be asked about.
    pub(crate) container: Option<FoundEnd>,
}

/// The container end of an attachment.
#[derive(Debug)]
pub(crate) struct FoundEnd {
    /// Its hardware address.
    pub(crate) mac: Option<Mac>,
    /// Whether it is up.
    pub(crate) up: bool,
    /// How far its ADD has come.
    pub(crate) progress: Progress,
    /// Its addresses that reach beyond the link.
    pub(crate) addresses: Vec<IpNetwork>,
}

/// The attachments among `links`.
pub(crate) fn attachments(host: &mut Netlink, links: Vec<Link>) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for link in links {
        if let Some(identity) = identity_of(&link) {
            found.push(Found { identity, container: container_end(host, &link)?, host: link });
        }
    }
    found.sort_by(|one, other| one.host.alias.cmp(&other.host.alias));
    Ok(found)
}

/// The networks that somebody is attached to by one of `links`.
pub(crate) fn networks(links: &[Link]) -> BTreeSet<String> {
    identities(links).map(|identity| identity.network().into_owned()).collect()
}

/// Who is attached by one of `links`, be it one that somebody has renamed.
pub(crate) fn identities(links: &[Link]) -> impl Iterator<Item = Identity> {
    links.iter().filter_map(|link| Identity::claimed_by(&link.alias))
}

/// Whether the attachment that a record is of has a host veth among `links`: under its name, or under another with its
/// mark.
pub(crate) fn is_alive(record: &Record, links: &[Link]) -> bool {
    let Record { network, container_id, ifname, host_veth } = record;
    let mark = attachment::mark(network, container_id, ifname);
    links.iter().any(|link| link.name == *host_veth || link.alias == mark)
}

/// Whose host veth a link is.
fn identity_of(link: &Link) -> Option<Identity> {
    Identity::of_mark(&link.alias, &link.name)
}

/// The addresses beyond their links of the containers that `links` lead to.
pub(crate) fn addresses(host: &mut Netlink, links: &[Link]) -> Result<Vec<IpAddr>, Failure> {
    let mut addresses = Vec::new();
    for link in links {
        let end = container_end(host, link)?;
        addresses.extend(end.into_iter().flat_map(|end| end.addresses).map(|address| address.ip()));
    }
    Ok(addresses)
}

/// The other end of the pair whose host end `link` is; `None` if it cannot be asked about.
pub(crate) fn container_end(host: &mut Netlink, link: &Link) -> Result<Option<FoundEnd>, Failure> {
    let (Some(netns), Some(index)) = (link.peer_netns, link.peer) else { return Ok(None) };
    let asked = host.link_there(netns, index).and_then(|end| Ok((end, host.addresses_there(netns, index)?)));
    match asked {
        Ok((Some(end), addresses)) => Ok(Some(FoundEnd {
            mac: end.mac,
            up: end.up,
            progress: maker::progress(end.group),
            addresses: addresses
                .into_iter()
                .filter(|address| address.global)
                .map(|address| address.network)
                .collect(),
        })),
        Ok((None, _)) => Ok(None),
        Err(failure) if failure.is_gone_there() => Ok(None),
        Err(failure) => Err(failure),
    }
}
