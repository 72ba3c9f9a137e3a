//! CHECK: the plan of ADD, made again from prevResult, compared with the kernel. It names each difference.
//!
//! What others have put there (sniffers, addresses, rules) does not disturb it, and an attachment that the reference
//! plugin wired is judged by what that plugin makes.

use std::fmt::Display;

use cni_types::{AttachmentCall, CniResult, Command, Delegate, Error, ErrorCode, Interface, Running};
use ipnetwork::IpNetwork;

use crate::attachment::Identity;
use crate::bridge::{believes_routers, keeps_mac};
use crate::config::Settings;
use crate::family::Family;
use crate::mac::Mac;
use crate::netlink::addr::AddressState;
use crate::netlink::link::{Admission, Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{MAIN_TABLE, Plan, PlannedRoute, addresses_of};
use crate::tuning::Before;
use crate::{gateway, predecessor, reverse_path, rules, sysctl, veth, vlans};

/// Code of a CHECK that found the attachment changed; the spec leaves codes from 100 on to the plugin.
const DIFFERENT: ErrorCode = ErrorCode(100);

/// Compares the attachment with what ADD made.
pub(crate) fn check(call: &AttachmentCall) -> Result<(), Error> {
    let find = |name: &str| Delegate::find(name, &call.env().plugin_path());
    let settings = Settings::new(call.conf(), &call.env().args()?, find)?;
    let identity = Identity::new(&settings.network, call.attachment());
    let result = call
        .conf()
        .prev_result()?
        .ok_or_else(|| Error::new(ErrorCode::INVALID_CONFIG, "Required prevResult missing"))?;
    let home = Netns::own()?;
    let netns = Netns::open(call.netns())?;
    if netns.is(&home).map_err(|error| Error::io("compare network namespaces", &error))? {
        return Err(Error::new(ErrorCode::INVALID_NETNS, "CNI_NETNS is the plugin's own network namespace"));
    }
    log::debug!("opened the container's namespace");
    let plan = match &settings.ipam {
        None => Plan::switch(&settings),
        Some(_) => {
            let ips = addresses_of(&result, call.attachment().ifname()).cloned().collect();
            Plan::new(&settings, CniResult { ips, ..result.clone() })?
        }
    };
    let leases = settings.ipam.as_ref().map(|ipam| ipam.start(Command::Check, call.network())).transpose()?;
    let mut comparison = Comparison {
        settings: &settings,
        identity: &identity,
        result: &result,
        plan: &plan,
        netns: &netns,
        home: &home,
        differences: Vec::new(),
    };
    let compared = comparison.run();
    leases.map(Running::ended).transpose()?;
    compared?;
    comparison.verdict()
}

struct Comparison<'a> {
    settings: &'a Settings,
    identity: &'a Identity,
    result: &'a CniResult,
    plan: &'a Plan,
    netns: &'a Netns,
    home: &'a Netns,
    differences: Vec<String>,
}

/// Who made the veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Ours,
    Reference,
}

