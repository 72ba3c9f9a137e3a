//! What a person types: look at the leases, and give one back by hand. Under the same lock as every call.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use cni_types::by_hand::write_json;
use cni_types::{ByHand, is_identifier, table};
use serde::Serialize;

use crate::HostLocal;
use crate::config::DEFAULT_DATA_DIR;
use crate::store::{Content, DiskStore, Holder, LeaseFile, Life, Place, Store as _, StoreError};

const HELP: &str = "\
Leases addresses to containers, as a CNI plugin or by hand.

Usage:
  host-local-ipam list [NETWORK] [--json] [--data-dir DIR]
      the leases of a network, or of all: address, container, interface, age, state
  host-local-ipam release NETWORK ADDRESS [--data-dir DIR]
      give an address back, as the DEL of its holder would
  host-local-ipam --help | --version

States: live; stale: leased before this host started, or for a network namespace that is
gone, so the address will be reused when needed; leftover: a file that names no holder,
free; unreadable: something that is no file, or a link that leads nowhere, not free.

DIR is the configuration's ipam.dataDir, by default /var/lib/cni/networks.
A container runtime calls the plugin with CNI_COMMAND set: https://www.cni.dev/docs/spec/
";

/// A command line that has been understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Help,
    Version,
    List { network: Option<String>, format: Format, data_dir: PathBuf },
    Release { network: String, address: IpAddr, data_dir: PathBuf },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

impl ByHand for HostLocal {
    type Request = Request;

    fn read(arguments: Vec<OsString>) -> anyhow::Result<Request> {
        parse(arguments)
    }

    fn answer(request: Request, out: &mut dyn Write) -> anyhow::Result<()> {
        serve(&request, out)
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Request> {
    use lexopt::{Arg, ValueExt as _};

    let mut parser = lexopt::Parser::from_args(args);
    let mut words: Vec<String> = Vec::new();
    let mut format = Format::Table;
    let mut data_dir = PathBuf::from(DEFAULT_DATA_DIR);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Request::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Request::Version),
            Arg::Long("json") => format = Format::Json,
            Arg::Long("data-dir") => data_dir = parser.value()?.into(),
            Arg::Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["help"] => Ok(Request::Help),
        ["list"] => Ok(Request::List { network: None, format, data_dir }),
        ["list", network] => Ok(Request::List { network: Some(network_name(network)?), format, data_dir }),
        ["release", network, address] => {
            if format == Format::Json {
                bail!("release has no --json");
            }
            let address = address.parse().with_context(|| format!("invalid IP address {address}"))?;
            Ok(Request::Release { network: network_name(network)?, address, data_dir })
        }
        ["release", ..] => bail!("release needs a network and an address"),
        _ => bail!("unknown command \"{}\"", words.join(" ")),
    }
}

fn network_name(text: &str) -> anyhow::Result<String> {
    if !is_identifier(text) {
        bail!("invalid network name {text:?}");
    }
    Ok(text.to_owned())
}

fn serve(request: &Request, out: &mut dyn Write) -> anyhow::Result<()> {
    match request {
        Request::Help => out.write_all(HELP.as_bytes())?,
        Request::Version => writeln!(out, "host-local-ipam {}", env!("CARGO_PKG_VERSION"))?,
        Request::List { network, format, data_dir } => {
            let mut rows = Vec::new();
            match network {
                Some(network) => rows = rows_of(open(data_dir, network)?, network)?,
                None => {
                    for network in networks(data_dir)? {
                        // It may have gone since.
                        if let Some(store) = DiskStore::open_existing(&Place::new(data_dir, &network))? {
                            rows.extend(rows_of(store, &network)?);
                        }
                    }
                }
            }
            match format {
                Format::Table => write_table(&rows, out)?,
                Format::Json => write_json(&rows, out)?,
            }
        }
        Request::Release { network, address, data_dir } => {
            let holder = release(data_dir, network, *address)?;
            writeln!(out, "released {address} of {holder}")?;
        }
    }
    Ok(())
}

/// Every network that has leases below `data_dir`, by name.
fn networks(data_dir: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match std::fs::read_dir(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", data_dir.display()))?,
    };
    let mut networks = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", data_dir.display()))?;
        if let Ok(name) = entry.file_name().into_string()
            && is_identifier(&name)
            && entry.path().is_dir()
        {
            networks.push(name);
        }
    }
    networks.sort();
    Ok(networks)
}

