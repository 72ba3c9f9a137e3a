//! Reverse-path filtering on the host, for containers with several networks.
//!
//! Such a container answers by its default route, whichever network the request came in by. A bridge that judges
//! sources strictly would take the answer for forged: its source belongs behind another bridge.

use crate::netlink::link::{Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::sysctl;

/// Loosens the filter of every bridge that the container is attached to, where it is strict. To fail at it is no
/// reason to refuse the container.
pub(crate) fn loosen(host: &mut Netlink, container: &mut Netlink, netns: &Netns) {
    if let Err(failure) = try_loosen(host, container, netns) {
        log::warn!("loosen the reverse-path filter of the container's bridges: {failure}");
    }
}

fn try_loosen(host: &mut Netlink, container: &mut Netlink, netns: &Netns) -> Result<(), Failure> {
    let ends: Vec<Link> = container.links()?.into_iter().filter(|link| link.kind == Kind::Veth).collect();
    if ends.len() < 2 {
        return Ok(());
    }
    let id = host.netns_id(netns)?;
    for end in ends {
        let Some(port) = end.peer.map(|index| host.link_by_index(index)).transpose()?.flatten() else {
            continue;
        };
        if port.peer != Some(end.index) || port.peer_netns != id {
            continue;
        }
        let Some(bridge) = port.controller.map(|index| host.link_by_index(index)).transpose()?.flatten()
        else {
            continue;
        };
        if sysctl::filters_strictly(&bridge.name).unwrap_or(false) {
            host.loosen_reverse_path(bridge.index)?;
        }
    }
    Ok(())
}
