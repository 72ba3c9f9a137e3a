//! `alias-dns query`: what a name is answered with, and why, in the server's own words; by the records where no server
//! runs. No packet is sent.

use std::io::Write;
use std::net::IpAddr;

use anyhow::anyhow;
use cni_types::by_hand::write_json;
use domain::base::Name;
use serde::Serialize;

use super::{Format, with_records};
use crate::daemon::{Client, Explained, explain};
use crate::records::disk::Store;
use crate::state_dir::StateDir;
use crate::zone::Zones;

/// The question of a person.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    name: String,
    rtypes: Vec<String>,
    source: Option<IpAddr>,
}

#[derive(Serialize)]
struct Answered {
    name: String,
    r#type: String,
    #[serde(flatten)]
    explained: Explained,
}

impl Wanted {
    /// A question for `name`, which may be an address; without `rtype`, for what a program would ask.
    pub(super) fn new(name: String, rtype: Option<String>, source: Option<IpAddr>) -> Self {
        let reverse = name.parse().ok().and_then(|ip| Name::<Vec<u8>>::reverse_from_addr(ip).ok());
        let (name, usual) = match reverse {
            Some(reverse) => (reverse.to_string(), vec!["PTR".to_owned()]),
            None => (name, vec!["A".to_owned(), "AAAA".to_owned()]),
        };
        Self { name, rtypes: rtype.map_or(usual, |rtype| vec![rtype.to_ascii_uppercase()]), source }
    }
}

pub(super) fn print(
    wanted: &Wanted,
    state: &StateDir,
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let Wanted { name, source, .. } = wanted;
    match Client::connect_existing(state)? {
        Some(mut server) => {
            print_answers(wanted, |rtype| Ok(server.query(name, rtype, *source)?), format, out)
        }
        None => with_records(Store::new(state).load(), |records| {
            let zones = Zones::load(records);
            let answer =
                |rtype: &str| explain(&zones, name, rtype, *source).map_err(|reason| anyhow!(reason));
            print_answers(wanted, answer, format, out)
        }),
    }
}

fn print_answers(
    Wanted { name, rtypes, .. }: &Wanted,
    mut answer: impl FnMut(&str) -> anyhow::Result<Vec<Explained>>,
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut answered = Vec::new();
    for rtype in rtypes {
        let explained = answer(rtype)?;
        answered.extend(explained.into_iter().map(|explained| Answered {
            name: name.clone(),
            r#type: rtype.clone(),
            explained,
        }));
    }
    match format {
        Format::Json => Ok(write_json(&answered, out)?),
        Format::Text if answered.is_empty() => Ok(writeln!(out, "no network has names here")?),
        Format::Text => Ok(answered.iter().try_for_each(|answered| print_text(answered, out))?),
    }
}

fn print_text(answered: &Answered, out: &mut dyn Write) -> std::io::Result<()> {
    let Answered { name, r#type, explained: Explained { bridge, source, rcode, answer, reason } } = answered;
    let data = answer.join(", ");
    let found = match (rcode.as_str(), answer.is_empty()) {
        ("NOERROR", false) => data,
        ("NOERROR", true) => "NODATA".to_owned(),
        ("FORWARD", false) => format!("FORWARD to {data}"),
        ("FORWARD", true) => "FORWARD to the host's name servers".to_owned(),
        (rcode, _) => rcode.to_owned(),
    };
    writeln!(out, "{name} {}, asked by {source} on {bridge}: {found}\n    {reason}", r#type)
}
