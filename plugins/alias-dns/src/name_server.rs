//! The address of a name server as people and programs write it.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use crate::serve::listen::PORT;

/// `address`, or `address%device` for one that is an address of a link (RFC 4007, section 11), as it stands in
/// resolv.conf(5): `fe80::1%eth0`.
pub(crate) fn parse(text: &str) -> Option<SocketAddr> {
    parse_with_port(text, PORT)
}

/// The same, or with a port behind it: `address:port`, `[address]:port`.
pub(crate) fn parse_any(text: &str) -> Option<SocketAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    match bracketed {
        Some((address, port)) => parse_with_port(address, port.parse().ok()?).filter(SocketAddr::is_ipv6),
        None => parse(text).or_else(|| text.parse().ok()),
    }
}

fn parse_with_port(text: &str, port: u16) -> Option<SocketAddr> {
    if let Some((address, device)) = text.split_once('%') {
        return Some(SocketAddrV6::new(address.parse().ok()?, port, 0, index(device)?).into());
    }
    Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, port))
}

/// Whether `text` names a device, of this host or not.
pub(crate) fn names_device(text: &str) -> bool {
    text.split_once('%').is_some_and(|(_, device)| device.parse::<u32>().is_err())
}

/// The device that `text` names, if all that is wrong with it is that this host has none of that name.
pub(crate) fn missing_device(text: &str) -> Option<&str> {
    let (before, after) = text.split_once('%')?;
    let device = after.split_once("]:").map_or(after, |(device, _)| device);
    let loopback = format!("{before}%lo{}", &after[device.len()..]);
    (!device.is_empty() && index(device).is_none() && parse_any(&loopback).is_some()).then_some(device)
}

fn index(device: &str) -> Option<u32> {
    device.parse().ok().or_else(|| nix::net::if_::if_nametoindex(device).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read() {
        for (text, server) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("fd00::1", "[fd00::1]:53"),
            ("[fd00::1]:5353", "[fd00::1]:5353"),
            // The loopback device is the first of every host.
            ("fe80::1%lo", "[fe80::1%1]:53"),
            ("fe80::1%7", "[fe80::1%7]:53"),
            ("[fe80::1%lo]:5353", "[fe80::1%1]:5353"),
        ] {
            assert_eq!(parse_any(text), Some(server.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in [
            "",
            "dns.example",
            "9.9.9.9%lo",
            "[9.9.9.9]:53",
            "fe80::1%nosuchdevice",
            "[fd00::1]",
            "[fd00::1]:",
        ] {
            assert_eq!(parse_any(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_that_is_missing_is_told_from_other_mistakes() {
        for (text, device) in [
            ("fe80::1%nosuchdevice", Some("nosuchdevice")),
            ("[fe80::1%nosuchdevice]:5353", Some("nosuchdevice")),
            ("[fe80::1%nosuchdevice]:port", None),
            ("fe80::g%nosuchdevice", None),
            ("9.9.9.9%nosuchdevice", None),
            ("fe80::1%lo", None),
            ("fe80::1%", None),
            ("fe80::1", None),
        ] {
            assert_eq!(missing_device(text), device, "{text}");
        }
    }
}
