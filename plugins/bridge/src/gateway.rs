//! The host's half of a gateway: the network's addresses on the bridge, and forwarding.

use std::net::IpAddr;

use cni_types::Error;
use ipnetwork::IpNetwork;

use crate::bridge;
use crate::config::{AddressConflict, GatewayRole, Settings};
use crate::netlink::addr::Address;
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{Dad, Family, Plan};
use crate::sysctl;
use crate::undo::Undo;

/// Puts the plan's gateway addresses on `link`.
pub(crate) fn ensure_addresses<'a>(
    host: &mut Netlink,
    link: &Link,
    settings: &Settings,
    plan: &Plan,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<(), Error> {
    let GatewayRole::Gateway { conflict, .. } = settings.gateway else { return Ok(()) };
    let index = link.index;
    let present = host.addresses(index).map_err(|failure| {
        Error::internal(failure).context(format_args!("list addresses of \"{}\"", link.name))
    })?;
    let present: Vec<IpNetwork> = present
        .into_iter()
        .filter(|address| address.global)
        .map(|address: Address| address.network)
        .collect();
    for gateway in &plan.gateways {
        if present.contains(gateway) {
            continue;
        }
        let failed = |failure: Failure| {
            Error::internal(failure).context(format_args!("set address {gateway} of \"{}\"", link.name))
        };
        for other in present.iter().filter(|other| conflicts(other, gateway, &plan.gateways)) {
            if conflict == AddressConflict::Refuse {
                return Err(Error::invalid_config(
                    "bridge",
                    format_args!("\"{}\" already has an IP address different from {gateway}", link.name),
                ));
            }
            host.delete_address(index, *other).map_err(failed)?;
            let other = *other;
            undo.push("restore the bridge's address", move || {
                let mut host = Netlink::open().map_err(Error::internal)?;
                host.add_address(index, other, Dad::Skip).map(drop).map_err(Error::internal)
            });
        }
        if host.add_address(index, *gateway, Dad::Skip).map_err(failed)? {
            let gateway = *gateway;
            undo.push("remove the bridge's address", move || remove_unused(home, index, gateway));
        }
    }
    Ok(())
}

/// Whether an address of the bridge keeps it from having `gateway` as well: IPv4 networks have a bridge for
/// themselves, IPv6 subnets may share one as long as they do not overlap (the reference's rule).
fn conflicts(other: &IpNetwork, gateway: &IpNetwork, wished: &[IpNetwork]) -> bool {
    if wished.contains(other) {
        return false;
    }
    match (other.ip(), gateway.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            other.contains(gateway.network()) || gateway.contains(other.network())
        }
        _ => false,
    }
}

/// Takes back a gateway address, unless another attachment has come to rely on it.
fn remove_unused(home: &Netns, index: u32, gateway: IpNetwork) -> Result<(), Error> {
    let _alone = home.exclude()?;
    let mut host = Netlink::open().map_err(Error::internal)?;
    if bridge::has_attachments(&mut host, index).map_err(Error::internal)? {
        return Ok(());
    }
    host.delete_address(index, gateway).map_err(Error::internal)
}

/// Lets the host forward the plan's packets.
///
/// The last step that can fail: what it changes is the host's, not the network's, so it is never taken back.
pub(crate) fn enable_forwarding(plan: &Plan) -> Result<(), Error> {
    for family in [Family::V4, Family::V6] {
        if plan.forwards(family) {
            sysctl::enable_forwarding(family)?;
        }
    }
    Ok(())
}
