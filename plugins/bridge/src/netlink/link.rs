//! Links: bridges, veth pairs, bridge ports.

mod state;

use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use rtnetlink::packet_core::{DefaultNla, NLA_F_NESTED};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeBooleanOptionFlags, BridgeBooleanOptions, BridgePortState,
    In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use self::state::read;
use super::{Failure, Netlink};
use crate::mac::Mac;

#[cfg(test)]
pub(crate) use self::state::link;
pub(crate) use self::state::{Admission, Conduct, Kind, Link, PortState};

// Numbers of include/uapi/linux/if_link.h and include/uapi/linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;

/// RFC 3704, section 2.4: the source has to be reachable, by whatever link.
const RP_FILTER_LOOSE: u32 = 2;

/// How the source of a packet is judged by the way back to it (`rp_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReversePath {
    /// As the namespace has it.
    Inherited,
    /// It may lead out of another link.
    Loose,
}

/// A bridge to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewBridge<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its hardware address. Given at creation, it is the bridge's own and does not follow its ports.
    pub(crate) mac: Mac,
    /// Its MTU in bytes, which is fitted to its ports until one is set that differs.
    pub(crate) mtu: u32,
    /// Whether it filters by VLAN.
    pub(crate) vlan_filtering: bool,
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewVethEnd<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its hardware address.
    pub(crate) mac: Mac,
    /// The group that it is in.
    pub(crate) group: u32,
}

/// What is said of a bridge port once it exists.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortSetup<'a> {
    /// Whose it is.
    pub(crate) alias: &'a str,
    /// Frames may leave by the port that they came in by.
    pub(crate) hairpin: bool,
    /// Frames do not pass to other isolated ports.
    pub(crate) isolated: bool,
}

