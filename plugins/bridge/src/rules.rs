//! The rules of an attachment: who writes them, mends them and takes them away.

mod guard;
mod subject;

use std::net::IpAddr;

use cni_types::{Error, ErrorCode};
use ipnetwork::IpNetwork;

use self::subject::in_order;
use crate::attachment::Identity;
use crate::bridge::{believe_no_router, believes_routers};
use crate::config::{MasqueradeBackend, Settings};
use crate::iptables::{self, Jumps, Told};
use crate::mac::Mac;
use crate::names;
use crate::netlink::link::{Link, PortSetup};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::nft::{self, Attached, ForeignDrop, Installed, Owner, Record, Removed, Rules};
use crate::plan::Plan;
use crate::survey::{self, Found};
use crate::undo::Undo;
use crate::veth;
use crate::xtables;

pub(crate) use self::guard::{
    remove_unneeded as remove_unneeded_guard, remove_unneeded_alone as remove_unneeded_guard_alone,
};
pub(crate) use self::subject::{FoundGateway, Subject, policy};

/// Has the undo remove the rules of an attachment whose link is still to be made: so they go after the link, and nobody
/// brings them back for its sake. A link that stays is somebody else's, and so are the rules.
pub(crate) fn remove_after_link<'a>(settings: &Settings, identity: &'a Identity, undo: &mut Undo<'a>) {
    if policy(settings).needs_rules() {
        undo.push("remove the rules", move || {
            let mut host = Netlink::open().map_err(Error::internal)?;
            remove_of_gone(&mut Rules::open().map_err(failed)?, &mut host, std::slice::from_ref(identity))
        });
    }
    if settings.is_gateway() {
        undo.push("remove the RA guard", move || remove_unneeded_guard(&mut Rules::open().map_err(failed)?));
    }
}

impl Subject {
    /// The other attachments to the network, with their ports as they are to be by now. None where they
    /// cannot be asked: to fail at it is no reason to refuse this one.
    fn others(&self, host: &mut Netlink, bridge: &Link, settings: &Settings) -> Vec<Self> {
        self.find_others(host, bridge, settings).unwrap_or_else(|error| {
            log::warn!("look for the network's other attachments: {error}");
            Vec::new()
        })
    }

    fn find_others(
        &self,
        host: &mut Netlink,
        bridge: &Link,
        settings: &Settings,
    ) -> Result<Vec<Self>, Error> {
        let unread = |failure: Failure| Error::internal(failure).context("read the bridge's ports");
        let ports = host.ports(bridge.index).map_err(unread)?;
        let network = self.identity.network();
        let mut found = survey::attachments(host, ports).map_err(unread)?;
        found.retain(|found| {
            found.identity.network() == network && found.identity.host_veth() != self.identity.host_veth()
        });
        for found in &found {
            restore_port(host, settings, found)?;
        }
        Ok(found.into_iter().filter_map(|found| self.applied_to(found, settings)).collect())
    }

    /// Brings in the masquerade rules through iptables of all attachments to the network, if there are others; says
    /// whether there are.
    fn restore_iptables(
        &self,
        host: &mut Netlink,
        bridge: &Link,
        settings: &Settings,
    ) -> Result<bool, Error> {
        let others = self.others(host, bridge, settings);
        if others.is_empty() {
            return Ok(false);
        }
        // What two calls both add stands there twice.
        let home = Netns::own()?;
        let _alone = home.exclude()?;
        repair_iptables(host, others.iter().chain([self]))?;
        Ok(true)
    }
}

/// The host as far as it is ready for the rules of an attachment whose port is there, whatever its addresses.
#[derive(Debug)]
pub(crate) struct Ground {
    rules: Rules,
    is_guarded: bool,
}

