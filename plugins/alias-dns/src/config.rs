//! The plugin's configuration: from JSON as written to [`Settings`], in which every value is in order. Pure; touches no
//! file and no socket.

use std::net::SocketAddr;

use cni_types::{AttachmentCall, Error, NetworkCall, OwnKeys};
use serde::Deserialize;

use crate::domain_name::DomainName;
use crate::name_server;
use crate::names::{Annotations, NameKeys, NameList, Names, Sources};
use crate::records::Link;

/// How long an answer may be kept unless the configuration says otherwise, in seconds. Most resolvers in containers
/// keep nothing; for the others it bounds how long a restarted container is looked for at its old address, while a
/// burst of look-ups still costs one query.
const DEFAULT_TTL: u32 = 5;

/// RFC 2181, section 8.
const MAX_TTL: u32 = i32::MAX as u32;

/// The name of podman's plugin, which this one stands in for.
const DNSNAME: &str = "dnsname";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    r#type: String,
    domain_name: String,
    /// Of any whole number, so that the error for one that does not fit names the limit.
    ttl: Option<i64>,
    upstreams: Vec<String>,
    forward: Option<bool>,
    on_error: String,
    args: Args,
    runtime_config: RuntimeConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: ConfArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfArgs {
    container_name: String,
    aliases: Option<NameList>,
    links: Option<NameList>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    container_name: String,
    aliases: Option<NameList>,
    links: Option<NameList>,
    dns: RuntimeDns,
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: Option<Annotations>,
}

/// The container's own name servers, as runtimes hand them on (`docker run --dns`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeDns {
    servers: Vec<String>,
}

/// What to do when the names cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// ADD fails.
    Fail,
    /// ADD passes the result of the plugin before on, with a line on stderr.
    Warn,
}

/// What the caller takes this plugin for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Itself.
    AliasDns,
    /// podman's plugin, whose result has no resolver options.
    Dnsname,
}

/// Whether names of elsewhere are asked for elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// As the configuration says.
    Configured(bool),
    /// If the network has a way out: a default route.
    ByRoutes,
}

/// A checked configuration, and what the attachment is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) dialect: Dialect,
    pub(crate) domain: DomainName,
    pub(crate) other_domains: Vec<DomainName>,
    pub(crate) ttl: u32,
    pub(crate) forward: Forwarding,
    pub(crate) upstreams: Vec<SocketAddr>,
    pub(crate) on_error: OnError,
    pub(crate) names: Vec<DomainName>,
    pub(crate) links: Vec<Link>,
}

impl Settings {
    /// The settings of one attachment.
    ///
    /// # Errors
    /// Code 7 names the key and the value; 4 for malformed CNI_ARGS.
    pub(crate) fn of(call: &AttachmentCall) -> Result<Self, Error> {
        let written = Written::of(call.network())?;
        let network = call.conf().name();
        let (domain, other_domains) = written.domains(network)?;
        let domains: Vec<&DomainName> = std::iter::once(&domain).chain(&other_domains).collect();
        let sources = Sources {
            env_args: &call.env().args()?,
            conf_args: written.args.cni.names(),
            runtime_config: written.runtime_config.names(),
            annotations: written.runtime_config.annotations.as_ref(),
            container_id: call.attachment().container_id(),
            network,
        };
        let Names { names, links } = Names::of(sources, &domains)?;
        let upstreams = written.upstreams()?;
        Ok(Self {
            dialect: written.dialect(),
            ttl: written.ttl()?,
            forward: match written.forward {
                Some(forward) => Forwarding::Configured(forward),
                // Who names servers wants them asked.
                None if !upstreams.is_empty() => Forwarding::Configured(true),
                None => Forwarding::ByRoutes,
            },
            upstreams,
            on_error: written.on_error()?,
            domain,
            other_domains,
            names,
            links,
        })
    }

