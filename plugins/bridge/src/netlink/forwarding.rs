//! Whether the host forwards. The kernel keeps that in a file too (`/proc/sys/net/ipv4/ip_forward`), but to find one
//! there takes the longer the more network namespaces there are: a quarter of a millisecond with a thousand.

use nix::libc::{AF_INET, AF_INET6};
use rtnetlink::packet_core::{DefaultNla, Emitable as _, NlaBuffer, NlasIterator, parse_i32};

use super::message::{Message, RTM_NEWNETCONF};
use super::{Failure, Netlink};
use crate::family::Family;

/// `RTM_GETNETCONF` (`linux/rtnetlink.h`).
const RTM_GETNETCONF: u16 = 82;

/// `NETCONFA_IFINDEX`, `NETCONFA_FORWARDING` and `NETCONFA_IFINDEX_ALL` (`linux/netconf.h`).
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: i32 = -1;

/// Octets of `struct netconfmsg`, filled up as the attributes have to be.
const NETCONFMSG_LEN: usize = 4;

impl Netlink {
    /// Whether packets of `family` are forwarded that come in by the link with this index or, without one, by those
    /// that have no will of their own.
    pub(crate) fn is_forwarding(&mut self, family: Family, link: Option<u32>) -> Result<bool, Failure> {
        let family = match family {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let index = link.map_or(NETCONFA_IFINDEX_ALL, u32::cast_signed);
        let link = DefaultNla::new(NETCONFA_IFINDEX, index.to_ne_bytes().to_vec());
        let mut request = vec![0; NETCONFMSG_LEN + link.buffer_len()];
        request[0] = family as u8;
        link.emit(&mut request[NETCONFMSG_LEN..]);
        let answer = self.one(Message::Untyped(RTM_GETNETCONF, request.into()))?;
        let answer = answer.into_octets(RTM_NEWNETCONF).ok_or(Failure::NoAnswer)?;
        let attributes = answer.get(NETCONFMSG_LEN..).ok_or(Failure::NoAnswer)?;
        let forwarding = NlasIterator::new(attributes)
            .map_while(Result::ok)
            .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == NETCONFA_FORWARDING);
        let forwarding = forwarding.and_then(|attribute| parse_i32(attribute.value()).ok());
        Ok(forwarding.ok_or(Failure::NoAnswer)? != 0)
    }
}
