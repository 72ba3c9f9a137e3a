//! The wished state of an attachment: Settings and leases in, links, addresses, routes and rules out.
//!
//! ADD brings the kernel to it, CHECK compares the kernel with it. Pure: nothing here asks the kernel anything, so
//! the whole plan is known, and tested by value, before anything is touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_types::{CniResult, Dns, Error, Interface, IpConfig, Route, SpecVersion};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::config::{GatewayRole, Settings};
use crate::family::Family;

/// The main routing table (`RT_TABLE_MAIN`, rtnetlink(7)).
pub(crate) const MAIN_TABLE: u32 = 254;

/// Least MTU in bytes of a link that speaks IPv6 (RFC 8200, section 5).
pub(crate) const IPV6_MIN_MTU: u32 = 1280;

/// Every IPv4 address.
const DEFAULT_V4: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// Every IPv6 address.
const DEFAULT_V6: Ipv6Network = Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0).unwrap();

/// Largest MTU in bytes that the kernel takes for a route; it makes any other that one (`ip_metrics_convert`).
const MAX_ROUTE_MTU: u32 = 65_535 - 15;

/// The same for the segment size that a route advertises.
const MAX_ROUTE_ADVMSS: u32 = 65_535 - 40;

/// Position in the result of the container's interface, to which every address belongs.
pub(crate) const CONTAINER_INTERFACE: usize = 2;

/// An attachment as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Addresses of the container's interface with their gateways.
    pub(crate) addresses: Vec<PlannedAddress>,
    /// Routes of the container.
    pub(crate) routes: Vec<PlannedRoute>,
    /// Addresses of the bridge, IPv4 first.
    pub(crate) gateways: Vec<IpNetwork>,
    /// Routes as the result tells them.
    told_routes: Vec<Route>,
    dns: Dns,
}

/// The addresses that `ifname` has by the result of a chain, which may have given the container others as well.
pub(crate) fn addresses_of<'a>(result: &'a CniResult, ifname: &'a str) -> impl Iterator<Item = &'a IpConfig> {
    result.ips.iter().filter(move |ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    })
}

/// An address of the container's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedAddress {
    /// Address and prefix length.
    pub(crate) network: IpNetwork,
    /// The subnet's gateway.
    pub(crate) gateway: Option<IpAddr>,
}

/// A route of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedRoute {
    /// Destination.
    pub(crate) dst: IpNetwork,
    /// Next hop; `None` for a destination on the link.
    pub(crate) via: Option<IpAddr>,
    /// Whether the next hop is reached directly although no address says so.
    pub(crate) onlink: bool,
    /// MTU of the path in bytes; 0 leaves it to the link.
    pub(crate) mtu: u32,
    /// Segment size to advertise in bytes; 0 leaves it to the kernel.
    pub(crate) advmss: u32,
    /// Metric; 0 leaves it to the kernel.
    pub(crate) priority: u32,
    /// Routing table.
    pub(crate) table: u32,
    /// `rtm_scope`; `None` takes what the next hop implies.
    pub(crate) scope: Option<u8>,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PlanError {
    /// There are leases of no address.
    #[error("ipam: IPAM plugin returned missing IP config")]
    NoAddress,
    /// No link of the container or the host can have it.
    #[error("ipam: {0} is not an address that an interface can have")]
    NoInterfaceAddress(IpAddr),
    /// A gateway was wished for a subnet of one address.
    #[error("ipam: {0} leaves no address for a gateway")]
    NoRoomForGateway(IpNetwork),
    /// One gateway of two subnets: a link has an IPv6 address with one prefix length.
    #[error("ipam: {0} is the gateway of two subnets, one of them with prefix length {1}")]
    SameGatewayTwice(IpNetwork, u8),
    /// Two routes that the kernel cannot tell apart.
    #[error("ipam.routes: route {0} is there twice")]
    SameRouteTwice(IpNetwork),
    /// A next hop that IPv6 packets cannot be sent to.
    #[error("ipam.routes: route {0} leads to an IPv4 address, {1}")]
    Ipv6ByIpv4(IpNetwork, IpAddr),
    /// The link would not carry IPv6.
    #[error("mtu: {0} is less than IPv6 needs, which is 1280")]
    MtuBelowIpv6(u32),
}

impl Plan {
    /// The plan for a network without addresses.
    pub(crate) fn switch(settings: &Settings) -> Self {
        Self {
            addresses: Vec::new(),
            routes: Vec::new(),
            gateways: Vec::new(),
            told_routes: Vec::new(),
            dns: settings.dns.clone().unwrap_or_default(),
        }
    }

