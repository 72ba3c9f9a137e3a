//! The host's half of a gateway: the network's addresses on the bridge, and forwarding.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use cni_types::Error;
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::attachment::{bridge_alias, gateway_port};
use crate::bridge::{believe_no_router, expect_no_duplicate, reopen, take_back};
use crate::config::{AddressConflict, GatewayRole, Settings, Vlans};
use crate::family::Family;
use crate::mac::Mac;
use crate::maker::NO_GROUP;
use crate::netlink::addr::{self, Address, Dad};
use crate::netlink::link::{Conduct, Kind, Link, NewVethEnd, PortSetup, PortState};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{IPV6_MIN_MTU, Plan};
use crate::rules;
use crate::settled;
use crate::survey;
use crate::sysctl::{self, Ipv6Switch};
use crate::undo::Undo;
use crate::veth::too_narrow;
use crate::vlans;

/// The host's end of a network with a gateway, as it is before the gateway's addresses are known.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// What carries the addresses: the bridge, or with a VLAN one end of a pair in this namespace whose other end is a
    /// port of the bridge in that VLAN.
    pub(crate) link: Link,
    /// Whether that is the interface of a VLAN and was missing: what rules know of it may be of another one then.
    pub(crate) is_new: bool,
    bridge: u32,
    addresses: Vec<Address>,
    forwards: Forwarding,
}

/// What the host forwards.
#[derive(Debug, Clone, Copy)]
struct Forwarding {
    v4: bool,
    /// From the gateway's link.
    v4_from_link: bool,
    v6: bool,
}

/// Makes the gateway's link if it is not there, and looks at what there is; `None` without a gateway.
pub(crate) fn ensure<'a>(
    host: &mut Netlink,
    bridge: &Link,
    settings: &'a Settings,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<Option<Gateway>, Error> {
    if !settings.is_gateway() {
        return Ok(None);
    }
    let name = settings.gateway_link();
    let (link, is_new) = if name == settings.bridge() {
        vlans::mend(host, bridge, None, bridge).map_err(|failure| {
            Error::internal(failure).context(format_args!("set the VLANs of \"{name}\""))
        })?;
        (bridge.clone(), false)
    } else {
        ensure_link(host, bridge, settings, &name, home, undo)?
    };
    if !link.resolves {
        host.set_resolving(link.index).map_err(|failure| {
            Error::internal(failure).context(format_args!("have \"{name}\" resolve addresses"))
        })?;
    }
    let failed =
        |failure: Failure| Error::internal(failure).context(format_args!("list addresses of \"{name}\""));
    let addresses = host.addresses(link.index).map_err(failed)?;
    let forwards = Forwarding {
        v4: is_forwarding(host, Family::V4, None)?,
        v4_from_link: is_forwarding(host, Family::V4, Some(&link))?,
        v6: is_forwarding(host, Family::V6, None)?,
    };
    Ok(Some(Gateway { link, is_new, bridge: bridge.index, addresses, forwards }))
}

/// The gateway interface of a VLAN, made if it is missing, and complete. Tells whether it was missing.
fn ensure_link<'a>(
    host: &mut Netlink,
    bridge: &Link,
    settings: &'a Settings,
    name: &str,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<(Link, bool), Error> {
    let refused =
        |why: &dyn Display| Error::internal(why).context(format_args!("create gateway interface \"{name}\""));
    let failed = |failure: Failure| refused(&failure);
    let present = host.link_by_name(name).map_err(failed)?;
    let is_new = present.is_none();
    let link = match present {
        Some(link) => link,
        None => match make_link(host, bridge, settings, name, home, undo) {
            Err(failure) if failure.is(Errno::EEXIST) => {
                return Err(refused(&where_port_leads(host, name).map_err(failed)?));
            }
            made => made.map_err(failed)?,
        },
    };
    believe_no_router(&link);
    complete(host, bridge, settings, &link).map_err(failed)?;
    Ok((link, is_new))
}

