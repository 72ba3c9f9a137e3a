//! The rules of an attachment: which ones its settings ask for, and who writes them.

use std::net::IpAddr;

use cni_types::{Attachment, Error, ErrorCode};
use ipnetwork::IpNetwork;

use crate::attachment::Identity;
use crate::config::{MasqueradeBackend, Settings};
use crate::iptables;
use crate::mac::Mac;
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::nft::{self, Attached, IngressPolicy, Installed, Owner, Policy, Rules};
use crate::plan::Plan;
use crate::survey::{self, Found};
use crate::undo::Undo;
use crate::veth;

/// What the settings ask of the rules in nf_tables.
pub(crate) fn policy(settings: &Settings) -> Policy {
    Policy {
        masquerade: settings.masquerade == Some(MasqueradeBackend::Nftables),
        ingress: settings.ingress,
        ra_guard: settings.is_gateway(),
        mac_spoof_check: settings.mac_spoof_check,
    }
}

/// An attachment as its rules see it, owning what [`Attached`] borrows.
#[derive(Debug)]
pub(crate) struct Subject {
    identity: Identity,
    gateway_link: String,
    mac: Mac,
    addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
    policy: Policy,
}

impl Subject {
    /// Whose rules these are.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    fn new(settings: &Settings, identity: &Identity, plan: &Plan, mac: Mac) -> Self {
        Self {
            identity: identity.clone(),
            gateway_link: settings.gateway_link(),
            mac,
            addresses: plan.networks(),
            gateways: plan.gateways.iter().map(IpNetwork::ip).collect(),
            policy: policy(settings),
        }
    }

    /// The rules that the settings mean for an attachment that exists; `None` if its container end cannot be asked.
    pub(crate) fn of_found(settings: &Settings, gateways: &[IpNetwork], found: Found) -> Option<Self> {
        let end = found.container?;
        Some(Self {
            identity: found.identity,
            gateway_link: settings.gateway_link(),
            mac: end.mac?,
            addresses: end.addresses,
            gateways: gateways.iter().map(IpNetwork::ip).collect(),
            policy: policy(settings),
        })
    }

    /// The same rules for another attachment to the network.
    fn applied_to(&self, other: Found) -> Option<Self> {
        let end = other.container?;
        Some(Self {
            identity: other.identity,
            gateway_link: self.gateway_link.clone(),
            mac: end.mac?,
            addresses: end.addresses,
            gateways: self.gateways.clone(),
            policy: self.policy,
        })
    }

    pub(crate) fn attached(&self) -> Attached<'_> {
        Attached {
            owner: self.identity.owner(),
            gateway_link: &self.gateway_link,
            mac: self.mac.octets(),
            addresses: &self.addresses,
            gateways: &self.gateways,
            policy: self.policy,
        }
    }
}

/// Has the undo remove the rules of an attachment whose link is still to be made: so they go after the link, and nobody
/// brings them back for its sake. A link that stays is somebody else's, and so are the rules.
pub(crate) fn remove_after_link<'a>(settings: &Settings, identity: &'a Identity, undo: &mut Undo<'a>) {
    if policy(settings).needs_rules() {
        undo.push("remove the rules", move || {
            let mut host = Netlink::open().map_err(Error::internal)?;
            remove_of_gone(&mut Rules::open().map_err(failed)?, &mut host, std::slice::from_ref(identity))
        });
    }
}

/// Brings in the rules of an attachment; [`remove_after_link`] has seen to how they go.
pub(crate) fn install<'a>(
    host: &mut Netlink,
    bridge: &Link,
    settings: &Settings,
    identity: &'a Identity,
    plan: &Plan,
    mac: Mac,
    undo: &mut Undo<'a>,
) -> Result<(), Error> {
    let mut subject = Subject::new(settings, identity, plan, mac);
    if settings.masquerade == Some(MasqueradeBackend::Iptables) {
        undo.push("remove the iptables rules", move || iptables::remove(identity.jumps()));
        iptables::install(identity.jumps(), &subject.addresses)?;
    }
    if !subject.policy.needs_rules() {
        return Ok(());
    }
    let mut rules = Rules::open().map_err(failed)?;
    let installed = match rules.install(&[subject.attached()]) {
        Err(error) if subject.policy.ra_guard => {
            // The guard is a bonus that nobody asked for, and not every kernel can filter on a bridge.
            log::warn!("router advertisements are not guarded against: {error}");
            subject.policy.ra_guard = false;
            match subject.policy.needs_rules() {
                true => rules.install(&[subject.attached()]).map_err(failed)?,
                false => Installed::Joined,
            }
        }
        installed => installed.map_err(failed)?,
    };
    if installed == Installed::Anew
        && let Err(error) = restore_others(&mut rules, host, bridge, &subject)
    {
        log::warn!("restore the rules of the other attachments: {error}");
    }
    if settings.is_gateway() {
        tell_foreign_drops(&mut rules, &subject.gateway_link);
    }
    Ok(())
}

