//! ADD: the record on disk, then in the server, then the result with the network's name servers in front.

use std::net::IpAddr;

use cni_types::{AttachmentCall, CniResult, Dns, Error, ErrorCode};
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
        Ok(displaced) => {
            log::debug!("the server answers by it");
            sweep(host, &state, &displaced);
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

/// Removes the records that have lost their address to a new one, and whose container is dead: no runtime of today
/// calls GC by itself.
fn sweep(host: &impl Host, state: &StateDir, displaced: &[RecordKey]) {
    let store = Store::new(state);
    let is_dead = |key: &&RecordKey| matches!(store.read(key), Ok(Some(record)) if record.is_dead());
    let dead: Vec<RecordKey> = displaced.iter().filter(is_dead).cloned().collect();
    let removed = dead.iter().try_for_each(|key| store.remove(key).map(|_| ()));
    let told = removed
        .map_err(|error| Error::io("remove a dead record", &error))
        .and_then(|()| if dead.is_empty() { Ok(()) } else { host.withdraw(state, &dead).map(|_| ()) });
    if let Err(error) = told {
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
    let gateways = gateways(host, network, result)?;
    let bridge = host_device(host, result, &gateways).ok_or_else(|| {
        Error::invalid_config("prevResult.interfaces", "no interface on the host, so no device to answer on")
    })?;
    let forward = match settings.forward {
        Forwarding::Configured(forward) => forward,
        Forwarding::ByRoutes => result.routes.iter().any(|route| route.dst.prefix() == 0),
    };
    Ok(Record {
        key: RecordKey::new(network, call.attachment().clone())?,
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
        netns: NetnsRef::look(call.netns()),
    })
}

/// The gateway addresses of `result` that are this host's, each with the prefix of its subnet.
///
/// IPAM names a gateway also where the bridge has no address (`isGateway` false), so the host has to be asked. A
/// link-local one cannot stand in a resolv.conf that is written before its interface is known.
pub(crate) fn gateways(host: &impl Host, network: &str, result: &CniResult) -> Result<Vec<IpNetwork>, Error> {
    let mut gateways: Vec<IpNetwork> = Vec::new();
    let mut foreign = None;
    for ip in &result.ips {
        let Some(gateway) = ip.gateway.filter(|gateway| !is_link_local(*gateway)) else { continue };
        let Ok(gateway) = IpNetwork::new(gateway, ip.address.prefix()) else { continue };
        if gateways.contains(&gateway) {
            continue;
        }
        if host.has_address(gateway.ip()) {
            gateways.push(gateway);
        } else {
            foreign.get_or_insert(gateway.ip());
        }
    }
    if !gateways.is_empty() {
        return Ok(gateways);
    }
    let reason = match foreign {
        Some(ip) => format!("gateway {ip} is not an address of this host"),
        None => "no gateway address".to_owned(),
    };
    Err(Error::new(
        ErrorCode::INVALID_CONFIG,
        format!("prevResult.ips: {reason}: alias-dns answers on the gateway address of network {network}"),
    )
    .with_details("give the bridge one (isGateway), or let containers attach without names (onError: warn)"))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The device that the container's packets come in by: the first one of `result` that is on the host, as bridge plugins
/// list them. Results before 0.3.0 list none.
pub(crate) fn host_device(host: &impl Host, result: &CniResult, gateways: &[IpNetwork]) -> Option<String> {
    let listed = result.interfaces.iter().find(|interface| interface.sandbox.is_empty());
    listed
        .map(|interface| interface.name.clone())
        .or_else(|| gateways.iter().find_map(|gateway| host.device_with(gateway.ip())))
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
