//! Results of 0.1.0 and 0.2.0: one address of each family, no interfaces.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{CniResult, Dns, IpConfig, Route};
use crate::{SpecVersion, ip};

#[derive(Serialize)]
pub(super) struct Document {
    #[serde(rename = "cniVersion")]
    version: SpecVersion,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Body {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<Family>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<Family>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct Family {
    #[serde(deserialize_with = "ip::cidr")]
    ip: IpNetwork,
    #[serde(default, deserialize_with = "ip::optional_ip", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Hop>,
}

#[derive(Serialize, Deserialize)]
struct Hop {
    #[serde(deserialize_with = "ip::cidr")]
    dst: IpNetwork,
    #[serde(default, deserialize_with = "ip::optional_ip", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
}

impl Document {
    pub(super) fn new(result: &CniResult, version: SpecVersion) -> Self {
        let family = |wanted: fn(&IpNetwork) -> bool| {
            let first = result.ips.iter().find(|ip| wanted(&ip.address))?;
            let routes = result.routes.iter().filter(|route| wanted(&route.dst));
            Some(Family {
                ip: first.address,
                gateway: first.gateway,
                routes: routes.map(|route| Hop { dst: route.dst, gw: route.gw }).collect(),
            })
        };
        let body = Body {
            ip4: family(IpNetwork::is_ipv4),
            ip6: family(IpNetwork::is_ipv6),
            dns: result.dns.clone(),
        };
        Self { version, body }
    }
}

impl From<Body> for CniResult {
    fn from(body: Body) -> Self {
        let mut result = Self { dns: body.dns, ..Self::default() };
        for family in body.ip4.into_iter().chain(body.ip6) {
            result.ips.push(IpConfig { interface: None, address: family.ip, gateway: family.gateway });
            result
                .routes
                .extend(family.routes.into_iter().map(|hop| Route { gw: hop.gw, ..Route::to(hop.dst) }));
        }
        result
    }
}
