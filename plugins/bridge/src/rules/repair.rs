//! What a person has mended, or an ADD that finds rules missing.

use cni_types::Error;
use ipnetwork::IpNetwork;

use super::failed;
use super::guard::remove_unneeded;
use super::removal::{forget_unwished, is_gone, remove_of_gone};
use super::subject::Subject;
use crate::attachment::Identity;
use crate::bridge::{believe_no_router, believes_routers, reopen};
use crate::config::Settings;
use crate::iptables::{self, Jumps};
use crate::netlink::link::{Kind, Link, PortState};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::nft::{Attached, Rules};
use crate::survey::Found;
use crate::veth;
use crate::vlans;
use crate::xtables::{self, Traffic};

/// Mends the rules of attachments, those in nf_tables in one transaction; says what was wrong.
pub(crate) fn repair(
    rules: &mut Rules,
    host: &mut Netlink,
    subjects: &[Subject],
) -> Result<Vec<String>, Error> {
    let attached: Vec<Attached<'_>> = subjects.iter().map(Subject::attached).collect();
    if attached.is_empty() {
        return Ok(Vec::new());
    }
    forget_unwished(subjects)?;
    let mut wrong = rules.repair(&attached).map_err(failed)?;
    let accepting = subjects.iter().filter(|subject| subject.policy.accept_forward);
    let mut traffics: Vec<Traffic<'_>> = accepting.map(Subject::traffic).collect();
    // Those of a network stand together.
    traffics.dedup_by_key(|traffic| (traffic.network, traffic.link));
    for traffic in traffics {
        wrong.extend(xtables::accept(traffic)?);
    }
    wrong.extend(repair_iptables(host, subjects)?);
    let identities: Vec<Identity> = subjects.iter().map(|subject| subject.identity.clone()).collect();
    remove_of_gone(rules, host, &identities)?;
    Ok(wrong)
}

/// Mends those rules of attachments that are written through iptables; says what was wrong.
pub(super) fn repair_iptables<'a>(
    host: &mut Netlink,
    subjects: impl IntoIterator<Item = &'a Subject>,
) -> Result<Vec<String>, Error> {
    let subjects: Vec<&Subject> = subjects.into_iter().filter(|subject| subject.by_iptables).collect();
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    // What two calls both add stands there twice.
    let home = Netns::own()?;
    let _alone = home.exclude()?;
    let rules: Vec<(Jumps<'_>, &[IpNetwork])> =
        subjects.iter().map(|subject| (subject.identity.jumps(), subject.addresses.as_slice())).collect();
    let wrong = iptables::repair(&rules)?;
    for subject in subjects {
        if is_gone(host, &subject.identity)? {
            iptables::remove(subject.identity.jumps())?;
        }
    }
    Ok(wrong)
}

/// Mends the RA guard, for ports that were there a moment ago; says what was wrong.
pub(crate) fn repair_guard(rules: &mut Rules) -> Result<Vec<String>, Error> {
    let wrong = rules.repair_guard().map_err(failed)?;
    remove_unneeded(rules)?;
    Ok(wrong)
}

/// Has the port of an attachment be on the bridge again, treat frames as the network's do by now, guarded if they are,
/// deaf to routers, in its VLANs and up; says what was wrong. One that somebody has put on another bridge stays there.
pub(crate) fn restore_port(
    host: &mut Netlink,
    settings: &Settings,
    found: &Found,
) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    let Link { index, name, .. } = &found.host;
    if believes_routers(&found.host) {
        believe_no_router(&found.host);
        wrong.push(format!("host veth \"{name}\" accepted router advertisements"));
    }
    // Its DEL may have come first.
    let is_done = |changed: Result<(), Failure>| match changed {
        Err(failure) if failure.is_gone() => Ok(false),
        Err(failure) => Err(Error::internal(failure).context(format_args!("set up bridge port \"{name}\""))),
        Ok(()) => Ok(true),
    };
    if !veth::is_guarded_as_wished(&found.host, settings)
        && is_done(host.set_group(*index, veth::port_group(settings)))?
    {
        wrong.push(format!("group of host veth \"{name}\" was {}", found.host.group));
    }
    let failed = |failure: Failure| Error::internal(failure).context("read a bridge port");
    let bridge = host.link_by_name(settings.bridge()).map_err(failed)?;
    let bridge = bridge.filter(|bridge| bridge.kind == Kind::Bridge);
    let mut port = found.host.clone();
    if let (None, Some(bridge)) = (port.controller, &bridge) {
        // Down, for no frame is to pass before it treats them as the network's do.
        let plugged = host.set_down(*index).and_then(|()| host.set_controller(*index, bridge.index));
        if is_done(plugged)? {
            wrong.push(format!("host veth \"{name}\" was not a port of bridge \"{}\"", bridge.name));
        }
        match host.link_by_index(*index).map_err(failed)? {
            Some(plugged) => port = plugged,
            None => return Ok(wrong),
        }
    }
    let Some(PortState { conduct, .. }) = port.port else { return Ok(wrong) };
    if is_done(host.set_conduct(*index, conduct, settings.port))? && found.host.port.is_some() {
        let differences = conduct.differences(settings.port);
        wrong.extend(differences.map(|[what, is, _]| format!("{what} of host veth \"{name}\" was {is}")));
    }
    let bridge = bridge.filter(|bridge| port.controller == Some(bridge.index));
    if let Some(bridge) = &bridge {
        let mut differences = Vec::new();
        let mended = vlans::mend(host, bridge, settings.vlans.as_ref(), &port);
        if is_done(mended.map(|found| differences = found))? && found.host.port.is_some() {
            wrong.extend(differences);
        }
    }
    if !port.up {
        if is_done(host.set_up(*index))? && !found.host.up {
            wrong.push(format!("host veth \"{name}\" was down"));
        }
    } else if let Some(bridge) = bridge {
        let mut opened = false;
        let reopened = reopen(host, &bridge, &port).map(|done| opened = done);
        if is_done(reopened)? && opened {
            wrong.push(format!("bridge port \"{name}\" did not forward"));
        }
    }
    Ok(wrong)
}
