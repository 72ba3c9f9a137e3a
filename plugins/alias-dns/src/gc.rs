//! GC: removes the records of the network that belong to no valid attachment; without a list of these, the ones whose
//! container is provably dead.

use std::collections::HashSet;

use cni_types::{Attachment, Error, Failures, NetworkCall};

use crate::host::{Host, Withdrawn};
use crate::records::RecordKey;
use crate::records::disk::Store;

pub(crate) fn gc(host: &impl Host, call: &NetworkCall) -> Result<(), Error> {
    let state = host.state(call.env())?;
    let store = Store::new(&state);
    let mut failures = Failures::default();
    let removed = match call.conf().valid_attachments()? {
        Some(valid) => {
            let stale = without_attachment(&store, call.conf().name(), valid);
            log::debug!("{} records belong to no valid attachment", stale.len());
            store.remove_each(stale, &mut failures)
        }
        None => store.remove_dead(dead(&store, call.conf().name()), &mut failures),
    };
    // Where nothing was to be removed, an earlier server may still have left something, or its records.
    let told = if removed.is_empty() { Ok(Withdrawn::FromNobody) } else { host.withdraw(&state, &removed) };
    let tended = told.and_then(|withdrawn| match withdrawn {
        Withdrawn::FromServer => Ok(()),
        Withdrawn::FromNobody => host.tend(&state),
    });
    if let Err(error) = tended {
        log::warn!("network {}: {error}", call.conf().name());
    }
    log::debug!("{} records removed", removed.len());
    failures.into_result()
}

/// By the names of the files, so that also those go that cannot be read.
fn without_attachment(store: &Store, network: &str, valid: Vec<Attachment>) -> Vec<RecordKey> {
    let valid: HashSet<Attachment> = valid.into_iter().collect();
    store.keys(network).into_iter().filter(|key| !valid.contains(key.attachment())).collect()
}

fn dead(store: &Store, network: &str) -> Vec<RecordKey> {
    let loaded = store.load_network(network);
    for unreadable in &loaded.unreadable {
        log::warn!("passed over {unreadable}");
    }
    loaded.records.into_iter().filter(|record| record.is_dead()).map(|record| record.key).collect()
}
