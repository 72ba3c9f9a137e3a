//! The configuration: the keys as written, and the settings they come to. Pure: every mistake of a user ends here,
//! before any file is opened.
//!
//! The keys are the reference's, under `ipam`, and four of our own: `exclude`, `allocation`, `requestableFrom` and
//! `stickyByName`. Each range set is leased from once; their order (`runtimeConfig.ipRanges`, the single range of
//! `subnet`, `ranges`) decides the number in `last_reserved_ip.N`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use cni_types::{CniArgs, Error, ErrorCode, NetConf, NetworkCall, OwnKeys, Route, SpecVersion, ip};
use ipnetwork::IpNetwork;
use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer};

use crate::allocator::{Order, RequestableFrom};
use crate::range::{RangeError, RangeSpec, optional_cidr};
use crate::range_set::{RangeSet, RangeSetError};
use crate::span::{Point, Span};
use crate::store::{Place, StickyName};

/// Where the reference keeps its leases.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// Pairs of `CNI_ARGS` that carry the container's name, most trusted first.
const NAME_ARGS: [&str; 3] = ["CONTAINER_NAME", "K8S_POD_NAME", "NERDCTL_CNI_DHCP_HOSTNAME"];
const NAMESPACE_ARG: &str = "K8S_POD_NAMESPACE";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    ipam: Option<IpamKeys>,
    runtime_config: RuntimeConfig,
    args: Args,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamKeys {
    /// Read by whoever delegates to us.
    #[serde(rename = "type")]
    _type: String,
    #[serde(deserialize_with = "optional_cidr")]
    subnet: Option<IpNetwork>,
    #[serde(deserialize_with = "ip::optional_ip")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "ip::optional_ip")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "ip::optional_ip")]
    gateway: Option<IpAddr>,
    ranges: Vec<Vec<RangeSpec>>,
    routes: Vec<Route>,
    data_dir: String,
    resolv_conf: String,
    exclude: Vec<String>,
    #[serde(deserialize_with = "unless_empty")]
    allocation: Order,
    #[serde(deserialize_with = "unless_empty")]
    requestable_from: RequestableFrom,
    sticky_by_name: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    ip_ranges: Vec<Vec<RangeSpec>>,
    ips: Vec<String>,
    container_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniKeys,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CniKeys {
    ips: Vec<String>,
    container_name: String,
}

/// A configuration that addresses can be leased by.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) place: Place,
    /// At least one.
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) order: Order,
    pub(crate) requestable_from: RequestableFrom,
    pub(crate) routes: Vec<Route>,
    /// The file whose content becomes the result's `dns`.
    pub(crate) resolv_conf: Option<PathBuf>,
    sticky_by_name: bool,
    requested: Vec<IpAddr>,
    container_name: Option<String>,
}

/// What one container asks for.
#[derive(Debug)]
pub(crate) struct Wishes {
    /// In the order given, each once.
    pub(crate) requested: Vec<IpAddr>,
    /// The name that an address stays with.
    pub(crate) sticky_name: Option<StickyName>,
}

