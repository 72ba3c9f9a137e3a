//! The host's half of a gateway, and whom host and container believe.

use cni_types::Error;

use super::Comparison;
use crate::bridge::believes_routers;
use crate::config::Vlans;
use crate::family::Family;
use crate::netlink::link::{Conduct, Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::{gateway, reverse_path, sysctl, vlans};

impl Comparison<'_> {
    pub(super) fn gateway(&mut self, host: &mut Netlink, bridge: &Link) -> Result<(), Error> {
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
        if link.index == bridge.index {
            self.differences.extend(vlans::differences(host, bridge, None, bridge).map_err(failed)?);
        } else {
            self.vlan_gateway(host, bridge, &link).map_err(failed)?;
        }
        if !link.resolves {
            self.differs(format_args!("\"{name}\" resolves no addresses (noarp)"));
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

    /// The gateway interface of a VLAN: up, and if it is one end of a pair, the other a port of the bridge in that VLAN.
    fn vlan_gateway(&mut self, host: &mut Netlink, bridge: &Link, link: &Link) -> Result<(), Failure> {
        let name = &link.name;
        if !link.up {
            self.differs(format_args!("gateway interface \"{name}\" is down"));
        }
        // One that somebody has made otherwise leads to the bridge in a way of its own.
        if link.kind != Kind::Veth {
            return Ok(());
        }
        let port = gateway::port_of(host, link)?;
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
        if let Some(state) = port.port {
            let of = format!("bridge port \"{}\" of gateway interface \"{name}\"", port.name);
            self.conduct(&of, state, Conduct::NEW);
            // With one of them down there is nothing else to be said.
            if bridge.up && link.up && port.up && state.is_closed(Some(bridge)) {
                self.differs(format_args!("{of} does not forward"));
            }
        }
        let vlans = self.settings.vlans.as_ref().map(Vlans::of_gateway);
        self.differences.extend(vlans::differences(host, bridge, vlans.as_ref(), &port)?);
        Ok(())
    }

    /// That container and bridge believe no other router than the gateway, that the bridge takes no container for
    /// another, and that the container answers on all its networks.
    pub(super) fn switches(
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
            if name == self.settings.bridge() {
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
}
