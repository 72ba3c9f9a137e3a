//! The container's half of an attachment: addresses, interface up, routes.

use cni_types::{Error, ErrorCode};
use nix::errno::Errno;

use crate::config::Settings;
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{Dad, Plan, PlannedRoute};
use crate::sysctl::{self, Ipv6Switch};

/// The container end of the veth pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContainerEnd<'a> {
    /// The container's namespace.
    pub(crate) netns: &'a Netns,
    /// The host's.
    pub(crate) home: &'a Netns,
    /// The interface's name there.
    pub(crate) ifname: &'a str,
    /// The interface's index there.
    pub(crate) index: u32,
}

/// Gives the interface its addresses and routes and brings it up.
pub(crate) fn configure(
    container: &mut Netlink,
    end: ContainerEnd<'_>,
    settings: &Settings,
    plan: &Plan,
) -> Result<(), Error> {
    let ifname = end.ifname;
    let failed = |what: String| move |failure: Failure| Error::internal(failure).context(what);
    if plan.addresses.iter().any(|address| address.network.is_ipv6()) || settings.is_gateway() {
        end.netns.visit(end.home, || set_switches(ifname, settings, plan))?;
    }
    for address in &plan.addresses {
        let network = address.network;
        match container.add_address(end.index, network, settings.dad) {
            // IPv6 is off on the interface, as some runtimes set for all.
            Err(failure) if network.is_ipv6() && failure.is(Errno::EACCES) => {
                end.netns.visit(end.home, || {
                    sysctl::set_ipv6("lo", Ipv6Switch::Disable, false)?;
                    sysctl::set_ipv6(ifname, Ipv6Switch::Disable, false)
                })?;
                container.add_address(end.index, network, settings.dad)
            }
            other => other,
        }
        .map_err(failed(format!("add address {network} to \"{ifname}\"")))?;
    }
    container.set_up(end.index).map_err(failed(format!("set \"{ifname}\" up")))?;
    for route in &plan.routes {
        container.add_route(end.index, route).map_err(|failure| unroutable(route, &failure))?;
    }
    Ok(())
}

/// The switches of the interface, set while it is down.
fn set_switches(ifname: &str, settings: &Settings, plan: &Plan) -> Result<(), Error> {
    // The network has its own gateway, so a router that advertises itself is another container's.
    if settings.is_gateway() {
        sysctl::set_ipv6(ifname, Ipv6Switch::AcceptRa, false)?;
    }
    if plan.addresses.iter().any(|address| address.network.is_ipv6()) {
        // A chained plugin may take the interface down to change its hardware address.
        sysctl::set_ipv6(ifname, Ipv6Switch::KeepAddressOnDown, true)?;
        sysctl::set_ipv6(ifname, Ipv6Switch::AcceptDad, settings.dad == Dad::Wait)?;
    }
    Ok(())
}

/// A route that the kernel refuses for what it says is the user's mistake.
fn unroutable(route: &PlannedRoute, failure: &Failure) -> Error {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let text = format!("add route {}{via}: {failure}", route.dst);
    let users = [Errno::EINVAL, Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EEXIST];
    match users.iter().any(|errno| failure.is(*errno)) {
        true => Error::invalid_config("ipam.routes", text),
        false => Error::new(ErrorCode::INTERNAL, text),
    }
}
