//! An attachment as its rules see it: which ones its settings ask for, and of what.

use std::net::IpAddr;

use cni_types::Error;
use ipnetwork::IpNetwork;

use crate::attachment::Identity;
use crate::config::{MasqueradeBackend, Settings};
use crate::family::Family;
use crate::gateway;
use crate::mac::Mac;
use crate::maker::Progress;
use crate::netlink::{Failure, Netlink};
use crate::nft::{Attached, Policy, VlanGateway};
use crate::plan::Plan;
use crate::survey::{Found, FoundEnd};
use crate::xtables::Traffic;

/// What the settings ask of the rules in nf_tables.
pub(crate) fn policy(settings: &Settings) -> Policy {
    Policy {
        masquerade: settings.masquerade == Some(MasqueradeBackend::Nftables),
        ingress: settings.ingress,
        mac_spoof_check: settings.mac_spoof_check,
        accept_forward: settings.accept_forward,
    }
}

/// An attachment as its rules see it, owning what [`Attached`] borrows.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(super) identity: Identity,
    pub(super) gateway_link: String,
    mac: Mac,
    /// In order, whatever the order of ranges, or the kernel's.
    pub(super) addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
    pub(super) gateway: Option<FoundGateway>,
    port_words: Vec<String>,
    pub(super) policy: Policy,
    /// Whether iptables masquerades.
    pub(super) by_iptables: bool,
}

/// The gateway interface of a VLAN, owning what [`VlanGateway`] borrows.
#[derive(Debug, Clone)]
pub(crate) struct FoundGateway {
    bridge: String,
    port: String,
    mac: Mac,
}

impl FoundGateway {
    /// The one that the settings ask for; `None` when the bridge itself is the gateway, or nothing is.
    pub(crate) fn find(host: &mut Netlink, settings: &Settings) -> Result<Option<Self>, Error> {
        let name = settings.gateway_link();
        if !settings.is_gateway() || name == settings.bridge() {
            return Ok(None);
        }
        let failed = |failure: Failure| {
            Error::internal(failure).context(format_args!("look for gateway interface \"{name}\""))
        };
        let Some(link) = host.link_by_name(&name).map_err(failed)? else { return Ok(None) };
        let port = gateway::port_of(host, &link).map_err(failed)?;
        let bridge = settings.bridge().to_owned();
        Ok(port.zip(link.mac).map(|(port, mac)| Self { bridge, port: port.name, mac }))
    }
}

/// The addresses of the link that is the gateway of the settings' network; none where it has no gateway.
pub(crate) fn gateways(host: &mut Netlink, settings: &Settings) -> Result<Vec<IpAddr>, Failure> {
    if !settings.is_gateway() {
        return Ok(Vec::new());
    }
    let addresses = match host.link_by_name(&settings.gateway_link())? {
        Some(link) => host.addresses(link.index)?,
        None => Vec::new(),
    };
    Ok(addresses.into_iter().filter(|address| address.global).map(|address| address.network.ip()).collect())
}

impl Subject {
    /// Whose rules these are.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The rules that the settings mean for an attachment that is being made, or that a result tells of.
    pub(crate) fn new(
        settings: &Settings,
        identity: &Identity,
        plan: &Plan,
        mac: Mac,
        gateway: Option<FoundGateway>,
    ) -> Self {
        Self {
            identity: identity.clone(),
            gateway_link: settings.gateway_link(),
            mac,
            addresses: in_order(plan.networks()),
            gateways: plan.gateways.iter().map(IpNetwork::ip).collect(),
            gateway,
            port_words: settings.port_words(),
            policy: policy(settings),
            by_iptables: settings.masquerade == Some(MasqueradeBackend::Iptables),
        }
    }

    /// The rules that the settings mean for an attachment that exists; `None` if its container end cannot be asked, or
    /// is not ready: its own ADD looks again when it is. `gateways` are the addresses of the gateway's link, which other
    /// networks may have as well.
    pub(crate) fn of_found(
        settings: &Settings,
        gateway: Option<FoundGateway>,
        gateways: &[IpAddr],
        found: Found,
    ) -> Option<Self> {
        let end = found.container.filter(|end| is_ready(end, settings.leave_container_down))?;
        // The mark may have been cut. iptables has to be given the whole names.
        let whole = Identity::new(&settings.network, found.identity.attachment());
        let is_whole = whole.host_veth() == found.identity.host_veth();
        Some(Self {
            identity: if is_whole { whole } else { found.identity },
            gateway_link: settings.gateway_link(),
            mac: end.mac?,
            gateways: own_gateways(&end.addresses, gateways),
            addresses: in_order(end.addresses),
            gateway,
            port_words: settings.port_words(),
            policy: policy(settings),
            by_iptables: is_whole && settings.masquerade == Some(MasqueradeBackend::Iptables),
        })
    }