    /// Checks what of the configuration does not depend on the attachment.
    ///
    /// # Errors
    /// Code 7 names the key and the value.
    pub(crate) fn check_network(call: &NetworkCall) -> Result<(), Error> {
        let written = Written::of(call)?;
        written.domains(call.conf().name())?;
        written.upstreams()?;
        written.ttl()?;
        written.on_error()?;
        Ok(())
    }
}

impl Written {
    fn of(call: &NetworkCall) -> Result<Self, Error> {
        call.conf().decode(OwnKeys::Top)
    }

    fn dialect(&self) -> Dialect {
        if self.r#type == DNSNAME { Dialect::Dnsname } else { Dialect::AliasDns }
    }

    /// The domain, and the network's name where that is another.
    fn domains(&self, network: &str) -> Result<(DomainName, Vec<DomainName>), Error> {
        let of_network = DomainName::new(network);
        // `dns.podman.` and `.dns.podman` mean the same.
        let written = self.domain_name.strip_suffix('.').unwrap_or(&self.domain_name);
        let written = written.strip_prefix('.').unwrap_or(written);
        if self.domain_name.is_empty() {
            let domain = of_network.map_err(|error| {
                Error::invalid_config("name", format!("{error}; domainName can name another domain"))
            })?;
            return Ok((domain, Vec::new()));
        }
        // Of dots alone nothing would be left to be named.
        let written = if written.is_empty() { &self.domain_name } else { written };
        let domain = DomainName::new(written).map_err(|error| Error::invalid_config("domainName", error))?;
        let others = of_network.into_iter().filter(|other| !other.is_same(&domain)).collect();
        Ok((domain, others))
    }

    fn ttl(&self) -> Result<u32, Error> {
        match self.ttl {
            None => Ok(DEFAULT_TTL),
            Some(ttl) => match u32::try_from(ttl) {
                Ok(ttl) if ttl <= MAX_TTL => Ok(ttl),
                _ => Err(Error::invalid_config("ttl", format!("{ttl} is not from 0 to {MAX_TTL} seconds"))),
            },
        }
    }

    /// The container's own name servers, or else the network's.
    fn upstreams(&self) -> Result<Vec<SocketAddr>, Error> {
        let parse = |key: &str, texts: &[String]| {
            let parsed = texts.iter().enumerate().map(|(index, text)| {
                upstream(text).map_err(|reason| Error::invalid_config(&format!("{key}[{index}]"), reason))
            });
            parsed.collect::<Result<Vec<_>, _>>()
        };
        let of_network = parse("upstreams", &self.upstreams)?;
        let own = parse("runtimeConfig.dns.servers", &self.runtime_config.dns.servers)?;
        Ok(if own.is_empty() { of_network } else { own })
    }

    fn on_error(&self) -> Result<OnError, Error> {
        match self.on_error.as_str() {
            "" | "fail" => Ok(OnError::Fail),
            "warn" => Ok(OnError::Warn),
            other => {
                Err(Error::invalid_config("onError", format!("\"{other}\" is neither \"fail\" nor \"warn\"")))
            }
        }
    }
}

impl ConfArgs {
    fn names(&self) -> NameKeys<'_> {
        let Self { container_name, aliases, links } = self;
        NameKeys { container_name, aliases: aliases.as_ref(), links: links.as_ref() }
    }
}

impl RuntimeConfig {
    fn names(&self) -> NameKeys<'_> {
        let Self { container_name, aliases, links, .. } = self;
        NameKeys { container_name, aliases: aliases.as_ref(), links: links.as_ref() }
    }
}

fn upstream(text: &str) -> Result<SocketAddr, String> {
    name_server::parse_any(text)
        .filter(|server| server.port() != 0 && !server.ip().is_unspecified() && !server.ip().is_multicast())
        .ok_or_else(|| match name_server::missing_device(text) {
            Some(device) => format!("\"{text}\" is reached by \"{device}\", a device that this host has not"),
            None => format!("\"{text}\" is not the address of a name server"),
        })
}
