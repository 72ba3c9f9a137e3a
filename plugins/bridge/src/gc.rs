//! GC: removes what belongs to no valid attachment of the network.
//!
//! When the runtime does not say which attachments are valid, only what is dead beyond doubt is removed: rules whose
//! host veth does not exist, under its own name or another. (A veth pair cannot outlive its container's namespace, so
//! no link is ever dead.)

use std::collections::HashSet;

use cni_types::{Delegate, Error, Failures, NetworkCall};

use crate::attachment::{Identity, is_half_made, network_mark};
use crate::netlink::link::Kind;
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::nft::Record;
use crate::signals::Held;
use crate::{config, iptables, rules, survey};

/// Cleans up the network.
pub(crate) fn gc(call: &NetworkCall) -> Result<(), Error> {
    let network = call.conf().name();
    let valid = call.conf().valid_attachments()?;
    let _signals = Held::new()?;
    let mut failures = Failures::default();

    let mut host = Netlink::open().map_err(Error::internal)?;
    if let Some(valid) = &valid {
        let keep: Vec<Identity> = valid.iter().map(|attachment| Identity::new(network, attachment)).collect();
        let bridge = config::bridge_of(call.conf());
        failures.note(remove_links(&mut host, network, bridge.as_deref(), &keep));
        log::debug!("done with veth pairs");
        let host_veths: HashSet<&str> = keep.iter().map(Identity::host_veth).collect();
        let is_valid = |_: &mut Netlink, record: &Record| Ok(host_veths.contains(record.host_veth.as_str()));
        failures.note(rules::collect(&mut host, network, is_valid));
        log::debug!("done with the rules");
        if config::uses_iptables(call.conf())
            || failures.note(rules::has_iptables(network)).unwrap_or_default()
        {
            failures.note(iptables::collect(network, valid));
            log::debug!("done with iptables");
        }
    } else {
        // An ADD makes the link before the rules, so whose record has been seen has a link by now, or none any more.
        let is_alive = |host: &mut Netlink, record: &Record| {
            if host.link_by_name(&record.host_veth).map_err(Error::internal)?.is_some() {
                return Ok(true);
            }
            // Somebody may have renamed it.
            Ok(survey::is_alive(record, &host.links().map_err(Error::internal)?))
        };
        failures.note(rules::collect(&mut host, network, is_alive));
        failures.note(rules::collect_iptables(&mut host, Some(network)));
        log::debug!("done with the rules");
    }
    if let Some(name) = failures.note(config::ipam_type(call.conf())).flatten() {
        let ipam = Delegate::find(&name, &call.env().plugin_path());
        let ipam = ipam.map_err(|error| error.context("ipam.type"));
        failures.note(ipam.and_then(|ipam| ipam.gc(call)));
    }
    failures.into_result()
}

/// Removes the veth pairs of the network that are not to be kept, and those on its bridge that an ADD was killed over
/// before it had marked them, and has the host forget the flows of their containers.
fn remove_links(
    host: &mut Netlink,
    network: &str,
    bridge: Option<&str>,
    keep: &[Identity],
) -> Result<(), Error> {
    // Somebody may have renamed one.
    let marks: Vec<String> = keep.iter().map(Identity::alias).collect();
    let keep: HashSet<&str> =
        keep.iter().map(Identity::host_veth).chain(marks.iter().map(String::as_str)).collect();
    let failed = |failure: Failure| Error::internal(failure).context("remove veth pairs");
    // While nobody is between making a pair and marking it.
    let home = Netns::own()?;
    let _alone = home.exclude()?;
    let mut links = host.links().map_err(failed)?;
    let bridge = links.iter().find(|link| Some(link.name.as_str()) == bridge).map(|link| link.index);
    let mark = network_mark(network);
    links.retain(|link| {
        let half_made =
            is_half_made(&link.name, &link.alias) && bridge.is_some() && link.controller == bridge;
        link.kind == Kind::Veth
            && link.peer_netns.is_some()
            && !keep.contains(link.name.as_str())
            && !keep.contains(link.alias.as_str())
            && (link.alias.starts_with(&mark) || half_made)
    });
    let addresses = survey::addresses(host, &links)
        .inspect_err(|failure| log::warn!("ask for the containers' addresses: {failure}"))
        .unwrap_or_default();
    host.delete_links(&links).map_err(failed)?;
    rules::forget_flows(&addresses)
}