/// Sees to what the port needs before its addresses are known; nothing if it needs no rules.
pub(crate) fn prepare(settings: &Settings) -> Result<Option<Ground>, Error> {
    let wished = policy(settings);
    if !wished.needs_rules() && !settings.is_gateway() {
        return Ok(None);
    }
    let mut ground = Ground { rules: Rules::open().map_err(failed)?, is_guarded: settings.is_gateway() };
    if ground.is_guarded
        && let Err(error) = ground.rules.guard()
    {
        // It is a bonus that nobody asked for, and not every kernel can filter on a bridge.
        log::warn!("router advertisements are not guarded against: {error}");
        ground.is_guarded = false;
    }
    if settings.is_gateway() && !wished.accept_forward {
        tell_foreign_drops(&mut ground.rules, &settings.gateway_link());
    }
    Ok(Some(ground))
}

/// The rules of an attachment as they were brought in.
#[derive(Debug)]
pub(crate) struct InstalledRules {
    rules: Rules,
    subject: Subject,
    is_guarded: bool,
}

/// Brings in the rules of an attachment; [`remove_after_link`] has seen to how they go. Nothing without ground for them.
pub(crate) fn install<'a>(
    ground: Option<Ground>,
    host: &mut Netlink,
    bridge: &Link,
    settings: &Settings,
    identity: &'a Identity,
    mut subject: Subject,
    undo: &mut Undo<'a>,
) -> Result<Option<InstalledRules>, Error> {
    if subject.by_iptables {
        undo.push("remove the iptables rules", move || iptables::remove(identity.jumps()));
        let restore = || subject.restore_iptables(host, bridge, settings);
        iptables::install(identity.jumps(), &subject.addresses, restore)?;
    }
    let Some(Ground { rules, is_guarded }) = ground else { return Ok(None) };
    if !is_guarded {
        subject.gateway = None;
    }
    let mut installed = InstalledRules { rules, subject, is_guarded };
    installed.bring_in(host, bridge, settings)?;
    let InstalledRules { rules, subject, .. } = &mut installed;
    if subject.policy.accept_forward {
        rules.accept_forward(&subject.attached()).map_err(failed)?;
        xtables::accept(subject.traffic())?;
    }
    Ok(Some(installed))
}

impl InstalledRules {
    /// Looks again, now that the container's end is up with its addresses: whoever repaired the rules meanwhile took
    /// the attachment for a smaller one than it is, or left it out.
    pub(crate) fn confirm(
        mut self,
        host: &mut Netlink,
        bridge: &Link,
        settings: &Settings,
    ) -> Result<(), Error> {
        if self.is_guarded && !self.rules.has_guard().map_err(failed)? {
            self.rules.guard().map_err(failed)?;
        }
        match self.rules.has_records(&[self.subject.attached()]).map_err(failed)? {
            true => Ok(()),
            false => self.bring_in_with_others(host, bridge, settings),
        }
    }

    /// Joins the network's other attachments, or gives all of them the rules that the network has now.
    fn bring_in(&mut self, host: &mut Netlink, bridge: &Link, settings: &Settings) -> Result<(), Error> {
        match self.rules.join(&[self.subject.attached()]).map_err(failed)? {
            Installed::Joined => Ok(()),
            Installed::Anew => self.bring_in_with_others(host, bridge, settings),
        }
    }

    /// Brings in the rules of all attachments to the network in one transaction: a call that is killed leaves either
    /// all of them, or a chain missing that tells the next one.
    fn bring_in_with_others(
        &mut self,
        host: &mut Netlink,
        bridge: &Link,
        settings: &Settings,
    ) -> Result<(), Error> {
        let others = self.subject.others(host, bridge, settings);
        if others.is_empty() {
            return self.rules.install(&[self.subject.attached()]).map(drop).map_err(failed);
        }
        let all: Vec<Attached<'_>> =
            others.iter().map(Subject::attached).chain([self.subject.attached()]).collect();
        self.rules.repair(&all).map_err(failed)?;
        let identities: Vec<Identity> = others.iter().map(|other| other.identity().clone()).collect();
        if let Err(error) = remove_of_gone(&mut self.rules, host, &identities) {
            log::warn!("remove the rules of attachments that have gone meanwhile: {error}");
        }
        Ok(())
    }
}

