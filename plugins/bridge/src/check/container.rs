//! The container's half: its interface, addresses and routes.

use ipnetwork::IpNetwork;

use super::{Comparison, Maker};
use crate::family::Family;
use crate::mac::Mac;
use crate::netlink::addr::AddressState;
use crate::netlink::link::{Kind, Link};
use crate::netlink::route::Route;
use crate::netlink::{Failure, Netlink};
use crate::plan::{MAIN_TABLE, PlannedRoute};

impl Comparison<'_> {
    /// The container's interface with its addresses that reach beyond the link.
    pub(super) fn container(
        &mut self,
        container: &mut Netlink,
    ) -> Result<Option<(Link, Vec<IpNetwork>)>, Failure> {
        let ifname = self.identity.attachment().ifname();
        let Some(link) = container.link_by_name(ifname)? else {
            self.differs(format_args!("interface \"{ifname}\" is missing in the container"));
            return Ok(None);
        };
        if link.kind != Kind::Veth {
            self.differs(format_args!("interface \"{ifname}\" of the container is not a veth"));
            return Ok(None);
        }
        let told = self
            .result
            .interfaces
            .iter()
            .find(|interface| interface.name == ifname && !interface.sandbox.is_empty())
            .and_then(|interface| interface.mac.parse::<Mac>().ok());
        if let (Some(told), Some(mac)) = (told, link.mac) {
            self.compare(format_args!("hardware address of \"{ifname}\""), mac, told);
        }
        if !link.up && !self.settings.leave_container_down {
            self.differs(format_args!("interface \"{ifname}\" of the container is down"));
        }
        if !link.resolves && !self.plan.addresses.is_empty() {
            self.differs(format_args!(
                "interface \"{ifname}\" of the container resolves no addresses (noarp)"
            ));
        }
        let addresses = container.addresses(link.index)?;
        for wished in self.plan.networks() {
            match addresses.iter().find(|address| address.network == wished) {
                None => self.differs(format_args!("address {wished} is missing on \"{ifname}\"")),
                Some(address) if address.state == AddressState::Duplicate => {
                    self.differs(format_args!("address {wished} of \"{ifname}\" is a duplicate"));
                }
                Some(_) => {}
            }
        }
        let global = addresses.into_iter().filter(|address| address.global);
        Ok(Some((link, global.map(|address| address.network).collect())))
    }

    /// The planned routes, and those that come with an address: into whatever table somebody has moved these.
    pub(super) fn routes(
        &mut self,
        container: &mut Netlink,
        index: u32,
        maker: Option<Maker>,
    ) -> Result<(), Failure> {
        let mut present = Vec::new();
        let routes = self.plan.routes.iter().map(|route| route.dst);
        let wished: Vec<IpNetwork> = self.plan.networks().into_iter().chain(routes).collect();
        for family in [Family::V4, Family::V6] {
            if wished.iter().any(|network| Family::of(network.ip()) == family) {
                present.extend(container.routes(family)?);
            }
        }
        for address in self.plan.networks() {
            let subnet = IpNetwork::new(address.network(), address.prefix()).unwrap_or(address);
            let is_there = present
                .iter()
                .any(|route| route.dst == subnet && route.link == Some(index) && route.via.is_none());
            if !is_there && comes_with_route(address) {
                self.differs(format_args!("route {subnet} of address {address} is missing"));
            }
        }
        for wished in &self.plan.routes {
            let dst = IpNetwork::new(wished.dst.network(), wished.dst.prefix()).unwrap_or(wished.dst);
            let same = present
                .iter()
                .filter(|route| route.dst == dst && route.table == wished.table && route.via == wished.via);
            let on_link = |route: &&Route| {
                route.link == Some(index) && (wished.priority == 0 || route.priority == wished.priority)
            };
            // There may be one beside it that others have made, such as the kernel's for an address.
            let closest = same.filter(on_link).map(|route| route_differences(route, wished, maker));
            match closest.min_by_key(Vec::len) {
                Some(differences) => self.differences.extend(differences),
                None => self.differs(format_args!("route {} is missing", shown(wished))),
            }
        }
        Ok(())
    }
}

/// How a route that leads where it should differs from the planned one.
fn route_differences(route: &Route, wished: &PlannedRoute, maker: Option<Maker>) -> Vec<String> {
    let ours = maker == Some(Maker::Ours);
    let scope = wished.scope.filter(|_| route.dst.is_ipv4() && ours).map(u32::from);
    // A container that the reference wired never got these.
    let due = |wished: u32, is: u32| Some(wished).filter(|wished| *wished != 0 && (is != 0 || ours));
    [
        ("scope", u32::from(route.scope), scope),
        ("MTU", route.mtu, due(wished.mtu, route.mtu)),
        ("advmss", route.advmss, due(wished.advmss, route.advmss)),
    ]
    .into_iter()
    .filter_map(|(what, is, should)| {
        let should = should.filter(|should| *should != is)?;
        Some(format!("{what} of route {} is {is}, not {should}", shown(wished)))
    })
    .collect()
}

/// Whether the kernel makes a route to the subnet of an address: one alone in its subnet needs none, and none leads to
/// 0.0.0.0 (`fib_add_ifaddr()` in net/ipv4/fib_frontend.c).
fn comes_with_route(address: IpNetwork) -> bool {
    match address {
        IpNetwork::V4(v4) => v4.prefix() < 32 && !v4.network().is_unspecified(),
        IpNetwork::V6(v6) => v6.prefix() < 128,
    }
}

fn shown(route: &PlannedRoute) -> String {
    let mut text = route.dst.to_string();
    if let Some(via) = route.via {
        text.push_str(&format!(" via {via}"));
    }
    if route.table != MAIN_TABLE {
        text.push_str(&format!(" table {}", route.table));
    }
    text
}
