//! The networks of the host as the kernel shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::attachment::network_of_bridge;
use crate::flows::Flows;
use crate::iptables::Told;
use crate::maker::Progress;
use crate::netlink::Netlink;
use crate::netlink::link::{Kind, Link};
use crate::netlink::vlan::Tagging;
use crate::netns::{self, Netns};
use crate::nft::{GUARDED, IngressPolicy, Policy, Rules};
use crate::survey::{self, Found};
use crate::{config, rules, xtables};

use super::names;

/// Every network that this plugin has made or attached somebody to.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) networks: Vec<NetworkView>,
}

/// The state of an attachment that nothing is wrong with.
const UP: &str = "up";

/// A network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkView {
    pub(super) name: String,
    pub(super) bridge: Option<LinkView>,
    /// The gateway interface of its VLAN; `None` where the bridge is the gateway, or nothing.
    pub(super) gateway: Option<LinkView>,
    /// Who may open a flow to its containers: the strictest policy that one of them has.
    pub(super) ingress_policy: &'static str,
    /// Chains of others that drop what its containers forward.
    pub(super) obstacles: Vec<String>,
    pub(super) attachments: Vec<AttachmentView>,
}

/// A bridge, or a gateway interface.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LinkView {
    pub(super) name: String,
    pub(super) mac: Option<String>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) addresses: Vec<String>,
}

/// An attachment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AttachmentView {
    #[serde(rename = "containerID")]
    pub(super) container_id: String,
    pub(super) ifname: String,
    pub(super) host_veth: String,
    /// A path to its namespace, if one is known.
    pub(super) netns: Option<PathBuf>,
    pub(super) mac: Option<String>,
    pub(super) addresses: Vec<String>,
    /// `up`, or what keeps it from that.
    pub(super) state: &'static str,
    /// Whether it has rules.
    pub(super) rules: bool,
    /// What they do.
    pub(super) policy: Option<PolicyView>,
    /// Its names, if alias-dns knows any.
    pub(super) names: Vec<String>,
}

/// What the rules of an attachment do.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyView {
    pub(super) ip_masq: bool,
    /// Who masquerades, as the configuration calls it.
    pub(super) ip_masq_backend: Option<&'static str>,
    pub(super) ingress_policy: &'static str,
    pub(super) accept_forward: bool,
    pub(super) macspoofchk: bool,
    pub(super) ra_guard: bool,
}

impl PolicyView {
    /// What the rules in nf_tables do, if there are any, with masquerade by iptables and the RA guard; `None` when there
    /// are no rules.
    fn of(policy: Option<Policy>, by_iptables: bool, ra_guard: bool) -> Option<Self> {
        if policy.is_none() && !by_iptables && !ra_guard {
            return None;
        }
        let Policy { masquerade, ingress, mac_spoof_check, accept_forward } = policy.unwrap_or(Policy::NONE);
        let ip_masq_backend = match (masquerade, by_iptables) {
            (true, _) => Some("nftables"),
            (false, true) => Some("iptables"),
            (false, false) => None,
        };
        Some(Self {
            ip_masq: ip_masq_backend.is_some(),
            ip_masq_backend,
            ingress_policy: ingress.name(),
            accept_forward,
            macspoofchk: mac_spoof_check,
            ra_guard,
        })
    }
}

impl View {
    /// Asks the kernel.
    pub(super) fn of_host() -> anyhow::Result<Self> {
        let mut host = Netlink::open().context("netlink")?;
        let links = host.links().context("list links")?;
        let bridges: BTreeMap<u32, Link> = links
            .iter()
            .filter(|link| link.kind == Kind::Bridge)
            .map(|link| (link.index, link.clone()))
            .collect();
        let mut rules = Rules::open()?;
        let has_guard = rules.has_guard()?;
        let netns_paths = netns_paths(&mut host)?;
        let comments = rules::iptables_comments(&mut rules)?;
        let by_iptables: Vec<Told<'_>> = comments.iter().filter_map(|comment| Told::by(comment)).collect();

        let mut networks: BTreeMap<String, (Option<u32>, Vec<AttachmentView>)> = BTreeMap::new();
        for bridge in bridges.values() {
            if let Some(name) = network_of_bridge(&bridge.alias) {
                networks.insert(name.to_owned(), (Some(bridge.index), Vec::new()));
            }
        }
        for found in survey::attachments(&mut host, links).context("list attachments")? {
            let network = networks.entry(found.identity.network().into_owned()).or_default();
            network.0 = found.host.controller.or(network.0);
            let masquerades = by_iptables.iter().any(|told| told.is(found.identity.jumps()));
            let is_guarded = has_guard && found.host.group == GUARDED;
            let policy = PolicyView::of(rules.policy_of(&found.host.name)?, masquerades, is_guarded);
            network.1.push(attachment_view(&found, policy, &netns_paths));
        }
        let networks = networks.into_iter().map(|(name, (bridge, attachments))| {
            let bridge = bridge.and_then(|index| bridges.get(&index));
            let bridge = bridge.map(|link| link_view(&mut host, link)).transpose()?;
            let gateway = match &bridge {
                Some(bridge) => vlan_gateway(&mut host, &bridge.name, &attachments)?,
                None => None,
            };
            let gateway = gateway.map(|link| link_view(&mut host, &link)).transpose()?;
            let obstacles = match gateway.as_ref().or(bridge.as_ref()) {
                Some(link) => {
                    let addresses = sample_of_addresses(&attachments);
                    let mut flows = Flows::new(&mut host, &link.name, &addresses);
                    let mut drops = rules.foreign_drops(&mut flows)?;
                    drops.extend(xtables::drops(&mut flows)?);
                    drops
                }
                None => Vec::new(),
            };
            let obstacles =
                obstacles.into_iter().map(|drop| format!("{}: {}", drop.chain, drop.reason)).collect();
            let policies = attachments.iter().filter_map(|attachment| attachment.policy);
            let ingress_policy = [IngressPolicy::Isolated, IngressPolicy::SameBridge]
                .map(IngressPolicy::name)
                .into_iter()
                .find(|name| policies.clone().any(|policy| policy.ingress_policy == *name))
                .unwrap_or(IngressPolicy::Open.name());
            anyhow::Ok(NetworkView { name, bridge, gateway, ingress_policy, obstacles, attachments })
        });
        Ok(Self { networks: networks.collect::<Result<_, _>>()? })
    }

