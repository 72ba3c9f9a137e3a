//! The configuration as written, and [`Settings`]: the same, checked.
//!
//! Every mistake of a user ends here, with the path of the key, before anything is touched. Pure but for one look at
//! the file system: the IPAM plugin has to exist.

use std::cell::OnceCell;

use cni_types::{CniArgs, Delegate, Dns, Error, ErrorCode, MAX_IFNAME_LEN, NetConf, OwnKeys};
use serde::Deserialize;

use crate::mac::Mac;
use crate::names;
use crate::netlink::addr::Dad;
use crate::netlink::link::Conduct;
use crate::nft::IngressPolicy;

/// The bridge of a network that names none.
const DEFAULT_BRIDGE: &str = "cni0";

/// IPAM plugins that lease from files or from the configuration. Any other may speak from the container's interface, as
/// `dhcp` does.
const LEASES_WITHOUT_LINK: [&str; 3] = ["host-local-ipam", "host-local", "static"];

/// MTU of a veth pair or bridge in bytes: the least that IPv4 needs (RFC 791), and the kernel's most (`ETH_MAX_MTU`).
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

/// The document, as far as this plugin reads it. Numbers that the reference takes as signed are so here, for messages.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<TrunkEntry>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    ingress_policy: String,
    accept_forward: bool,
    /// For its type only: DEL reads it on its own ([`returns_early`]).
    early_return: bool,
    ipam: Ipam,
    dns: DnsKeys,
    args: Args,
    runtime_config: WithMac,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TrunkEntry {
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
    id: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipam {
    r#type: String,
}

/// A list that is written counts, be it an empty one: whoever writes it wants no other (as in the reference).
#[derive(Deserialize, Default)]
#[serde(default)]
struct DnsKeys {
    nameservers: Option<Vec<String>>,
    domain: String,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: WithMac,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WithMac {
    mac: String,
}

/// A network and one attachment to it, as wished: checked, defaults filled in.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Name of the network.
    pub(crate) network: String,
    /// What the configuration calls the bridge.
    bridge: String,
    /// Its own name, where that has been found to be another one.
    bridge_itself: OnceCell<String>,
    /// What the bridge is to the containers.
    pub(crate) gateway: GatewayRole,
    /// MTU of a new bridge and of the veth pair in bytes; `None` takes it from the host.
    pub(crate) mtu: Option<u32>,
    /// Whether the bridge receives every frame.
    pub(crate) promiscuous: bool,
    /// How the host end treats frames as a port.
    pub(crate) port: Conduct,
    /// VLANs of the port; `None` leaves VLANs alone.
    pub(crate) vlans: Option<Vlans>,
    /// Hardware address of the container's interface; `None` chooses one.
    pub(crate) mac: Option<Mac>,
    /// Whether IPv6 addresses wait for duplicate address detection.
    pub(crate) dad: Dad,
    /// Whether the container's interface is left down.
    pub(crate) leave_container_down: bool,
    /// Who leases addresses; `None` makes a plain switch of the network.
    pub(crate) ipam: Option<Delegate>,
    /// Whether that one looks at nothing of the container, so that it can work before there is an interface.
    pub(crate) leases_without_link: bool,
    /// Name service to answer with instead of the IPAM plugin's.
    pub(crate) dns: Option<Dns>,
    /// Who hides the containers behind the host's address.
    pub(crate) masquerade: Option<MasqueradeBackend>,
    /// Who may open a connection to a container.
    pub(crate) ingress: IngressPolicy,
    /// Whether frames pass only with the container's own source address.
    pub(crate) mac_spoof_check: bool,
    /// Whether the host's other firewalls are told to let the network's traffic through.
    pub(crate) accept_forward: bool,
}

/// What the bridge is to the containers (`isGateway`, `isDefaultGateway`, `forceAddress`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatewayRole {
    /// A switch without an address.
    None,
    /// Their gateway.
    Gateway {
        /// Whether they get a default route by it.
        default_route: bool,
        /// What becomes of another address that the bridge has.
        conflict: AddressConflict,
    },
}

/// What to do when the bridge has another address than the network's (`forceAddress`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressConflict {
    /// Refuse the ADD.
    Refuse,
    /// Replace it.
    Replace,
}

/// VLANs of a bridge port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vlans {
    /// The VLAN of untagged frames, 1 to 4094; `None` means the bridge's default one.
    pub(crate) untagged: Option<u16>,
    /// VLANs that pass tagged, each 1 to 4094, in order, each once.
    pub(crate) trunk: Vec<u16>,
    /// Whether the port stays in the VLANs that the kernel put it into.
    pub(crate) keep_default: bool,
}

