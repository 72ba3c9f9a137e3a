//! An ADD's way: what its port needs, then the rules for its addresses, alone or with the network's other attachments.

use std::net::IpAddr;

use cni_types::Error;
use ipnetwork::IpNetwork;

use super::guard::remove_unneeded;
use super::removal::{forget_unwished, remove_of_gone};
use super::repair::{repair_iptables, restore_port};
use super::subject::{Subject, gateways, policy};
use super::{failed, iptables_comments};
use crate::attachment::Identity;
use crate::config::Settings;
use crate::flows::Flows;
use crate::iptables::{self, Told};
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::nft::{Attached, ForeignDrop, Installed, Rules};
use crate::survey;
use crate::undo::Undo;
use crate::xtables;

/// Has the undo remove the rules of an attachment whose link is still to be made: so they go after the link, and nobody
/// brings them back for its sake. A link that stays is somebody else's, and so are the rules.
pub(crate) fn remove_after_link<'a>(settings: &Settings, identity: &'a Identity, undo: &mut Undo<'a>) {
    // A gateway interface has rules of its own, whatever the policy.
    if policy(settings).needs_rules() || settings.is_gateway() {
        undo.push("remove the rules", move || {
            let mut host = Netlink::open().map_err(Error::internal)?;
            remove_of_gone(&mut Rules::open().map_err(failed)?, &mut host, std::slice::from_ref(identity))
        });
    }
    if settings.is_gateway() {
        undo.push("remove the RA guard", move || remove_unneeded(&mut Rules::open().map_err(failed)?));
    }
}

/// The host as far as it is ready for the rules of an attachment whose port is there, whatever its addresses.
#[derive(Debug)]
pub(crate) struct Prepared {
    rules: Rules,
    is_guarded: bool,
    /// Whether rules of others, or `acceptForward`, decide on what is forwarded.
    is_filtered: bool,
    /// Whether the gateway interface may be another than the one that the rules of the network's attachments are about.
    gateway_is_new: bool,
}

/// Sees to what the port needs before its addresses are known; nothing if it needs no rules.
pub(crate) fn prepare(settings: &Settings, gateway_is_new: bool) -> Result<Option<Prepared>, Error> {
    let wished = policy(settings);
    if !wished.needs_rules() && !settings.is_gateway() && settings.masquerade.is_none() {
        return Ok(None);
    }
    let mut rules = Rules::open().map_err(failed)?;
    let is_filtered = wished.accept_forward || settings.is_gateway() && is_filtered_by_others(&mut rules);
    let mut prepared = Prepared { rules, is_guarded: settings.is_gateway(), is_filtered, gateway_is_new };
    if prepared.is_guarded
        && let Err(error) = prepared.rules.guard()
    {
        // It is a bonus that nobody asked for, and not every kernel can filter on a bridge.
        log::warn!("router advertisements are not guarded against: {error}");
        prepared.is_guarded = false;
    }
    Ok(Some(prepared))
}

/// The rules of an attachment as they were brought in.
#[derive(Debug)]
pub(crate) struct InstalledRules {
    rules: Rules,
    subject: Subject,
    is_guarded: bool,
}

/// Brings in the rules of an attachment; [`remove_after_link`] has seen to how they go. None where nothing was prepared.
pub(crate) fn install<'a>(
    prepared: Option<Prepared>,
    host: &mut Netlink,
    bridge: &Link,
    settings: &Settings,
    identity: &'a Identity,
    mut subject: Subject,
    undo: &mut Undo<'a>,
) -> Result<Option<InstalledRules>, Error> {
    if subject.by_iptables {
        undo.push("remove the iptables rules", move || iptables::remove(identity.jumps()));
        subject.install_iptables(host, bridge, settings)?;
    }
    let Some(Prepared { rules, is_guarded, is_filtered, gateway_is_new }) = prepared else { return Ok(None) };
    if !is_guarded {
        subject.gateway = None;
    }
    let mut installed = InstalledRules { rules, subject, is_guarded };
    match gateway_is_new {
        true => installed.bring_in_with_others(host, bridge, settings)?,
        false => installed.bring_in(host, bridge, settings)?,
    }
    let InstalledRules { rules, subject, .. } = &mut installed;
    if subject.policy.accept_forward {
        rules.accept_forward(&subject.attached()).map_err(failed)?;
        xtables::accept(subject.traffic())?;
    }
    if is_filtered {
        // Also with rules of ours: a table that is its owner's alone takes none, and what is dropped before them stays so.
        tell_foreign_drops(rules, host, subject);
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
        if self.is_guarded && !self.rules.guard_is_awake().map_err(failed)? {
            self.rules.repair_guard().map_err(failed)?;
        }
        if self.subject.by_iptables && !self.subject.has_jumps(&mut self.rules)? {
            self.subject.install_iptables(host, bridge, settings)?;
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
        forget_unwished([&self.subject])?;
        self.rules.repair(&all).map_err(failed)?;
        let identities: Vec<Identity> = others.iter().map(|other| other.identity().clone()).collect();
        if let Err(error) = remove_of_gone(&mut self.rules, host, &identities) {
            log::warn!("remove the rules of attachments that have gone meanwhile: {error}");
        }
        Ok(())
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
        let gateways = gateways(host, settings)
            .map_err(|failure| Error::internal(failure).context("list the gateway's addresses"))?;
        Ok(found.into_iter().filter_map(|found| self.applied_to(found, settings, &gateways)).collect())
    }

    /// Brings in the masquerade rules through iptables, where the network has none those of its other attachments, too.
    fn install_iptables(&self, host: &mut Netlink, bridge: &Link, settings: &Settings) -> Result<(), Error> {
        let restore = || self.restore_iptables(host, bridge, settings);
        iptables::install(self.identity.jumps(), &self.addresses, restore)
    }

    /// Whether there is a jump through iptables for each address. Starts no process.
    fn has_jumps(&self, rules: &mut Rules) -> Result<bool, Error> {
        let comments = iptables_comments(rules)?;
        let own = comments.iter().filter_map(|comment| Told::by(comment));
        Ok(own.filter(|told| told.is(self.identity.jumps())).count() >= self.addresses.len())
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
        repair_iptables(host, others.iter().chain([self]))?;
        Ok(true)
    }
}

/// Whether there are rules of others for what is forwarded.
fn is_filtered_by_others(rules: &mut Rules) -> bool {
    let has_filters = rules.has_foreign_filters().unwrap_or_else(|error| {
        log::warn!("look for rules that drop what is forwarded: {error}");
        false
    });
    has_filters || xtables::is_in_use()
}

/// Says which rules of others keep the container from what it is wired for; that is the host's owner's choice.
fn tell_foreign_drops(rules: &mut Rules, host: &mut Netlink, subject: &Subject) {
    let gateway_link = &subject.gateway_link;
    let addresses: Vec<IpAddr> = subject.addresses.iter().map(IpNetwork::ip).collect();
    let mut flows = Flows::new(host, gateway_link, &addresses);
    for found in [rules.foreign_drops(&mut flows).map_err(failed), xtables::drops(&mut flows)] {
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
