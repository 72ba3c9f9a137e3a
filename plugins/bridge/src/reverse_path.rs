//! Reverse-path filtering, for containers with several networks.
//!
//! Such a container answers by its default route, whichever network the request came in by. A bridge that judges
//! sources strictly would take the answer for forged: its source belongs behind another bridge. And an interface of the
//! container that does so drops what comes in by it and would be answered by another.

use cni_types::Error;

use crate::attachment::is_attachment;
use crate::gateway;
use crate::netlink::link::{Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::sysctl;

/// Loosens the filter of every attachment that the container has, where it is strict: of its gateway, and of its
/// interface in the container. To fail at it is no reason to refuse the container.
pub(crate) fn loosen(host: &mut Netlink, container: &mut Netlink, netns: &Netns, home: &Netns) {
    if let Err(error) = try_loosen(host, container, netns, home) {
        log::warn!("loosen the reverse-path filters of the container's networks: {error}");
    }
}

fn try_loosen(host: &mut Netlink, container: &mut Netlink, netns: &Netns, home: &Netns) -> Result<(), Error> {
    let pairs = attachments(host, container, netns).map_err(Error::internal)?;
    if pairs.len() < 2 {
        return Ok(());
    }
    for port in pairs.iter().map(|(_, port)| port) {
        for link in receivers(host, port).map_err(Error::internal)? {
            if sysctl::filters_strictly(&link.name).unwrap_or(false) {
                host.loosen_reverse_path(link.index).map_err(Error::internal)?;
            }
        }
    }
    // Who removes one of them meanwhile has no use for its filter.
    let is_strict = |end: &Link| sysctl::filters_strictly(&end.name).unwrap_or(false);
    let ends = pairs.into_iter().map(|(end, _)| end);
    let strict: Vec<Link> = netns.visit(home, || Ok(ends.filter(is_strict).collect()))?;
    for end in strict {
        container.loosen_reverse_path(end.index).map_err(Error::internal)?;
    }
    Ok(())
}

/// Whether the container has other networks, so that neither its interface nor its gateway may filter strictly.
pub(crate) fn must_be_loose(
    host: &mut Netlink,
    container: &mut Netlink,
    netns: &Netns,
) -> Result<bool, Error> {
    Ok(attachments(host, container, netns).map_err(Error::internal)?.len() > 1)
}

/// The links by which the host receives what comes from a port: its bridge, or the gateway interface of its VLAN, which
/// is one of those on the bridge.
fn receivers(host: &mut Netlink, port: &Link) -> Result<Vec<Link>, Failure> {
    let bridge = port.controller.map(|index| host.link_by_index(index)).transpose()?.flatten();
    let mut receivers = Vec::new();
    if let Some(bridge) = bridge.as_ref().filter(|bridge| bridge.vlan_filtering) {
        let gateways = format!("{}.", bridge.name);
        for port in host.ports(bridge.index)? {
            // By its name: the reference plugin marks none.
            let end = gateway::port_of(host, &port)?;
            receivers.extend(end.filter(|end| end.name.starts_with(&gateways)));
        }
    }
    receivers.extend(bridge);
    Ok(receivers)
}

/// The attachments that the container has: container end and host end.
fn attachments(
    host: &mut Netlink,
    container: &mut Netlink,
    netns: &Netns,
) -> Result<Vec<(Link, Link)>, Failure> {
    let mut ends = container.links()?;
    ends.retain(|link| link.kind == Kind::Veth);
    if ends.len() < 2 {
        return Ok(Vec::new());
    }
    let id = host.netns_id(netns)?;
    let mut pairs = Vec::new();
    for end in ends {
        let port = end.peer.map(|index| host.link_by_index(index)).transpose()?.flatten();
        let is_ours =
            |port: &Link| port.peer == Some(end.index) && port.peer_netns == id && is_attachment(&port.alias);
        pairs.extend(port.filter(is_ours).map(|port| (end, port)));
    }
    Ok(pairs)
}
