//! What the kernel tells of a link. Pure: octets in, a [`Link`] out.

use rtnetlink::packet_core::{NlaBuffer, NlasIterator, Parseable as _, parse_i32, parse_u16, parse_u32};
use rtnetlink::packet_route::link::{
    BridgeBooleanOptionFlags, BridgeBooleanOptions, BridgePortState, LinkFlags, State,
};

use crate::mac::Mac;

/// Size of `struct ifinfomsg` in bytes.
const IFINFOMSG_LEN: usize = 16;

// Numbers of include/uapi/linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_PROTOCOL: u16 = 8;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const IFLA_BR_MULTI_BOOLOPT: u16 = 46;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_LOCKED: u16 = 39;
const IFLA_INET6_CONF: u16 = 2;
/// Type of a frame with a tag of a customer's VLAN, in the order of the network (`ETH_P_8021Q`, if_ether.h).
const CUSTOMER_TAG: [u8; 2] = 0x8100_u16.to_be_bytes();
/// The place of the setting in the array of a link's IPv6 settings (include/uapi/linux/ipv6.h).
const DEVCONF_ACCEPT_RA: usize = 3;

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its number in its namespace.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Its hardware address, if it has one of six bytes.
    pub(crate) mac: Option<Mac>,
    /// Its MTU in bytes.
    pub(crate) mtu: u32,
    /// What drives it.
    pub(crate) kind: Kind,
    /// Whether it is administratively up.
    pub(crate) up: bool,
    /// Whether frames can pass: it is up and so is what it depends on.
    pub(crate) operational: bool,
    /// Whether it asks and tells, by ARP and neighbour discovery, who has an address (`ip link set arp on`).
    pub(crate) resolves: bool,
    /// Whether somebody has asked that it receives every frame (`ip link set promisc on`); a sniffer does not count.
    pub(crate) promiscuous: bool,
    /// Index of the bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    /// Index of the other end of a veth pair, or of the link that it stands on (a VLAN's, a macvlan's), in the namespace
    /// of that one.
    pub(crate) peer: Option<u32>,
    /// The number by which this namespace knows the one of the other end; `None` if that is here.
    pub(crate) peer_netns: Option<i32>,
    /// The text that a person or a program put on it.
    pub(crate) alias: String,
    /// The number of the group that it was put in; 0 is the one of all others.
    pub(crate) group: u32,
    /// Whether it believes router advertisements (`accept_ra`): 0 never, 1 while the host does not forward, 2 always.
    pub(crate) accept_ra: i32,
    /// How it behaves as a bridge port.
    pub(crate) port: Option<PortState>,
    /// Whether, being a bridge, it filters by VLAN.
    pub(crate) vlan_filtering: bool,
    /// The VLAN, 1 to 4094, of untagged frames on what becomes a port of it, being a bridge; `None` if that is in none.
    pub(crate) default_vlan: Option<u16>,
    /// Whether, being a bridge, it takes other tags for those of its VLANs than the customers' (IEEE 802.1Q): those of
    /// a provider (802.1ad).
    pub(crate) foreign_tags: bool,
    /// Whether, being a bridge, it leaves it to the spanning tree protocol, that of all VLANs or one for each, which ports
    /// forward.
    pub(crate) spanning_tree: bool,
    /// Whether, being a bridge, it learns who sent what it never forwards: frames to the addresses of IEEE 802.1D.
    pub(crate) learns_unforwarded: bool,
}

/// What drives a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// Anything else.
    Other,
}

/// A bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortState {
    /// How it treats frames.
    pub(crate) conduct: Conduct,
    /// Whether the bridge lets frames through it.
    pub(crate) state: Admission,
}

impl PortState {
    /// Whether no frame passes the port, and that for no reason of `bridge`'s: the spanning tree protocol may have
    /// cause to hold it; nobody else has.
    pub(crate) fn is_closed(self, bridge: Option<&Link>) -> bool {
        match self.state {
            Admission::Disabled => true,
            Admission::Held => bridge.is_some_and(|bridge| !bridge.spanning_tree),
            Admission::Forwarding => false,
        }
    }
}

/// How a bridge port treats frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conduct {
    /// Frames may leave by the port that they came in by.
    pub(crate) hairpin: bool,
    /// Frames do not pass to other isolated ports.
    pub(crate) isolated: bool,
    /// Frames come in only from stations that somebody has entered in the bridge's table.
    pub(crate) locked: bool,
    /// Which frames leave by it although the bridge does not know that their receiver is there.
    pub(crate) floods: Floods,
}

impl Conduct {
    /// That of a port as the kernel makes one.
    pub(crate) const NEW: Self = Self {
        hairpin: false,
        isolated: false,
        locked: false,
        floods: Floods { unicast: true, multicast: true, broadcast: true },
    };