/// Gives the other attachments to the network their rules back: somebody may have flushed the ruleset since.
fn restore_others(rules: &mut Rules, host: &mut Netlink, bridge: &Link, like: &Subject) -> Result<(), Error> {
    let unread = |failure: Failure| Error::internal(failure).context("read the bridge's ports");
    let ports = host.ports(bridge.index).map_err(unread)?;
    let network = like.identity.network();
    let found = survey::attachments(host, ports).map_err(unread)?;
    let others = found
        .into_iter()
        .filter(|found| found.identity.network() == network && found.identity != like.identity);
    let others: Vec<Subject> = others.filter_map(|found| like.applied_to(found)).collect();
    let identities: Vec<Identity> = others.iter().map(|other| other.identity().clone()).collect();
    repair(rules, others)?;
    remove_of_gone(rules, host, &identities)
}

/// Removes the rules of those whose host veth is gone: a DEL that a repair meets removes rules before the link, and
/// again after it, so whichever of the two comes last leaves nothing over.
pub(crate) fn remove_of_gone(
    rules: &mut Rules,
    host: &mut Netlink,
    identities: &[Identity],
) -> Result<(), Error> {
    for identity in identities {
        let link = host.link_by_name(identity.host_veth()).map_err(Error::internal)?;
        if !link.is_some_and(|link| veth::is_of(&link, identity)) {
            rules.remove_again(&identity.owner()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Mends the rules of attachments in one transaction; says what was wrong.
pub(crate) fn repair(rules: &mut Rules, subjects: Vec<Subject>) -> Result<Vec<String>, Error> {
    let attached: Vec<Attached<'_>> = subjects.iter().map(Subject::attached).collect();
    match attached.is_empty() {
        true => Ok(Vec::new()),
        false => rules.repair(&attached).map_err(failed),
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
    match rules.foreign_drops(gateway_link) {
        Ok(drops) => {
            for drop in drops {
                log::warn!(
                    "forwarded packets of {gateway_link} are dropped by {}: {}",
                    drop.chain,
                    drop.reason
                );
            }
        }
        Err(error) => log::warn!("look for rules that drop what is forwarded: {error}"),
    }
}

/// Removes the rules of an owner.
///
/// Closing what is returned waits until the kernel has destroyed them; to delete a link in between covers that.
pub(crate) fn remove(owner: &Owner<'_>) -> Result<Rules, Error> {
    Rules::open().and_then(|mut rules| rules.remove(owner).map(|()| rules)).map_err(failed)
}

/// Removes the rules of an owner whose link is gone, so that nobody brings them back any more.
pub(crate) fn remove_again(rules: &mut Rules, owner: &Owner<'_>) -> Result<(), Error> {
    rules.remove_again(owner).map_err(failed)
}

/// Each difference between the rules of an attachment and the kernel's, in words.
pub(crate) fn verify(
    settings: &Settings,
    identity: &Identity,
    plan: &Plan,
    mac: Mac,
) -> Result<Vec<String>, Error> {
    let subject = Subject::new(settings, identity, plan, mac);
    let mut differences = match subject.policy.needs_rules() {
        true => Rules::open().and_then(|mut rules| rules.verify(&subject.attached())).map_err(failed)?,
        false => Vec::new(),
    };
    if settings.masquerade == Some(MasqueradeBackend::Iptables) {
        differences.extend(iptables::verify(identity.jumps(), &subject.addresses)?);
    }
    Ok(differences)
}

/// Removes the rules of the network's attachments, but of those whose host veth `keep` wants.
pub(crate) fn collect(network: &str, mut keep: impl FnMut(&str) -> Result<bool, Error>) -> Result<(), Error> {
    let mut rules = Rules::open().map_err(failed)?;
    for record in rules.records().map_err(failed)? {
        if record.network != network || keep(&record.host_veth)? {
            continue;
        }
        let attachment = Attachment::new(&record.container_id, &record.ifname)?;
        let owner = Owner { network, attachment: &attachment, host_veth: &record.host_veth };
        rules.remove(&owner).map_err(failed)?;
    }
    Ok(())
}

/// Whether the rules that the settings ask for could be written.
pub(crate) fn probe(settings: &Settings) -> Result<(), Error> {
    let Policy { masquerade, ingress, ra_guard: _, mac_spoof_check } = policy(settings);
    if masquerade || mac_spoof_check || ingress != IngressPolicy::Open {
        Rules::open().and_then(|mut rules| rules.probe()).map_err(failed)?;
    }
    require_programs(settings)
}

fn failed(error: nft::Error) -> Error {
    Error::new(ErrorCode::INTERNAL, error.to_string())
}
