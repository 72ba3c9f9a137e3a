//! DEL: the record off the disk, then out of the server. By network, container id and ifname alone: what the
//! configuration says by then, and whether the container still exists, does not matter.

use cni_types::{DelCall, Error};

use crate::host::{Host, Withdrawn};
use crate::records::RecordKey;
use crate::records::disk::Store;

pub(crate) fn del(host: &impl Host, call: &DelCall) -> Result<(), Error> {
    let key = RecordKey::new(call.conf().name(), call.attachment().clone())?;
    let state = host.state(call.env())?;
    let store = Store::new(&state);
    let path = store.path(&key);
    let removed =
        store.remove(&key).map_err(|error| Error::io(format!("remove {}", path.display()), &error))?;
    log::debug!("{} {}", path.display(), if removed { "removed" } else { "was not there" });
    // Told even when there was no record: an earlier DEL may have died between the two steps. A server that does not
    // answer will see for itself that the file is gone.
    let told = match host.withdraw(&state, &[key]) {
        Ok(Withdrawn::FromServer) => Ok(()),
        Ok(Withdrawn::FromNobody) => host.tend(&state),
        Err(error) => Err(error),
    };
    match told {
        Ok(()) => log::debug!("no server has a record of it"),
        Err(error) => log::warn!("network {}: {error}", call.conf().name()),
    }
    Ok(())
}