/// Makes the port of an attachment as isolated and as guarded as the network is by now, and deaf to routers; says what
/// was wrong.
pub(crate) fn restore_port(
    host: &mut Netlink,
    settings: &Settings,
    found: &Found,
) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    let Link { index, name, alias, .. } = &found.host;
    if believes_routers(&found.host) {
        believe_no_router(&found.host);
        wrong.push(format!("host veth \"{name}\" accepted router advertisements"));
    }
    let failed =
        |failure: Failure| Error::internal(failure).context(format_args!("set up bridge port \"{name}\""));
    if !veth::is_guarded_as_wished(&found.host, settings) {
        match host.set_group(*index, veth::port_group(settings)) {
            Err(failure) if !failure.is_gone() => return Err(failed(failure)),
            _ => wrong.push(format!("group of host veth \"{name}\" was {}", found.host.group)),
        }
    }
    let isolated = settings.port.isolated;
    let Some(port) = found.host.port.filter(|port| port.isolated != isolated) else { return Ok(wrong) };
    match host.set_up_port(*index, PortSetup { alias, hairpin: port.hairpin, isolated }) {
        // Its DEL has come first.
        Err(failure) if failure.is_gone() => {}
        Err(failure) => return Err(failed(failure)),
        Ok(()) => {
            let on_off = if isolated { "off" } else { "on" };
            wrong.push(format!("isolation of host veth \"{name}\" was {on_off}"));
        }
    }
    Ok(wrong)
}

/// Mends the RA guard, for ports that were there a moment ago; says what was wrong.
pub(crate) fn repair_guard(rules: &mut Rules) -> Result<Vec<String>, Error> {
    let wrong = rules.repair_guard().map_err(failed)?;
    remove_unneeded_guard(rules)?;
    Ok(wrong)
}

/// Removes the rules of those whose host veth is gone: a DEL that a repair meets removes rules before the link, and
/// again after it, so whichever of the two comes last leaves nothing over.
pub(crate) fn remove_of_gone(
    rules: &mut Rules,
    host: &mut Netlink,
    identities: &[Identity],
) -> Result<(), Error> {
    for identity in identities {
        if is_gone(host, identity)? {
            let removed = rules.remove_again(&identity.owner()).map_err(failed)?;
            forget_accepted(removed, identity.owner().network)?;
        }
    }
    Ok(())
}

fn is_gone(host: &mut Netlink, identity: &Identity) -> Result<bool, Error> {
    let link = host.link_by_name(identity.host_veth()).map_err(Error::internal)?;
    Ok(!link.is_some_and(|link| veth::is_of(&link, identity)))
}

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
    let mut wrong = rules.repair(&attached).map_err(failed)?;
    for subject in subjects.iter().filter(|subject| subject.policy.accept_forward) {
        wrong.extend(xtables::accept(subject.traffic())?);
    }
    wrong.extend(repair_iptables(host, subjects)?);
    let identities: Vec<Identity> = subjects.iter().map(|subject| subject.identity.clone()).collect();
    remove_of_gone(rules, host, &identities)?;
    Ok(wrong)
}