/// Makes the pair whose ends are the gateway interface and its port, unless another attachment has made it.
fn make_link<'a>(
    host: &mut Netlink,
    bridge: &Link,
    settings: &Settings,
    name: &str,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<Link, Failure> {
    let port_name = gateway_port(name);
    let mac = || Mac::random().map_err(std::io::Error::other);
    let port = NewVethEnd { name: &port_name, mac: mac()?, group: NO_GROUP };
    let known = known_mac(host, &port_name)?;
    let end = NewVethEnd { name, mac: known.map_or_else(mac, Ok)?, group: NO_GROUP };
    let made = host.create_local_veth(port, end, bridge.index, bridge.mtu);
    if made.is_ok() {
        expect_no_duplicate(name);
        let port = port_name.clone();
        let bridge = bridge.index;
        let vlan = settings.vlans.as_ref().and_then(|vlans| vlans.untagged);
        undo.push("remove the new gateway interface", move || {
            let is_in_vlan = |host: &mut Netlink, port: &Link| {
                let vlans = host.vlans(port.index)?;
                Ok(vlan.is_some_and(|id| vlans.contains_key(&id)))
            };
            take_back(home, bridge, is_in_vlan, |host| match host.link_by_name(&port)? {
                Some(link) => host.delete_link(link.index),
                None => Ok(()),
            })
        });
    }
    match (host.link_by_name(name)?, made) {
        (Some(link), _) => Ok(link),
        (None, made) => Err(made.err().unwrap_or(Failure::NoAnswer)),
    }
}

/// The hardware address that the gateway interface behind `port` had before somebody deleted it, if anybody is left who
/// knows it: the containers of each network behind it, and their rules. To do without costs them the time to ask again,
/// and those of other networks than the one that it is made for their rules.
fn known_mac(host: &mut Netlink, port: &str) -> Result<Option<Mac>, Failure> {
    let known = rules::gateway_mac(port).unwrap_or_else(|error| {
        log::warn!("look for the hardware address that a gateway interface had: {error}");
        None
    });
    let Some(mac) = known else { return Ok(None) };
    // Somebody may have renamed both ends.
    let is_taken = host.links()?.iter().any(|link| link.mac == Some(mac));
    Ok(known.filter(|_| !is_taken))
}

/// Where the port of the gateway interface `name` leads, which is there although that interface is not: somebody has renamed
/// it, or moved it elsewhere.
fn where_port_leads(host: &mut Netlink, name: &str) -> Result<String, Failure> {
    let port_name = gateway_port(name);
    let end = match host.link_by_name(&port_name)? {
        Some(port) => port_of(host, &port)?,
        None => None,
    };
    Ok(match end {
        Some(end) => format!(
            "its bridge port \"{port_name}\" leads to \"{}\", which has to be renamed to \"{name}\" or deleted",
            end.name
        ),
        None => format!("its bridge port \"{port_name}\" leads elsewhere, and has to be deleted"),
    })
}

/// Brings the gateway interface `link` up, and the port behind it, on the bridge and in its VLAN. A call that was killed
/// leaves them half made, and whoever removes a bridge leaves the port of its gateway without one.
fn complete(host: &mut Netlink, bridge: &Link, settings: &Settings, link: &Link) -> Result<(), Failure> {
    // One on another bridge is somebody else's.
    let port = port_of(host, link)?.filter(|port| port.controller.is_none_or(|index| index == bridge.index));
    if let Some(port) = port {
        if port.controller.is_none() {
            host.set_controller(port.index, bridge.index)?;
        }
        vlans::mend(host, bridge, settings.vlans.as_ref().map(Vlans::of_gateway).as_ref(), &port)?;
        // Isolated ports, as its containers' may be, would not reach an isolated one.
        if let Some(PortState { conduct, .. }) = port.port {
            host.set_conduct(port.index, conduct, Conduct::NEW)?;
        }
        reopen(host, bridge, &port)?;
        if !port.up {
            let setup =
                PortSetup { alias: &bridge_alias(&settings.network), hairpin: false, isolated: false };
            host.set_up_port(port.index, setup)?;
        }
    }
    match link.up {
        true => Ok(()),
        false => host.set_up(link.index),
    }
}

/// The other end of a gateway interface, if it is one end of a pair: somebody may have made it otherwise, such as on
/// top of the bridge (`ip link add link br0 name br0.100 type vlan id 100`).
pub(crate) fn port_of(host: &mut Netlink, link: &Link) -> Result<Option<Link>, Failure> {
    match link.peer {
        Some(index) if link.kind == Kind::Veth && link.peer_netns.is_none() => host.link_by_index(index),
        _ => Ok(None),
    }
}