impl Vlans {
    /// Whether they mean something only on a bridge that filters by VLAN. An empty `vlanTrunk` does not: the port is
    /// in the bridge's default VLAN with all the others.
    pub(crate) fn need_filtering(&self) -> bool {
        self.untagged.is_some() || !self.trunk.is_empty()
    }

    /// Those of the gateway's port: it is in the containers' VLAN, and no trunk leads to it.
    pub(crate) fn of_gateway(&self) -> Self {
        Self { untagged: self.untagged, trunk: Vec::new(), keep_default: self.keep_default }
    }
}

/// Who writes masquerade rules (`ipMasqBackend`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MasqueradeBackend {
    /// The kernel's nf_tables, in a table of our own.
    Nftables,
    /// The iptables programs.
    Iptables,
}

impl DnsKeys {
    /// The name service, if there is one in the configuration.
    fn written(self) -> Option<Dns> {
        let Self { nameservers, domain, search, options } = self;
        let is_written =
            !domain.is_empty() || [&nameservers, &search, &options].iter().any(|list| list.is_some());
        let [nameservers, search, options] = [nameservers, search, options].map(Option::unwrap_or_default);
        is_written.then_some(Dns { nameservers, domain, search, options })
    }
}

impl Settings {
    /// Checks what the runtime asks for. `args` is `CNI_ARGS`, `delegate` finds the IPAM plugin by its type.
    ///
    /// # Errors
    /// Code 7 with the path of the key; code 4 for `CNI_ARGS`.
    pub(crate) fn new(
        conf: &NetConf,
        args: &CniArgs,
        delegate: impl FnOnce(&str) -> Result<Delegate, Error>,
    ) -> Result<Self, Error> {
        let document: Document = conf.decode(OwnKeys::Top)?;
        args.require_known()?;
        if document.hairpin_mode && document.promisc_mode {
            return Err(Error::invalid_config(
                "hairpinMode",
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        let has_ipam = !document.ipam.r#type.is_empty();
        if has_ipam && document.disable_container_interface {
            return Err(Error::invalid_config(
                "disableContainerInterface",
                "cannot use IPAM when DisableContainerInterface flag is set",
            ));
        }
        // Nobody looks at a backend that has nothing to do, in the reference either.
        let masquerade = match document.ip_masq && has_ipam {
            true => Some(masquerade_backend(&document.ip_masq_backend)?),
            false => None,
        };
        let ingress = ingress_policy(&document.ingress_policy)?;
        let mtu = Some(document.mtu).filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
            return Err(Error::invalid_config("mtu", format_args!("{mtu} is not between 68 and 65535")));
        }
        let bridge = bridge_name(document.bridge.as_deref())?;
        let vlans = vlans(&document)?;
        // Without addresses there is nothing to be the gateway of, in the reference either.
        let gateway = if has_ipam { gateway_role(&document) } else { GatewayRole::None };
        if let (GatewayRole::Gateway { .. }, Some(link)) = (gateway, vlan_gateway(&bridge, vlans.as_ref()))
            && link.len() > MAX_IFNAME_LEN
        {
            let reason = format_args!(
                "the gateway interface \"{link}\" would have a name of more than {MAX_IFNAME_LEN} bytes"
            );
            return Err(Error::invalid_config("vlan", reason));
        }
        Ok(Self {
            network: conf.name().to_owned(),
            gateway,
            mtu,
            promiscuous: document.promisc_mode,
            port: Conduct {
                hairpin: document.hairpin_mode,
                isolated: document.port_isolation || ingress == IngressPolicy::Isolated,
                ..Conduct::NEW
            },
            vlans,
            mac: requested_mac(&document, args)?,
            dad: if document.enabledad { Dad::Wait } else { Dad::Skip },
            leave_container_down: document.disable_container_interface,
            dns: document.dns.written(),
            masquerade,
            ingress,
            mac_spoof_check: document.macspoofchk,
            accept_forward: document.accept_forward,
            leases_without_link: LEASES_WITHOUT_LINK.contains(&document.ipam.r#type.as_str()),
            bridge,
            bridge_itself: OnceCell::new(),
            // Last, so that a mistake that can be seen in the document is told first.
            ipam: match has_ipam {
                true => Some(delegate(&document.ipam.r#type).map_err(|error| error.context("ipam.type"))?),
                false => None,
            },
        })
    }

    /// Name of the bridge.
    pub(crate) fn bridge(&self) -> &str {
        self.bridge_itself.get().unwrap_or(&self.bridge)
    }

    /// Calls the bridge by its own name, as it was found, from here on. The kernel finds a link by any name that it has
    /// (`ip link property add … altname`), but rules, and the switches in /proc/sys, go by the one.
    pub(crate) fn call_bridge(&self, itself: &str) -> &str {
        if itself != self.bridge() {
            // Whoever renames it meanwhile is seen by the next call.
            let _ = self.bridge_itself.set(itself.to_owned());
        }
        self.bridge()
    }

    /// Whether the bridge is the containers' gateway.
    pub(crate) fn is_gateway(&self) -> bool {
        self.gateway != GatewayRole::None
    }

    /// Whether the network does not work on a bridge that does not filter by VLAN.
    pub(crate) fn needs_vlan_filtering(&self) -> bool {
        self.vlans.as_ref().is_some_and(Vlans::need_filtering)
    }

    /// In what the network's ports are unlike one that the kernel makes, in words; nothing where they are not.
    pub(crate) fn port_words(&self) -> Vec<String> {
        let conduct = self.port.differences(Conduct::NEW).map(|[what, is, _]| format!("{what} {is}"));
        let vlans = self.vlans.iter().flat_map(|Vlans { untagged, trunk, keep_default }| {
            let untagged = untagged.map(|vlan| format!("VLAN {vlan}"));
            let trunk = trunk.iter().map(|vlan| format!("tagged VLAN {vlan}"));
            untagged.into_iter().chain(trunk).chain(keep_default.then(|| "default VLAN".to_owned()))
        });
        conduct.chain(vlans).collect()
    }

    /// The link that carries the network's gateway addresses: the bridge, or the one for its VLAN. A network that has no
    /// addresses needs none.
    pub(crate) fn gateway_link(&self) -> String {
        let vlans = self.vlans.as_ref().filter(|_| self.ipam.is_some());
        vlan_gateway(self.bridge(), vlans).unwrap_or_else(|| self.bridge().to_owned())
    }
}

/// The IPAM plugin's type, whatever else the configuration says. DEL and GC have to work with a configuration that
/// ADD would refuse.
///
/// # Errors
/// Code 7 when it cannot be read: nobody knows then who has leased something.
pub(crate) fn ipam_type(conf: &NetConf) -> Result<Option<String>, Error> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct OnlyIpam {
        ipam: Ipam,
    }
    let document: OnlyIpam = conf.decode(OwnKeys::Unreported)?;
    Ok(Some(document.ipam.r#type).filter(|name| !name.is_empty()))
}

/// Whether the configuration, as far as it can be read, has its rules written by iptables.
pub(crate) fn uses_iptables(conf: &NetConf) -> bool {
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct OnlyBackend {
        ip_masq_backend: String,
    }
    let document = conf.decode::<OnlyBackend>(OwnKeys::Unreported);
    document.is_ok_and(|document| document.ip_masq_backend == "iptables")
}

/// Whether the configuration, as far as it can be read, has DEL return before the kernel has freed the links.
pub(crate) fn returns_early(conf: &NetConf) -> bool {
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct OnlyEarlyReturn {
        early_return: bool,
    }
    let document = conf.decode::<OnlyEarlyReturn>(OwnKeys::Unreported);
    document.is_ok_and(|document| document.early_return)
}

/// The bridge's name, if the configuration has one that can be read.
pub(crate) fn bridge_of(conf: &NetConf) -> Option<String> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct OnlyBridge {
        bridge: Option<String>,
    }
    let document: OnlyBridge = conf.decode(OwnKeys::Unreported).ok()?;
    bridge_name(document.bridge.as_deref()).ok()
}

/// The link that is the gateway of the port's VLAN on `bridge`, if it is in one.
fn vlan_gateway(bridge: &str, vlans: Option<&Vlans>) -> Option<String> {
    vlans?.untagged.map(|id| gateway_of_vlan(bridge, id))
}

/// The name of the gateway interface of VLAN `id` on `bridge`.
pub(crate) fn gateway_of_vlan(bridge: &str, id: u16) -> String {
    format!("{bridge}.{id}")
}

fn gateway_role(document: &Document) -> GatewayRole {
    if !document.is_gateway && !document.is_default_gateway {
        return GatewayRole::None;
    }
    GatewayRole::Gateway {
        default_route: document.is_default_gateway,
        conflict: match document.force_address {
            true => AddressConflict::Replace,
            false => AddressConflict::Refuse,
        },
    }
}

fn bridge_name(name: Option<&str>) -> Result<String, Error> {
    let Some(name) = name else { return Ok(DEFAULT_BRIDGE.to_owned()) };
    let reason = if name.is_empty() {
        "could not add \"\": the name cannot be empty".to_owned()
    } else if name.len() > MAX_IFNAME_LEN {
        format!("could not add \"{name}\": the name has more than {MAX_IFNAME_LEN} bytes")
    } else if !names::is_link_name(name) {
        format!("could not add \"{name}\": not the name of an interface")
    } else {
        return Ok(name.to_owned());
    };
    Err(Error::invalid_config("bridge", reason))
}

fn masquerade_backend(name: &str) -> Result<MasqueradeBackend, Error> {
    match name {
        "" | "nftables" => Ok(MasqueradeBackend::Nftables),
        "iptables" => Ok(MasqueradeBackend::Iptables),
        _ => Err(Error::invalid_config("ipMasqBackend", format_args!("unknown ipmasq backend \"{name}\""))),
    }
}

fn ingress_policy(name: &str) -> Result<IngressPolicy, Error> {
    match name {
        "" | "open" => Ok(IngressPolicy::Open),
        "same-bridge" => Ok(IngressPolicy::SameBridge),
        "isolated" => Ok(IngressPolicy::Isolated),
        _ => Err(Error::invalid_config("ingressPolicy", format_args!("unknown ingress policy: \"{name}\""))),
    }
}

/// The runtime's own wish counts most, then the arguments in the document, then those in the environment.
fn requested_mac(document: &Document, args: &CniArgs) -> Result<Option<Mac>, Error> {
    let wishes =
        [("runtimeConfig.mac", &document.runtime_config.mac), ("args.cni.mac", &document.args.cni.mac)];
    for (key, text) in wishes {
        if !text.is_empty() {
            return text.parse().map(Some).map_err(|error| Error::invalid_config(key, error));
        }
    }
    match args.get("MAC") {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|error| Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("CNI_ARGS: MAC: {error}"))),
    }
}

fn vlans(document: &Document) -> Result<Option<Vlans>, Error> {
    let untagged = match document.vlan {
        0 => None,
        id => Some(vlan_id(id).ok_or_else(|| {
            let reason = format_args!("invalid VLAN ID {id} (must be between 0 and 4094)").to_string();
            Error::invalid_config("vlan", reason)
        })?),
    };
    let Some(entries) = &document.vlan_trunk else {
        let untagged = untagged.map(Some);
        return Ok(untagged.map(|untagged| Vlans {
            untagged,
            trunk: Vec::new(),
            keep_default: document.preserve_default_vlan,
        }));
    };
    let mut trunk = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let wrong = |reason: &str| Error::invalid_config(&format!("vlanTrunk[{index}]"), reason);
        trunk.extend(trunk_ids(entry).map_err(wrong)?);
    }
    trunk.sort_unstable();
    trunk.dedup();
    Ok(Some(Vlans { untagged, trunk, keep_default: document.preserve_default_vlan }))
}

/// The VLANs of one entry: a range, a single one, or both.
fn trunk_ids(entry: &TrunkEntry) -> Result<Vec<u16>, &'static str> {
    let mut ids = Vec::new();
    match (entry.min_id, entry.max_id) {
        (None, None) => {}
        (Some(_), None) => {
            return Err("minID and maxID should be configured simultaneously, maxID is missing");
        }
        (None, Some(_)) => {
            return Err("minID and maxID should be configured simultaneously, minID is missing");
        }
        (Some(min), Some(max)) => {
            let min = vlan_id(min).ok_or("incorrect trunk minID parameter")?;
            let max = vlan_id(max).ok_or("incorrect trunk maxID parameter")?;
            if max < min {
                return Err("minID is greater than maxID in trunk parameter");
            }
            ids.extend(min..=max);
        }
    }
    if let Some(id) = entry.id {
        ids.push(vlan_id(id).ok_or("incorrect trunk id parameter")?);
    }
    Ok(ids)
}

/// A VLAN id that a port can be in: 0 and 4095 are reserved (IEEE 802.1Q, table 9-2).
fn vlan_id(id: i64) -> Option<u16> {
    u16::try_from(id).ok().filter(|id| (1..=4094).contains(id))
}

#[cfg(test)]
pub(crate) mod tests;