/// Mends those rules of attachments that are written through iptables; says what was wrong.
fn repair_iptables<'a>(
    host: &mut Netlink,
    subjects: impl IntoIterator<Item = &'a Subject>,
) -> Result<Vec<String>, Error> {
    let subjects: Vec<&Subject> = subjects.into_iter().filter(|subject| subject.by_iptables).collect();
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

/// Removes what lets a network through the chains that nf_tables does not show, if nobody is left who needs it.
fn forget_accepted(removed: Removed, network: &str) -> Result<(), Error> {
    match removed {
        Removed::LastAccepted => {
            let comment = nft::accept_comment(network);
            xtables::remove(|found| found == comment)
        }
        Removed::Nothing | Removed::Rules => Ok(()),
    }
}

/// Refuses a host that lacks the programs which the settings ask for.
pub(crate) fn require_programs(settings: &Settings) -> Result<(), Error> {
    match settings.masquerade {
        Some(MasqueradeBackend::Iptables) => iptables::require(),
        _ => Ok(()),
    }
}

/// Says which rules of others keep the containers from what they are wired for; that is the host's owner's choice.
fn tell_foreign_drops(rules: &mut Rules, gateway_link: &str) {
    for found in [rules.foreign_drops(gateway_link).map_err(failed), xtables::drops(gateway_link)] {
        match found {
            Ok(drops) => {
                for ForeignDrop { chain, reason } in drops {
                    log::warn!("forwarded packets of {gateway_link} are dropped by {chain}: {reason}");
                }
            }
            Err(error) => log::warn!("look for rules that drop what is forwarded: {error}"),
        }
    }
}

/// The rules of an attachment on their way out, while its link is removed.
///
/// Closing this waits until the kernel has destroyed them; to delete a link in between covers that.
#[derive(Debug)]
pub(crate) struct Removal<'a> {
    rules: Rules,
    owner: Owner<'a>,
    removed: Removed,
    /// Whether other ports were guarded.
    others_guarded: bool,
}

/// Removes the rules of an owner; [`Removal::complete`] has to follow when its link is gone.
pub(crate) fn remove(owner: Owner<'_>) -> Result<Removal<'_>, Error> {
    let mut rules = Rules::open().map_err(failed)?;
    let removed = rules.remove(&owner).map_err(failed)?;
    let others_guarded = guard::remove_before_link(&mut rules, owner.host_veth)?;
    Ok(Removal { rules, owner, removed, others_guarded })
}

/// Removes the rules that a killed ADD has left to an owner whose link stays.
pub(crate) fn remove_stale(owner: &Owner<'_>) -> Result<(), Error> {
    Rules::open().and_then(|mut rules| rules.remove(owner)).map(drop).map_err(failed)
}

impl Removal<'_> {
    /// Whether the attachment had rules until now.
    pub(crate) fn found_any(&self) -> bool {
        self.removed != Removed::Nothing
    }

    /// Has the host forget the flows that lead to the attachment, which had these addresses: they would go on to whoever
    /// is given one next.
    pub(crate) fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.rules.forget_flows(addresses).map_err(|error| failed(error).context("forget flows"))
    }

    /// Removes what a repair has brought back as long as there was a link, and what the network has left in the chains
    /// of others if its record is lost.
    pub(crate) fn complete(mut self) -> Result<(), Error> {
        let again = self.rules.remove_again(&self.owner).map_err(failed)?;
        for removed in [self.removed, again] {
            forget_accepted(removed, self.owner.network)?;
        }
        if self.others_guarded {
            // Their DELs may have seen the port of this one.
            remove_unneeded_guard(&mut self.rules)?;
        }
        match self.removed {
            Removed::Nothing => {
                let mut host = Netlink::open().map_err(Error::internal)?;
                remove_orphans(&mut self.rules, &mut host)
            }
            Removed::Rules | Removed::LastAccepted => Ok(()),
        }
    }
}

/// Removes from the chains of others what networks have left there that nobody is attached to.
pub(crate) fn remove_orphans(rules: &mut Rules, host: &mut Netlink) -> Result<(), Error> {
    if !rules.has_orphans().map_err(failed)? {
        return Ok(());
    }
    let links = host.links().map_err(Error::internal)?;
    rules.remove_orphans(&survey::networks(&links)).map_err(failed)
}

