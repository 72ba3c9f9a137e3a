//! One range: a subnet, the stretch of it that is leased, its gateway. Pure.
//!
//! The rules and texts are the reference's, but for two: a gateway has to be inside its subnet, and the network and
//! broadcast addresses are never handed out, also where a range is written to include them.

use std::fmt;
use std::net::IpAddr;

use cni_types::ip;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};

use crate::span::{Point, Span};

/// A range as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RangeSpec {
    #[serde(deserialize_with = "optional_cidr")]
    pub(crate) subnet: Option<IpNetwork>,
    #[serde(deserialize_with = "ip::optional_ip")]
    pub(crate) range_start: Option<IpAddr>,
    #[serde(deserialize_with = "ip::optional_ip")]
    pub(crate) range_end: Option<IpAddr>,
    #[serde(deserialize_with = "ip::optional_ip")]
    pub(crate) gateway: Option<IpAddr>,
}

/// Unlike an address, a subnet is not left out by being empty.
pub(crate) fn optional_cidr<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<IpNetwork>, D::Error> {
    ip::cidr(deserializer).map(Some)
}

/// A range that addresses can be leased from.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    subnet: IpNetwork,
    span: Span,
    gateway: IpAddr,
    leasable: Vec<Span>,
    requestable: Vec<Span>,
}

/// Why a range is refused, in the reference's words where it refuses it too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangeError {
    #[error("IP <nil> not v4 nor v6 (there is no subnet)")]
    NoSubnet,
    #[error("Network {0} too small to allocate from")]
    TooSmall(IpNetwork),
    #[error("IPNet IP and Mask version mismatch (given: {0})")]
    FamilyMismatch(IpNetwork),
    #[error(
        "Network has host bits set. For a subnet mask of length {length} the network address is {network} (given: {0})",
        length = .0.prefix(),
        network = .0.network()
    )]
    HostBits(IpNetwork),
    #[error("RangeStart {start} not in network {subnet}")]
    Start { start: IpAddr, subnet: IpNetwork },
    #[error("RangeStart {start} not in network {subnet} (given with rangeEnd {end}, which comes before it)")]
    StartAfterEnd { start: IpAddr, end: IpAddr, subnet: IpNetwork },
    #[error("RangeStart {start} not in network {subnet} (it is the broadcast address)")]
    StartAtBroadcast { start: IpAddr, subnet: IpNetwork },
    #[error("RangeEnd {end} not in network {subnet}")]
    End { end: IpAddr, subnet: IpNetwork },
    #[error("gateway {gateway} not in network {subnet}")]
    Gateway { gateway: IpAddr, subnet: IpNetwork },
}

impl RangeError {
    /// The key of [`RangeSpec`] that is wrong.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::NoSubnet | Self::TooSmall(_) | Self::FamilyMismatch(_) | Self::HostBits(_) => "subnet",
            Self::Start { .. } | Self::StartAfterEnd { .. } | Self::StartAtBroadcast { .. } => "rangeStart",
            Self::End { .. } => "rangeEnd",
            Self::Gateway { .. } => "gateway",
        }
    }
}

/// Why an address of a range cannot be had on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// It is the gateway.
    Gateway,
    /// It names the network, is its broadcast address, or is excluded by the configuration.
    Excluded,
}

