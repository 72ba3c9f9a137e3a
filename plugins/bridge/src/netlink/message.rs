//! Messages to and from the kernel as the connection carries them.
//!
//! Requests, and most answers, are rtnetlink's typed messages. An answer about a link is not: typed, it is taken apart
//! into a hundred attributes, which costs more than the kernel's work for it, and ten of them are read. It stays as
//! it came, for [`link`](super::link) to read. So does what rtnetlink has no type for: settings, and VLANs with their states.

use rtnetlink::packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
    ParseableParametrized as _,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// `RTM_NEWLINK` (rtnetlink(7)).
const RTM_NEWLINK: u16 = 16;

/// `RTM_NEWNETCONF` (`linux/rtnetlink.h`).
pub(super) const RTM_NEWNETCONF: u16 = 80;

/// `RTM_NEWVLAN`, which is also how one is changed.
pub(super) const RTM_NEWVLAN: u16 = 112;

/// The family of answers about links as such; those about the VLANs of bridge ports have another.
const AF_UNSPEC: u8 = 0;

/// A message.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// Anything but what follows.
    Typed(RouteNetlinkMessage),
    /// One of this type, the octets of its header and attributes.
    Untyped(u16, Box<[u8]>),
}

impl Message {
    /// The message, if it has a type of rtnetlink's.
    pub(super) fn into_typed(self) -> Option<RouteNetlinkMessage> {
        match self {
            Self::Typed(message) => Some(message),
            Self::Untyped(..) => None,
        }
    }

    /// What is said about a link as such.
    pub(super) fn into_link(self) -> Option<Box<[u8]>> {
        self.into_octets(RTM_NEWLINK)
    }

    /// The octets of a message of type `wished`.
    pub(super) fn into_octets(self, wished: u16) -> Option<Box<[u8]>> {
        match self {
            Self::Untyped(kind, octets) if kind == wished => Some(octets),
            _ => None,
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let kind = header.message_type;
        let is_link = kind == RTM_NEWLINK && payload.first() == Some(&AF_UNSPEC);
        if is_link || [RTM_NEWNETCONF, RTM_NEWVLAN].contains(&kind) {
            return Ok(Self::Untyped(kind, payload.into()));
        }
        RouteNetlinkMessage::parse_with_param(payload, kind).map(Self::Typed)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Typed(message) => message.message_type(),
            Self::Untyped(kind, _) => *kind,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Typed(message) => NetlinkSerializable::buffer_len(message),
            Self::Untyped(_, octets) => octets.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Typed(message) => NetlinkSerializable::serialize(message, buffer),
            Self::Untyped(_, octets) => buffer[..octets.len()].copy_from_slice(octets),
        }
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

impl From<RouteNetlinkMessage> for Message {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::Typed(message)
    }
}
