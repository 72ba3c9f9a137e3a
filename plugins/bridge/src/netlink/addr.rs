//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_types::{Error, ErrorCode};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Failure, Netlink};

/// Duplicate address detection of IPv6 addresses (RFC 4862, section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dad {
    /// The address can be used at once: the IPAM plugin has made sure that it is nobody else's.
    Skip,
    /// It can be used when nobody has objected for a second or two.
    Wait,
}

/// An address as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Address and prefix length.
    pub(crate) network: IpNetwork,
    /// Whether it reaches beyond its link: not link-local, not loopback.
    pub(crate) global: bool,
    /// Where duplicate address detection stands.
    pub(crate) state: AddressState,
}

/// An address as it was on its link, with all that goes with it: broadcast address, label, lifetimes, flags.
#[derive(Debug)]
pub(crate) struct TakenAddress(AddressMessage);

/// Whether an address can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressState {
    /// It can.
    Usable,
    /// Duplicate address detection has not ended.
    Tentative,
    /// Somebody else has it.
    Duplicate,
}

impl Netlink {
    /// Gives `address` to the link; `Ok(false)` if it has it already.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNetwork, dad: Dad) -> Result<bool, Failure> {
        let mut message = address_message(index, address);
        if address.is_ipv6() && dad == Dad::Skip {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        match self.create(RouteNetlinkMessage::NewAddress(message)) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is(Errno::EEXIST) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Takes `address` from the link; no error if it has it no more.
    pub(crate) fn delete_address(&mut self, index: u32, address: IpNetwork) -> Result<(), Failure> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        match self.acknowledged(message, 0) {
            Err(failure) if !failure.is_gone() => Err(failure),
            _ => Ok(()),
        }
    }

    /// Takes `address` from the link for as long as somebody may want it back; `None` if it has it no more.
    pub(crate) fn take_address(
        &mut self,
        index: u32,
        address: IpNetwork,
    ) -> Result<Option<TakenAddress>, Failure> {
        let messages = self.dump_messages(index, AddressMessage::default())?;
        let is_it = |message: &AddressMessage| read(message).is_some_and(|told| told.network == address);
        self.delete_address(index, address)?;
        Ok(messages.into_iter().find(is_it).map(TakenAddress))
    }

    /// Gives the link back what was taken from it, to be used at once.
    pub(crate) fn restore_address(&mut self, TakenAddress(mut message): TakenAddress) -> Result<(), Failure> {
        if message.header.family == AddressFamily::Inet6 {
            message.header.flags |= AddressHeaderFlags::Nodad;
            for attribute in &mut message.attributes {
                if let AddressAttribute::Flags(flags) = attribute {
                    *flags |= AddressFlags::Nodad;
                }
            }
        }
        match self.create(RouteNetlinkMessage::NewAddress(message)) {
            Err(failure) if !failure.is(Errno::EEXIST) => Err(failure),
            _ => Ok(()),
        }
    }

    /// The addresses of the link.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<Address>, Failure> {
        self.dump_addresses(index, AddressMessage::default())
    }

    /// The addresses of a link in the namespace that is known here by the number `netns`.
    pub(crate) fn addresses_there(&mut self, netns: i32, index: u32) -> Result<Vec<Address>, Failure> {
        let mut request = AddressMessage::default();
        request.attributes.push(AddressAttribute::TargetNetNsId(netns));
        self.dump_addresses(index, request)
    }

    fn dump_addresses(&mut self, index: u32, request: AddressMessage) -> Result<Vec<Address>, Failure> {
        Ok(self.dump_messages(index, request)?.iter().filter_map(read).collect())
    }

    fn dump_messages(
        &mut self,
        index: u32,
        mut request: AddressMessage,
    ) -> Result<Vec<AddressMessage>, Failure> {
        request.header.index = index;
        let answers = self.dump(&RouteNetlinkMessage::GetAddress(request))?;
        let of_link = |answer| match answer {
            // Kernels before 4.20 tell of all links.
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(of_link).collect())
    }
}

/// Why the kernel does not give a link `address`: code 2 where it serves no IPv6 at all (`ipv6.disable=1` at its boot),
/// else 999.
pub(crate) fn refused(failure: Failure, address: IpNetwork) -> Error {
    match address.is_ipv6() && failure.is(Errno::EOPNOTSUPP) {
        true => Error::new(ErrorCode::UNSUPPORTED_FIELD, format!("this kernel serves no IPv6: {failure}")),
        false => Error::internal(failure),
    }
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    match address {
        IpNetwork::V4(v4) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4.ip(), v4.prefix()).build()
        }
        IpNetwork::V6(v6) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6.ip(), v6.prefix()).build()
        }
    }
}

fn read(message: &AddressMessage) -> Option<Address> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let mut local = None;
    let mut remote = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => remote = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip: IpAddr = local.or(remote)?;
    let state = if flags.contains(AddressFlags::Dadfailed) {
        AddressState::Duplicate
    } else if flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic) {
        AddressState::Tentative
    } else {
        AddressState::Usable
    };
    Some(Address {
        network: IpNetwork::new(ip, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
        state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipv6_is_named_where_an_ipv6_address_is_refused() {
        let (v4, v6) = ("10.9.0.1/24".parse().unwrap(), "fd00:9::1/64".parse().unwrap());
        let told = |errno, address| {
            let error = refused(Failure::Refused(errno), address);
            (error.code(), error.to_string().contains("this kernel serves no IPv6"))
        };
        assert_eq!(told(Errno::EOPNOTSUPP, v6), (ErrorCode::UNSUPPORTED_FIELD, true));
        assert_eq!(told(Errno::EOPNOTSUPP, v4), (ErrorCode::INTERNAL, false));
        assert_eq!(told(Errno::EACCES, v6), (ErrorCode::INTERNAL, false));
    }
}
