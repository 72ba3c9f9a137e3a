//! Rules, written word by word.
//!
//! Each word appends the expressions that `nft` would generate for it, so that `nft list ruleset` reads the rule back
//! as a person would write it. A word that tests something ends the rule for packets that fail the test.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::Verdict;
use crate::expression::xtables::{self, IptablesState};
use crate::expression::{self, Expression};
use crate::object::Family;

/// One rule of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    pub(crate) expressions: Vec<Expression>,
    pub(crate) comment: Option<String>,
}

/// What a rule can look at in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Name of the interface that it came in by.
    Iifname,
    /// Name of the interface that it goes out by.
    Oifname,
    /// Source MAC address.
    EtherSaddr,
    /// Destination MAC address.
    EtherDaddr,
    /// IPv4 source address; after [`Rule::ipv4`].
    Ip4Saddr,
    /// IPv4 destination address; after [`Rule::ipv4`].
    Ip4Daddr,
    /// IPv6 source address; after [`Rule::ipv6`].
    Ip6Saddr,
    /// IPv6 destination address; after [`Rule::ipv6`].
    Ip6Daddr,
}

/// Where a field is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Meta(expression::MetaField),
    Payload { base: expression::Header, offset: u32 },
}

impl Field {
    pub(crate) fn place(self) -> Place {
        let network = |offset| Place::Payload { base: expression::Header::Network, offset };
        match self {
            Self::Iifname => Place::Meta(expression::MetaField::Iifname),
            Self::Oifname => Place::Meta(expression::MetaField::Oifname),
            Self::EtherSaddr => Place::Payload { base: expression::Header::Link, offset: 6 },
            Self::EtherDaddr => Place::Payload { base: expression::Header::Link, offset: 0 },
            Self::Ip4Saddr => network(12),
            Self::Ip4Daddr => network(16),
            Self::Ip6Saddr => network(8),
            Self::Ip6Daddr => network(24),
        }
    }

    /// Bytes of a value.
    pub(crate) fn len(self) -> u32 {
        match self {
            Self::Iifname | Self::Oifname | Self::Ip6Saddr | Self::Ip6Daddr => 16,
            Self::EtherSaddr | Self::EtherDaddr => 6,
            Self::Ip4Saddr | Self::Ip4Daddr => 4,
        }
    }
}

/// States of connection tracking; a rule tests for any of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtState {
    /// No packet was seen before.
    New,
    /// Packets were seen both ways.
    Established,
    /// Started because of another flow, such as an ICMP error.
    Related,
    /// Kept from connection tracking.
    Untracked,
}

impl CtState {
    /// As the kernel has it: IP_CT_ESTABLISHED is 0, IP_CT_RELATED 1 and IP_CT_NEW 2; NF_CT_STATE_BIT(n) is
    /// 1 << (n + 1).
    pub(crate) fn bit(self) -> u32 {
        match self {
            Self::Established => 1 << 1,
            Self::Related => 1 << 2,
            Self::New => 1 << 3,
            // NF_CT_STATE_UNTRACKED_BIT
            Self::Untracked => 1 << 6,
        }
    }
}

/// The bits of a VLAN tag's control information that name the VLAN, IEEE 802.1Q section 9.6.
const VLAN_ID: u16 = 0x0fff;

impl Rule {
    /// A rule without words: it applies to every packet and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Text for a person, cut to what nf_tables can hold.
    #[must_use]
    pub fn comment(self, text: &str) -> Self {
        Self { comment: Some(text.to_owned()), ..self }
    }

    /// IPv4 packets only (in an inet table).
    #[must_use]
    pub fn ipv4(self) -> Self {
        self.meta_is(expression::MetaField::Nfproto, &[libc::NFPROTO_IPV4 as u8])
    }

    /// IPv6 packets only (in an inet table).
    #[must_use]
    pub fn ipv6(self) -> Self {
        self.meta_is(expression::MetaField::Nfproto, &[libc::NFPROTO_IPV6 as u8])
    }

    /// `udp dport` or `tcp dport`, by the protocol's number.
    #[must_use]
    pub fn destination_port(self, protocol: u8, port: u16) -> Self {
        self.meta_is(expression::MetaField::L4Proto, &[protocol]).payload_is(
            expression::Header::Transport,
            2,
            &port.to_be_bytes(),
        )
    }