impl Netlink {
    /// Makes a bridge, down.
    pub(crate) fn create_bridge(&mut self, bridge: NewBridge<'_>) -> Result<(), Failure> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
            .name(bridge.name)
            .mtu(bridge.mtu)
            .address(bridge.mac.octets().to_vec());
        if bridge.vlan_filtering {
            message = message.set_info_data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]));
        }
        self.create(RouteNetlinkMessage::NewLink(message.build()))
    }

    /// Makes a veth pair in one message: the host end a port of the bridge, the other end in `netns` under its final
    /// name. Hands back the host end as it was before it became a port, or nothing before Linux 6.2.
    ///
    /// A link that is made in one namespace and moved to another costs the kernel some 15 ms.
    pub(crate) fn create_veth(
        &mut self,
        host: NewVethEnd<'_>,
        container: NewVethEnd<'_>,
        netns: &impl AsFd,
        bridge: u32,
        mtu: u32,
    ) -> Result<Option<Link>, Failure> {
        let peer = veth_end(container, mtu).setns_by_fd(netns.as_fd().as_raw_fd()).build();
        self.create_veth_with(host, peer, bridge, mtu)
    }

    /// Makes a veth pair with both ends in this namespace, `port` a port of the bridge. Hands
    /// back the same as [`create_veth`](Self::create_veth).
    pub(crate) fn create_local_veth(
        &mut self,
        port: NewVethEnd<'_>,
        other: NewVethEnd<'_>,
        bridge: u32,
        mtu: u32,
    ) -> Result<Option<Link>, Failure> {
        self.create_veth_with(port, veth_end(other, mtu).build(), bridge, mtu)
    }

    fn create_veth_with(
        &mut self,
        port: NewVethEnd<'_>,
        peer: LinkMessage,
        bridge: u32,
        mtu: u32,
    ) -> Result<Option<Link>, Failure> {
        let mut message = veth_end(port, mtu).controller(bridge).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let announced = self.create_link(RouteNetlinkMessage::NewLink(message))?;
        Ok(announced.and_then(|octets| read(&octets)))
    }

    /// Marks a bridge port, sets how it behaves and brings it up.
    ///
    /// It gets no IPv6 address of its own: a port has no use for one, and the traffic about it would go to every
    /// other port.
    pub(crate) fn set_up_port(&mut self, index: u32, setup: PortSetup<'_>) -> Result<(), Failure> {
        let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        match self.set_up_port_with(index, setup, Some(no_address)) {
            // Without IPv6 there is nothing to be kept from the port.
            Err(failure) if failure.is(Errno::EAFNOSUPPORT) => self.set_up_port_with(index, setup, None),
            other => other,
        }
    }

    fn set_up_port_with(
        &mut self,
        index: u32,
        setup: PortSetup<'_>,
        family: Option<AfSpecUnspec>,
    ) -> Result<(), Failure> {
        let mut message =
            LinkMessageBuilder::<LinkUnspec>::new().index(index).up().alias(setup.alias).build();
        if let Some(family) = family {
            message.attributes.push(LinkAttribute::AfSpecUnspec(vec![family]));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(setup.hairpin),
                InfoBridgePort::Isolated(setup.isolated),
            ])),
        ]));
        self.acknowledged(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Has the bridge of a port that can carry frames let them through.
    pub(crate) fn open_port(&mut self, index: u32) -> Result<(), Failure> {
        self.change_port(index, vec![InfoBridgePort::State(BridgePortState::Forwarding)])
    }

    /// Has a bridge port treat frames as `wished`. The kernel is told only what differs from `is`: an older one refuses
    /// what it does not know.
    pub(crate) fn set_conduct(&mut self, index: u32, is: Conduct, wished: Conduct) -> Result<(), Failure> {
        let switches = |Conduct { hairpin, isolated, locked, floods }: Conduct| {
            [
                InfoBridgePort::HairpinMode(hairpin),
                InfoBridgePort::Isolated(isolated),
                InfoBridgePort::Locked(locked),
                InfoBridgePort::UnicastFlood(floods.unicast),
                InfoBridgePort::MulticastFlood(floods.multicast),
                InfoBridgePort::BroadcastFlood(floods.broadcast),
            ]
        };
        let present = switches(is);
        let changes: Vec<InfoBridgePort> =
            switches(wished).into_iter().filter(|switch| !present.contains(switch)).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.change_port(index, changes)
    }

    fn change_port(&mut self, index: u32, changes: Vec<InfoBridgePort>) -> Result<(), Failure> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(changes)),
        ]));
        self.acknowledged(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, index: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).up())
    }

    /// Takes a link down.
    pub(crate) fn set_down(&mut self, index: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).down())
    }

    /// Brings a container's interface up.
    ///
    /// Addresses that others knew with another hardware address are announced whenever its own is set
    /// ([`announce`](Self::announce)); replies that leave by another interface than the request came in by are not
    /// taken for forged where `reverse_path` is loose.
    pub(crate) fn set_container_up(&mut self, index: u32, reverse_path: ReversePath) -> Result<(), Failure> {
        let mut settings = vec![(IPV4_DEVCONF_ARP_NOTIFY, 1)];
        if reverse_path == ReversePath::Loose {
            settings.push((IPV4_DEVCONF_RP_FILTER, RP_FILTER_LOOSE));
        }
        let mut message = LinkUnspec::new_with_index(index).up().build();
        message.attributes.push(ipv4_settings(&settings));
        self.acknowledged(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Lets replies come in by the link that would leave by another one.
    pub(crate) fn loosen_reverse_path(&mut self, index: u32) -> Result<(), Failure> {
        let mut message = LinkUnspec::new_with_index(index).build();
        message.attributes.push(ipv4_settings(&[(IPV4_DEVCONF_RP_FILTER, RP_FILTER_LOOSE)]));
        self.acknowledged(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Has the kernel announce the addresses of an interface: gratuitous ARP (RFC 5227), and unsolicited neighbour
    /// advertisements (RFC 4861) where `ndisc_notify` is set. It does so when the hardware address is set, be it to
    /// what it was. The same message puts the interface in `group`.
    ///
    /// A packet socket could say the same, but to close one costs a grace period.
    pub(crate) fn announce(&mut self, index: u32, mac: Mac, group: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).address(mac.octets().to_vec()).link_group(group))
    }

    /// Makes a link a port of the bridge.
    pub(crate) fn set_controller(&mut self, index: u32, bridge: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).controller(bridge))
    }

    /// Puts a link in a group.
    pub(crate) fn set_group(&mut self, index: u32, group: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).link_group(group))
    }

    /// Sets the hardware address of a link.
    pub(crate) fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).address(mac.octets().to_vec()))
    }

    /// Sets the MTU of a link, in bytes.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).mtu(mtu))
    }

    /// Sets whether a link receives every frame.
    pub(crate) fn set_promiscuous(&mut self, index: u32, on: bool) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).promiscuous(on))
    }

    /// Has a link ask and tell who has an address.
    pub(crate) fn set_resolving(&mut self, index: u32) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).arp(true))
    }

    /// Has a bridge filter by VLAN, or not. A kernel that cannot does not say so.
    pub(crate) fn set_vlan_filtering(&mut self, index: u32, on: bool) -> Result<(), Failure> {
        self.change_bridge(index, InfoBridge::VlanFiltering(on))
    }

    /// Has a bridge learn who sent what it never forwards, or not.
    pub(crate) fn set_learns_unforwarded(&mut self, index: u32, on: bool) -> Result<(), Failure> {
        let mask = BridgeBooleanOptionFlags::NoLinkLocalLearn;
        let value = if on { BridgeBooleanOptionFlags::empty() } else { mask };
        self.change_bridge(index, InfoBridge::MultiBoolOpt(BridgeBooleanOptions { value, mask }))
    }

    fn change_bridge(&mut self, index: u32, setting: InfoBridge) -> Result<(), Failure> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
            .index(index)
            .set_info_data(InfoData::Bridge(vec![setting]));
        self.acknowledged(RouteNetlinkMessage::NewLink(message.build()), 0)
    }

    /// Says whose a bridge is and what MTU it keeps, in bytes.
    pub(crate) fn adopt_bridge(&mut self, index: u32, mtu: u32, alias: &str) -> Result<(), Failure> {
        self.change(LinkUnspec::new_with_index(index).mtu(mtu).alias(alias))
    }

    fn change(&mut self, message: LinkMessageBuilder<LinkUnspec>) -> Result<(), Failure> {
        self.acknowledged(RouteNetlinkMessage::SetLink(message.build()), 0)
    }

    /// Deletes a link, with it the other end of a veth pair; no error if it is gone.
    pub(crate) fn delete_link(&mut self, index: u32) -> Result<(), Failure> {
        let message = LinkUnspec::new_with_index(index).build();
        match self.acknowledged(RouteNetlinkMessage::DelLink(message), 0) {
            Err(failure) if !failure.is_gone() => Err(failure),
            _ => Ok(()),
        }
    }

    /// Deletes links; the kernel waits for its readers once for all of them.
    pub(crate) fn delete_links(&mut self, links: &[Link]) -> Result<(), Failure> {
        let [first, rest @ ..] = links else { return Ok(()) };
        if rest.is_empty() {
            return self.delete_link(first.index);
        }
        // A group of their own, by which they can be deleted as one: their first index, in a range nobody numbers in.
        let group = 0x636e_0000 | (first.index & 0xffff);
        for link in links {
            match self.set_group(link.index, group) {
                Err(failure) if !failure.is_gone() => return Err(failure),
                _ => {}
            }
        }
        let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build();
        match self.acknowledged(RouteNetlinkMessage::DelLink(message), 0) {
            Err(failure) if !failure.is_gone() => Err(failure),
            _ => Ok(()),
        }
    }

    /// The link called `name`.
    pub(crate) fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, Failure> {
        self.link(LinkUnspec::new_with_name(name))
    }

    /// The link with `index`.
    pub(crate) fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Failure> {
        self.link(LinkUnspec::new_with_index(index))
    }

    /// The link with `index` in the namespace that is known here by the number `netns`.
    pub(crate) fn link_there(&mut self, netns: i32, index: u32) -> Result<Option<Link>, Failure> {
        let request = LinkUnspec::new_with_index(index);
        self.link(request.append_extra_attribute(LinkAttribute::IfNetnsId(netns)))
    }

    fn link(&mut self, request: LinkMessageBuilder<LinkUnspec>) -> Result<Option<Link>, Failure> {
        let request = request.append_extra_attribute(without_statistics()).build();
        match self.get_link(RouteNetlinkMessage::GetLink(request)) {
            Ok(answer) => read(&answer).map(Some).ok_or(Failure::NoAnswer),
            Err(failure) if failure.is(Errno::ENODEV) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Failure> {
        self.all_links(LinkMessageBuilder::<LinkUnspec>::new())
    }

    /// Whether there is a veth that is `wished`. Reads no more of them than it takes to find one, which ends the
    /// connection.
    pub(crate) fn has_veth(self, wished: impl Fn(&Link) -> bool) -> Result<bool, Failure> {
        let request = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .append_extra_attribute(without_statistics())
            .build();
        self.any_link(&RouteNetlinkMessage::GetLink(request), |octets| {
            read(octets).is_some_and(|link| wished(&link))
        })
    }

    /// Every link that is a port of the bridge.
    pub(crate) fn ports(&mut self, bridge: u32) -> Result<Vec<Link>, Failure> {
        let links = self.all_links(LinkMessageBuilder::<LinkUnspec>::new().controller(bridge))?;
        Ok(links.into_iter().filter(|link| link.controller == Some(bridge)).collect())
    }

    fn all_links(&mut self, request: LinkMessageBuilder<LinkUnspec>) -> Result<Vec<Link>, Failure> {
        let request = request.append_extra_attribute(without_statistics()).build();
        let answers = self.dump_links(&RouteNetlinkMessage::GetLink(request))?;
        Ok(answers.iter().filter_map(|answer| read(answer)).collect())
    }

    /// Whether the caller may change links here, asked without changing any.
    pub(crate) fn may_change_links(&mut self) -> Result<(), Failure> {
        // Permission is checked before the link is looked for, and no link has the number 0 or a name too long.
        let message = LinkUnspec::new_with_index(i32::MAX.unsigned_abs()).build();
        match self.acknowledged(RouteNetlinkMessage::DelLink(message), 0) {
            Err(failure) if failure.is(Errno::ENODEV) => Ok(()),
            other => other,
        }
    }
}

/// Settings of a link's IPv4 half, by their numbers in `include/uapi/linux/ip.h`.
///
/// The kernel takes them as a list of attributes where it tells them as an array, and the array is what the message
/// crate knows.
fn ipv4_settings(settings: &[(u16, u32)]) -> LinkAttribute {
    let mut list = Vec::with_capacity(settings.len() * 8);
    for (number, value) in settings {
        list.extend(8_u16.to_ne_bytes());
        list.extend(number.to_ne_bytes());
        list.extend(value.to_ne_bytes());
    }
    let list = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, list));
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![list])])
}

/// Statistics are the greater part of an answer about a link, and nobody here reads them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// With one queue each way: more would cost the kernel two grace periods at creation and gain a veth nothing.
fn veth_end(end: NewVethEnd<'_>, mtu: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::new()
        .name(end.name)
        .address(end.mac.octets().to_vec())
        .link_group(end.group)
        .mtu(mtu)
        .append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
}
