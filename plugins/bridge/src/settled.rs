//! What the kernel still has to do by itself when all that was asked for is granted, and before which a container's first
//! packets are lost: each of them costs its sender a second.
//!
//! A link whose carrier has come discards what is sent by it until the kernel has followed, for a bridge at most once a
//! second (`linkwatch_nextevent` in net/core/link_watch.c). And a neighbour's solicitation for an IPv6 address is heard
//! when a worker of the kernel has joined the address's group (`addrconf_dad_begin` in net/ipv6/addrconf.c).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use cni_types::Error;
use ipnetwork::IpNetwork;

use crate::netlink::events::Events;
use crate::netlink::{Failure, Netlink};

/// Longest wait for the groups of addresses; it takes some 100 us where nobody else changes links.
const PATIENCE: Duration = Duration::from_secs(2);

/// The groups of IPv6 of the caller's namespace; `/proc/net` would be that of the process's first thread.
const GROUPS: &str = "/proc/thread-self/net/igmp6";

/// Has the kernel follow the carrier of a link: since Linux 6.8 it does before it answers who asks for the link
/// (`rtnl_getlink`). Earlier ones follow when they do.
///
/// # Errors
/// What the kernel refuses the question with.
pub(crate) fn follow_carrier(netlink: &mut Netlink, index: u32) -> Result<(), Failure> {
    netlink.link_by_index(index).map(drop)
}

/// The IPv6 addresses among `networks`.
pub(crate) fn ipv6<'a>(networks: impl Iterator<Item = &'a IpNetwork>) -> Vec<Ipv6Addr> {
    let addresses = networks.filter_map(|network| match network.ip() {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    });
    addresses.collect()
}

/// Waits until solicitations for the addresses are heard by a link of the caller's namespace. To fail at it is no reason
/// to refuse the container: whoever asks in vain asks again.
pub(crate) fn await_solicited(index: u32, addresses: &[Ipv6Addr]) {
    match try_await(index, addresses) {
        Ok(true) => {}
        Ok(false) => log::warn!("neighbours are not heard yet that ask for {addresses:?}"),
        Err(error) => log::warn!("{error}"),
    }
}

/// `Ok(false)` when the time is over.
fn try_await(index: u32, addresses: &[Ipv6Addr]) -> Result<bool, Error> {
    let heard = || -> Result<bool, Error> {
        let groups =
            fs::read_to_string(GROUPS).map_err(|error| Error::io(format_args!("read {GROUPS}"), &error))?;
        Ok(addresses.iter().all(|address| has_joined(&groups, index, *address)))
    };
    if addresses.is_empty() || heard()? {
        return Ok(true);
    }
    // When an address can be used, after its group was joined, the kernel tells of it once more.
    let failed = |error: io::Error| Error::io("wait for the groups of addresses", &error);
    let mut events = Events::subscribe(PATIENCE).map_err(failed)?;
    while !heard()? {
        if !events.wait().map_err(failed)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the link is in the group of an address by what the kernel says of all groups: in each line the link's number,
/// its name, the group, and more.
fn has_joined(groups: &str, index: u32, address: Ipv6Addr) -> bool {
    let group = format!("{:032x}", solicited(address).to_bits());
    groups.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().and_then(|word| word.parse().ok()) == Some(index) && words.nth(1) == Some(group.as_str())
    })
}

/// The group that solicitations for an address are sent to (RFC 4291, section 2.7.1).
fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | address.to_bits() & 0x00ff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_counts_on_its_own_link_alone() {
        let groups = "\
            1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
            2    eth0            ff0200000000000000000001ff00a002     1 00000004 0\n\
            12   eth1            ff0200000000000000000001ff00a003     1 00000004 0\n";
        let joined = |index, address: &str| has_joined(groups, index, address.parse().unwrap());
        assert!(joined(2, "fd00::a002"));
        assert!(joined(12, "2001:db8::ff:1234:0:a003") && !joined(2, "fd00::a003"));
        assert!(!joined(2, "fd00::a003") && !joined(1, "fd00::a002"));
    }
}