impl Range {
    /// Fills in what `spec` leaves out, and checks the whole. No address of `excluded` is ever leased.
    pub(crate) fn new(spec: &RangeSpec, excluded: &[Span]) -> Result<Self, RangeError> {
        let subnet = checked_subnet(spec.subnet)?;
        let network = Point::from(subnet.network());
        let last = Point::from(subnet.broadcast());
        let whole = Span::new(network, last).ok_or(RangeError::TooSmall(subnet))?;
        // In IPv6 the last address is one like any other.
        let broadcast = subnet.is_ipv4().then_some(last);
        let inside = |address: &IpAddr| whole.contains(Point::from(*address));

        let default_gateway = whole.after(network).map_or(network, Span::first);
        let gateway = spec.gateway.map_or(default_gateway.address(), |gateway| gateway.to_canonical());
        if !inside(&gateway) {
            return Err(RangeError::Gateway { gateway, subnet });
        }
        let default_end = match broadcast {
            Some(broadcast) => Point::from_bits(broadcast.bits() - 1),
            None => last,
        };
        let end = spec.range_end.map(|end| end.to_canonical());
        let start = spec.range_start.map(|start| start.to_canonical());
        let upper = end.map_or(default_end, Point::from);
        // As in the reference, an end before the start is reported as a wrong start.
        if let Some(start) = start {
            if !inside(&start) {
                return Err(RangeError::Start { start, subnet });
            }
            if let Some(end) = end.filter(|_| Point::from(start) > upper) {
                return Err(RangeError::StartAfterEnd { start, end, subnet });
            }
        }
        if let Some(end) = end
            && !inside(&end)
        {
            return Err(RangeError::End { end, subnet });
        }
        let lower = start.map_or(default_gateway, Point::from);
        let Some(span) = Span::new(lower, upper) else {
            return Err(match end {
                Some(end) => RangeError::End { end, subnet },
                None => RangeError::StartAtBroadcast { start: lower.address(), subnet },
            });
        };

        let never = [Some(network), broadcast, Some(Point::from(gateway))];
        let holes: Vec<Span> =
            never.into_iter().flatten().map(Span::of_one).chain(excluded.iter().copied()).collect();
        Ok(Self {
            leasable: span.without_all(holes.iter().copied()),
            requestable: whole.without_all(holes),
            subnet,
            span,
            gateway,
        })
    }

    pub(crate) fn span(&self) -> Span {
        self.span
    }

    pub(crate) fn gateway(&self) -> IpAddr {
        self.gateway
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.subnet.is_ipv4()
    }

    /// The addresses that may be leased, in ascending order.
    pub(crate) fn leasable(&self) -> &[Span] {
        &self.leasable
    }

    /// Whether `point` belongs to the subnet, be it in the range or not.
    pub(crate) fn subnet_contains(&self, point: Point) -> bool {
        self.subnet.contains(point.address())
    }

    /// Whether, and why not, an address of the subnet can be leased to somebody who asks for it.
    pub(crate) fn reserved(&self, point: Point) -> Option<Reserved> {
        if point == self.gateway.into() {
            return Some(Reserved::Gateway);
        }
        let free = self.requestable.iter().any(|span| span.contains(point));
        (!free).then_some(Reserved::Excluded)
    }

    /// `point` with the subnet's prefix length.
    pub(crate) fn with_prefix(&self, point: Point) -> IpNetwork {
        let address = point.address();
        IpNetwork::new(address, self.subnet.prefix()).unwrap_or_else(|_| address.into())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.span.fmt(f)
    }
}