/// Each difference between the rules of an attachment and the kernel's, in words. `present` are all addresses of the
/// container's interface that reach beyond the link.
pub(crate) fn verify(
    host: &mut Netlink,
    settings: &Settings,
    identity: &Identity,
    plan: &Plan,
    mac: Mac,
    present: Vec<IpNetwork>,
) -> Result<Vec<String>, Error> {
    let subject = Subject::new(settings, identity, plan, mac, FoundGateway::find(host, settings)?);
    let mut differences = Vec::new();
    if subject.policy.needs_rules() || settings.is_gateway() {
        let mut rules = Rules::open().map_err(failed)?;
        differences = verify_nftables(&mut rules, &subject, present)?;
        if settings.is_gateway() {
            differences.extend(verify_guard(&mut rules)?);
        }
    }
    if subject.policy.accept_forward {
        differences.extend(xtables::differences(subject.traffic())?);
    }
    if settings.masquerade == Some(MasqueradeBackend::Iptables) {
        differences.extend(iptables::verify(identity.jumps(), &subject.addresses)?);
    }
    Ok(differences)
}

/// The differences in nf_tables. A repair goes by what the interface has: where others gave it more addresses, the
/// rules may be for all of these.
fn verify_nftables(
    rules: &mut Rules,
    subject: &Subject,
    present: Vec<IpNetwork>,
) -> Result<Vec<String>, Error> {
    let differences = rules.verify(&subject.attached()).map_err(failed)?;
    let present = in_order(present);
    let has_all = subject.addresses.iter().all(|address| present.contains(address));
    if !differences.is_empty() && has_all && present != subject.addresses {
        let whole = Attached { addresses: &present, ..subject.attached() };
        if rules.verify(&whole).map_err(failed)?.is_empty() {
            return Ok(Vec::new());
        }
    }
    Ok(differences)
}

/// The differences of the RA guard. A kernel that has no rules has none, and ADD has done without as well.
fn verify_guard(rules: &mut Rules) -> Result<Vec<String>, Error> {
    let differences = rules.verify_guard().map_err(failed)?;
    let is_impossible = !differences.is_empty() && rules.probe().is_err_and(|error| error.is_unsupported());
    Ok(if is_impossible { Vec::new() } else { differences })
}

/// Removes the rules of the network's attachments, but of those that `keep` wants.
pub(crate) fn collect(
    host: &mut Netlink,
    network: &str,
    keep: impl Fn(&mut Netlink, &Record) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut rules = Rules::open().map_err(failed)?;
    for record in rules.records().map_err(failed)? {
        if record.network != names::network(network) || keep(host, &record)? {
            continue;
        }
        let removed = rules.remove_recorded(&record).map_err(failed)?;
        forget_accepted(removed, network)?;
    }
    remove_unneeded_guard(&mut rules)?;
    remove_orphans(&mut rules, host)
}

/// The comments of what both kinds of iptables have behind routing: our masquerade rules through them are among it,
/// whatever the configuration says by now. Starts no process.
pub(crate) fn iptables_comments(rules: &mut Rules) -> Result<Vec<String>, Error> {
    let mut comments = rules.iptables_comments().map_err(failed)?;
    comments.extend(xtables::comments(iptables::NAT)?);
    Ok(comments)
}

/// Whether there are masquerade rules of the network through iptables.
pub(crate) fn has_iptables(network: &str) -> Result<bool, Error> {
    let comments = iptables_comments(&mut Rules::open().map_err(failed)?)?;
    Ok(comments.iter().any(|comment| iptables::is_of_network(comment, network)))
}

/// Whether there are masquerade rules of the attachment through iptables as it was before nf_tables: those through
/// `iptables-nft` go with the others.
pub(crate) fn has_legacy_iptables(identity: &Identity) -> Result<bool, Error> {
    let comments = xtables::comments(iptables::NAT)?;
    Ok(comments.iter().filter_map(|comment| Told::by(comment)).any(|told| told.is(identity.jumps())))
}

/// Whether the rules that the settings ask for could be written.
pub(crate) fn probe(settings: &Settings) -> Result<(), Error> {
    if policy(settings).needs_rules() {
        Rules::open().and_then(|mut rules| rules.probe()).map_err(failed)?;
    }
    require_programs(settings)
}

fn failed(error: nft::Error) -> Error {
    let code = if error.is_unsupported() { ErrorCode::UNSUPPORTED_FIELD } else { ErrorCode::INTERNAL };
    Error::new(code, error.to_string())
}
