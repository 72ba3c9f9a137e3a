//! DEL: gives back whatever the attachment holds, whatever the configuration says by now.

use cni_types::{DelCall, Error};

use crate::config;
use crate::store::DiskStore;

pub(crate) fn del(call: &DelCall) -> Result<(), Error> {
    let Some(mut store) = DiskStore::open_existing(&config::place_of(call.network()))? else { return Ok(()) };
    log::debug!("locked the leases of the network");
    let released = store.release_all(call.attachment());
    store.finish();
    let released = released?;
    log::debug!("released {released} addresses");
    Ok(())
}
