//! Which device of this host has an address.

use std::io::Result;
use std::net::IpAddr;

use nft_netlink::attribute;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::if_nametoindex;

use crate::route_netlink::Routing;

/// The route that is asked for (rtnetlink(7)), in octets, and where its kind stands.
const ROUTE: usize = 12;
const KIND: usize = 7;

/// The entry of the routing table itself (Linux since 4.13); libc has it for glibc alone.
const RTM_F_FIB_MATCH: u32 = 0x2000;

/// The device with `ip`: the first of `listed` that has it, or else any other.
///
/// One question for each of `listed`, however many addresses there are; all are gone through only before it is said that
/// none of them has it. That `ip` could be bound to would say nothing: so can 0.0.0.0 and 224.0.0.1, and with
/// `ip_nonlocal_bind` any (ip-sysctl).
///
/// # Errors
/// The operating system's, where all cannot be gone through.
pub(crate) fn device_with(ip: IpAddr, listed: &[&str]) -> Result<Option<String>> {
    let routing = Routing::open()?;
    if let Some(device) = listed.iter().find(|device| has_route(&routing, device, ip).unwrap_or(false)) {
        return Ok(Some((*device).to_owned()));
    }
    // Two that are there without such a route: an IPv6 address, for a moment after it was added, and one in a VRF.
    let with_it = getifaddrs()?.filter(|one| address_of(one) == Some(ip));
    let devices: Vec<String> = with_it.map(|one| one.interface_name).collect();
    Ok(devices.iter().find(|device| listed.contains(&device.as_str())).or(devices.first()).cloned())
}

/// Whether packets for `ip` that come in by `device` are for this host because `device` has the address.
fn has_route(routing: &Routing, device: &str, ip: IpAddr) -> Result<bool> {
    let index = if_nametoindex(device)?;
    let route = routing.ask(libc::RTM_GETROUTE, &question(index, ip), libc::RTM_NEWROUTE)?;
    Ok(route.len() >= ROUTE && route[KIND] == libc::RTN_LOCAL)
}

/// Asks for the entry of the routing table that `ip` is found by on device number `index`.
fn question(index: u32, ip: IpAddr) -> Vec<u8> {
    let (family, octets) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let bits = (octets.len() * 8) as u8;
    let mut question = vec![family as u8, bits, 0, 0, 0, 0, 0, 0];
    question.extend(RTM_F_FIB_MATCH.to_ne_bytes());
    attribute::put(&mut question, libc::RTA_DST, &octets);
    attribute::put(&mut question, libc::RTA_OIF, &index.to_ne_bytes());
    question
}

fn address_of(one: &InterfaceAddress) -> Option<IpAddr> {
    let address = one.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or(address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_its_addresses_and_no_others() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let routing = Routing::open().unwrap();
        assert!(has_route(&routing, "lo", loopback).unwrap());
        for listed in [&["lo"][..], &["none", "lo"], &[]] {
            assert_eq!(device_with(loopback, listed).unwrap(), Some("lo".to_owned()));
        }
        for other in ["0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "192.0.2.1", "2001:db8::1"]
        {
            assert_eq!(device_with(other.parse().unwrap(), &["lo"]).unwrap(), None, "{other}");
        }
        assert!(has_route(&routing, "none", loopback).is_err());
    }
}
