//! The neighbour table.

use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Failure, Netlink};

impl Netlink {
    /// Forgets which hardware address `ip` had on the link; no error if nothing was known.
    pub(crate) fn forget_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<(), Failure> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        let (family, address) = match ip {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(address));
        match self.acknowledged(RouteNetlinkMessage::DelNeighbour(message), 0) {
            Err(failure) if !failure.is_gone() => Err(failure),
            _ => Ok(()),
        }
    }
}