    /// The same rules for another attachment to the network; `None` if its container end cannot be asked, or is not
    /// ready: its own ADD looks again when it is.
    pub(super) fn applied_to(&self, other: Found, settings: &Settings, gateways: &[IpAddr]) -> Option<Self> {
        let of_other = Self::of_found(settings, self.gateway.clone(), gateways, other)?;
        Some(Self { policy: self.policy, ..of_other })
    }

    pub(super) fn traffic(&self) -> Traffic<'_> {
        let (network, link) = (self.identity.owner().network, self.gateway_link.as_str());
        let bridged = self.gateway.as_ref().map(|gateway| gateway.bridge.as_str());
        Traffic { network, link, bridged, ingress: self.policy.ingress }
    }

    pub(crate) fn attached(&self) -> Attached<'_> {
        Attached {
            owner: self.identity.owner(),
            gateway_link: &self.gateway_link,
            mac: self.mac.octets(),
            addresses: &self.addresses,
            gateways: &self.gateways,
            vlan_gateway: self.gateway.as_ref().map(|gateway| VlanGateway {
                bridge: &gateway.bridge,
                port: &gateway.port,
                mac: gateway.mac.octets(),
            }),
            port_words: &self.port_words,
            policy: self.policy,
        }
    }
}

/// Those of `gateways` that may be the ones of a container with `addresses`: in its subnets or, where a family has none
/// there, outside.
fn own_gateways(addresses: &[IpNetwork], gateways: &[IpAddr]) -> Vec<IpAddr> {
    let mut own = Vec::new();
    for family in [Family::V4, Family::V6] {
        let is_of = |ip: IpAddr| Family::of(ip) == family;
        let subnets: Vec<_> = addresses.iter().filter(|subnet| is_of(subnet.ip())).collect();
        let gateways: Vec<_> = gateways.iter().copied().filter(|ip| is_of(*ip)).collect();
        let is_inside = |ip: &&IpAddr| subnets.iter().any(|subnet| subnet.contains(**ip));
        let inside: Vec<IpAddr> = gateways.iter().filter(is_inside).copied().collect();
        own.extend(if inside.is_empty() && !subnets.is_empty() { gateways } else { inside });
    }
    own
}

pub(super) fn in_order(mut addresses: Vec<IpNetwork>) -> Vec<IpNetwork> {
    addresses.sort_unstable();
    addresses
}

/// Whether a container end has got what it is to have: an ADD gives it addresses and then brings it up. One that is down
/// was taken down since, unless its ADD has not come to its end: then it may have one address, and not the next.
fn is_ready(end: &FoundEnd, stays_down: bool) -> bool {
    let may_lack_addresses = end.progress != Progress::Finished || end.addresses.is_empty();
    stays_down || end.up || !may_lack_addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_of_another_network_on_the_link_is_not_the_containers() {
        let own = |addresses: &[&str]| {
            let addresses: Vec<IpNetwork> =
                addresses.iter().map(|address| address.parse().unwrap()).collect();
            let gateways = ["10.1.0.1", "10.2.0.1", "fd00:1::1"].map(|ip| ip.parse().unwrap());
            own_gateways(&addresses, &gateways).iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(own(&["10.1.0.2/24"]), ["10.1.0.1"]);
        assert_eq!(own(&["fd00:1::2/64"]), ["fd00:1::1"]);
        assert_eq!(
            own(&["10.2.0.2/24", "10.1.0.2/24", "fd00:1::2/64"]),
            ["10.1.0.1", "10.2.0.1", "fd00:1::1"]
        );
        // One that is outside of the subnet can be any.
        assert_eq!(own(&["10.3.0.2/32"]), ["10.1.0.1", "10.2.0.1"]);
        assert_eq!(own(&[]), [""; 0]);
    }

    #[test]
    fn an_end_that_may_still_get_addresses_is_not_ready() {
        let end = |progress, up, addresses: &[&str]| FoundEnd {
            mac: None,
            up,
            progress,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let (one, none) = (["10.1.0.2/24"].as_slice(), [].as_slice());
        for (end, stays_down, ready) in [
            (end(Progress::UnderWay, false, none), false, false),
            (end(Progress::UnderWay, false, one), false, false),
            (end(Progress::UnderWay, true, one), false, true),
            (end(Progress::UnderWay, false, none), true, true),
            (end(Progress::Finished, false, none), false, false),
            (end(Progress::Finished, false, one), false, true),
            (end(Progress::Finished, true, none), false, true),
            (end(Progress::Abandoned, false, one), false, false),
            (end(Progress::Abandoned, true, one), false, true),
        ] {
            assert_eq!(is_ready(&end, stays_down), ready, "{end:?}, stays down: {stays_down}");
        }
    }
}