fn checked_subnet(subnet: Option<IpNetwork>) -> Result<IpNetwork, RangeError> {
    let subnet = subnet.ok_or(RangeError::NoSubnet)?;
    let bits = if subnet.is_ipv4() { 32 } else { 128 };
    if subnet.prefix() > bits - 2 {
        return Err(RangeError::TooSmall(subnet));
    }
    if subnet.is_ipv6() && subnet.ip().to_canonical().is_ipv4() {
        return Err(RangeError::FamilyMismatch(subnet));
    }
    if subnet.ip() != subnet.network() {
        return Err(RangeError::HostBits(subnet));
    }
    Ok(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subnet: &str, start: &str, end: &str, gateway: &str) -> RangeSpec {
        let optional = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        RangeSpec {
            subnet: (!subnet.is_empty()).then(|| subnet.parse().unwrap()),
            range_start: optional(start),
            range_end: optional(end),
            gateway: optional(gateway),
        }
    }

    #[track_caller]
    fn check_refused(spec: &RangeSpec, key: &str, text: &str) {
        let error = Range::new(spec, &[]).unwrap_err();
        assert_eq!((error.key(), error.to_string().as_str()), (key, text));
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        for (subnet, span, gateway) in [
            ("192.0.2.0/24", "192.0.2.1-192.0.2.254", "192.0.2.1"),
            ("192.0.2.0/25", "192.0.2.1-192.0.2.126", "192.0.2.1"),
            ("192.0.2.12/30", "192.0.2.13-192.0.2.14", "192.0.2.13"),
            ("2001:db8:1::/64", "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8:1::1"),
        ] {
            let range = Range::new(&spec(subnet, "", "", ""), &[]).unwrap();
            assert_eq!((range.to_string().as_str(), range.gateway().to_string().as_str()), (span, gateway));
        }
    }

    #[test]
    fn neither_network_nor_broadcast_nor_gateway_is_leasable_even_if_written_so() {
        let range = Range::new(&spec("10.0.0.0/29", "10.0.0.0", "10.0.0.7", "10.0.0.3"), &[]).unwrap();
        let leasable: Vec<String> = range.leasable().iter().map(ToString::to_string).collect();
        assert_eq!(leasable, ["10.0.0.1-10.0.0.2", "10.0.0.4-10.0.0.6"]);
        let range = Range::new(&spec("fd00::/126", "", "", ""), &[]).unwrap();
        let leasable: Vec<String> = range.leasable().iter().map(ToString::to_string).collect();
        assert_eq!(leasable, ["fd00::2-fd00::3"]);
    }

    #[test]
    fn a_wrong_subnet_is_refused_in_the_references_words() {
        check_refused(&spec("", "", "", ""), "subnet", "IP <nil> not v4 nor v6 (there is no subnet)");
        for subnet in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
            let text = format!("Network {subnet} too small to allocate from");
            check_refused(&spec(subnet, "", "", ""), "subnet", &text);
        }
        let text = "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0 \
                    (given: 10.0.0.5/24)";
        check_refused(&spec("10.0.0.5/24", "", "", ""), "subnet", text);
        check_refused(
            &spec("::ffff:10.0.0.0/120", "", "", ""),
            "subnet",
            "IPNet IP and Mask version mismatch (given: ::ffff:10.0.0.0/120)",
        );
    }

    #[test]
    fn bounds_and_gateway_have_to_be_in_the_subnet_and_in_order() {
        let net = "10.0.0.0/24";
        check_refused(
            &spec(net, "10.0.0.9", "10.0.0.5", ""),
            "rangeStart",
            "RangeStart 10.0.0.9 not in network 10.0.0.0/24 (given with rangeEnd 10.0.0.5, which comes before it)",
        );
        check_refused(
            &spec(net, "10.0.0.255", "", ""),
            "rangeStart",
            "RangeStart 10.0.0.255 not in network 10.0.0.0/24 (it is the broadcast address)",
        );
        for (start, end) in [("10.0.1.1", ""), ("10.0.1.1", "10.0.0.5"), ("fd00::1", "")] {
            check_refused(
                &spec(net, start, end, ""),
                "rangeStart",
                &format!("RangeStart {start} not in network {net}"),
            );
        }
        for end in ["10.0.1.5", "fd00::1", "9.9.9.9"] {
            check_refused(
                &spec(net, "", end, ""),
                "rangeEnd",
                &format!("RangeEnd {end} not in network {net}"),
            );
        }
        check_refused(
            &spec(net, "", "", "192.168.0.1"),
            "gateway",
            "gateway 192.168.0.1 not in network 10.0.0.0/24",
        );
        Range::new(&spec(net, "10.0.0.5", "10.0.0.5", ""), &[]).unwrap();
    }

    #[test]
    fn an_address_written_as_mapped_is_the_ipv4_one() {
        let range = Range::new(&spec("10.0.0.0/24", "::ffff:10.0.0.9", "", ""), &[]).unwrap();
        assert_eq!(range.to_string(), "10.0.0.9-10.0.0.254");
    }

    #[test]
    fn an_excluded_address_is_neither_leasable_nor_requestable() {
        let excluded = [Span::new(point("10.0.0.4"), point("10.0.0.200")).unwrap()];
        let range = Range::new(&spec("10.0.0.0/24", "", "10.0.0.9", ""), &excluded).unwrap();
        assert_eq!(range.leasable(), [Span::new(point("10.0.0.2"), point("10.0.0.3")).unwrap()]);
        assert_eq!(range.reserved(point("10.0.0.150")), Some(Reserved::Excluded));
        assert_eq!(range.reserved(point("10.0.0.255")), Some(Reserved::Excluded));
        assert_eq!(range.reserved(point("10.0.0.1")), Some(Reserved::Gateway));
        assert_eq!(range.reserved(point("10.0.0.201")), None);
    }

    fn point(text: &str) -> Point {
        Point::from(text.parse::<IpAddr>().unwrap())
    }
}