impl Gateway {
    /// Puts the plan's gateway addresses on the link.
    pub(crate) fn ensure_addresses<'a>(
        &self,
        host: &mut Netlink,
        settings: &Settings,
        plan: &Plan,
        home: &'a Netns,
        undo: &mut Undo<'a>,
    ) -> Result<(), Error> {
        let GatewayRole::Gateway { conflict, .. } = settings.gateway else { return Ok(()) };
        let made_room = self.make_room(host, conflict, &plan.gateways, undo)?;
        let Self { link, bridge, .. } = self;
        let (index, bridge) = (link.index, *bridge);
        for gateway in &plan.gateways {
            let is_present = self.has(gateway);
            // With an address the kernel takes the later ones of its subnet.
            if is_present && !made_room {
                continue;
            }
            let failed = |failure| self.failed(failure, gateway);
            let added = match host.add_address(index, *gateway, Dad::Skip) {
                // IPv6 is off on the link, as some hosts set for all; who gives it such a gateway wants it there.
                Err(failure) if gateway.is_ipv6() && failure.is(Errno::EACCES) => {
                    sysctl::set_ipv6(&link.name, &[(Ipv6Switch::Disable, false)])?;
                    let (name, relies) = (link.name.clone(), uses(*gateway));
                    undo.push("switch IPv6 off", move || {
                        take_back(home, bridge, relies, |_| {
                            sysctl::set_ipv6(&name, &[(Ipv6Switch::Disable, true)])
                        })
                    });
                    host.add_address(index, *gateway, Dad::Skip)
                }
                other => other,
            };
            if added.map_err(failed)? && !is_present {
                let gateway = *gateway;
                undo.push("remove the bridge's address", move || {
                    take_back(home, bridge, uses(gateway), |host| host.delete_address(index, gateway))
                });
            }
        }
        Ok(())
    }

    /// Takes the addresses from the link that keep it from having one of `gateways`; says whether there were any.
    fn make_room(
        &self,
        host: &mut Netlink,
        conflict: AddressConflict,
        gateways: &[IpNetwork],
        undo: &mut Undo<'_>,
    ) -> Result<bool, Error> {
        let conflicting = |other: &Address| {
            gateways
                .iter()
                .find(|gateway| !self.has(gateway) && conflicts(other, gateway, gateways))
                .map(|gateway| (other.network, gateway))
        };
        let mut made_room = false;
        // The last first, so that the first of a subnet comes back first and is again the one that the others depend on.
        for (other, gateway) in self.addresses.iter().rev().filter_map(conflicting) {
            if conflict == AddressConflict::Refuse {
                return Err(Error::invalid_config(
                    "bridge",
                    format_args!("\"{}\" already has an IP address different from {gateway}", self.link.name),
                ));
            }
            let taken =
                host.take_address(self.link.index, other).map_err(|failure| self.failed(failure, gateway))?;
            if let Some(taken) = taken {
                undo.push("restore the bridge's address", move || {
                    let mut host = Netlink::open().map_err(Error::internal)?;
                    host.restore_address(taken).map_err(Error::internal)
                });
            }
            made_room = true;
        }
        Ok(made_room)
    }

    /// Has the host's end of the network, which may have got its first port, send at once.
    ///
    /// # Errors
    /// 999 with what the kernel refuses.
    pub(crate) fn follow_carrier(&self, host: &mut Netlink) -> Result<(), Error> {
        let mut links = BTreeSet::from([self.bridge, self.link.index]);
        // One that had carrier before does so already.
        if self.link.operational {
            links.remove(&self.link.index);
        }
        for index in links {
            settled::follow_carrier(host, index).map_err(|failure| {
                Error::internal(failure).context(format_args!("read \"{}\"", self.link.name))
            })?;
        }
        Ok(())
    }

    /// Waits until the host hears who asks for those of the plan's IPv6 gateways that it did not have before.
    pub(crate) fn await_solicited(&self, plan: &Plan) {
        let new = settled::ipv6(plan.gateways.iter().filter(|gateway| !self.has(gateway)));
        settled::await_solicited(self.link.index, &new);
    }

    fn has(&self, gateway: &IpNetwork) -> bool {
        self.addresses.iter().any(|address| address.network == *gateway)
    }

    fn failed(&self, failure: Failure, gateway: &IpNetwork) -> Error {
        if gateway.is_ipv6() && self.link.mtu < IPV6_MIN_MTU {
            return too_narrow(&self.link.name, self.link.mtu);
        }
        addr::refused(failure, *gateway)
            .context(format_args!("set address {gateway} of \"{}\"", self.link.name))
    }

    /// Lets the host forward the plan's packets that come in by the link.
    ///
    /// One of the last steps: what it changes is the host's, not the network's, so it is never taken back.
    pub(crate) fn enable_forwarding(&self, host: &mut Netlink, plan: &Plan) -> Result<(), Error> {
        let Forwarding { v4, v4_from_link, v6 } = self.forwards;
        if plan.forwards(Family::V4) && !v4 {
            sysctl::enable_forwarding(Family::V4)?;
        }
        if plan.forwards(Family::V6) && !v6 {
            go_on_believing_routers(host);
            sysctl::enable_forwarding(Family::V6)?;
        }
        // With IPv4, it is the link's own switch that counts; somebody may have chosen another for new links.
        if plan.forwards(Family::V4) && !v4_from_link {
            sysctl::enable_forwarding_from(&self.link.name)?;
        }
        Ok(())
    }
}

