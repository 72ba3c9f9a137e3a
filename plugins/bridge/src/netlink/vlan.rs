//! VLANs of bridge ports, and of bridges, which are in some of their own VLANs as if they were a port.

use std::collections::BTreeMap;

use nix::errno::Errno;
use rtnetlink::packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NlaBuffer, NlasIterator, parse_u16};
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgePortState, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute,
    LinkExtentMask, LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link::{Kind, Link};
use super::message::{Message, RTM_NEWVLAN};
use super::{Failure, Netlink};

/// `RTM_GETVLAN` (`linux/rtnetlink.h`), since Linux 5.6.
const RTM_GETVLAN: u16 = 114;

// Numbers of include/uapi/linux/if_bridge.h.
const BRIDGE_VLANDB_ENTRY: u16 = 1;
const BRIDGE_VLANDB_ENTRY_INFO: u16 = 1;
const BRIDGE_VLANDB_ENTRY_RANGE: u16 = 2;
const BRIDGE_VLANDB_ENTRY_STATE: u16 = 3;
/// That a VLAN keeps its flags, and only what comes with it is set (`BRIDGE_VLAN_INFO_ONLY_OPTS`).
const ONLY_OPTIONS: u16 = 1 << 6;

/// Octets of `struct br_vlan_msg`.
const BR_VLAN_MSG_LEN: usize = 8;

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

/// A VLAN of a port as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Carried {
    /// How the port carries it; `None` where the two directions differ.
    pub(crate) tagging: Option<Tagging>,
    /// Whether its frames pass the port. A kernel before Linux 5.6 lets all pass.
    pub(crate) forwards: bool,
}

impl Netlink {
    /// Makes the port a member of `vlan`.
    pub(crate) fn add_vlan(&mut self, port: &Link, vlan: PortVlan) -> Result<(), Failure> {
        let flags = match vlan.tagging {
            Tagging::Untagged => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            Tagging::Tagged => BridgeVlanInfoFlags::empty(),
        };
        self.acknowledged(RouteNetlinkMessage::SetLink(vlan_message(port, vlan.id, flags)), 0)
    }

    /// Takes the port out of the VLAN with `id`; no error if it was not in it.
    pub(crate) fn delete_vlan(&mut self, port: &Link, id: u16) -> Result<(), Failure> {
        let message = vlan_message(port, id, BridgeVlanInfoFlags::empty());
        match self.acknowledged(RouteNetlinkMessage::DelLink(message), 0) {
            Err(failure) if !failure.is_gone() => Err(failure),
            _ => Ok(()),
        }
    }

    /// Lets the frames of the VLAN with `id` through the port.
    pub(crate) fn open_vlan(&mut self, port: &Link, id: u16) -> Result<(), Failure> {
        let info = [ONLY_OPTIONS.to_ne_bytes(), id.to_ne_bytes()].concat();
        let mut entry = attribute(BRIDGE_VLANDB_ENTRY_INFO, &info);
        entry.extend(attribute(BRIDGE_VLANDB_ENTRY_STATE, &[BridgePortState::Forwarding.into()]));
        let mut message = header(port.index);
        message.extend(attribute(BRIDGE_VLANDB_ENTRY | NLA_F_NESTED, &entry));
        self.acknowledged(Message::Untyped(RTM_NEWVLAN, message.into()), 0)
    }

    /// The VLANs of the port; none where the kernel has no VLAN filtering.
    pub(crate) fn vlans(&mut self, port: u32) -> Result<BTreeMap<u16, Carried>, Failure> {
        match self.table(&Message::Untyped(RTM_GETVLAN, header(port).into())) {
            Ok(answers) => {
                let answers: Vec<_> =
                    answers.into_iter().filter_map(|answer| answer.into_octets(RTM_NEWVLAN)).collect();
                Ok(answers.iter().flat_map(|answer| read(answer)).collect())
            }
            Err(failure) if failure.is(Errno::EOPNOTSUPP) => self.vlans_without_state(port),
            Err(failure) => Err(failure),
        }
    }

    /// The same of a kernel that knows no states; it has to tell those of every port of the host.
    fn vlans_without_state(&mut self, port: u32) -> Result<BTreeMap<u16, Carried>, Failure> {
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
                AfSpecBridge::VlanInfo(info) => {
                    Some((info.vid, Carried { tagging: tagging(info.flags), forwards: true }))
                }
                _ => None,
            })
            .collect())
    }
}

