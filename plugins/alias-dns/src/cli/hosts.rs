//! `alias-dns hosts`: the names of a network as a hosts file (hosts(5)), for containers that have no resolver: the full
//! name first, then every name bare and below each domain.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;

use cni_types::by_hand::write_json;
use serde::Serialize;

use super::Format;
use crate::records::Record;

#[derive(Serialize)]
struct Host {
    address: IpAddr,
    names: Vec<String>,
}

pub(super) fn print(records: Vec<Record>, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    let hosts = hosts(&records);
    match format {
        Format::Json => write_json(&hosts, out)?,
        Format::Text => {
            for Host { address, names } in hosts {
                writeln!(out, "{address}\t{}", names.join(" "))?;
            }
        }
    }
    Ok(())
}

/// One host an address: the record that has it, which is the newest.
fn hosts(records: &[Record]) -> Vec<Host> {
    let mut owners: BTreeMap<IpAddr, &Record> = BTreeMap::new();
    for record in records {
        for address in &record.addresses {
            let owner = owners.entry(*address).or_insert(record);
            if owner.joined < record.joined {
                *owner = record;
            }
        }
    }
    let named = |(address, record): (IpAddr, &Record)| {
        let names = names(record);
        (!names.is_empty()).then_some(Host { address, names })
    };
    owners.into_iter().filter_map(named).collect()
}

fn names(record: &Record) -> Vec<String> {
    let domains = std::iter::once(&record.domain).chain(&record.other_domains);
    let full = domains.flat_map(|domain| record.names.iter().map(move |name| format!("{name}.{domain}")));
    let mut names: Vec<String> = full.collect();
    // The name that the address is reversed to stays in front.
    let bare = record.names.iter().map(ToString::to_string);
    names.splice(names.len().min(1)..names.len().min(1), bare);
    names
}