    /// ICMPv6 messages of one type, in frames (in a bridge table).
    #[must_use]
    pub fn icmpv6_frame(self, message_type: u8) -> Self {
        self.meta_is(expression::MetaField::EtherType, &(libc::ETH_P_IPV6 as u16).to_be_bytes())
            .meta_is(expression::MetaField::L4Proto, &[libc::IPPROTO_ICMPV6 as u8])
            .payload_is(expression::Header::Transport, 0, &[message_type])
    }

    /// Frames whose second VLAN tag, of this EtherType, names no VLAN (in a bridge table). The first tag has been taken
    /// off by then.
    #[must_use]
    pub fn second_tag_without_vlan(self, ether_type: u16) -> Self {
        // In this order: the other way round `nft list` takes the tag for a header that it does not know, and aborts.
        self.then(expression::payload(expression::Header::Network, 0, 2, 0))
            .then(expression::mask(&VLAN_ID.to_be_bytes()))
            .then(expression::compare(expression::Operator::Equal, &[0; 2]))
            .meta_is(expression::MetaField::EtherType, &ether_type.to_be_bytes())
    }

    /// Packets from an interface that has Ethernet headers.
    #[must_use]
    pub fn ethernet(self) -> Self {
        const ARPHRD_ETHER: u16 = 1;
        self.meta_is(expression::MetaField::Iiftype, &ARPHRD_ETHER.to_ne_bytes())
    }

    /// The interface that the packet came in by is in this group of links.
    #[must_use]
    pub fn iifgroup(self, group: u32) -> Self {
        self.meta_is(expression::MetaField::Iifgroup, &group.to_ne_bytes())
    }

    /// The field has this value.
    #[must_use]
    pub fn is(self, field: Field, value: &[u8]) -> Self {
        self.load(&[field]).then(expression::compare(expression::Operator::Equal, value))
    }

    /// The field has another value than this.
    #[must_use]
    pub fn is_not(self, field: Field, value: &[u8]) -> Self {
        self.load(&[field]).then(expression::compare(expression::Operator::Differs, value))
    }

    /// The interface that the packet came in by has this name.
    #[must_use]
    pub fn iifname(self, name: &str) -> Self {
        self.is(Field::Iifname, &ifname_key(name))
    }

    /// The interface that the packet goes out by has this name.
    #[must_use]
    pub fn oifname(self, name: &str) -> Self {
        self.is(Field::Oifname, &ifname_key(name))
    }

    /// The address lies in the network.
    #[must_use]
    pub fn within(self, field: Field, network: IpNetwork) -> Self {
        let address = octets(network.network());
        // As `nft` does it: whole bytes are compared as such.
        let bytes = usize::from(network.prefix() / 8);
        match field.place() {
            Place::Payload { base, offset } if network.prefix().is_multiple_of(8) && bytes > 0 => {
                self.payload_is(base, offset, &address[..bytes])
            }
            _ => self
                .load(&[field])
                .then(expression::mask(&octets(network.mask())))
                .then(expression::compare(expression::Operator::Equal, &address)),
        }
    }

    /// The fields, joined, are an element of the set.
    #[must_use]
    pub fn in_set(self, fields: &[Field], set: &str) -> Self {
        self.load(fields).then(expression::lookup(set, expression::Lookup::Present))
    }

    /// The fields, joined, are no element of the set.
    #[must_use]
    pub fn not_in_set(self, fields: &[Field], set: &str) -> Self {
        self.load(fields).then(expression::lookup(set, expression::Lookup::Absent))
    }

    /// The verdict that the map has for the fields, joined; without one, the next rule.
    #[must_use]
    pub fn vmap(self, fields: &[Field], map: &str) -> Self {
        self.load(fields).then(expression::lookup(map, expression::Lookup::Verdict))
    }

    /// The flow is in one of these states.
    #[must_use]
    pub fn ct_state(self, states: &[CtState]) -> Self {
        let bits = states.iter().fold(0, |bits, state| bits | state.bit());
        self.then(expression::ct(expression::CtField::State)).any_bit(bits)
    }

    /// The flow's destination was translated: it came to a published port.
    #[must_use]
    pub fn ct_dnat(self) -> Self {
        const IPS_DST_NAT: u32 = 1 << 5;
        self.then(expression::ct(expression::CtField::Status)).any_bit(IPS_DST_NAT)
    }

