//! ADD: the record on disk, then in the server, then the result with the network's name servers in front.

use std::net::IpAddr;

use cni_types::{AttachmentCall, BootId, CniResult, Dns, Error, ErrorCode, Failures};
use ipnetwork::IpNetwork;

use crate::config::{Dialect, Forwarding, OnError, Settings};
use crate::host::{Host, Withdrawn};
use crate::records::disk::Store;
use crate::records::{NetnsRef, Record, RecordKey};
use crate::state_dir::StateDir;

/// A bare name is asked for as it stands, before any domain is tried: what Docker writes.
const ASK_AS_IT_STANDS: &str = "ndots:0";

pub(crate) fn add(host: &impl Host, call: &AttachmentCall) -> Result<CniResult, Error> {
    let settings = Settings::of(call)?;
    let mut result = call.conf().prev_result()?.ok_or_else(|| {
        Error::invalid_config(
            "prevResult",
            "missing: alias-dns comes after the plugin that attaches the container",
        )
    })?;
    match serve(host, call, &settings, &result) {
        Ok(record) => {
            result.dns = with_name_servers(result.dns, &settings, &record.gateways);
            Ok(result)
        }
        Err(error) if settings.on_error == OnError::Warn => {
            log::warn!("network {}: attached without names: {error}", call.conf().name());
            Ok(result)
        }
        Err(error) => Err(error),
    }
}

/// Has the attachment's names served; on failure nothing of it is left.
fn serve(
    host: &impl Host,
    call: &AttachmentCall,
    settings: &Settings,
    result: &CniResult,
) -> Result<Record, Error> {
    let record = record(host, call, settings, result)?;
    let state = host.state(call.env())?;
    let store = Store::new(&state);
    let path = store.path(&record.key);
    if let Err(error) = store.write(&record) {
        clear(host, &state);
        return Err(Error::io(format!("write {}", path.display()), &error));
    }
    log::debug!("{} written", path.display());
    match host.publish(&state, &record) {
        Ok(rivals) => {
            log::debug!("the server answers by it");
            sweep(host, &state, rivals);
            Ok(record)
        }
        Err(error) => Err(take_back(host, &state, &record.key, error)),
    }
}

/// Undoes the write. The server may have read the record all the same, so it is told as well.
fn take_back(host: &impl Host, state: &StateDir, key: &RecordKey, cause: Error) -> Error {
    let removed = Store::new(state).remove(key).map_err(|error| Error::io("take the record back", &error));
    match removed.and_then(|_| host.withdraw(state, std::slice::from_ref(key))) {
        Ok(Withdrawn::FromServer) => {}
        Ok(Withdrawn::FromNobody) => clear(host, state),
        Err(error) => log::warn!("network {}: {error}", key.network()),
    }
    cause
}

/// Removes directories that were made for nothing.
fn clear(host: &impl Host, state: &StateDir) {
    if let Err(error) = host.clear(state) {
        log::warn!("{error}");
    }
}

/// Removes those of `rivals` whose container is dead: no runtime of today calls GC by itself, and a name would be
/// resolved to the dead one's address as well.
fn sweep(host: &impl Host, state: &StateDir, rivals: Vec<RecordKey>) {
    let mut failures = Failures::default();
    let removed = Store::new(state).remove_dead(rivals, &mut failures);
    if !removed.is_empty() {
        failures.note(host.withdraw(state, &removed));
    }
    if let Err(error) = failures.into_result() {
        log::warn!("sweep: {error}");
    }
}

/// The record of what `result` has attached.
fn record(
    host: &impl Host,
    call: &AttachmentCall,
    settings: &Settings,
    result: &CniResult,
) -> Result<Record, Error> {
    let network = call.conf().name();
    let Place { device: bridge, gateways } = Place::of(host, network, result)?;
    let forward = match settings.forward {
        Forwarding::Configured(forward) => forward,
        Forwarding::ByRoutes => result.routes.iter().any(|route| route.dst.prefix() == 0),
    };
    let listed = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    let links = listed.map(|interface| interface.name.as_str()).filter(|name| *name != bridge);
    let netns = NetnsRef::look(call.netns(), links);
    Ok(Record {
        key: RecordKey::new(network, call.attachment().clone())?,
        boot: BootId::current(),
        joined: host.now(),
        bridge,
        gateways,
        addresses: container_addresses(result),
        names: settings.names.clone(),
        links: settings.links.clone(),
        domain: settings.domain.clone(),
        other_domains: settings.other_domains.clone(),
        ttl: settings.ttl,
        forward,
        upstreams: settings.upstreams.clone(),
        netns,
    })
}