    /// The plan for what the IPAM plugin leased.
    pub(crate) fn new(settings: &Settings, leases: CniResult) -> Result<Self, PlanError> {
        if leases.ips.is_empty() {
            return Err(PlanError::NoAddress);
        }
        let addresses =
            leases.ips.iter().map(|ip| planned_address(ip, settings)).collect::<Result<Vec<_>, _>>()?;
        let told_routes = told_routes(leases.routes, &addresses, settings.gateway);
        let routes = planned_routes(&told_routes, &addresses)?;
        let dns = settings.dns.clone().unwrap_or(leases.dns);
        let gateways = if settings.is_gateway() { gateways(&addresses)? } else { Vec::new() };
        let plan = Self { addresses, routes, gateways, told_routes, dns };
        match settings.mtu {
            Some(mtu) if mtu < IPV6_MIN_MTU && plan.needs_ipv6() => Err(PlanError::MtuBelowIpv6(mtu)),
            _ => Ok(plan),
        }
    }

    /// Addresses that the container and its gateway both get, as of a network of two (`/31`) whose gateway nobody has
    /// named: then it has the second one.
    pub(crate) fn own_gateways(&self) -> Vec<IpAddr> {
        let own = self.addresses.iter().map(|address| address.network.ip());
        own.filter(|ip| self.gateways.iter().any(|gateway| gateway.ip() == *ip)).collect()
    }

    /// Whether the container's interface has to speak IPv6.
    pub(crate) fn needs_ipv6(&self) -> bool {
        self.networks().iter().chain(self.routes.iter().map(|route| &route.dst)).any(IpNetwork::is_ipv6)
    }

    /// Whether the host has to forward packets of the container's IPv4, IPv6 addresses.
    pub(crate) fn forwards(&self, family: Family) -> bool {
        self.gateways.iter().any(|gateway| Family::of(gateway.ip()) == family)
    }

    /// The addresses alone.
    pub(crate) fn networks(&self) -> Vec<IpNetwork> {
        self.addresses.iter().map(|address| address.network).collect()
    }

    /// Whether `version` can hold the result.
    ///
    /// # Errors
    /// Code 7, with the reference's text.
    pub(crate) fn require_representable(&self, version: SpecVersion) -> Result<(), Error> {
        self.to_result(Vec::new()).require_representable(version)
    }

    /// What ADD answers, with the interfaces that carry the plan out.
    pub(crate) fn to_result(&self, interfaces: Vec<Interface>) -> CniResult {
        let ips = self.addresses.iter().map(|address| IpConfig {
            interface: Some(CONTAINER_INTERFACE),
            address: address.network,
            gateway: address.gateway,
        });
        CniResult { ips: ips.collect(), interfaces, routes: self.told_routes.clone(), dns: self.dns.clone() }
    }
}

fn planned_address(ip: &IpConfig, settings: &Settings) -> Result<PlannedAddress, PlanError> {
    let gateway = match ip.gateway {
        None if settings.is_gateway() => Some(first_host(ip.address)?),
        given => given,
    };
    let on_the_host = gateway.filter(|_| settings.is_gateway());
    match [Some(ip.address.ip()), on_the_host].into_iter().flatten().find(|ip| !can_be_had(*ip)) {
        Some(ip) => Err(PlanError::NoInterfaceAddress(ip)),
        None => Ok(PlannedAddress { network: ip.address, gateway }),
    }
}

