//! `bridge repair`: the rules of every attachment, as the network's configuration means them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use cni_types::{CniArgs, Command, Delegate, Environment, NetConf};
use serde_json::Value;

use crate::bridge::{believe_no_router, believes_routers};
use crate::config::Settings;
use crate::names;
use crate::netlink::Netlink;
use crate::netlink::link::Kind;
use crate::nft::Rules;
use crate::rules::{self, FoundGateway, Subject};
use crate::survey::{self, Found};

/// Where networks are configured, unless `NETCONFPATH` says otherwise.
const CONF_DIR: &str = "/etc/cni/net.d";

/// Where plugins are, beside this one, unless `CNI_PATH` says otherwise.
const PLUGIN_DIR: &str = "/opt/cni/bin";

/// Repairs the rules of one network, or of all that have attachments; says what was wrong.
///
/// # Errors
/// Also when a network has no configuration that can be used: it is left as it is, and the others are repaired.
pub(super) fn repair(network: Option<&str>, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut host = Netlink::open().context("netlink")?;
    let links = host.links().context("list links")?;
    let mut found = survey::attachments(&mut host, links).context("list attachments")?;
    if let Some(network) = network {
        found.retain(|found| found.identity.network() == names::network(network));
        if found.is_empty() {
            bail!("nobody is attached to network \"{network}\"");
        }
    }
    let mut subjects = Vec::new();
    let mut wrong = Vec::new();
    let mut networks: BTreeMap<String, anyhow::Result<Settings>> = BTreeMap::new();
    for found in found {
        let settings = match networks.entry(found.identity.network().into_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let settings = settings_of(unknown.key());
                if let Ok(settings) = &settings
                    && let Some(bridge) = host.link_by_name(settings.bridge()).context("look for a bridge")?
                {
                    settings.call_bridge(&bridge.name);
                }
                unknown.insert(settings)
            }
        };
        let Ok(settings) = settings else { continue };
        wrong.extend(rules::restore_port(&mut host, settings, &found)?);
        subjects.extend(subject(&mut host, settings, found)?);
    }
    let configured = || networks.values().flatten();
    for settings in configured() {
        wrong.extend(restore_bridge(&mut host, settings)?);
    }
    let mut rules = Rules::open()?;
    wrong.extend(rules::repair(&mut rules, &mut host, &subjects)?);
    if configured().any(Settings::is_gateway) {
        wrong.extend(rules::repair_guard(&mut rules)?);
    }
    for words in wrong {
        writeln!(out, "repaired: {words}")?;
    }
    let left: Vec<String> =
        networks.into_values().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !left.is_empty() {
        bail!(left.join("; "));
    }
    Ok(())
}

/// Has the bridge of a network behave as the network asks, and with its gateway interface ignore routers; says what did
/// not.
fn restore_bridge(host: &mut Netlink, settings: &Settings) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let name = settings.bridge();
    let find = |host: &mut Netlink, name: &str| {
        host.link_by_name(name).with_context(|| format!("look for \"{name}\""))
    };
    if let Some(bridge) = find(host, name)?.filter(|link| link.kind == Kind::Bridge) {
        if settings.mac_spoof_check && bridge.learns_unforwarded {
            host.set_learns_unforwarded(bridge.index, false).with_context(|| format!("set up \"{name}\""))?;
            wrong.push(format!("bridge \"{name}\" learned from frames that it did not forward"));
        }
        if settings.promiscuous && !bridge.promiscuous {
            host.set_promiscuous(bridge.index, true).with_context(|| format!("set up \"{name}\""))?;
            wrong.push(format!("bridge \"{name}\" was not promiscuous"));
        }
    }
    if !settings.is_gateway() {
        return Ok(wrong);
    }
    for name in BTreeSet::from([name.to_owned(), settings.gateway_link()]) {
        if let Some(link) = find(host, &name)?.filter(believes_routers) {
            believe_no_router(&link);
            wrong.push(format!("\"{name}\" accepted router advertisements"));
        }
    }
    Ok(wrong)
}

fn subject(host: &mut Netlink, settings: &Settings, found: Found) -> anyhow::Result<Option<Subject>> {
    let gateways = rules::gateways(host, settings).context("list the gateway's addresses")?;
    Ok(Subject::of_found(settings, FoundGateway::find(host, settings)?, &gateways, found))
}

/// The settings of a network, from its configuration file.
fn settings_of(network: &str) -> anyhow::Result<Settings> {
    // An empty one is none, as for cnitool, which the variable is from.
    let directory = std::env::var_os("NETCONFPATH").filter(|path| !path.is_empty());
    let directory = directory.map_or_else(|| PathBuf::from(CONF_DIR), PathBuf::from);
    let shown = directory.display();
    for path in configuration_files(&directory).with_context(|| format!("read {shown}"))? {
        // Whatever else is in the directory configures another network, or none.
        let Some(conf) = configuration(&path, network) else { continue };
        let wrong = || format!("network \"{network}\"");
        let conf = NetConf::parse(Command::Add, serde_json::to_vec(&conf)?).with_context(wrong)?;
        let path = plugin_path();
        return Settings::new(&conf, &CniArgs::default(), |name| Delegate::find(name, &path))
            .with_context(wrong);
    }
    bail!("no configuration of network \"{network}\" with a bridge in {shown}")
}

/// Where the IPAM plugin is looked for. Somebody who types the name of this program has no `CNI_PATH`, and plugins are
/// installed side by side.
fn plugin_path() -> Vec<PathBuf> {
    let path = Environment::of_process().plugin_path();
    if !path.is_empty() {
        return path;
    }
    let own = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    own.into_iter().chain([PathBuf::from(PLUGIN_DIR)]).collect()
}

/// The configurations in a directory, in the order in which runtimes look for a network (`LoadNetworkConf` of libcni):
/// lists first, each kind by name. A file with another ending is none, such as a copy that an editor or a package
/// manager keeps.
fn configuration_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("conflist") => files.push((0, path)),
            Some("conf" | "json") => files.push((1, path)),
            _ => {}
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// The part for this plugin in the file at `path`, if that configures `network`.
fn configuration(path: &Path, network: &str) -> Option<Value> {
    let file: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    // As the mark of an attachment spells it.
    if names::network(file["name"].as_str()?) != network {
        return None;
    }
    let plugins = file["plugins"].as_array().cloned().unwrap_or_else(|| vec![file.clone()]);
    let mut conf = plugins.into_iter().find(|plugin| plugin["type"] == "bridge")?;
    for key in ["name", "cniVersion"] {
        if !file[key].is_null() {
            conf[key] = file[key].clone();
        }
    }
    Some(conf)
}
