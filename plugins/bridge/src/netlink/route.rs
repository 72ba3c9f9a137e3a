//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::NLM_F_CREATE;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Failure, Netlink};
use crate::family::Family;
use crate::plan::PlannedRoute;

/// A unicast route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// Destination.
    pub(crate) dst: IpNetwork,
    /// Next hop.
    pub(crate) via: Option<IpAddr>,
    /// Index of the link that it leaves by.
    pub(crate) link: Option<u32>,
    /// Metric.
    pub(crate) priority: u32,
    /// Routing table.
    pub(crate) table: u32,
    /// `rtm_scope`; the kernel has none for IPv6 and says 0.
    pub(crate) scope: u8,
    /// MTU of the path in bytes; 0 when not set.
    pub(crate) mtu: u32,
    /// Advertised segment size in bytes; 0 when not set.
    pub(crate) advmss: u32,
    /// Whether the kernel learned it from a router's advertisement.
    pub(crate) advertised: bool,
}

impl Netlink {
    /// Adds a route out of the link. Of several IPv4 routes to a destination the last one is the first that the kernel
    /// takes, as with the reference: without `NLM_F_APPEND` it is put before the others (`fib_table_insert()` in
    /// net/ipv4/fib_trie.c). Of IPv6 routes the kernel makes one with several next hops.
    pub(crate) fn add_route(&mut self, index: u32, route: &PlannedRoute) -> Result<(), Failure> {
        let scope = match (route.scope, route.via) {
            (Some(scope), _) => RouteScope::from(scope),
            // A destination without a next hop is on the link; the kernel looks no further for it.
            (None, None) if route.dst.is_ipv4() => RouteScope::Link,
            (None, _) => RouteScope::Universe,
        };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.dst.network(), route.dst.prefix())
            .map_err(|error| std::io::Error::other(error.to_string()))?
            .output_interface(index)
            .protocol(RouteProtocol::Boot)
            .kind(RouteType::Unicast)
            .scope(scope)
            .table_id(route.table);
        if let Some(via) = route.via {
            builder = builder.gateway(via).map_err(|error| std::io::Error::other(error.to_string()))?;
        }
        if route.onlink {
            builder = builder.onlink();
        }
        if route.priority != 0 {
            builder = builder.priority(route.priority);
        }
        let mut message = builder.build();
        let metrics: Vec<_> =
            [(route.mtu, RouteMetric::Mtu as fn(u32) -> _), (route.advmss, RouteMetric::Advmss)]
                .into_iter()
                .filter(|(value, _)| *value != 0)
                .map(|(value, metric)| metric(value))
                .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        self.acknowledged(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE)
    }

    /// All unicast routes of all tables, of one family.
    pub(crate) fn routes(&mut self, family: Family) -> Result<Vec<Route>, Failure> {
        let mut request = RouteMessage::default();
        request.header.address_family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let answers = self.dump(&RouteNetlinkMessage::GetRoute(request))?;
        Ok(answers.into_iter().flat_map(read).collect())
    }

    /// The index of the link that the host's default route leaves by: the IPv4 one if there is one.
    pub(crate) fn default_route_link(&mut self) -> Result<Option<u32>, Failure> {
        for family in [Family::V4, Family::V6] {
            let routes = self.routes(family)?;
            let defaults = routes.iter().filter(|route| {
                route.dst.prefix() == 0 && route.table == u32::from(RouteHeader::RT_TABLE_MAIN)
            });
            if let Some(default) = defaults.min_by_key(|route| route.priority) {
                return Ok(default.link);
            }
        }
        Ok(None)
    }
}

/// A route of the kernel's, as one for each next hop.
fn read(answer: RouteNetlinkMessage) -> Vec<Route> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return Vec::new() };
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return Vec::new();
    }
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Vec::new(),
    };
    let dst = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let Ok(dst) = IpNetwork::new(dst.unwrap_or(any), header.destination_prefix_length) else {
        return Vec::new();
    };
    let mut route = Route {
        dst,
        via: None,
        link: None,
        priority: 0,
        table: u32::from(header.table),
        scope: header.scope.into(),
        mtu: 0,
        advmss: 0,
        advertised: header.protocol == RouteProtocol::Ra,
    };
    let mut hops = Vec::new();
    for attribute in message.attributes {
        route.via = next_hop(&attribute).or(route.via);
        match attribute {
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Priority(priority) => route.priority = priority,
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Metrics(metrics) => read_metrics(&metrics, &mut route),
            RouteAttribute::MultiPath(several) => hops = several,
            _ => {}
        }
    }
    if hops.is_empty() {
        return vec![route];
    }
    hops.into_iter()
        .map(|hop| {
            let via = hop.attributes.iter().find_map(next_hop);
            Route { via, link: Some(hop.interface_index), ..route.clone() }
        })
        .collect()
}

fn read_metrics(metrics: &[RouteMetric], route: &mut Route) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = *mtu,
            RouteMetric::Advmss(advmss) => route.advmss = *advmss,
            _ => {}
        }
    }
}

/// The next hop that an attribute tells: one of the destination's family, or of the other one.
fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
