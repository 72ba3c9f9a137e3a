//! Messages to and from the kernel as the connection carries them.
//!
//! Requests, and most answers, are rtnetlink's typed messages. An answer about a link is not: typed, it is taken apart
//! into a hundred attributes, which costs more than the kernel's work for it, and ten of them are read. It stays as
//! it came, for [`link`](super::link) to read. What is said of settings rtnetlink has no type for.

use rtnetlink::packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
    ParseableParametrized as _,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// `RTM_NEWLINK` (rtnetlink(7)).
const RTM_NEWLINK: u16 = 16;

/// `RTM_NEWNETCONF` and `RTM_GETNETCONF` (`linux/rtnetlink.h`).
const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;

/// The family of answers about links as such; those about the VLANs of bridge ports have another.
const AF_UNSPEC: u8 = 0;

/// A message.
#[derive(Debug)]
pub(super) enum Message {
    /// Anything but what follows.
    Typed(RouteNetlinkMessage),
    /// An answer about a link: `struct ifinfomsg` and attributes.
    Link(Box<[u8]>),
    /// A question about settings: `struct netconfmsg` and attributes.
    SettingsAsked(Box<[u8]>),
    /// The answer to it, likewise.
    Settings(Box<[u8]>),
}

impl Message {
    /// The message, unless it is about a link as such.
    pub(super) fn into_typed(self) -> Option<RouteNetlinkMessage> {
        match self {
            Self::Typed(message) => Some(message),
            _ => None,
        }
    }

    /// What is said about a link as such.
    pub(super) fn into_link(self) -> Option<Box<[u8]>> {
        match self {
            Self::Link(octets) => Some(octets),
            _ => None,
        }
    }

    /// What is said about settings.
    pub(super) fn into_settings(self) -> Option<Box<[u8]>> {
        match self {
            Self::Settings(octets) => Some(octets),
            _ => None,
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        if header.message_type == RTM_NEWLINK && payload.first() == Some(&AF_UNSPEC) {
            return Ok(Self::Link(payload.into()));
        }
        if header.message_type == RTM_NEWNETCONF {
            return Ok(Self::Settings(payload.into()));
        }
        RouteNetlinkMessage::parse_with_param(payload, header.message_type).map(Self::Typed)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Typed(message) => message.message_type(),
            Self::Link(_) => RTM_NEWLINK,
            Self::SettingsAsked(_) => RTM_GETNETCONF,
            Self::Settings(_) => RTM_NEWNETCONF,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Typed(message) => NetlinkSerializable::buffer_len(message),
            Self::Link(octets) | Self::SettingsAsked(octets) | Self::Settings(octets) => octets.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Typed(message) => NetlinkSerializable::serialize(message, buffer),
            Self::Link(octets) | Self::SettingsAsked(octets) | Self::Settings(octets) => {
                buffer[..octets.len()].copy_from_slice(octets);
            }
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