impl Comparison<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let mut container = self.netns.netlink(self.home)?;
        let failed = |failure: Failure| Error::internal(failure).context("read the state of the kernel");
        let mut host = Netlink::open().map_err(failed)?;
        let bridge = self.bridge(&mut host).map_err(failed)?;
        log::debug!("compared the bridge");
        let (end, present) = self.container(&mut container).map_err(failed)?.unzip();
        log::debug!("compared the container's interface and addresses");
        let maker = self.port(&mut host, bridge.as_ref(), end.as_ref()).map_err(failed)?;
        log::debug!("compared the bridge port");
        if let Some(end) = end.as_ref().filter(|_| !self.plan.addresses.is_empty()) {
            self.routes(&mut container, end.index, maker).map_err(failed)?;
            log::debug!("compared the container's routes");
        }
        if let Some(bridge) = &bridge {
            self.gateway(&mut host, bridge)?;
            log::debug!("compared the gateway and forwarding");
        }
        if maker == Some(Maker::Ours)
            && let Some(end) = &end
            && !self.settings.leave_container_down
        {
            self.switches(&mut host, &mut container, bridge.as_ref(), end)?;
            log::debug!("compared the switches");
        }
        if let (Some(Maker::Ours), Some(mac)) = (maker, end.and_then(|end| end.mac)) {
            let present = present.unwrap_or_default();
            let mut verify =
                |mac| rules::verify(&mut host, self.settings, self.identity, self.plan, mac, present.clone());
            let mut differences = verify(mac)?;
            // The spoof check has to know the address that the container sends with; the others work with the old one.
            if !differences.is_empty()
                && !self.settings.mac_spoof_check
                && let Some(before) = Before::noted(self.identity.attachment()).mac()
                && verify(before)?.is_empty()
            {
                differences.clear();
            }
            self.differences.extend(differences);
            log::debug!("compared the rules");
        }
        Ok(())
    }

    fn verdict(self) -> Result<(), Error> {
        let Self { differences, identity, .. } = self;
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::new(DIFFERENT, differences.join("; "))
            .with_details(format!("attachment {}", identity.alias())))
    }

    fn differs(&mut self, what: impl Display) {
        self.differences.push(what.to_string());
    }

    /// Compares a value with the one that it should have.
    fn compare<T: PartialEq + Display>(&mut self, what: impl Display, is: T, should: T) {
        if is != should {
            self.differs(format_args!("{what} is {is}, not {should}"));
        }
    }

    fn bridge(&mut self, host: &mut Netlink) -> Result<Option<Link>, Failure> {
        let name = &self.settings.bridge;
        let Some(link) = host.link_by_name(name)? else {
            self.differs(format_args!("bridge \"{name}\" is missing"));
            return Ok(None);
        };
        if link.kind != Kind::Bridge {
            self.differs(format_args!("\"{name}\" is not a bridge"));
            return Ok(None);
        }
        if !link.up {
            self.differs(format_args!("bridge \"{name}\" is down"));
        }
        let told = self.told_on_host(name).and_then(|interface| interface.mac.parse::<Mac>().ok());
        if let (Some(told), Some(mac), true) = (told, link.mac, keeps_mac(&link, self.settings)) {
            self.compare(format_args!("hardware address of bridge \"{name}\""), mac, told);
        }
        if self.settings.promiscuous && !link.promiscuous {
            self.differs(format_args!("bridge \"{name}\" is not promiscuous"));
        }
        if self.settings.needs_vlan_filtering() && !link.vlan_filtering {
            self.differs(format_args!("bridge \"{name}\" does not filter by VLAN"));
        }
        Ok(Some(link))
    }

    fn told_on_host(&self, name: &str) -> Option<&Interface> {
        self.result.interfaces.iter().find(|interface| interface.sandbox.is_empty() && interface.name == name)
    }

    /// The container's interface with its addresses that reach beyond the link.
    fn container(&mut self, container: &mut Netlink) -> Result<Option<(Link, Vec<IpNetwork>)>, Failure> {
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

    /// That container and bridge believe no other router than the gateway, that the bridge takes no container for
    /// another, and that the container answers on all its networks.
    fn switches(
        &mut self,
        host: &mut Netlink,
        container: &mut Netlink,
        bridge: Option<&Link>,
        end: &Link,
    ) -> Result<(), Error> {
        let ifname = self.identity.attachment().ifname();
        let mut gateway = None;
        if self.settings.is_gateway() {
            if let Some(bridge) = bridge.filter(|bridge| believes_routers(bridge)) {
                self.differs(format_args!("bridge \"{}\" accepts router advertisements", bridge.name));
            }
            let name = self.settings.gateway_link();
            if name == self.settings.bridge {
                gateway = bridge.cloned();
            } else {
                gateway = host.link_by_name(&name).map_err(Error::internal)?;
                if gateway.as_ref().is_some_and(believes_routers) {
                    self.differs(format_args!("gateway interface \"{name}\" accepts router advertisements"));
                }
            }
            if believes_routers(end) {
                self.differs(format_args!("\"{ifname}\" accepts router advertisements"));
            }
        }
        if let Some(bridge) =
            bridge.filter(|bridge| bridge.learns_unforwarded && self.settings.mac_spoof_check)
        {
            let name = &bridge.name;
            self.differs(format_args!("bridge \"{name}\" learns from frames that it does not forward"));
        }
        let has_ipv4 = self.plan.addresses.iter().any(|address| address.network.is_ipv4());
        if has_ipv4 && reverse_path::must_be_loose(host, container, self.netns)? {
            let mut strict = Vec::new();
            if self.netns.visit(self.home, || sysctl::filters_strictly(ifname))? {
                strict.push(ifname);
            }
            if let Some(link) = &gateway
                && sysctl::filters_strictly(&link.name)?
            {
                strict.push(&link.name);
            }
            for name in strict {
                self.differs(format_args!(
                    "\"{name}\" filters reverse paths strictly, and the container has other networks"
                ));
            }
        }
        Ok(())
    }

    /// The planned routes, and those that come with an address: into whatever table somebody has moved these.
    fn routes(&mut self, container: &mut Netlink, index: u32, maker: Option<Maker>) -> Result<(), Failure> {
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
            let on_link = |route: &&crate::netlink::route::Route| {
                route.link == Some(index) && (wished.priority == 0 || route.priority == wished.priority)
            };
            let Some(route) = same.clone().find(on_link) else {
                self.differs(format_args!("route {} is missing", shown(wished)));
                continue;
            };
            if let Some(scope) = wished.scope.filter(|_| dst.is_ipv4() && maker == Some(Maker::Ours)) {
                self.compare(format_args!("scope of route {}", shown(wished)), route.scope, scope);
            }
            // A container that the reference wired never got these.
            let is_due = |metric: u32| metric != 0 || maker == Some(Maker::Ours);
            if wished.mtu != 0 && is_due(route.mtu) {
                self.compare(format_args!("MTU of route {}", shown(wished)), route.mtu, wished.mtu);
            }
            if wished.advmss != 0 && is_due(route.advmss) {
                self.compare(format_args!("advmss of route {}", shown(wished)), route.advmss, wished.advmss);
            }
        }
        Ok(())
    }

    /// The host end: that it is the container's, on the bridge, up and forwarding, and behaves as asked.
    fn port(
        &mut self,
        host: &mut Netlink,
        bridge: Option<&Link>,
        end: Option<&Link>,
    ) -> Result<Option<Maker>, Failure> {
        let ifname = self.identity.attachment().ifname();
        let ours =
            host.link_by_name(self.identity.host_veth())?.filter(|link| veth::is_of(link, self.identity));
        let (link, maker) = match ours {
            Some(link) => (link, Maker::Ours),
            None => match predecessor::peer_of(host, self.netns, ifname) {
                Some(link) if link.name == self.identity.host_veth() => (link, Maker::Ours),
                Some(link) if link.alias == self.identity.alias() => {
                    let (name, wished) = (&link.name, self.identity.host_veth());
                    self.differs(format_args!(
                        "host veth of \"{ifname}\" is called \"{name}\", not \"{wished}\""
                    ));
                    (link, Maker::Ours)
                }
                Some(link) => (link, Maker::Reference),
                None => {
                    let name = self.identity.host_veth();
                    self.differs(format_args!("host veth \"{name}\" of \"{ifname}\" is missing"));
                    return Ok(None);
                }
            },
        };
        let name = link.name.clone();
        if maker == Maker::Ours {
            // Without it nobody but DEL knows whose the link is.
            let (mark, wished) = (format!("{:?}", link.alias), format!("{:?}", self.identity.alias()));
            self.compare(format_args!("mark of host veth \"{name}\""), mark, wished);
        }
        if let Some(end) = end
            && (link.peer != Some(end.index) || link.peer_netns != host.netns_id(self.netns)?)
        {
            self.differs(format_args!("host veth \"{name}\" is not the other end of \"{ifname}\""));
        }
        if let Some(told) = self.told_on_host(&name).and_then(|interface| interface.mac.parse::<Mac>().ok())
            && let Some(mac) = link.mac
        {
            self.compare(format_args!("hardware address of host veth \"{name}\""), mac, told);
        }
        if !link.up {
            self.differs(format_args!("host veth \"{name}\" is down"));
        }
        if maker == Maker::Ours && believes_routers(&link) {
            self.differs(format_args!("host veth \"{name}\" accepts router advertisements"));
        }
        if maker == Maker::Ours && !veth::is_guarded_as_wished(&link, self.settings) {
            let wished = veth::port_group(self.settings);
            self.compare(format_args!("group of host veth \"{name}\""), link.group, wished);
        }
        if let Some(bridge) = bridge
            && link.controller != Some(bridge.index)
        {
            self.differs(format_args!("host veth \"{name}\" is not a port of bridge \"{}\"", bridge.name));
            return Ok(Some(maker));
        }
        if let Some(end) = end {
            // Both ends were made alike; a path MTU that somebody lowered on one of them loses packets.
            let wished = self.settings.mtu.unwrap_or(link.mtu);
            if end.mtu != wished && Before::noted(self.identity.attachment()).mtu() != Some(wished) {
                self.differs(format_args!("MTU of \"{ifname}\" is {}, not {wished}", end.mtu));
            }
        }
        if let Some(mtu) = self.settings.mtu {
            self.compare(format_args!("MTU of host veth \"{name}\""), link.mtu, mtu);
        }
        if let Some(port) = link.port {
            let on_off = |on: bool| if on { "on" } else { "off" };
            let wished = self.settings.port;
            self.compare(
                format_args!("hairpin mode of host veth \"{name}\""),
                on_off(port.hairpin),
                on_off(wished.hairpin),
            );
            self.compare(
                format_args!("isolation of host veth \"{name}\""),
                on_off(port.isolated),
                on_off(wished.isolated),
            );
            // The spanning tree protocol may have its reasons to hold a port; nobody else has.
            let is_closed = match port.state {
                Admission::Disabled => true,
                Admission::Held => bridge.is_some_and(|bridge| !bridge.spanning_tree),
                Admission::Forwarding => false,
            };
            if link.up && is_closed && !self.settings.leave_container_down {
                self.differs(format_args!("bridge port \"{name}\" does not forward"));
            }
        }
        if let Some(vlans) = &self.settings.vlans {
            self.differences.extend(vlans::differences(host, vlans, &link)?);
        }
        Ok(Some(maker))
    }

    fn gateway(&mut self, host: &mut Netlink, bridge: &Link) -> Result<(), Error> {
        if self.plan.gateways.is_empty() {
            return Ok(());
        }
        let failed = |failure: Failure| Error::internal(failure).context("read the state of the kernel");
        let name = self.settings.gateway_link();
        let link = match name == bridge.name {
            true => Some(bridge.clone()),
            false => host.link_by_name(&name).map_err(failed)?,
        };
        let Some(link) = link else {
            self.differs(format_args!("gateway interface \"{name}\" is missing"));
            return Ok(());
        };
        if link.index != bridge.index {
            self.vlan_gateway(host, bridge, &link).map_err(failed)?;
        }
        let present = host.addresses(link.index).map_err(failed)?;
        for gateway in &self.plan.gateways {
            if !present.iter().any(|address| address.network == *gateway) {
                self.differs(format_args!("gateway address {gateway} is missing on \"{name}\""));
            }
        }
        for (family, what) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            if !self.plan.forwards(family) {
                continue;
            }
            if !gateway::is_forwarding(host, family, None)? {
                self.differs(format_args!("the host does not forward {what}"));
            } else if family == Family::V4 && !gateway::is_forwarding(host, family, Some(&link))? {
                self.differs(format_args!("the host does not forward {what} from \"{name}\""));
            }
        }
        Ok(())
    }

    /// The gateway interface of a VLAN: up, and its other end a port of the bridge in that VLAN.
    fn vlan_gateway(&mut self, host: &mut Netlink, bridge: &Link, link: &Link) -> Result<(), Failure> {
        let name = &link.name;
        if !link.up {
            self.differs(format_args!("gateway interface \"{name}\" is down"));
        }
        let port = match link.peer {
            Some(index) => host.link_by_index(index)?,
            None => None,
        };
        let Some(port) = port.filter(|port| port.controller == Some(bridge.index)) else {
            let bridge = &bridge.name;
            self.differs(format_args!(
                "gateway interface \"{name}\" leads to no port of bridge \"{bridge}\""
            ));
            return Ok(());
        };
        if !port.up {
            self.differs(format_args!(
                "bridge port \"{}\" of gateway interface \"{name}\" is down",
                port.name
            ));
        }
        if let Some(vlans) = &self.settings.vlans {
            self.differences.extend(vlans::differences(host, &vlans.of_gateway(), &port)?);
        }
        Ok(())
    }
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
