//! VLANs of bridge ports.

use std::collections::BTreeMap;

use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Failure, Netlink};

/// How a port carries a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tagging {
    /// Frames without a tag belong to it, and leave without one.
    Untagged,
    /// Frames carry its tag.
    Tagged,
}

/// A VLAN of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortVlan {
    /// 1 to 4094.
    pub(crate) id: u16,
    /// How the port carries it.
    pub(crate) tagging: Tagging,
}

impl Netlink {
    /// Makes the port a member of `vlan`.
    pub(crate) fn add_vlan(&mut self, port: u32, vlan: PortVlan) -> Result<(), Failure> {
        let flags = match vlan.tagging {
            Tagging::Untagged => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            Tagging::Tagged => BridgeVlanInfoFlags::empty(),
        };
        self.acknowledged(RouteNetlinkMessage::SetLink(vlan_message(port, vlan.id, flags)), 0)
    }

    /// Takes the port out of the VLAN with `id`; no error if it was not in it.
    pub(crate) fn delete_vlan(&mut self, port: u32, id: u16) -> Result<(), Failure> {
        let message = vlan_message(port, id, BridgeVlanInfoFlags::empty());
        match self.acknowledged(RouteNetlinkMessage::DelLink(message), 0) {
            Err(failure) if !failure.is_gone() => Err(failure),
            _ => Ok(()),
        }
    }

    /// The VLANs of the port, each with `None` where the two directions differ; none where the kernel has no VLAN
    /// filtering.
    pub(crate) fn vlans(&mut self, port: u32) -> Result<BTreeMap<u16, Option<Tagging>>, Failure> {
        let mut request = LinkMessage::default();
        request.header.interface_family = AddressFamily::Bridge;
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let answers = self.dump(&RouteNetlinkMessage::GetLink(request))?;
        let of_port = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) if link.header.index == port => Some(link.attributes),
            _ => None,
        });
        Ok(of_port
            .flatten()
            .filter_map(|attribute| match attribute {
                LinkAttribute::AfSpecBridge(specs) => Some(specs),
                _ => None,
            })
            .flatten()
            .filter_map(|spec| match spec {
                AfSpecBridge::VlanInfo(info) => Some((info.vid, tagging(info.flags))),
                _ => None,
            })
            .collect())
    }
}

fn tagging(flags: BridgeVlanInfoFlags) -> Option<Tagging> {
    let is = |flag| flags.contains(flag);
    match (is(BridgeVlanInfoFlags::Pvid), is(BridgeVlanInfoFlags::Untagged)) {
        (true, true) => Some(Tagging::Untagged),
        (false, false) => Some(Tagging::Tagged),
        _ => None,
    }
}

fn vlan_message(port: u32, vid: u16, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    let info = BridgeVlanInfo { vid, flags };
    message.attributes.push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(info)]));
    message
}
