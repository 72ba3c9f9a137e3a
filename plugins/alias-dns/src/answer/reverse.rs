//! [`Reverse`]: the address that a reverse name stands for, or how much of one. It knows no record.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::split::Split;

/// A name below `in-addr.arpa` (RFC 1035, section 3.5) or `ip6.arpa` (RFC 3596, section 2.5), read from its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reverse {
    /// The address as far as it is written; the rest is zero.
    pub(super) ip: IpAddr,
    /// How many bits of it are written.
    pub(super) bits: u8,
    pub(super) shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A whole address.
    Address,
    /// The beginning of an address.
    Prefix,
    /// Something in front of either that is no part of an address.
    Below,
}

const ARPA_LABELS: usize = 2;
const V4_LABEL_BITS: u8 = 8;
const V6_LABEL_BITS: u8 = 4;

impl Reverse {
    pub(super) fn of(name: &Split<'_>) -> Option<Self> {
        let digits = name.labels().checked_sub(ARPA_LABELS)?;
        let suffix = name.from(digits);
        let labels = (0..digits).rev().map(|label| name.label(label));
        if suffix.eq_ignore_ascii_case(b"\x07in-addr\x04arpa") {
            let mut octets = [0; 4];
            let read = read_labels(labels, &mut octets, decimal);
            let shape = Shape::of(digits, read, octets.len());
            return Some(Self { ip: Ipv4Addr::from(octets).into(), bits: read * V4_LABEL_BITS, shape });
        }
        if suffix.eq_ignore_ascii_case(b"\x03ip6\x04arpa") {
            let mut nibbles = [0; 32];
            let read = read_labels(labels, &mut nibbles, hexadecimal);
            let bits =
                nibbles.iter().fold(0_u128, |bits, nibble| bits << V6_LABEL_BITS | u128::from(*nibble));
            let shape = Shape::of(digits, read, nibbles.len());
            return Some(Self { ip: Ipv6Addr::from(bits).into(), bits: read * V6_LABEL_BITS, shape });
        }
        None
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        (self.shape == Shape::Address).then_some(self.ip)
    }

    /// How many labels the reverse zone of `subnet` has at this address. A prefix that ends within a label makes
    /// several zones of the next longer one.
    pub(super) fn zone_labels(&self, subnet: IpNetwork) -> usize {
        let label_bits = if self.ip.is_ipv4() { V4_LABEL_BITS } else { V6_LABEL_BITS };
        ARPA_LABELS + usize::from(subnet.prefix().div_ceil(label_bits))
    }
}

impl Shape {
    fn of(labels: usize, read: u8, whole: usize) -> Self {
        match usize::from(read) {
            read if read < labels => Self::Below,
            read if read == whole => Self::Address,
            _ => Self::Prefix,
        }
    }
}

/// Reads `labels` into `digits` up to the first that is no digit, and tells how many were.
fn read_labels<'q>(
    labels: impl Iterator<Item = &'q [u8]>,
    digits: &mut [u8],
    digit: fn(&[u8]) -> Option<u8>,
) -> u8 {
    let mut read = 0;
    for (label, place) in labels.zip(digits) {
        let Some(value) = digit(label) else { break };
        *place = value;
        read += 1;
    }
    read
}

/// An octet as it is written in a reverse name: without leading zeros.
fn decimal(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn hexadecimal(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => char::from(*digit).to_digit(16).map(|nibble| nibble as u8),
        _ => None,
    }
}