/// Where the names of a network are asked for.
pub(crate) struct Place {
    /// The device that the container's packets for the gateway come in by.
    pub(crate) device: String,
    /// The gateway addresses that it has, each with the prefix of its subnet.
    pub(crate) gateways: Vec<IpNetwork>,
}

impl Place {
    /// The place for what `result` has attached.
    ///
    /// IPAM names a gateway also where the host does not have the address (`isGateway` false), so the host has to be
    /// asked. It tells the device, too: the address may be on one of the network's VLAN, beside the bridge that plugins
    /// list first, and results before 0.3.0 list none.
    ///
    /// # Errors
    /// Code 7 when no gateway is an address of this host, 5 when that cannot be told.
    pub(crate) fn of(host: &impl Host, network: &str, result: &CniResult) -> Result<Self, Error> {
        let listed = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
        let listed: Vec<&str> = listed.map(|interface| interface.name.as_str()).collect();
        let mut place: Option<Self> = None;
        let mut foreign = None;
        for ip in &result.ips {
            let Some(gateway) = ip.gateway.filter(|gateway| can_be_asked(*gateway)) else { continue };
            let Ok(gateway) = IpNetwork::new(gateway, ip.address.prefix()) else { continue };
            if place.as_ref().is_some_and(|place| place.gateways.contains(&gateway)) {
                continue;
            }
            match (host.device_with(gateway.ip(), &listed)?, &mut place) {
                (Some(device), None) => place = Some(Self { device, gateways: vec![gateway] }),
                (Some(device), Some(place)) if device == place.device => place.gateways.push(gateway),
                (Some(_) | None, _) => {
                    foreign.get_or_insert(gateway.ip());
                }
            }
        }
        place.ok_or_else(|| {
            let reason = match foreign {
                Some(ip) => format!("gateway {ip} is not an address of this host"),
                None => "no gateway address".to_owned(),
            };
            Error::new(
                ErrorCode::INVALID_CONFIG,
                format!(
                    "prevResult.ips: {reason}: alias-dns answers on the gateway address of network {network}"
                ),
            )
            .with_details(
                "give the bridge one (isGateway), or let containers attach without names (onError: warn)",
            )
        })
    }
}

/// Whether a container can ask `ip`: one of loopback is its own, and a link-local one cannot stand in a resolv.conf that
/// is written before its interface is known.
fn can_be_asked(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !is_link_local && !ip.is_loopback()
}

/// The addresses of `result` that are the container's, each once.
pub(crate) fn container_addresses(result: &CniResult) -> Vec<IpAddr> {
    let mut addresses = Vec::with_capacity(result.ips.len());
    for ip in &result.ips {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        let is_own = interface.is_none_or(|interface| !interface.sandbox.is_empty());
        if is_own && !addresses.contains(&ip.address.ip()) {
            addresses.push(ip.address.ip());
        }
    }
    addresses
}

/// `dns` with the network's own name servers and domain in front of what was there.
fn with_name_servers(dns: Dns, settings: &Settings, gateways: &[IpNetwork]) -> Dns {
    let servers = gateways.iter().map(|gateway| gateway.ip().to_string());
    let has_ndots = dns.options.iter().any(|option| option.starts_with("ndots:"));
    let mut options = dns.options;
    if settings.dialect == Dialect::AliasDns && !has_ndots {
        options.push(ASK_AS_IT_STANDS.to_owned());
    }
    Dns {
        nameservers: in_front(servers, dns.nameservers),
        search: in_front([settings.domain.to_string()], dns.search),
        domain: dns.domain,
        options,
    }
}

fn in_front(first: impl IntoIterator<Item = String>, then: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for item in first.into_iter().chain(then) {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all
}
