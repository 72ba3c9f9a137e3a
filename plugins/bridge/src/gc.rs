//! GC: removes what belongs to no valid attachment of the network.
//!
//! When the runtime does not say which attachments are valid, only what is dead beyond doubt is removed: rules whose
//! host veth does not exist. (A veth pair cannot outlive its container's namespace, so no link is ever dead.)

use std::collections::HashSet;

use cni_types::{Delegate, Error, NetworkCall};

use crate::attachment::{Identity, is_half_made, network_mark};
use crate::failures::Failures;
use crate::netlink::link::{Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::signals::Held;
use crate::{config, iptables, rules};

/// Cleans up the network.
pub(crate) fn gc(call: &NetworkCall) -> Result<(), Error> {
    let network = call.conf().name();
    let valid = call.conf().valid_attachments()?;
    let _signals = Held::new()?;
    let mut failures = Failures::default();

    let mut host = Netlink::open().map_err(Error::internal)?;
    if let Some(valid) = &valid {
        let keep: HashSet<String> = valid
            .iter()
            .map(|attachment| Identity::new(network, attachment).host_veth().to_owned())
            .collect();
        let bridge = config::bridge_of(call.conf());
        failures.note(remove_links(&mut host, network, bridge.as_deref(), &keep));
        log::debug!("done with veth pairs");
        failures.note(rules::collect(&mut host, network, |_, host_veth| Ok(keep.contains(host_veth))));
        log::debug!("done with the rules");
        if config::uses_iptables(call.conf())
            || failures.note(rules::has_iptables(network)).unwrap_or_default()
        {
            failures.note(iptables::collect(network, valid));
            log::debug!("done with iptables");
        }
    } else {
        let exists = |host: &mut Netlink, host_veth: &str| {
            host.link_by_name(host_veth).map(|link| link.is_some()).map_err(Error::internal)
        };
        failures.note(rules::collect(&mut host, network, exists));
        log::debug!("done with the rules");
    }
    if let Some(name) = failures.note(config::ipam_type(call.conf())).flatten() {
        let cleaned = Delegate::find(&name, &call.env().plugin_path()).and_then(|ipam| ipam.gc(call));
        failures.note(cleaned);
    }
    failures.into_result()
}

/// Removes the veth pairs of the network that are not to be kept, and those on its bridge that an ADD was killed over
/// before it had marked them.
fn remove_links(
    host: &mut Netlink,
    network: &str,
    bridge: Option<&str>,
    keep: &HashSet<String>,
) -> Result<(), Error> {
    let failed = |failure: Failure| Error::internal(failure).context("remove veth pairs");
    // While nobody is between making a pair and marking it.
    let home = Netns::own()?;
    let _alone = home.exclude()?;
    let links = host.links().map_err(failed)?;
    let bridge = links.iter().find(|link| Some(link.name.as_str()) == bridge).map(|link| link.index);
    let mark = network_mark(network);
    let dead: Vec<&Link> = links
        .iter()
        .filter(|link| link.kind == Kind::Veth && link.peer_netns.is_some() && !keep.contains(&link.name))
        .filter(|link| {
            let half_made =
                is_half_made(&link.name, &link.alias) && bridge.is_some() && link.controller == bridge;
            link.alias.starts_with(&mark) || half_made
        })
        .collect();
    host.delete_links(&dead).map_err(failed)
}