    /// What is otherwise than `wished`, in words: its name, how it is, and how it should be.
    pub(crate) fn differences(self, wished: Self) -> impl Iterator<Item = [&'static str; 3]> {
        let on_off = |on: bool| if on { "on" } else { "off" };
        let switches = |conduct: Self| {
            let Self { hairpin, isolated, locked, floods: Floods { unicast, multicast, broadcast } } =
                conduct;
            [
                ("hairpin mode", hairpin),
                ("isolation", isolated),
                ("lock", locked),
                ("flooding of unicast frames", unicast),
                ("flooding of multicast frames", multicast),
                ("flooding of broadcast frames", broadcast),
            ]
        };
        let both = switches(self).into_iter().zip(switches(wished));
        both.filter(|(is, should)| is != should)
            .map(move |((what, is), (_, should))| [what, on_off(is), on_off(should)])
    }
}

/// Which frames leave by a port although the bridge does not know that their receiver is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floods {
    /// Those to one station (`flood`).
    pub(crate) unicast: bool,
    /// Those to a group (`mcast_flood`), as neighbour discovery sends them.
    pub(crate) multicast: bool,
    /// Those to all (`bcast_flood`), as ARP sends them.
    pub(crate) broadcast: bool,
}

/// Whether a bridge lets frames through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// No: the port has no carrier or is down.
    Disabled,
    /// Not yet, or not now: the spanning tree protocol holds it.
    Held,
    /// Yes.
    Forwarding,
}

