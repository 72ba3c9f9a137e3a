//! RA guard: a container is no router, so a router advertisement that it sends enters no bridge port.
//!
//! Without it one container can give all others of its bridge an IPv6 default route by way of itself.

use nft_netlink::{Field, Holds, KeyType, Rule, Set};

/// The ports that are guarded.
pub(super) const PORTS: Set<'static> = Set { name: "ra-guard", key: &[KeyType::Ifname], holds: Holds::Keys };

/// ICMPv6 type, RFC 4861 section 4.2.
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Drops router advertisements.
pub(super) fn rule() -> Rule {
    Rule::new().in_set(&[Field::Iifname], PORTS.name).icmpv6_frame(ROUTER_ADVERTISEMENT).drop()
}