    /// The flow is in one of these states, in a chain of `iptables-nft`.
    #[must_use]
    pub fn iptables_state(self, states: &[IptablesState]) -> Self {
        self.then(xtables::conntrack(states))
    }

    /// Text for a person, in a chain of `iptables-nft`; cut to what it can hold.
    #[must_use]
    pub fn iptables_comment(self, text: &str) -> Self {
        self.then(xtables::comment(text))
    }

    /// Counts the packets that come so far.
    #[must_use]
    pub fn counter(self) -> Self {
        self.then(expression::counter())
    }

    /// The rule's end: what happens to the packet.
    #[must_use]
    pub fn then_verdict(self, verdict: &Verdict) -> Self {
        self.then(expression::verdict(verdict))
    }

    /// Accepts the packet.
    #[must_use]
    pub fn accept(self) -> Self {
        self.then_verdict(&Verdict::Accept)
    }

    /// Drops the packet.
    #[must_use]
    pub fn drop(self) -> Self {
        self.then_verdict(&Verdict::Drop)
    }

    /// Goes into another chain, and on here after it.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.then_verdict(&Verdict::Jump(chain.to_owned()))
    }

    /// Goes into another chain and does not come back.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.then_verdict(&Verdict::Goto(chain.to_owned()))
    }

    /// Translates the source address to that of the interface which the packet leaves by.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.then(expression::masquerade())
    }

    /// Connection tracking leaves the packet alone.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.then(expression::notrack())
    }

    /// Translates the destination of the packet.
    #[must_use]
    pub fn dnat_to(self, destination: SocketAddr) -> Self {
        let family = if destination.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        self.then(expression::immediate(expression::REG_ADDRESS, &address_key(destination.ip())))
            .then(expression::immediate(expression::REG_PORT, &destination.port().to_be_bytes()))
            .then(expression::destination_nat(family))
    }

    /// Translates the destination of the packet, of the IPv4 or IPv6 that its table is for, to what it is: chains that come
    /// later translate it no more.
    #[must_use]
    pub fn dnat_to_itself(self, family: Family) -> Self {
        let field = if family == Family::Ipv4 { Field::Ip4Daddr } else { Field::Ip6Daddr };
        self.load(&[field]).then(expression::destination_nat_of_address(family))
    }

    /// Whether every word of `other` stands in this rule, in the same order and with nothing between.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        self.expressions.len() == other.expressions.len()
            && self
                .expressions
                .iter()
                .zip(&other.expressions)
                .all(|(found, wanted)| expression::includes(found, wanted))
    }

    pub(crate) fn xtables_comment(&self) -> Option<&str> {
        self.expressions.iter().find_map(xtables::comment_of)
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = String> {
        self.expressions.iter().filter_map(|expression| match expression::verdict_of(expression) {
            Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
            _ => None,
        })
    }

    fn then(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    /// Loads the fields side by side, each at the next four-byte boundary, as the keys of a set are laid out.
    fn load(mut self, fields: &[Field]) -> Self {
        let mut offset = 0;
        for field in fields {
            self = match field.place() {
                Place::Meta(meta) => self.then(expression::meta(meta, offset)),
                Place::Payload { base, offset: at } => {
                    self.then(expression::payload(base, at, field.len(), offset))
                }
            };
            offset += field.len().next_multiple_of(4);
        }
        self
    }

    fn meta_is(self, field: expression::MetaField, value: &[u8]) -> Self {
        self.then(expression::meta(field, 0)).then(expression::compare(expression::Operator::Equal, value))
    }

    fn payload_is(self, base: expression::Header, offset: u32, value: &[u8]) -> Self {
        let len = value.len() as u32;
        self.then(expression::payload(base, offset, len, 0))
            .then(expression::compare(expression::Operator::Equal, value))
    }

    fn any_bit(self, bits: u32) -> Self {
        self.then(expression::mask(&bits.to_ne_bytes()))
            .then(expression::compare(expression::Operator::Differs, &0_u32.to_ne_bytes()))
    }
}

/// An interface name as nf_tables compares it: sixteen bytes, filled with NUL.
pub fn ifname_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// The key of a set whose key has several parts, each filled up to four bytes.
pub fn join_keys(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

/// An address in network order.
pub fn address_key(address: IpAddr) -> Vec<u8> {
    octets(address)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
