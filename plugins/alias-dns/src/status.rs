//! STATUS: whether ADD could have names served. It changes nothing, but for a server that is gone while there are
//! records: this verb is called every few seconds on a node, when no container comes or goes.

use cni_types::{Error, ErrorCode, NetworkCall};
use nix::sys::statvfs::statvfs;

use crate::config::Settings;
use crate::host::Host;
use crate::state_dir::{nearest_existing, writable};

pub(crate) fn status(host: &impl Host, call: &NetworkCall) -> Result<(), Error> {
    Settings::check_network(call)?;
    let state = host.state(call.env())?;
    let unavailable =
        |reason: String| Error::new(ErrorCode::NOT_AVAILABLE, format!("names cannot be served: {reason}"));
    if !writable(state.path()) {
        return Err(unavailable(format!("{} cannot be written", state.path().display())));
    }
    log::debug!("{} can be written", state.path().display());
    let filesystem = nearest_existing(state.path()).and_then(|directory| statvfs(directory).ok());
    // A filesystem that counts no inodes has none in all.
    let is_full = |fs: &nix::sys::statvfs::Statvfs| {
        fs.blocks_available() == 0 && fs.blocks() > 0 || fs.files_available() == 0 && fs.files() > 0
    };
    if filesystem.as_ref().is_some_and(is_full) {
        return Err(unavailable(format!("no space left for {}", state.path().display())));
    }
    host.can_listen().map_err(unavailable)?;
    log::debug!("a server can listen");
    // Not ADD's concern, but of those who have names already.
    if let Err(error) = host.tend(&state) {
        log::warn!("{error}");
    }
    Ok(())
}