/// Whether a link can have an address: a multicast address is many links', and `::1` is the loopback device's alone.
fn can_be_had(ip: IpAddr) -> bool {
    !ip.is_multicast() && ip != IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// The address after the subnet's own, which the reference takes for its gateway when the IPAM plugin names none.
fn first_host(subnet: IpNetwork) -> Result<IpAddr, PlanError> {
    let first = match subnet.network() {
        IpAddr::V4(network) => network.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(network) => network.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    };
    first.filter(|first| subnet.contains(*first)).ok_or(PlanError::NoRoomForGateway(subnet))
}

/// The leased routes, and for a default gateway one default route for each family that has none, in the order of the
/// addresses.
///
/// A leased default route without a next hop is that route: it gets the gateway.
fn told_routes(mut routes: Vec<Route>, addresses: &[PlannedAddress], gateway: GatewayRole) -> Vec<Route> {
    let GatewayRole::Gateway { default_route: true, .. } = gateway else { return routes };
    let leads_with_v6 = addresses.first().is_some_and(|address| address.network.is_ipv6());
    let families = if leads_with_v6 { [Family::V6, Family::V4] } else { [Family::V4, Family::V6] };
    for family in families {
        let Some(via) = first_gateway(addresses, family) else { continue };
        let dst = default_route(family);
        let in_main = |route: &&mut Route| route.dst == dst && table_of(route) == MAIN_TABLE;
        match routes.iter_mut().find(in_main) {
            Some(route) => route.gw = route.gw.or(Some(via)),
            None => routes.push(Route { gw: Some(via), ..Route::to(dst) }),
        }
    }
    routes
}

/// The routes as the kernel gets them, each with a next hop if its family has a gateway.
fn planned_routes(told: &[Route], addresses: &[PlannedAddress]) -> Result<Vec<PlannedRoute>, PlanError> {
    let mut routes: Vec<PlannedRoute> = Vec::with_capacity(told.len());
    for route in told {
        let via = match route.gw {
            Some(via) if route.dst.is_ipv6() && via.is_ipv4() => {
                return Err(PlanError::Ipv6ByIpv4(route.dst, via));
            }
            given => given.or_else(|| first_gateway(addresses, Family::of(route.dst.ip()))),
        };
        let via = via.filter(is_address);
        let planned = PlannedRoute {
            dst: route.dst,
            via,
            onlink: via.is_some_and(|via| is_gateway_outside(addresses, via)),
            mtu: route.mtu.min(MAX_ROUTE_MTU),
            advmss: route.advmss.min(MAX_ROUTE_ADVMSS),
            priority: route.priority,
            table: table_of(route),
            scope: route.scope,
        };
        // What the kernel tells routes apart by.
        let key = |route: &PlannedRoute| {
            (route.dst.network(), route.dst.prefix(), route.via, route.priority, route.table)
        };
        if routes.iter().any(|earlier| key(earlier) == key(&planned)) {
            return Err(PlanError::SameRouteTwice(route.dst));
        }
        routes.push(planned);
    }
    Ok(routes)
}

/// The table that a route goes into. Table 0 (`RT_TABLE_UNSPEC`) is none: the kernel takes it for the main one.
fn table_of(route: &Route) -> u32 {
    route.table.filter(|table| *table != 0).unwrap_or(MAIN_TABLE)
}

/// Whether `via` is the gateway of a lease and outside every subnet, so that only the link can tell where it is. Any
/// other next hop that cannot be reached is a mistake, and the kernel says so.
fn is_gateway_outside(addresses: &[PlannedAddress], via: IpAddr) -> bool {
    addresses.iter().any(|address| address.gateway == Some(via))
        && !addresses.iter().any(|address| address.network.contains(via))
}

/// Whether there is a next hop, or a gateway, at all: to the kernel 0.0.0.0 is none, and `::` none that it takes.
fn is_address(ip: &IpAddr) -> bool {
    !ip.is_unspecified()
}

fn first_gateway(addresses: &[PlannedAddress], family: Family) -> Option<IpAddr> {
    addresses.iter().filter_map(|address| address.gateway).find(|gateway| Family::of(*gateway) == family)
}

/// The gateways as addresses of the bridge, each once, IPv4 first.
fn gateways(addresses: &[PlannedAddress]) -> Result<Vec<IpNetwork>, PlanError> {
    let mut gateways: Vec<IpNetwork> = Vec::with_capacity(addresses.len());
    for family in [Family::V4, Family::V6] {
        for address in addresses {
            let gateway = address.gateway.filter(is_address);
            let gateway = gateway.and_then(|ip| IpNetwork::new(ip, address.network.prefix()).ok());
            if let Some(gateway) = gateway.filter(|gateway| Family::of(gateway.ip()) == family)
                && !gateways.contains(&gateway)
            {
                let same = |other: &&IpNetwork| other.is_ipv6() && other.ip() == gateway.ip();
                if let Some(other) = gateways.iter().find(same) {
                    return Err(PlanError::SameGatewayTwice(*other, gateway.prefix()));
                }
                gateways.push(gateway);
            }
        }
    }
    Ok(gateways)
}

fn default_route(family: Family) -> IpNetwork {
    match family {
        Family::V4 => IpNetwork::V4(DEFAULT_V4),
        Family::V6 => IpNetwork::V6(DEFAULT_V6),
    }
}

#[cfg(test)]
mod tests;
