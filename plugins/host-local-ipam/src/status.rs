//! STATUS: whether ADD would find an address in each range set and could write it down. Changes nothing.

use cni_types::{Error, ErrorCode, NetworkCall};

use crate::config::Settings;
use crate::range_set::RangeSet;
use crate::span::Span;
use crate::store::{DiskStore, Store as _, StoreError, require_writable};

pub(crate) fn status(call: &NetworkCall) -> Result<(), Error> {
    let settings = Settings::read(call.conf())?;
    let network = settings.place.network();
    let cannot_be_kept = |error: StoreError| {
        Error::new(ErrorCode::NOT_AVAILABLE, format!("network {network}: leases cannot be kept: {error}"))
    };
    require_writable(&settings.place).map_err(cannot_be_kept)?;
    log::debug!("leases can be kept");
    let mut store = DiskStore::open_existing(&settings.place).map_err(cannot_be_kept)?;
    for (index, set) in settings.sets.iter().enumerate() {
        if !has_room(store.as_mut(), set).map_err(cannot_be_kept)? {
            return Err(Error::new(
                ErrorCode::NOT_AVAILABLE,
                format!(
                    "network {network}: range set {index} is full: no IP addresses available in range set: {set}"
                ),
            ));
        }
        log::debug!("range set {index} has room");
    }
    Ok(())
}

/// Where there are no leases yet, there is no store.
fn has_room(store: Option<&mut DiskStore>, set: &RangeSet) -> Result<bool, StoreError> {
    let spans: Vec<Span> = set.leasable().collect();
    let Some(store) = store else { return Ok(!spans.is_empty()) };
    for span in &spans {
        if store.first_free(*span)?.is_some() {
            return Ok(true);
        }
    }
    store.has_reclaimable(&spans)
}