/// Reads what the kernel says about the VLANs of a port: `struct br_vlan_msg` and entries, each of one VLAN or a range.
fn read(octets: &[u8]) -> Vec<(u16, Carried)> {
    let mut vlans = Vec::new();
    for entry in each(octets.get(BR_VLAN_MSG_LEN..).unwrap_or_default()) {
        if entry.kind() != BRIDGE_VLANDB_ENTRY {
            continue;
        }
        let (mut info, mut last, mut forwards) = (None, None, true);
        for attribute in each(entry.value()) {
            let value = attribute.value();
            match attribute.kind() {
                BRIDGE_VLANDB_ENTRY_INFO => info = BridgeVlanInfo::try_from(value).ok(),
                BRIDGE_VLANDB_ENTRY_RANGE => last = parse_u16(value).ok(),
                BRIDGE_VLANDB_ENTRY_STATE => forwards = value == [u8::from(BridgePortState::Forwarding)],
                _ => {}
            }
        }
        if let Some(BridgeVlanInfo { vid, flags, .. }) = info {
            let carried = Carried { tagging: tagging(flags), forwards };
            vlans.extend((vid..=last.unwrap_or(vid)).map(|id| (id, carried)));
        }
    }
    vlans
}

/// The attributes in `octets`, up to the first that is malformed.
fn each(octets: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(octets).map_while(Result::ok)
}

/// `struct br_vlan_msg` about the link with `index`.
fn header(index: u32) -> Vec<u8> {
    let mut header = vec![0; BR_VLAN_MSG_LEN - size_of::<u32>()];
    header[0] = u8::from(AddressFamily::Bridge);
    header.extend(index.to_ne_bytes());
    header
}

/// An attribute, filled up as the next one needs it.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut octets = vec![0; attribute.buffer_len()];
    attribute.emit(&mut octets);
    octets
}

fn tagging(flags: BridgeVlanInfoFlags) -> Option<Tagging> {
    let is = |flag| flags.contains(flag);
    match (is(BridgeVlanInfoFlags::Pvid), is(BridgeVlanInfoFlags::Untagged)) {
        (true, true) => Some(Tagging::Untagged),
        (false, false) => Some(Tagging::Tagged),
        _ => None,
    }
}

fn vlan_message(port: &Link, vid: u16, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port.index;
    let mut specs = vec![AfSpecBridge::VlanInfo(BridgeVlanInfo { vid, flags })];
    if port.kind == Kind::Bridge {
        // Itself, not a bridge that it would be a port of.
        specs.insert(0, AfSpecBridge::Flags(BridgeFlag::LowerDev));
    }
    message.attributes.push(LinkAttribute::AfSpecBridge(specs));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_read_one_by_one_and_by_range() {
        let info = |flags: u16, vid: u16| {
            attribute(BRIDGE_VLANDB_ENTRY_INFO, &[flags.to_ne_bytes(), vid.to_ne_bytes()].concat())
        };
        let state = |state| attribute(BRIDGE_VLANDB_ENTRY_STATE, &[u8::from(state)]);
        let entry = |parts: &[Vec<u8>]| attribute(BRIDGE_VLANDB_ENTRY | NLA_F_NESTED, &parts.concat());
        let octets = [
            header(7),
            entry(&[info(6, 100), state(BridgePortState::Forwarding)]),
            entry(&[info(0, 200), attribute(BRIDGE_VLANDB_ENTRY_RANGE, &202_u16.to_ne_bytes())]),
            entry(&[info(4, 300), state(BridgePortState::Blocking)]),
        ]
        .concat();
        let carried = |tagging, forwards| Carried { tagging, forwards };
        let tagged = carried(Some(Tagging::Tagged), true);
        let expected = [
            (100, carried(Some(Tagging::Untagged), true)),
            (200, tagged),
            (201, tagged),
            (202, tagged),
            (300, carried(None, false)),
        ];
        assert_eq!(read(&octets), expected);
        for length in 0..octets.len() {
            assert!(expected.starts_with(&read(&octets[..length])), "{length}");
        }
    }
}
