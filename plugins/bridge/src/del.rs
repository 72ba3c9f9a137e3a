//! DEL: removes by identity, whatever the configuration says by now and whatever is left of the container.
//!
//! It goes on when a step fails and tells all failures at the end.

use std::net::IpAddr;

use cni_types::{CniResult, Command, DelCall, Delegate, Error, Failures, Running};

use crate::attachment::{Identity, is_marked};
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::plan::addresses_of;
use crate::predecessor::{self, Evidence};
use crate::signals::Held;
use crate::{config, iptables, rules, survey, veth};

/// Detaches the container.
pub(crate) fn del(call: &DelCall) -> Result<(), Error> {
    let _signals = Held::new()?;
    let identity = Identity::new(call.conf().name(), call.attachment());
    // A result that cannot be read says nothing, as one that the runtime has lost.
    let prev_result = call.conf().prev_result().ok().flatten();
    let mut failures = Failures::default();

    // Who closes the socket last waits until the kernel has destroyed the rules; the wait for the link covers that.
    let mut rules = rules::remove(identity.owner());
    log::debug!("done with the rules");
    let links =
        Netlink::open().and_then(|mut host| remove_links(&mut host, call, &identity, prev_result.as_ref()));
    let departed = failures
        .note(links.map_err(|failure| Error::internal(failure).context("remove the veth pair")))
        .flatten();
    log::debug!("done with the veth pair");
    // Before anybody else is given one of the addresses; a DEL that comes once more finds nothing, and somebody may have
    // been.
    if let Ok(rules) = &mut rules
        && (departed.is_some() || rules.found_any())
    {
        let addresses: Vec<IpAddr> = match &prev_result {
            Some(result) => {
                addresses_of(result, call.attachment().ifname()).map(|ip| ip.address.ip()).collect()
            }
            // A runtime that speaks a version before 0.4.0 hands on no result.
            None => {
                let of_link = departed.iter().flat_map(|departed| &departed.addresses);
                rules.addresses().iter().chain(of_link).copied().collect()
            }
        };
        failures.note(rules.forget_flows(&addresses));
    }
    // Nobody has the addresses any more, unless the pair could not be removed; then the runtime will be told.
    let leases = match failures.note(config::ipam_type(call.conf())).flatten() {
        Some(name) => {
            let ipam = Delegate::find(&name, &call.env().plugin_path());
            let ipam = ipam.map_err(|error| error.context("ipam.type"));
            failures.note(ipam.and_then(|ipam| ipam.start(Command::Del, call.network())))
        }
        None => None,
    };
    // A repair may have brought them back as long as there was a link.
    failures.note(rules.and_then(rules::Removal::complete));
    if config::uses_iptables(call.conf())
        || departed.is_some_and(|departed| departed.made_by == Maker::Reference)
        || failures.note(rules::has_legacy_iptables(&identity)).unwrap_or_default()
    {
        failures.note(iptables::remove(identity.jumps()));
        log::debug!("done with iptables");
    }
    failures.note(leases.map(Running::ended).transpose());
    failures.into_result()
}

/// Who made the veth pair that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    /// This plugin.
    Ours,
    /// The reference plugin.
    Reference,
}

/// The veth pair that was removed.
#[derive(Debug)]
struct Departed {
    made_by: Maker,
    /// The addresses that the container had on it, if no result tells them.
    addresses: Vec<IpAddr>,
}

/// Removes the attachment's veth pair: ours, also under another name, or else the one that the reference plugin made;
/// `None` if it was gone.
fn remove_links(
    host: &mut Netlink,
    call: &DelCall,
    identity: &Identity,
    prev_result: Option<&CniResult>,
) -> Result<Option<Departed>, Failure> {
    let delete = |host: &mut Netlink, links: &[Link], made_by| {
        let addresses = match prev_result {
            Some(_) => Vec::new(),
            None => survey::addresses(host, links)
                .inspect_err(|failure| log::warn!("ask for the container's addresses: {failure}"))
                .unwrap_or_default(),
        };
        match config::returns_early(call.conf()) {
            true => host.unlink(links),
            false => host.delete_links(links),
        }?;
        Ok(Some(Departed { made_by, addresses }))
    };
    let named = veth::host_end(host, identity)?;
    let ours = if named.as_ref().is_some_and(|link| is_marked(&link.alias)) {
        Vec::from_iter(named)
    } else {
        let renamed = veth::renamed_host_ends(host, identity)?;
        // Where there is one with the mark, one of the name without it is somebody else's.
        if renamed.is_empty() { Vec::from_iter(named) } else { renamed }
    };
    if !ours.is_empty() {
        return delete(host, &ours, Maker::Ours);
    }
    let bridge = config::bridge_of(call.conf());
    let evidence = Evidence { netns: call.netns(), prev_result, bridge: bridge.as_deref() };
    match predecessor::host_end(host, identity, evidence)? {
        Some(link) => delete(host, &[link], Maker::Reference),
        None => Ok(None),
    }
}
