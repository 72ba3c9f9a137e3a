//! RA guard: a container is no router, so a router advertisement that it sends enters no bridge port.
//!
//! Without it one container can give all others of its bridge an IPv6 default route by way of itself.

use nft_netlink::{Field, Holds, KeyType, Rule, Set};
use nix::libc;

/// The ports that are guarded.
pub(super) const PORTS: Set<'static> = Set { name: "ra-guard", key: &[KeyType::Ifname], holds: Holds::Keys };

/// ICMPv6 type, RFC 4861 section 4.2.
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Drops router advertisements, and the frames that would hide them: a receiver takes off every tag that names no VLAN,
/// a rule sees behind the first one only.
pub(super) fn rules() -> [Rule; 3] {
    let guarded = || Rule::new().in_set(&[Field::Iifname], PORTS.name);
    [
        guarded().icmpv6_frame(ROUTER_ADVERTISEMENT).drop(),
        guarded().second_tag_without_vlan(libc::ETH_P_8021Q as u16).drop(),
        guarded().second_tag_without_vlan(libc::ETH_P_8021AD as u16).drop(),
    ]
}
