//! GC: releases what no valid attachment holds.

use cni_types::{Attachment, Error, NetworkCall};

use crate::config;
use crate::store::{Content, DiskStore, Holder, LeaseFile, Life};

pub(crate) fn gc(call: &NetworkCall) -> Result<(), Error> {
    let valid = call.conf().valid_attachments()?;
    let valid = valid.as_deref().map(Valid::new);
    let Some(mut store) = DiskStore::open_existing(&config::place_of(call))? else { return Ok(()) };
    log::debug!("locked the leases of the network");
    let collected = store
        .leases()
        .and_then(|leases| store.remove(leases.iter().filter(|lease| is_garbage(lease, valid.as_ref()))));
    store.remove_unfinished();
    store.finish();
    collected?;
    log::debug!("released what no valid attachment holds");
    Ok(())
}

/// A runtime that does not say which attachments are valid has not said that none are: then only what is provably dead
/// goes, which is a lease of an earlier boot or of a namespace that is gone, and a file that a kill left without a
/// holder. Files whose names are no addresses are none of ours.
fn is_garbage(lease: &LeaseFile, valid: Option<&Valid<'_>>) -> bool {
    if lease.address.is_none() {
        return false;
    }
    match (&lease.content, valid) {
        (Content::Unreadable, _) => false,
        (Content::Nobody, _) => true,
        (Content::Holder(holder), Some(valid)) => !valid.have(holder),
        (Content::Holder(_), None) => lease.life == Life::Over,
    }
}

/// Container id and interface of the valid attachments, in order: they may be as many as the leases.
struct Valid<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Valid<'a> {
    fn new(attachments: &'a [Attachment]) -> Self {
        let mut valid: Vec<_> =
            attachments.iter().map(|attachment| (attachment.container_id(), attachment.ifname())).collect();
        valid.sort_unstable();
        Self(valid)
    }

    fn have(&self, holder: &Holder) -> bool {
        match holder {
            Holder::Attachment(theirs) => {
                self.0.binary_search(&(theirs.container_id(), theirs.ifname())).is_ok()
            }
            Holder::Container(id) => self.0.binary_search_by_key(&id.as_str(), |(valid, _)| valid).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_valid_by_both_its_names_or_by_the_only_one_it_has() {
        let attachments: Vec<Attachment> = (0..100)
            .rev()
            .flat_map(|number| ["net1", "eth0"].map(|ifname| (format!("c{number}"), ifname)))
            .map(|(id, ifname)| Attachment::new(&id, ifname).unwrap())
            .collect();
        let valid = Valid::new(&attachments);
        for attachment in &attachments {
            assert!(valid.have(&Holder::Container(attachment.container_id().to_owned())));
            assert!(valid.have(&Holder::Attachment(attachment.clone())), "{attachment:?}");
        }
        for (id, ifname) in [("c1", "eth1"), ("c", "eth0"), ("c100", "eth0"), ("C1", "eth0"), ("d", "net1")] {
            assert!(!valid.have(&Holder::Attachment(Attachment::new(id, ifname).unwrap())), "{id} {ifname}");
        }
        for id in ["c", "c100", "b", "d"] {
            assert!(!valid.have(&Holder::Container(id.to_owned())), "{id}");
        }
    }
}
