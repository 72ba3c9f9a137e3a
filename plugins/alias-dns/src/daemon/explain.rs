//! What would be answered, and why: the server's own answer in words, for a person and for CHECK.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use domain::base::Name;
use domain::base::iana::Rtype;

use super::control::Explained;
use crate::answer::{Answer, Apex, Asker, Question, Reason, explain as explain_answer};
use crate::serve::listen::PORT;
use crate::serve::own_address;
use crate::serve::response::soa_in_words;
use crate::zone::{Listener, Zones};

/// What `source`, or without one the host itself, is answered on each bridge where it is known.
///
/// # Errors
/// When `name` or `rtype` cannot be read.
pub(crate) fn explain(
    zones: &Zones,
    name: &str,
    rtype: &str,
    source: Option<IpAddr>,
) -> Result<Vec<Explained>, String> {
    let name: Name<Vec<u8>> =
        name.parse().map_err(|error| format!("\"{name}\" is not a DNS name: {error}"))?;
    let rtype: Rtype =
        rtype.to_ascii_uppercase().parse().map_err(|_| format!("\"{rtype}\" is not a record type"))?;
    let name = Name::from_slice(name.as_slice()).map_err(|error| error.to_string())?;
    let mut explained: Vec<Explained> = Vec::new();
    let mut askers = HashSet::new();
    for listener in zones.listeners() {
        let Listener { bridge, gateway } = &listener;
        // The host has more addresses than those that it is asked at.
        let source = source.filter(|source| !own_address::is_on(bridge, SocketAddr::new(*source, PORT)));
        let asker = Asker { bridge, gateway: *gateway, source: source.unwrap_or(*gateway) };
        if !askers.insert((listener.bridge.clone(), asker.source)) {
            continue;
        }
        let (answer, reason) = explain_answer(zones, asker, Question { name, rtype }, 0);
        if source.is_none() || !matches!(answer, Answer::Refused) {
            explained.push(Explained {
                bridge: listener.bridge.clone(),
                source: asker.source,
                rcode: rcode_of(&answer).to_owned(),
                answer: data_of(name, &answer),
                reason: in_words(zones, reason),
            });
        }
    }
    if let (Some(source), true) = (source, explained.is_empty()) {
        return Err(format!("no container has the address {source}, so it would be refused"));
    }
    Ok(explained)
}

fn rcode_of(answer: &Answer<'_>) -> &'static str {
    match answer {
        Answer::Addresses(_) | Answer::Pointer(_) | Answer::Soa(_) | Answer::Ns(_) | Answer::NoData(_) => {
            "NOERROR"
        }
        Answer::NxDomain(_) => "NXDOMAIN",
        Answer::Forward(_) => "FORWARD",
        Answer::Refused => "REFUSED",
    }
}

fn data_of(name: &Name<[u8]>, answer: &Answer<'_>) -> Vec<String> {
    let zone = |apex: &Apex| name.range_from(apex.0).fmt_with_dot().to_string();
    match answer {
        Answer::Addresses(set) => set.iter().map(|address| address.to_string()).collect(),
        Answer::Pointer(pointer) => vec![format!("{}.{}.", pointer.name, pointer.domain)],
        Answer::Forward(upstreams) => upstreams.iter().map(ToString::to_string).collect(),
        Answer::Soa(apex) => vec![soa_in_words(&zone(apex))],
        Answer::Ns(apex) => vec![zone(apex)],
        Answer::NoData(_) | Answer::NxDomain(_) | Answer::Refused => Vec::new(),
    }
}

fn in_words(zones: &Zones, reason: Reason<'_>) -> String {
    match reason {
        Reason::UnknownAsker => "no container on this bridge has the asker's address".to_owned(),
        Reason::Link { network, target } => format!("a link of the asker to {target} on network {network}"),
        Reason::Name { network } => format!("a name on network {network}"),
        Reason::Gateway { network } => format!("the gateway of network {network}"),
        Reason::Address { network, record } => {
            format!("an address of container {} on network {network}", zones.container_id(record))
        }
        Reason::Localhost => "whoever asks, itself".to_owned(),
        Reason::OurZone => "no container has this name, and it is in a zone of ours".to_owned(),
        Reason::SingleLabel => {
            "no container has this name, and single labels are asked nowhere else".to_owned()
        }
        Reason::NoForwarding => "not ours, and the asker's networks are internal".to_owned(),
        Reason::Elsewhere => "not ours, asked of the upstream servers".to_owned(),
    }
}
