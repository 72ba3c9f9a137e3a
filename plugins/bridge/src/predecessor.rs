//! What the reference bridge plugin wired before this one took its place: links without our mark.
//!
//! They are found the way that it found them, by the interface in the container, and by the name in prevResult where
//! the container is gone. Nothing here touches a link of another attachment.

use std::path::Path;

use cni_types::{CniResult, Interface};

use crate::attachment::{Identity, is_marked};
use crate::names;
use crate::netlink::link::{Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;

/// What is known of an attachment besides its identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence<'a> {
    /// The container's namespace, if the runtime still knows one.
    pub(crate) netns: Option<&'a Path>,
    /// What ADD answered, if the runtime has kept it.
    pub(crate) prev_result: Option<&'a CniResult>,
    /// The bridge of the configuration, if that can be read.
    pub(crate) bridge: Option<&'a str>,
}

/// The host end of the pair that the reference made for `identity`, if there is one.
pub(crate) fn host_end(
    host: &mut Netlink,
    identity: &Identity,
    evidence: Evidence<'_>,
) -> Result<Option<Link>, Failure> {
    let told: Vec<&Interface> = evidence
        .prev_result
        .map(|result| result.interfaces.iter().filter(|interface| interface.sandbox.is_empty()).collect())
        .unwrap_or_default();
    // A namespace that cannot be entered any more is gone for us.
    let netns = evidence.netns.and_then(|path| Netns::open(path).ok());
    let peer = netns.and_then(|netns| peer_of(host, &netns, identity.attachment().ifname()));
    if let Some(link) = peer.filter(|link| !is_marked(&link.alias)) {
        let on_bridge = match (evidence.bridge, link.controller) {
            (Some(bridge), Some(index)) => host.link_by_index(index)?.is_some_and(|link| link.name == bridge),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if on_bridge || told.iter().any(|interface| interface.name == link.name) {
            return Ok(Some(link));
        }
    }
    // The kernel refuses to look for what cannot be a name.
    for interface in told.into_iter().filter(|interface| names::is_link_name(&interface.name)) {
        if let Some(link) = host.link_by_name(&interface.name)?
            && link.kind == Kind::Veth
            && !is_marked(&link.alias)
            && link.peer_netns.is_some()
            && link.mac.is_some_and(|mac| mac.to_string() == interface.mac)
        {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// The host end of the veth pair whose other end is `ifname` in `netns`.
pub(crate) fn peer_of(host: &mut Netlink, netns: &Netns, ifname: &str) -> Option<Link> {
    let home = Netns::own().ok()?;
    let container = netns.netlink(&home).ok()?.link_by_name(ifname).ok()??;
    let link = host.link_by_index(container.peer?).ok()??;
    // Two indexes that point at each other prove little: most containers have their interface at the same one.
    let id = host.netns_id(netns).ok()??;
    let paired = container.kind == Kind::Veth
        && link.kind == Kind::Veth
        && link.peer == Some(container.index)
        && link.peer_netns == Some(id);
    paired.then_some(link)
}
