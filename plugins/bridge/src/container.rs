//! The container's half of an attachment: addresses, interface up, routes.

use std::time::Duration;

use cni_types::{Error, ErrorCode};
use nix::errno::Errno;

use crate::config::Settings;
use crate::netlink::addr::{self, AddressState, Dad};
use crate::netlink::events::Events;
use crate::netlink::link::{Kind, ReversePath};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{Plan, PlannedRoute};
use crate::settled;
use crate::sysctl::{self, Ipv6Switch, Ipv6Switches};

/// Longest wait for duplicate address detection; it takes one to two seconds.
const DAD_PATIENCE: Duration = Duration::from_secs(5);

/// Index of the first link that a namespace gets after its loopback.
const FIRST_INDEX: u32 = 2;

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

/// Whether the interface is the container's only network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// It is.
    Alone,
    /// There are others, by which answers may leave.
    Others,
}

impl Company {
    fn of(container: &mut Netlink, index: u32) -> Result<Self, Error> {
        // The first link after the loopback: there is no other.
        if index == FIRST_INDEX {
            return Ok(Self::Alone);
        }
        let links = container
            .links()
            .map_err(|failure| Error::internal(failure).context("list the container's interfaces"))?;
        let mut others = links.iter().filter(|link| link.kind == Kind::Veth && link.index != index);
        Ok(others.next().map_or(Self::Alone, |_| Self::Others))
    }
}

/// How the interface has to judge the source of a packet: loosely, if it judges strictly by itself and the container
/// has another network.
fn reverse_path(company: Company, end: ContainerEnd<'_>, plan: &Plan) -> Result<ReversePath, Error> {
    let has_ipv4 = plan.addresses.iter().any(|address| address.network.is_ipv4());
    if company == Company::Others
        && has_ipv4
        && end.netns.visit(end.home, || sysctl::filters_strictly(end.ifname))?
    {
        return Ok(ReversePath::Loose);
    }
    Ok(ReversePath::Inherited)
}

/// Waits until IPv6 addresses are known to be nobody else's (`enabledad`).
fn await_dad(container: &mut Netlink, end: ContainerEnd<'_>) -> Result<(), Error> {
    let failed = |failure: Failure| Error::internal(failure).context("read the container's addresses");
    let subscribe =
        || Events::subscribe(DAD_PATIENCE).map_err(|error| Error::io("subscribe to addresses", &error));
    let mut events = end.netns.visit(end.home, subscribe)?;
    loop {
        let addresses = container.addresses(end.index).map_err(failed)?;
        if let Some(taken) = addresses.iter().find(|address| address.state == AddressState::Duplicate) {
            let text = format!("IPv6 address {} is already in use on the link", taken.network.ip());
            return Err(Error::new(ErrorCode::TRY_AGAIN_LATER, text));
        }
        let Some(tentative) = addresses.iter().find(|address| address.state == AddressState::Tentative)
        else {
            return Ok(());
        };
        if !events.wait().map_err(|error| Error::io("wait for duplicate address detection", &error))? {
            let text = format!("IPv6 address {} is still tentative", tentative.network.ip());
            return Err(Error::new(ErrorCode::TRY_AGAIN_LATER, text));
        }
    }
}

/// Has the interface of a network with a gateway believe no router, before its addresses are known: one that advertises
/// itself is another container. Hands back its switches, if they were touched.
pub(crate) fn believe_no_router(
    netns: &Netns,
    home: &Netns,
    ifname: &str,
    settings: &Settings,
) -> Result<Option<Ipv6Switches>, Error> {
    if !settings.is_gateway() || settings.leave_container_down {
        return Ok(None);
    }
    netns.visit(home, || {
        let set = || {
            let switches = Ipv6Switches::open(ifname)?;
            switches.set(&[(Ipv6Switch::AcceptRa, false)])?;
            Ok(switches)
        };
        // It may not get an IPv6 address: to fail at what only makes it safer is no reason to refuse the container.
        Ok(set().inspect_err(|error: &Error| log::warn!("{error}")).ok())
    })
}

/// Gives the interface its addresses and routes and brings it up. Tells what company it is in.
pub(crate) fn configure(
    container: &mut Netlink,
    end: ContainerEnd<'_>,
    settings: &Settings,
    plan: &Plan,
    switches: Option<Ipv6Switches>,
) -> Result<Company, Error> {
    let ifname = end.ifname;
    let failed = |what: String| move |failure: Failure| Error::internal(failure).context(what);
    if plan.addresses.iter().any(|address| address.network.is_ipv6()) {
        end.netns.visit(end.home, || set_switches(ifname, settings, switches))?;
    }
    for address in &plan.addresses {
        let network = address.network;
        match container.add_address(end.index, network, settings.dad) {
            // IPv6 is off on the interface, as some runtimes set for all.
            Err(failure) if network.is_ipv6() && failure.is(Errno::EACCES) => {
                end.netns.visit(end.home, || {
                    sysctl::set_ipv6("lo", &[(Ipv6Switch::Disable, false)])?;
                    sysctl::set_ipv6(ifname, &[(Ipv6Switch::Disable, false)])
                })?;
                container.add_address(end.index, network, settings.dad)
            }
            other => other,
        }
        .map_err(|failure| {
            addr::refused(failure, network).context(format_args!("add address {network} to \"{ifname}\""))
        })?;
    }
    let company = Company::of(container, end.index)?;
    let reverse_path = reverse_path(company, end, plan)?;
    container.set_container_up(end.index, reverse_path).map_err(failed(format!("set \"{ifname}\" up")))?;
    if settings.dad == Dad::Wait && plan.addresses.iter().any(|address| address.network.is_ipv6()) {
        await_dad(container, end)?;
    }
    for route in &plan.routes {
        container.add_route(end.index, route).map_err(|failure| unroutable(route, &failure))?;
    }
    Ok(company)
}

/// Has the interface, whose port forwards by now, send at once.
pub(crate) fn follow_carrier(container: &mut Netlink, end: ContainerEnd<'_>) -> Result<(), Error> {
    settled::follow_carrier(container, end.index)
        .map_err(|failure| Error::internal(failure).context(format_args!("read \"{}\"", end.ifname)))
}

/// Waits until the interface hears who asks for its IPv6 addresses.
pub(crate) fn await_solicited(end: ContainerEnd<'_>, plan: &Plan) -> Result<(), Error> {
    let addresses = settled::ipv6(plan.addresses.iter().map(|address| &address.network));
    if addresses.is_empty() {
        return Ok(());
    }
    end.netns.visit(end.home, || {
        settled::await_solicited(end.index, &addresses);
        Ok(())
    })
}

/// The switches of an interface that gets an IPv6 address, set while it is down.
fn set_switches(ifname: &str, settings: &Settings, switches: Option<Ipv6Switches>) -> Result<(), Error> {
    let switches = match switches {
        Some(switches) => switches,
        None => {
            let switches = Ipv6Switches::open(ifname)?;
            if settings.is_gateway() {
                switches.set(&[(Ipv6Switch::AcceptRa, false)])?;
            }
            switches
        }
    };
    switches.set(&[
        // A chained plugin may take the interface down to change its hardware address.
        (Ipv6Switch::KeepAddressOnDown, true),
        (Ipv6Switch::AcceptDad, settings.dad == Dad::Wait),
        (Ipv6Switch::Announce, true),
    ])
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
