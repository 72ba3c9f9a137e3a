//! Results of 0.3.0, 0.3.1 and 0.4.0: interfaces, and addresses that spell out their family.
//!
//! Route metrics and sizes came with later versions; the reference writes them here too, and so do we.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};

use super::{CniResult, Dns, is_zero};
use crate::{SpecVersion, ip};

#[derive(Serialize)]
pub(super) struct Document {
    #[serde(rename = "cniVersion")]
    version: SpecVersion,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(super) struct Body {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sandbox: String,
}

#[derive(Serialize, Deserialize)]
struct IpConfig {
    #[serde(default)]
    version: String,
    #[serde(default, deserialize_with = "index", skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
    #[serde(deserialize_with = "ip::cidr")]
    address: IpNetwork,
    #[serde(default, deserialize_with = "ip::optional_ip", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

#[derive(Serialize, Deserialize)]
struct Route {
    #[serde(deserialize_with = "ip::cidr")]
    dst: IpNetwork,
    #[serde(default, deserialize_with = "ip::optional_ip", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    advmss: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
}

/// A negative one points nowhere: plugins from when these versions were new write -1 for no interface.
fn index<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let written = Option::<i64>::deserialize(deserializer)?;
    Ok(written.and_then(|index| usize::try_from(index).ok()))
}

impl Document {
    pub(super) fn new(result: &CniResult, version: SpecVersion) -> Self {
        let body = Body {
            interfaces: result.interfaces.iter().cloned().map(Into::into).collect(),
            ips: result.ips.iter().cloned().map(Into::into).collect(),
            routes: result.routes.iter().cloned().map(Into::into).collect(),
            dns: result.dns.clone(),
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
            dns: body.dns,
        }
    }
}

impl From<super::Interface> for Interface {
    fn from(interface: super::Interface) -> Self {
        Self { name: interface.name, mac: interface.mac, sandbox: interface.sandbox }
    }
}

impl From<Interface> for super::Interface {
    fn from(interface: Interface) -> Self {
        Self { name: interface.name, mac: interface.mac, sandbox: interface.sandbox, ..Self::default() }
    }
}

impl From<super::IpConfig> for IpConfig {
    fn from(ip: super::IpConfig) -> Self {
        let version = if ip.address.is_ipv4() { "4" } else { "6" };
        Self { version: version.into(), interface: ip.interface, address: ip.address, gateway: ip.gateway }
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
        Self { dst, gw, mtu, advmss, priority, table, scope }
    }
}

impl From<Route> for super::Route {
    fn from(route: Route) -> Self {
        let Route { dst, gw, mtu, advmss, priority, table, scope } = route;
        Self { dst, gw, mtu, advmss, priority, table, scope }
    }
}
