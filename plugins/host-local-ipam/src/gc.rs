//! GC: releases what no valid attachment holds.

use cni_types::{Attachment, Error, NetworkCall};

use crate::config;
use crate::store::{DiskStore, Era, Holder, LeaseFile};

pub(crate) fn gc(call: &NetworkCall) -> Result<(), Error> {
    let valid = call.conf().valid_attachments()?;
    let Some(mut store) = DiskStore::open_existing(&config::place_of(call))? else { return Ok(()) };
    log::debug!("locked the leases of the network");
    let collected = store
        .leases()
        .and_then(|leases| store.remove(leases.iter().filter(|lease| is_garbage(lease, valid.as_deref()))));
    let unfinished = store.remove_unfinished();
    store.finish();
    collected?;
    unfinished?;
    log::debug!("released what no valid attachment holds");
    Ok(())
}

/// A runtime that does not say which attachments are valid has not said that none are: then only what is provably dead
/// goes, which is a lease of an earlier boot, and a file that a kill left without a holder. Files whose names are no
/// addresses are none of ours.
fn is_garbage(lease: &LeaseFile, valid: Option<&[Attachment]>) -> bool {
    if lease.address.is_none() {
        return false;
    }
    match (&lease.holder, valid) {
        (None, _) => lease.modified.is_some(),
        (Some(holder), Some(valid)) => !valid.iter().any(|attachment| is_of(holder, attachment)),
        (Some(_), None) => lease.era == Era::EarlierBoot,
    }
}

fn is_of(holder: &Holder, attachment: &Attachment) -> bool {
    match holder {
        Holder::Attachment(theirs) => theirs == attachment,
        Holder::Container(id) => id == attachment.container_id(),
    }
}
