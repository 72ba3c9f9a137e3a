//! Results of 1.0.0 and 1.1.0. The reference writes them through a map, so their keys stand in alphabetical order at
//! every level; the fields below are in that order.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{CniResult, is_zero};
use crate::{SpecVersion, ip};

#[derive(Serialize)]
pub(super) struct Document {
    #[serde(rename = "cniVersion")]
    version: SpecVersion,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct Body {
    #[serde(skip_serializing_if = "Dns::is_empty")]
    dns: Dns,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Dns {
    #[serde(skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Interface {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pci_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sandbox: String,
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    socket_path: String,
}

#[derive(Serialize, Deserialize)]
struct IpConfig {
    #[serde(deserialize_with = "ip::cidr")]
    address: IpNetwork,
    #[serde(default, deserialize_with = "ip::optional_ip", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Route {
    #[serde(default, skip_serializing_if = "is_zero")]
    advmss: u32,
    #[serde(deserialize_with = "ip::cidr")]
    dst: IpNetwork,
    #[serde(default, deserialize_with = "ip::optional_ip", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        self.domain.is_empty()
            && self.nameservers.is_empty()
            && self.options.is_empty()
            && self.search.is_empty()
    }
}

impl Document {
    pub(super) fn new(result: &CniResult, version: SpecVersion) -> Self {
        let body = Body {
            dns: result.dns.clone().into(),
            interfaces: result.interfaces.iter().cloned().map(Into::into).collect(),
            ips: result.ips.iter().cloned().map(Into::into).collect(),
            routes: result.routes.iter().cloned().map(Into::into).collect(),
        };
        Self { version, body }
    }
}

impl From<Body> for CniResult {
    fn from(body: Body) -> Self {
        Self {
            interfaces: body.interfaces.into_iter().map(Into::into).collect(),
            ips: body.ips.into_iter().map(Into::into).collect(),
            routes: body.routes.into_iter().map(Into::into).collect(),
            dns: body.dns.into(),
        }
    }
}

impl From<super::Dns> for Dns {
    fn from(dns: super::Dns) -> Self {
        let super::Dns { nameservers, domain, search, options } = dns;
        Self { domain, nameservers, options, search }
    }
}

impl From<Dns> for super::Dns {
    fn from(dns: Dns) -> Self {
        let Dns { domain, nameservers, options, search } = dns;
        Self { nameservers, domain, search, options }
    }
}

impl From<super::Interface> for Interface {
    fn from(interface: super::Interface) -> Self {
        let super::Interface { name, mac, mtu, sandbox, socket_path, pci_id } = interface;
        Self { mac, mtu, name, pci_id, sandbox, socket_path }
    }
}

impl From<Interface> for super::Interface {
    fn from(interface: Interface) -> Self {
        let Interface { mac, mtu, name, pci_id, sandbox, socket_path } = interface;
        Self { name, mac, mtu, sandbox, socket_path, pci_id }
    }
}

impl From<super::IpConfig> for IpConfig {
    fn from(ip: super::IpConfig) -> Self {
        Self { address: ip.address, gateway: ip.gateway, interface: ip.interface }
    }
}

impl From<IpConfig> for super::IpConfig {
    fn from(ip: IpConfig) -> Self {
        Self { interface: ip.interface, address: ip.address, gateway: ip.gateway }
    }
}

impl From<super::Route> for Route {
    fn from(route: super::Route) -> Self {
        let super::Route { dst, gw, mtu, advmss, priority, table, scope } = route;
        Self { advmss, dst, gw, mtu, priority, scope, table }
    }
}

impl From<Route> for super::Route {
    fn from(route: Route) -> Self {
        let Route { advmss, dst, gw, mtu, priority, scope, table } = route;
        Self { dst, gw, mtu, advmss, priority, table, scope }
    }
}