impl Settings {
    /// Reads and checks the whole configuration.
    ///
    /// # Errors
    /// Code 7 with the path of the key.
    pub(crate) fn read(conf: &NetConf) -> Result<Self, Error> {
        let Document { ipam, runtime_config, args } = conf.decode(OwnKeys::Ipam)?;
        let ipam = ipam.ok_or_else(|| Error::invalid_config("ipam", "IPAM config missing 'ipam' key"))?;
        let excluded = ipam
            .exclude
            .iter()
            .enumerate()
            .map(|(index, text)| {
                parse_span(text)
                    .map_err(|reason| Error::invalid_config(&format!("ipam.exclude[{index}]"), reason))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let sticky = ipam.sticky_by_name;
        let name = [args.cni.container_name, runtime_config.container_name]
            .into_iter()
            .find(|name| !name.is_empty());
        let requested = [("args.cni.ips", &args.cni.ips), ("runtimeConfig.ips", &runtime_config.ips)]
            .into_iter()
            .flat_map(|(key, texts)| texts.iter().enumerate().map(move |(index, text)| (key, index, text)))
            .map(|(key, index, text)| {
                parse_address(text)
                    .map_err(|reason| Error::invalid_config(&format!("{key}[{index}]"), reason))
            })
            .collect::<Result<Vec<_>, _>>()?;

        let legacy = ipam.subnet.map(|subnet| RangeSpec {
            subnet: Some(subnet),
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
        });
        let listed = |prefix: &'static str, sets: Vec<Vec<RangeSpec>>| {
            sets.into_iter()
                .enumerate()
                .map(move |(index, specs)| SetSpec { key: SetKey::Listed(prefix, index), specs })
        };
        let specs: Vec<SetSpec> = listed("runtimeConfig.ipRanges", runtime_config.ip_ranges)
            .chain(legacy.map(|spec| SetSpec { key: SetKey::Legacy, specs: vec![spec] }))
            .chain(listed("ipam.ranges", ipam.ranges))
            .collect();
        Ok(Self {
            place: Place::new(&data_dir(&ipam.data_dir), conf.name()),
            sets: checked_sets(&specs, &excluded, conf.version())?,
            order: ipam.allocation,
            requestable_from: ipam.requestable_from,
            routes: ipam.routes,
            resolv_conf: (!ipam.resolv_conf.is_empty()).then(|| ipam.resolv_conf.into()),
            sticky_by_name: sticky,
            requested,
            container_name: name,
        })
    }

    /// What the container of this call asks for.
    ///
    /// # Errors
    /// Code 4 for `CNI_ARGS` that are malformed or that no plugin of the suite knows.
    pub(crate) fn wishes(&self, args: &CniArgs) -> Result<Wishes, Error> {
        args.require_known()?;
        let by_args = args.get("IP").filter(|text| !text.is_empty()).map(|text| {
            parse_address(text).map_err(|reason| {
                Error::new(
                    ErrorCode::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS: ARGS: error parsing value of pair \"IP={text}\": {reason}"),
                )
            })
        });
        let mut seen = BTreeSet::new();
        let given = by_args.transpose()?.into_iter().chain(self.requested.iter().copied());
        let requested = given.filter(|address| seen.insert(*address)).collect();
        let sticky_name = if self.sticky_by_name { self.sticky_name(args) } else { None };
        Ok(Wishes { requested, sticky_name })
    }

    fn sticky_name(&self, args: &CniArgs) -> Option<StickyName> {
        let given = |key: &&str| args.get(key).filter(|value| !value.is_empty());
        let name = NAME_ARGS.iter().find_map(given).or(self.container_name.as_deref())?;
        Some(match given(&NAMESPACE_ARG) {
            Some(namespace) => StickyName::new(&format!("{namespace}/{name}")),
            None => StickyName::new(name),
        })
    }
}

