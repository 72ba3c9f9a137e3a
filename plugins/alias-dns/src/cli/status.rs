//! `alias-dns status`: how the server does, as it says itself. A server that does not run is no failure: it is started
//! when it is needed.

use std::io::Write;

use cni_types::by_hand::write_json;

use super::Format;
use crate::daemon::{Client, Status};
use crate::state_dir::StateDir;

pub(super) fn print(state: &StateDir, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    let status = Client::connect_existing(state)?.map(|mut server| server.status()).transpose()?;
    match (format, status) {
        (Format::Json, status) => Ok(write_json(&status, out)?),
        (Format::Text, Some(status)) => Ok(print_text(&status, state, out)?),
        (Format::Text, None) => Ok(writeln!(out, "no server runs for {}", state.path().display())?),
    }
}

fn print_text(status: &Status, state: &StateDir, out: &mut dyn Write) -> std::io::Result<()> {
    let Status { build, pid, uptime, supervised, guarded, uid, unconfined, queries, .. } = status;
    let supervision = if *supervised { "supervised" } else { "not supervised" };
    let guard = if *guarded { "guarded" } else { "not guarded" };
    writeln!(out, "server     {} for {}, up {uptime} s", build.version, state.path().display())?;
    writeln!(out, "process    {pid}, user {uid}, {supervision}, {guard}")?;
    if !unconfined.is_empty() {
        writeln!(out, "rights     {unconfined}")?;
    }
    for network in &status.networks {
        writeln!(out, "network    {}: {} attachments", network.name, network.records)?;
    }
    for listener in &status.listeners {
        let port = listener.port.map_or_else(|| "closed".to_owned(), |port| format!("port {port}"));
        writeln!(out, "listener   {} on {}, {port}", listener.gateway, listener.bridge)?;
    }
    writeln!(
        out,
        "queries    {} received: {} answered, {} NODATA, {} NXDOMAIN, {} forwarded, {} failed, {} refused, {} faulty",
        queries.received,
        queries.answered,
        queries.no_data,
        queries.nx_domain,
        queries.forwarded,
        queries.failed,
        queries.refused,
        queries.faulty
    )?;
    writeln!(
        out,
        "now        {} asked upstream, {} answers kept, {} TCP connections",
        status.in_flight, status.cached, status.connections
    )?;
    for upstream in &status.upstreams {
        let health = &upstream.health;
        let avoided = if health.avoided { ", avoided" } else { "" };
        let edns = if health.without_edns { ", without EDNS" } else { "" };
        let (asked, answered, failed) = (health.asked, health.answered, health.failed);
        writeln!(
            out,
            "upstream   {}: {asked} asked, {answered} answered, {failed} failed{avoided}{edns}",
            upstream.server
        )?;
    }
    status.unreadable.iter().try_for_each(|file| writeln!(out, "unreadable {file}"))
}
