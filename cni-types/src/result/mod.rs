//! What ADD answers: interfaces, addresses, routes, DNS.
//!
//! Plugins build and read the current shape, [`CniResult`], and nothing else. How a spec version writes it on the
//! wire is that version's module ([`v020`], [`v040`], [`v100`]); each is one conversion away from the current shape,
//! so any version reaches any other in two.

mod v020;
mod v040;
mod v100;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::{self, DecodeError};
use crate::{Error, ErrorCode, SpecVersion, ip};

/// The result of ADD, whatever the spec version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces in the container (`sandbox` set) and on the host, in the order that `ips` points into.
    pub interfaces: Vec<Interface>,
    /// Addresses assigned.
    pub ips: Vec<IpConfig>,
    /// Routes installed in the container.
    pub routes: Vec<Route>,
    /// Name service for the container.
    pub dns: Dns,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty when not told.
    pub mac: String,
    /// Its MTU in bytes; 0 when not told. Only 1.x versions carry it.
    pub mtu: u32,
    /// The path of the namespace that it is in; empty for the host.
    pub sandbox: String,
    /// The path of a socket file, for interfaces that are one. Only 1.x versions carry it.
    pub socket_path: String,
    /// The PCI identifier. Only 1.x versions carry it.
    pub pci_id: String,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into [`CniResult::interfaces`].
    pub interface: Option<usize>,
    /// The address with the prefix length of its subnet; host bits are kept.
    pub address: IpNetwork,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// A route in the container. Numbers that are 0 or absent leave the choice to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// Destination; host bits are kept.
    #[serde(deserialize_with = "ip::cidr")]
    pub dst: IpNetwork,
    /// Next hop; absent means the gateway of the destination's family.
    #[serde(default, deserialize_with = "ip::optional_ip")]
    pub gw: Option<IpAddr>,
    /// MTU of the path, in bytes.
    #[serde(default)]
    pub mtu: u32,
    /// Maximal segment size to advertise, in bytes.
    #[serde(default)]
    pub advmss: u32,
    /// Metric; a lower one is preferred.
    #[serde(default)]
    pub priority: u32,
    /// Routing table.
    #[serde(default)]
    pub table: Option<u32>,
    /// `rtm_scope`: 0 universe, 200 site, 253 link, 254 host.
    #[serde(default)]
    pub scope: Option<u8>,
}

impl Route {
    /// A route to `dst` with everything else left to the kernel.
    pub fn to(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// Name service, as `resolv.conf` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, most wanted first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains, most wanted first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// The result as `version` writes it: indented by four spaces, no newline at the end.
    ///
    /// # Errors
    /// Code 7 when `version` cannot hold it: 0.1.0 and 0.2.0 need an address.
    pub fn encode(&self, version: SpecVersion) -> Result<String, Error> {
        self.require_representable(version)?;
        match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => json::encode(&v020::Document::new(self, version)),
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                json::encode(&v040::Document::new(self, version))
            }
            SpecVersion::V1_0_0 | SpecVersion::V1_1_0 => json::encode(&v100::Document::new(self, version)),
        }
        .map_err(Error::internal)
    }

    /// Whether `version` can hold this result, to be asked before anything is done that would have to be undone.
    ///
    /// # Errors
    /// Code 7, with the reference's text.
    pub fn require_representable(&self, version: SpecVersion) -> Result<(), Error> {
        if version <= SpecVersion::V0_2_0 && self.ips.is_empty() {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "cannot convert: no valid IP addresses")
                .with_details(format!("a result of CNI version {version} needs at least one address")));
        }
        Ok(())
    }

    /// Reads a result of any version. One without `cniVersion` is taken to be of version `assumed`, `null` to be
    /// empty.
    ///
    /// # Errors
    /// The path of the value that does not fit.
    pub fn decode(document: &Value, assumed: SpecVersion) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(rename = "cniVersion", default)]
            cni_version: String,
        }
        fn read<T: DeserializeOwned>(document: &Value) -> Result<T, DecodeError> {
            json::decode(document, |_| ())
        }

        if document.is_null() {
            return Ok(Self::default());
        }
        let written: Versioned = read(document)?;
        let version = match written.cni_version.as_str() {
            "" => assumed,
            text => SpecVersion::parse(text).ok_or_else(|| DecodeError {
                path: "cniVersion".into(),
                reason: format!("unknown CNI version \"{text}\""),
            })?,
        };
        Ok(match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => read::<v020::Body>(document)?.into(),
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                read::<v040::Body>(document)?.into()
            }
            SpecVersion::V1_0_0 | SpecVersion::V1_1_0 => read::<v100::Body>(document)?.into(),
        })
    }
}

/// For `skip_serializing_if`: Go leaves numbers out that are 0.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests;