/// Has the host's links that have a route from a router go on listening to it: as soon as the host forwards, the kernel
/// drops such routes, the default one among them, and ignores advertisements, but by links with `accept_ra` 2. To fail at
/// it is no reason to refuse a container.
fn go_on_believing_routers(host: &mut Netlink) {
    let links = host.routes(Family::V6).and_then(|routes| {
        let learned: BTreeSet<u32> =
            routes.iter().filter(|route| route.advertised).filter_map(|route| route.link).collect();
        learned.into_iter().filter_map(|index| host.link_by_index(index).transpose()).collect()
    });
    let links: Vec<Link> = links.unwrap_or_else(|failure: Failure| {
        log::warn!("list links with routes from routers: {failure}");
        Vec::new()
    });
    for link in links.iter().filter(|link| link.accept_ra == 1) {
        if let Err(error) = sysctl::set_accept_ra(&link.name, 2) {
            log::warn!("{error}");
        }
    }
}

/// Whether the container behind a port may have `gateway` for its gateway: it has an address in that subnet, or perhaps
/// none yet.
fn uses(gateway: IpNetwork) -> impl Fn(&mut Netlink, &Link) -> Result<bool, Failure> {
    move |host, port| {
        let end = survey::container_end(host, port)?;
        Ok(end
            .is_none_or(|end| !end.up || end.addresses.iter().any(|address| gateway.contains(address.ip()))))
    }
}

/// Whether an address of the bridge keeps it from having `gateway` as well: IPv4 networks have a bridge for
/// themselves, IPv6 subnets may share one as long as they do not overlap (the reference's rule). An address that does not
/// reach beyond the link disturbs nobody, unless the kernel holds it against another of its IPv4 subnet.
fn conflicts(other: &Address, gateway: &IpNetwork, wished: &[IpNetwork]) -> bool {
    let Address { network: other, global, .. } = other;
    if wished.contains(other) {
        return false;
    }
    match (other.ip(), gateway.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => *global || overlap(other, gateway),
        (IpAddr::V6(_), IpAddr::V6(_)) => *global && overlap(other, gateway),
        _ => false,
    }
}

fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// Whether the host forwards packets of `family`: those that come in by `link`, or by links without a will of their own.
///
/// # Errors
/// Code 999 when the kernel cannot be asked.
pub(crate) fn is_forwarding(host: &mut Netlink, family: Family, link: Option<&Link>) -> Result<bool, Error> {
    match host.is_forwarding(family, link.map(|link| link.index)) {
        // It has not got the family at all.
        Err(Failure::Refused(_)) => Ok(false),
        told => told.map_err(|failure| Error::internal(failure).context("ask whether the host forwards")),
    }
}