/// Reads what the kernel says about a link: `struct ifinfomsg` (rtnetlink(7)) and attributes.
pub(super) fn read(octets: &[u8]) -> Option<Link> {
    let (header, attributes) = octets.split_first_chunk::<IFINFOMSG_LEN>()?;
    let number = |at: usize| header[at..].first_chunk().map(|octets| u32::from_ne_bytes(*octets));
    let flags = LinkFlags::from_bits_retain(number(8)?);
    let mut link = Link {
        index: number(4)?,
        name: String::new(),
        mac: None,
        mtu: 0,
        kind: Kind::Other,
        up: flags.contains(LinkFlags::Up),
        operational: false,
        resolves: !flags.contains(LinkFlags::Noarp),
        promiscuous: flags.contains(LinkFlags::Promisc),
        controller: None,
        peer: None,
        peer_netns: None,
        alias: String::new(),
        group: 0,
        accept_ra: 0,
        port: None,
        vlan_filtering: false,
        default_vlan: None,
        foreign_tags: false,
        spanning_tree: false,
        learns_unforwarded: false,
    };
    for attribute in each(attributes) {
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(value).ok().map(Mac::from),
            IFLA_MTU => link.mtu = parse_u32(value).unwrap_or_default(),
            IFLA_OPERSTATE => link.operational = value == [u8::from(State::Up)],
            IFLA_MASTER => link.controller = parse_u32(value).ok(),
            IFLA_LINK => link.peer = parse_u32(value).ok(),
            IFLA_LINK_NETNSID => link.peer_netns = parse_i32(value).ok(),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_GROUP => link.group = parse_u32(value).unwrap_or_default(),
            IFLA_LINKINFO => read_info(value, &mut link),
            IFLA_AF_SPEC => link.accept_ra = accept_ra(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(octets: &[u8], link: &mut Link) {
    let mut port_of_bridge = false;
    for info in each(octets) {
        let value = info.value();
        match info.kind() {
            IFLA_INFO_KIND => {
                link.kind = match text(value).as_str() {
                    "bridge" => Kind::Bridge,
                    "veth" => Kind::Veth,
                    _ => Kind::Other,
                }
            }
            IFLA_INFO_DATA if link.kind == Kind::Bridge => {
                for data in each(value) {
                    match data.kind() {
                        IFLA_BR_VLAN_FILTERING => link.vlan_filtering = data.value() == [1],
                        IFLA_BR_VLAN_PROTOCOL => link.foreign_tags = data.value() != CUSTOMER_TAG,
                        IFLA_BR_VLAN_DEFAULT_PVID => {
                            link.default_vlan = parse_u16(data.value()).ok().filter(|id| *id != 0);
                        }
                        IFLA_BR_STP_STATE => {
                            link.spanning_tree |= parse_u32(data.value()).is_ok_and(|state| state != 0);
                        }
                        IFLA_BR_MULTI_BOOLOPT => {
                            if let Ok(BridgeBooleanOptions { value, .. }) =
                                BridgeBooleanOptions::parse(data.value())
                            {
                                let is = |option| value.contains(option);
                                link.learns_unforwarded = !is(BridgeBooleanOptionFlags::NoLinkLocalLearn);
                                link.spanning_tree |= is(BridgeBooleanOptionFlags::MstEnable);
                            }
                        }
                        _ => {}
                    }
                }
            }
            IFLA_INFO_SLAVE_KIND => port_of_bridge = text(value) == "bridge",
            IFLA_INFO_SLAVE_DATA if port_of_bridge => link.port = Some(read_port(value)),
            _ => {}
        }
    }
}

/// Reads it in the settings of a link's families.
fn accept_ra(families: &[u8]) -> Option<i32> {
    let ipv6 = each(families).find(|family| family.kind() == libc::AF_INET6 as u16)?;
    let settings = each(ipv6.value()).find(|settings| settings.kind() == IFLA_INET6_CONF)?;
    let value = settings.value().chunks_exact(4).nth(DEVCONF_ACCEPT_RA)?;
    Some(i32::from_ne_bytes(value.try_into().ok()?))
}

fn read_port(octets: &[u8]) -> PortState {
    // What a kernel does not tell of, it does as all did before there was a choice.
    let mut port = PortState { conduct: Conduct::NEW, state: Admission::Disabled };
    let PortState { conduct, state } = &mut port;
    for data in each(octets) {
        let value = data.value();
        match data.kind() {
            IFLA_BRPORT_STATE => *state = admission(value),
            IFLA_BRPORT_MODE => conduct.hairpin = value == [1],
            IFLA_BRPORT_UNICAST_FLOOD => conduct.floods.unicast = value == [1],
            IFLA_BRPORT_MCAST_FLOOD => conduct.floods.multicast = value == [1],
            IFLA_BRPORT_BCAST_FLOOD => conduct.floods.broadcast = value == [1],
            IFLA_BRPORT_ISOLATED => conduct.isolated = value == [1],
            IFLA_BRPORT_LOCKED => conduct.locked = value == [1],
            _ => {}
        }
    }
    port
}

fn admission(state: &[u8]) -> Admission {
    let is = |wanted: BridgePortState| state == [u8::from(wanted)];
    if is(BridgePortState::Forwarding) {
        return Admission::Forwarding;
    }
    let held = [BridgePortState::Listening, BridgePortState::Learning, BridgePortState::Blocking];
    if held.into_iter().any(is) { Admission::Held } else { Admission::Disabled }
}

/// The attributes in `octets`, up to the first that is malformed.
fn each(octets: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(octets).map_while(Result::ok)
}

/// A text without the NUL at its end.
fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets.strip_suffix(&[0]).unwrap_or(octets)).into_owned()
}

/// A link of which nothing else is told.
#[cfg(test)]
pub(crate) fn link(name: &str, kind: Kind) -> Link {
    Link { name: name.to_owned(), kind, ..read(&[0; IFINFOMSG_LEN]).expect("a whole header") }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Emitable as _;
    use rtnetlink::packet_route::link::{
        InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage,
    };

    use super::*;

    /// A port as the kernel tells of it.
    fn port() -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("veth7".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::Mtu(1400),
            LinkAttribute::OperState(State::Up),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(2),
            LinkAttribute::LinkNetNsId(4),
            LinkAttribute::IfAlias("cni:n/c/eth0".to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::State(BridgePortState::Forwarding),
                    InfoBridgePort::HairpinMode(true),
                    InfoBridgePort::BroadcastFlood(false),
                ])),
            ]),
        ];
        let mut octets = vec![0; message.buffer_len()];
        message.emit(&mut octets);
        octets
    }

    #[test]
    fn a_port_is_read_as_it_was_told() {
        let link = read(&port()).unwrap();
        assert_eq!(
            (link.index, link.name.as_str(), link.mtu, link.kind, link.up, link.operational),
            (7, "veth7", 1400, Kind::Veth, true, true)
        );
        assert_eq!(link.mac, Some(Mac::from([2, 0, 0, 0, 0, 7])));
        assert_eq!((link.controller, link.peer, link.peer_netns), (Some(3), Some(2), Some(4)));
        assert_eq!(link.alias, "cni:n/c/eth0");
        let PortState { conduct, state } = link.port.unwrap();
        assert_eq!((state, link.resolves), (Admission::Forwarding, true));
        let differences: Vec<_> = conduct.differences(Conduct::NEW).collect();
        assert_eq!(
            differences,
            [["hairpin mode", "on", "off"], ["flooding of broadcast frames", "off", "on"]]
        );
        assert_eq!(conduct.differences(conduct).count(), 0);
    }

    #[test]
    fn what_is_cut_off_is_read_as_far_as_it_goes() {
        let octets = port();
        for length in 0..octets.len() {
            let link = read(&octets[..length]);
            assert_eq!(link.is_some(), length >= IFINFOMSG_LEN, "{length}");
        }
    }
}
