//! Addresses as the protocol writes them: `10.1.2.3`, `10.1.2.3/24`.
//!
//! Host bits are kept (`10.5.5.5/24` stays so). An empty text where an address may be absent means absent.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};

/// Reads `address/prefix length`; unlike `IpNetwork`'s own parser it insists on the prefix length.
///
/// # Errors
/// Names the text.
pub fn parse_cidr(text: &str) -> Result<IpNetwork, String> {
    let invalid = || format!("invalid CIDR address: {text}");
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
    IpNetwork::new(address, prefix).map_err(|_| invalid())
}

/// Reads an address; one of IPv4 may be written as mapped (`::ffff:10.1.2.3`).
///
/// # Errors
/// Names the text.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let address = text.parse().map(|address: IpAddr| address.to_canonical());
    address.map_err(|_| format!("invalid IP address: {text}"))
}

/// For `#[serde(deserialize_with)]`: a required CIDR.
///
/// # Errors
/// The deserializer's, naming the text.
pub fn cidr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNetwork, D::Error> {
    parse_cidr(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// For `#[serde(default, deserialize_with)]`: an address that may be absent, `null` or empty.
///
/// # Errors
/// The deserializer's, naming the text.
pub fn optional_ip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => parse_ip(&text).map(Some).map_err(serde::de::Error::custom),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        assert_eq!(parse_ip("::ffff:10.1.2.3").unwrap().to_string(), "10.1.2.3");
        assert_eq!(parse_ip("FD00::1").unwrap().to_string(), "fd00::1");
    }

    #[test]
    fn a_cidr_needs_its_prefix_length_and_keeps_its_host_bits() {
        assert_eq!(parse_cidr("10.5.5.5/24").unwrap().to_string(), "10.5.5.5/24");
        assert_eq!(parse_cidr("fd00::1/64").unwrap().to_string(), "fd00::1/64");
        for text in
            ["", "10.0.0.1", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/255.0.0.0", "/24", "10.0.0.0/", "x/1"]
        {
            assert_eq!(parse_cidr(text).unwrap_err(), format!("invalid CIDR address: {text}"));
        }
    }
}