/// Where the leases of a call's network are, whatever else its configuration says: what ADD would refuse must not
/// keep DEL from releasing.
pub(crate) fn place_of(call: &NetworkCall) -> Place {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Document {
        ipam: IpamKeys,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct IpamKeys {
        data_dir: String,
    }
    let conf = call.conf();
    let Document { ipam } = conf.decode(OwnKeys::Unreported).unwrap_or_else(|error| {
        log::warn!("network {}: {error}; taking the default data directory", conf.name());
        Document::default()
    });
    Place::new(&data_dir(&ipam.data_dir), conf.name())
}

/// The data directory as the reference has it, which joins paths by `filepath.Join`: `..` takes the name before it away,
/// also one that is a symbolic link and leads elsewhere.
fn data_dir(text: &str) -> PathBuf {
    let written = Path::new(if text.is_empty() { DEFAULT_DATA_DIR } else { text });
    let mut clean = PathBuf::new();
    for part in written.components() {
        match (part, clean.components().next_back()) {
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => drop(clean.pop()),
            _ => clean.push(part),
        }
    }
    clean
}

/// A range set as written, and where.
struct SetSpec {
    key: SetKey,
    specs: Vec<RangeSpec>,
}

enum SetKey {
    /// An element of the list at this path.
    Listed(&'static str, usize),
    /// The single range whose keys stand in `ipam` itself.
    Legacy,
}

impl SetKey {
    fn path(&self) -> String {
        match self {
            Self::Listed(list, index) => format!("{list}[{index}]"),
            Self::Legacy => "ipam".into(),
        }
    }

    fn path_in_range(&self, range: usize, key: &str) -> String {
        match self {
            Self::Listed(list, index) => format!("{list}[{index}][{range}].{key}"),
            Self::Legacy => format!("ipam.{key}"),
        }
    }
}

fn checked_sets(specs: &[SetSpec], excluded: &[Span], version: SpecVersion) -> Result<Vec<RangeSet>, Error> {
    let Some(first) = specs.first() else {
        return Err(Error::invalid_config("ipam.ranges", "no IP ranges specified"));
    };
    let mut sets: Vec<RangeSet> = Vec::with_capacity(specs.len());
    for (index, SetSpec { key, specs }) in specs.iter().enumerate() {
        let set = RangeSet::new(specs, excluded).map_err(|error| {
            let path = match &error {
                RangeSetError::Range { index, error } => key.path_in_range(*index, error.key()),
                _ => key.path(),
            };
            Error::invalid_config(&path, format_args!("invalid range set {index}: {error}"))
        })?;
        sets.push(set);
    }
    if version < SpecVersion::V0_3_0 {
        let ipv4 = sets.iter().filter(|set| set.is_ipv4()).count();
        if ipv4 > 1 || sets.len() - ipv4 > 1 {
            let reason =
                format_args!("CNI version {version} does not support more than 1 address per family");
            return Err(Error::invalid_config(&first.key.path(), reason));
        }
    }
    for (index, (set, spec)) in sets.iter().zip(specs).enumerate().skip(1) {
        if let Some(earlier) = sets.iter().take(index).position(|earlier| earlier.overlaps(set)) {
            let reason =
                format_args!("range set {earlier} overlaps with {index} ({} and {set})", sets[earlier]);
            return Err(Error::invalid_config(&spec.key.path(), reason));
        }
    }
    Ok(sets)
}

/// `10.0.0.7`, with or without a prefix length, which says nothing.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let address = match text.split_once('/') {
        Some(_) => ip::parse_cidr(text).map(|cidr| cidr.ip()),
        None => ip::parse_ip(text),
    };
    address.map(|address| address.to_canonical()).map_err(|_| format!("invalid IP address {text}"))
}

/// The word of a key, the default where it is empty, which is as good as absent to the reference.
fn unless_empty<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let word = String::deserialize(deserializer)?;
    if word.is_empty() { Ok(T::default()) } else { T::deserialize(word.into_deserializer()) }
}

/// `10.0.0.7`, `10.0.0.0/28` or `10.0.0.7-10.0.0.9`.
fn parse_span(text: &str) -> Result<Span, String> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (parse_bare(first.trim())?, parse_bare(last.trim())?);
        if first.address().is_ipv4() != last.address().is_ipv4() {
            return Err(format!("{text} starts in one address family and ends in the other"));
        }
        return Span::new(first, last).ok_or_else(|| format!("{text} ends before it starts"));
    }
    if text.contains('/') {
        let subnet = ip::parse_cidr(text)?;
        if subnet.ip() != subnet.network() {
            return Err(RangeError::HostBits(subnet).to_string());
        }
        let span = Span::new(subnet.network().into(), subnet.broadcast().into());
        return span.ok_or_else(|| format!("invalid CIDR address: {text}"));
    }
    parse_bare(text).map(Span::of_one)
}

fn parse_bare(text: &str) -> Result<Point, String> {
    ip::parse_ip(text).map(|address| address.to_canonical().into())
}

#[cfg(test)]
mod tests;
