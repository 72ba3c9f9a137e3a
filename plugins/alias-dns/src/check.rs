//! CHECK: compares the record with the configuration and with prevResult, and the server with the record.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use cni_types::{AttachmentCall, CniResult, Error, ErrorCode};
use ipnetwork::IpNetwork;

use crate::add::{Place, container_addresses};
use crate::config::{Forwarding, OnError, Settings};
use crate::domain_name::DomainName;
use crate::host::Host;
use crate::records::disk::Store;
use crate::records::{Link, Record, RecordKey};

pub(crate) fn check(host: &impl Host, call: &AttachmentCall) -> Result<(), Error> {
    let settings = Settings::of(call)?;
    let result = call
        .conf()
        .prev_result()?
        .ok_or_else(|| Error::invalid_config("prevResult", "missing: CHECK compares with it"))?;
    match compare(host, call, &settings, &result) {
        Err(error) if settings.on_error == OnError::Warn => {
            log::warn!("network {}: {error}", call.conf().name());
            Ok(())
        }
        compared => compared,
    }
}

fn compare(
    host: &impl Host,
    call: &AttachmentCall,
    settings: &Settings,
    result: &CniResult,
) -> Result<(), Error> {
    let key = RecordKey::new(call.conf().name(), call.attachment().clone())?;
    let state = host.state(call.env())?;
    let record = Store::new(&state).read(&key).map_err(|unreadable| difference(&key, unreadable))?;
    log::debug!("read the record");
    let Some(record) = record else {
        // Not code 3, the unknown container: with that a runtime need not detach, and the rest of the chain is attached.
        return Err(difference(&key, "no record"));
    };
    let mut differences = with_configuration(&record, settings);
    if let Some(netns) = record.netns.as_ref().filter(|_| record.is_dead()) {
        differences.push(format!("namespace: {}, which the record names, is gone", netns.path.display()));
    }
    differences.extend(with_result(host, call, &record, result)?);
    if !differences.is_empty() {
        return Err(difference(&key, differences.join("; ")));
    }
    if host.answers(&state, &record)? {
        log::debug!("the server answers by it");
        return Ok(());
    }
    Err(difference(&key, "the server does not answer by its record"))
}

/// What the record lacks of the configuration, or has otherwise. Names and links that only the record has are no
/// difference: not every runtime repeats the arguments of ADD. Nor are upstream servers, where the configuration names
/// none.
fn with_configuration(record: &Record, settings: &Settings) -> Vec<String> {
    let names = settings.names.iter().filter(|name| !record.names.iter().any(|other| other.is_same(name)));
    let mut differences: Vec<String> =
        names.map(|name| format!("the record lacks the name {}", name.as_str())).collect();
    let is_same =
        |one: &Link, other: &Link| one.target.is_same(&other.target) && one.alias.is_same(&other.alias);
    let links = settings.links.iter().filter(|link| !record.links.iter().any(|other| is_same(link, other)));
    differences.extend(
        links.map(|link| {
            format!("the record lacks the link {}:{}", link.target.as_str(), link.alias.as_str())
        }),
    );
    let mut compare = |what: &str, recorded: &dyn Display, configured: &dyn Display| {
        let (recorded, configured) = (recorded.to_string(), configured.to_string());
        if recorded != configured {
            let recorded = if recorded.is_empty() { "none" } else { &recorded };
            differences
                .push(format!("{what}: the record has {recorded}, the configuration has {configured}"));
        }
    };
    let domains = |first: &DomainName, others: &[DomainName]| {
        let all: Vec<_> =
            std::iter::once(first).chain(others).map(|name| name.as_str().to_ascii_lowercase()).collect();
        all.join(", ")
    };
    compare(
        "domains",
        &domains(&record.domain, &record.other_domains),
        &domains(&settings.domain, &settings.other_domains),
    );
    compare("ttl", &record.ttl, &settings.ttl);
    let servers = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !settings.upstreams.is_empty() {
        compare("upstreams", &servers(&record.upstreams), &servers(&settings.upstreams));
    }
    // The default goes by the routes, of which a plugin later in the list may have made others.
    if let Forwarding::Configured(forward) = settings.forward {
        compare("forward", &record.forward, &forward);
    }
    differences
}

/// What the record has otherwise than prevResult. What that says of name servers is not compared: a plugin later in the
/// list may have put others there.
fn with_result(
    host: &impl Host,
    call: &AttachmentCall,
    record: &Record,
    result: &CniResult,
) -> Result<Vec<String>, Error> {
    let place = Place::of(host, call.conf().name(), result)?;
    let mut differences = Vec::new();
    let mut compare = |what: &str, recorded: BTreeSet<String>, who: &str, attached: BTreeSet<String>| {
        if recorded != attached {
            let in_words = |all: BTreeSet<String>| match Vec::from_iter(all).join(", ") {
                none if none.is_empty() => "none".to_owned(),
                all => all,
            };
            let [recorded, attached] = [recorded, attached].map(in_words);
            differences.push(format!("{what}: the record has {recorded}, {who} {attached}"));
        }
    };
    let texts = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect();
    compare("addresses", texts(&record.addresses), "prevResult has", texts(&container_addresses(result)));
    let texts = |all: &[IpNetwork]| all.iter().map(ToString::to_string).collect();
    compare("gateways", texts(&record.gateways), "prevResult and this host have", texts(&place.gateways));
    compare("bridge", [record.bridge.clone()].into(), "this host has", [place.device].into());
    Ok(differences)
}

fn difference(key: &RecordKey, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::CHANGED, format!("{}: {what}", described(key)))
}

fn described(key: &RecordKey) -> String {
    format!("network {}, container {}, {}", key.network(), key.container_id(), key.ifname())
}