    /// One of them.
    pub(super) fn network(self, name: &str) -> anyhow::Result<NetworkView> {
        let known: Vec<String> = self.networks.iter().map(|network| network.name.clone()).collect();
        match self.networks.into_iter().find(|network| network.name == crate::names::network(name)) {
            Some(network) => Ok(network),
            None if known.is_empty() => bail!("no network \"{name}\"; there is none on this host"),
            None => bail!("no network \"{name}\"; there are: {}", known.join(", ")),
        }
    }
}

/// An address of each family that an attachment has: what lets one pass lets the others of its subnet.
fn sample_of_addresses(attachments: &[AttachmentView]) -> Vec<IpAddr> {
    let addresses = attachments.iter().flat_map(|attachment| &attachment.addresses);
    let addresses: Vec<IpNetwork> = addresses.filter_map(|address| address.parse().ok()).collect();
    let of_family = |is_v4| addresses.iter().map(IpNetwork::ip).find(|address| address.is_ipv4() == is_v4);
    [of_family(true), of_family(false)].into_iter().flatten().collect()
}

/// The gateway interface of the VLAN that a network's ports are in.
fn vlan_gateway(
    host: &mut Netlink,
    bridge: &str,
    attachments: &[AttachmentView],
) -> anyhow::Result<Option<Link>> {
    let port = attachments.iter().find(|attachment| attachment.state == UP);
    let port = port.map(|port| host.link_by_name(&port.host_veth)).transpose().context("look for a port")?;
    let Some(port) = port.flatten() else { return Ok(None) };
    let vlans = host.vlans(port.index).context("list the VLANs of a port")?;
    let untagged = vlans.into_iter().find(|(_, carried)| carried.tagging == Some(Tagging::Untagged));
    let Some((id, _)) = untagged else { return Ok(None) };
    host.link_by_name(&config::gateway_of_vlan(bridge, id)).context("look for the gateway's link")
}

fn link_view(host: &mut Netlink, link: &Link) -> anyhow::Result<LinkView> {
    let addresses = host.addresses(link.index).context("list addresses")?;
    Ok(LinkView {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()),
        mtu: link.mtu,
        up: link.up,
        addresses: addresses
            .into_iter()
            .filter(|address| address.global)
            .map(|address| address.network.to_string())
            .collect(),
    })
}

fn attachment_view(
    found: &Found,
    policy: Option<PolicyView>,
    netns_paths: &BTreeMap<i32, PathBuf>,
) -> AttachmentView {
    let (host, end) = (&found.host, found.container.as_ref());
    let state = match end {
        None => "the container end cannot be asked about",
        Some(end) if end.progress == Progress::Abandoned => "its ADD was killed",
        Some(_) if host.controller.is_none() => "not on a bridge",
        Some(_) if !host.up => "the host veth is down",
        Some(end) if !end.up => "the container's interface is down",
        Some(_) => UP,
    };
    AttachmentView {
        container_id: found.identity.attachment().container_id().to_owned(),
        ifname: found.identity.attachment().ifname().to_owned(),
        host_veth: host.name.clone(),
        netns: host.peer_netns.and_then(|id| netns_paths.get(&id).cloned()),
        mac: end.and_then(|end| end.mac).map(|mac| mac.to_string()),
        addresses: end.map(|end| end.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        state,
        rules: policy.is_some(),
        policy,
        names: end.map(|end| names::of(&found.identity, end)).unwrap_or_default(),
    }
}

/// Paths of namespaces by the numbers that the kernel knows them by here.
fn netns_paths(host: &mut Netlink) -> anyhow::Result<BTreeMap<i32, PathBuf>> {
    let mut paths = BTreeMap::new();
    for path in netns::mounted()? {
        // One that is gone by now, or not ours to open, names nothing.
        if let Ok(netns) = Netns::open(&path)
            && let Ok(Some(id)) = host.netns_id(&netns)
        {
            paths.entry(id).or_insert(path);
        }
    }
    Ok(paths)
}
