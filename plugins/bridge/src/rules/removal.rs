//! The way out: what goes with an attachment, and what nobody is left to need.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_types::{Error, Failures};

use super::guard::{remove_before_link, remove_unneeded};
use super::subject::Subject;
use super::{failed, iptables_comments};
use crate::attachment::Identity;
use crate::iptables::{self, Told};
use crate::names;
use crate::netlink::Netlink;
use crate::nft::{self, Departed, Owner, Record, Removed, Rules};
use crate::survey;
use crate::veth;
use crate::xtables;

/// The rules of an attachment on their way out, while its link is removed.
///
/// Closing this waits until the kernel has destroyed them; to delete a link in between covers that.
#[derive(Debug)]
pub(crate) struct Removal<'a> {
    rules: Rules,
    owner: Owner<'a>,
    departed: Departed,
}

/// Removes the rules of an owner; [`Removal::complete`] has to follow when its link is gone.
pub(crate) fn remove(owner: Owner<'_>) -> Result<Removal<'_>, Error> {
    let mut rules = Rules::open().map_err(failed)?;
    let departed = rules.remove(&owner).map_err(failed)?;
    remove_before_link(&mut rules, owner.host_veth)?;
    Ok(Removal { rules, owner, departed })
}

impl Removal<'_> {
    /// Whether the attachment had rules until now.
    pub(crate) fn found_any(&self) -> bool {
        self.departed.removed != Removed::Nothing
    }

    /// Those of the attachment's addresses that its rules tell of.
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.departed.addresses
    }

    /// Has the host forget the flows of the attachment, which had these addresses: they would go on to whoever is given
    /// one next.
    pub(crate) fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        forget_flows_by(&mut self.rules, addresses)
    }

    /// Removes what a repair has brought back as long as there was a link, and what the network has left in the chains
    /// of others if its record is lost.
    pub(crate) fn complete(mut self) -> Result<(), Error> {
        let again = self.rules.remove_again(&self.owner).map_err(failed)?;
        let removed = self.departed.removed;
        for removed in [removed, again] {
            forget_accepted(&mut self.rules, removed, self.owner.network)?;
        }
        // DELs of others, and a repair, may have seen the port of this one.
        remove_unneeded(&mut self.rules)?;
        match removed {
            Removed::Nothing => {
                let mut host = Netlink::open().map_err(Error::internal)?;
                remove_orphans(&mut self.rules, &mut host)
            }
            Removed::Rules | Removed::LastAccepted => Ok(()),
        }
    }
}

/// Removes the rules that a killed ADD has left to an owner whose link stays.
pub(crate) fn remove_stale(owner: &Owner<'_>) -> Result<(), Error> {
    Rules::open().and_then(|mut rules| rules.remove(owner)).map(drop).map_err(failed)
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
            forget_accepted(rules, removed, identity.owner().network)?;
        }
    }
    Ok(())
}

pub(super) fn is_gone(host: &mut Netlink, identity: &Identity) -> Result<bool, Error> {
    let link = host.link_by_name(identity.host_veth()).map_err(Error::internal)?;
    Ok(!link.is_some_and(|link| veth::is_of(&link, identity)))
}

/// Removes the rules of the network's attachments, but of those that `keep` wants.
pub(crate) fn collect(
    host: &mut Netlink,
    network: &str,
    keep: impl Fn(&mut Netlink, &Record) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut rules = Rules::open().map_err(failed)?;
    let mut failures = Failures::default();
    for record in rules.records().map_err(failed)? {
        if record.network != names::network(network) || keep(host, &record)? {
            continue;
        }
        let departed = rules.remove_recorded(&record).map_err(failed)?;
        // The record is gone, so no later GC would come this way for the others.
        failures.note(forget(&mut rules, network, &departed));
    }
    remove_unneeded(&mut rules)?;
    remove_orphans(&mut rules, host)?;
    failures.into_result()
}

/// Removes masquerade rules through iptables of attachments to `network`, or to any, that have no link any more; says
/// whose: network, container id and interface. Nothing is started where there are none.
pub(crate) fn collect_iptables(
    host: &mut Netlink,
    network: Option<&str>,
) -> Result<BTreeSet<[String; 3]>, Error> {
    let comments = iptables_comments(&mut Rules::open().map_err(failed)?)?;
    // Afterwards: an ADD makes the link before the rules, so whose rules have been seen has one by now, or none any more.
    let links = host.links().map_err(Error::internal)?;
    let alive: Vec<Identity> = survey::identities(&links).collect();
    let gone: BTreeSet<Told<'_>> = comments
        .iter()
        .filter(|comment| network.is_none_or(|network| iptables::is_of_network(comment, network)))
        .filter_map(|comment| Told::by(comment))
        .filter(|told| !alive.iter().any(|identity| told.is(identity.jumps())))
        .collect();
    if !gone.is_empty() {
        iptables::remove_gone(|told| gone.contains(told))?;
    }
    let words = |told: Told<'_>| [told.network, told.container_id, told.ifname].map(str::to_owned);
    Ok(gone.into_iter().map(words).collect())
}

/// Has the host forget what it keeps elsewhere for an attachment to `network` that has lost its rules.
pub(crate) fn forget(rules: &mut Rules, network: &str, departed: &Departed) -> Result<(), Error> {
    let Departed { removed, addresses } = departed;
    forget_accepted(rules, *removed, network)?;
    forget_flows_by(rules, addresses)
}

/// Removes from the chains of others what networks have left there that nobody is attached to.
pub(crate) fn remove_orphans(rules: &mut Rules, host: &mut Netlink) -> Result<(), Error> {
    let mut networks = || host.links().map(|links| survey::networks(&links)).map_err(Error::internal);
    if rules.has_orphans().map_err(failed)? {
        rules.remove_orphans(&networks()?).map_err(failed)?;
    }
    xtables::remove(nft::is_accept_comment, || {
        Ok(networks()?.iter().map(|network| nft::accept_comment(network)).collect())
    })
}

/// Removes what lets these attachments' networks through the chains that nf_tables does not show, where they ask for it
/// no more. Before the record goes that a DEL would know it by.
pub(super) fn forget_unwished<'a>(subjects: impl IntoIterator<Item = &'a Subject>) -> Result<(), Error> {
    let without = subjects.into_iter().filter(|subject| !subject.policy.accept_forward);
    let comments: BTreeSet<String> =
        without.map(|subject| nft::accept_comment(&subject.identity.network())).collect();
    xtables::remove(|comment| comments.contains(comment), || Ok(BTreeSet::new()))
}

/// Has the host forget the flows of containers which are gone, by their addresses.
pub(crate) fn forget_flows(addresses: &[IpAddr]) -> Result<(), Error> {
    match addresses {
        [] => Ok(()),
        _ => forget_flows_by(&mut Rules::open().map_err(failed)?, addresses),
    }
}

fn forget_flows_by(rules: &mut Rules, addresses: &[IpAddr]) -> Result<(), Error> {
    rules.forget_flows(addresses).map_err(|error| failed(error).context("forget flows"))
}

/// Removes what lets a network through the chains that nf_tables does not show, if nobody is left who needs it, nor has
/// come since.
fn forget_accepted(rules: &mut Rules, removed: Removed, network: &str) -> Result<(), Error> {
    if removed != Removed::LastAccepted {
        return Ok(());
    }
    let comment = nft::accept_comment(network);
    xtables::remove(
        |found| found == comment,
        || {
            let is_needed = rules.is_accepted(network).map_err(failed)?;
            Ok(is_needed.then(|| comment.clone()).into_iter().collect())
        },
    )
}