/// A line of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    network: String,
    address: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    ifname: Option<String>,
    age_seconds: Option<u64>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Live,
    Stale,
    Leftover,
    Unreadable,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stale => "stale",
            Self::Leftover => "leftover",
            Self::Unreadable => "unreadable",
        }
    }
}

fn open(data_dir: &Path, network: &str) -> anyhow::Result<DiskStore> {
    let store = DiskStore::open_existing(&Place::new(data_dir, network))?;
    store.with_context(|| format!("there is no network {network} in {}", data_dir.display()))
}

fn rows_of(mut store: DiskStore, network: &str) -> Result<Vec<Row>, StoreError> {
    let leases = store.leases();
    store.finish();
    let now = SystemTime::now();
    Ok(leases?.iter().filter_map(|lease| row(network, lease, now)).collect())
}

fn row(network: &str, lease: &LeaseFile, now: SystemTime) -> Option<Row> {
    let holder = match &lease.content {
        Content::Holder(holder) => Some(holder),
        Content::Nobody | Content::Unreadable => None,
    };
    let age = lease.modified.and_then(|modified| now.duration_since(modified).ok());
    Some(Row {
        network: network.to_owned(),
        address: lease.address?.to_string(),
        container_id: holder.map(|holder| holder.container_id().to_owned()),
        ifname: holder.and_then(Holder::ifname).map(str::to_owned),
        age_seconds: age.map(|age| age.as_secs()),
        state: match (&lease.content, lease.life) {
            (Content::Nobody, _) => State::Leftover,
            (Content::Unreadable, _) => State::Unreadable,
            (Content::Holder(_), Life::Over) => State::Stale,
            (Content::Holder(_), Life::Possible) => State::Live,
        },
    })
}

fn write_table(rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    let none = || "-".to_owned();
    let lines: Vec<[String; 6]> = rows
        .iter()
        .map(|row| {
            [
                row.network.clone(),
                row.address.clone(),
                row.container_id.clone().unwrap_or_else(none),
                row.ifname.clone().unwrap_or_else(none),
                row.age_seconds.map_or_else(none, |seconds| age(Duration::from_secs(seconds))),
                row.state.as_str().to_owned(),
            ]
        })
        .collect();
    let head = ["NETWORK", "ADDRESS", "CONTAINER", "INTERFACE", "AGE", "STATE"];
    out.write_all(table::columns(head, &lines).as_bytes())
}

/// The two largest units: `3d4h`, `12m5s`, `7s`.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// Gives `address` back, and tells whose it was.
fn release(data_dir: &Path, network: &str, address: IpAddr) -> anyhow::Result<String> {
    let mut store = open(data_dir, network)?;
    let point = address.to_canonical().into();
    let Some(holder) = store.holder_of(point)? else {
        bail!("{address} is not leased in network {network}");
    };
    let released = store.release(point);
    store.finish();
    released?;
    Ok(holder.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn command_lines_are_understood() {
        let data_dir = PathBuf::from(DEFAULT_DATA_DIR);
        let list = |network: Option<&str>, format| Request::List {
            network: network.map(str::to_owned),
            format,
            data_dir: data_dir.clone(),
        };
        assert_eq!(request("list"), Ok(list(None, Format::Table)));
        assert_eq!(request("list --json net1"), Ok(list(Some("net1"), Format::Json)));
        let release = Request::Release {
            network: "net1".into(),
            address: "10.0.0.2".parse().unwrap(),
            data_dir: "/x".into(),
        };
        assert_eq!(request("release --data-dir=/x net1 10.0.0.2"), Ok(release));
        assert_eq!(request("-h"), Ok(Request::Help));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, word) in [
            ("frobnicate", "frobnicate"),
            ("release net1", "needs a network and an address"),
            ("release net1 10.0.0", "10.0.0"),
            ("list ../etc", "../etc"),
            ("list --yaml", "--yaml"),
        ] {
            let error = request(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn an_age_is_told_in_its_two_largest_units() {
        for (seconds, text) in [(7, "7s"), (725, "12m5s"), (7260, "2h1m"), (273_600, "3d4h")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
