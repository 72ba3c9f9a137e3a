//! Clearing away what a server leaves that has ended: the host's rules, and a state directory without records.
//!
//! Nothing is touched while a server lives or may be coming: whoever clears holds the lock of those who open something
//! and the server's own. Needs the rights of a plugin.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Result};
use std::path::Path;
use std::time::{Duration, Instant};

use super::client::OPENING_LOCK;
use super::gateway;
use super::lock_file::LockFile;
use super::seqpacket;
use super::worker::{CONTROL_SOCKET, LOCK_FILE};
use crate::records::disk::Store;
use crate::state_dir::StateDir;

/// How long a server is waited for that may be on its way out: the kernel closes one after another what a killed
/// process had.
const GOING: Duration = Duration::from_millis(100);

/// What is in a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing that anybody needs.
    Nothing,
    /// Records, and no server.
    Records,
    /// A server, or somebody who is starting one.
    Server,
}

/// Clears `state` away, provided that there is neither a server nor a record. Others are waited for until `deadline`.
///
/// # Errors
/// The operating system's. What it was about then stays, and the next call tries again.
pub(crate) fn clear(state: &StateDir, deadline: Instant) -> Result<Left> {
    let Some((_opening, _server)) = (match take_both(state.path(), deadline) {
        // Removed by hand, perhaps with a server's rules still there.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            sweep_rules();
            return Ok(Left::Nothing);
        }
        taken => taken?,
    }) else {
        return Ok(Left::Server);
    };
    let store = Store::new(state);
    if store.has_records() {
        return Ok(Left::Records);
    }
    sweep_rules();
    match store.remove_if_empty() {
        Ok(()) => remove_own(state)?,
        // What nobody can read is for a person to see; a file that is not finished goes with its DEL.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
        Err(error) => return Err(error),
    }
    Ok(Left::Nothing)
}

/// Removes the directories of other host network namespaces where no server lives and every container is provably
/// dead: those of hosts that were containers themselves, and ended without a DEL.
pub(crate) fn forget_dead_namespaces(state: &StateDir) {
    for other in state.others() {
        if let Err(error) = forget_if_dead(&other) {
            log::debug!("{}: {error}", other.path().display());
        }
    }
}

fn forget_if_dead(other: &StateDir) -> Result<()> {
    // Looked at first: a directory that is in use is not touched, not even by a lock for a moment.
    if fs::metadata(other.path().join(LOCK_FILE)).is_err() {
        return Ok(());
    }
    let Some((_opening, _server)) = take_both(other.path(), Instant::now())? else { return Ok(()) };
    let store = Store::new(other);
    let loaded = store.load();
    if loaded.unreadable.is_empty() && loaded.records.iter().all(|record| record.is_dead_elsewhere()) {
        store.remove_all().map_err(io::Error::other)?;
        remove_own(other)?;
    }
    Ok(())
}

/// The lock of those who open something, and the server's; `None` when one of them is held.
fn take_both(directory: &Path, deadline: Instant) -> Result<Option<(LockFile, LockFile)>> {
    let Some(opening) = LockFile::take_until(&directory.join(OPENING_LOCK), deadline)? else {
        return Ok(None);
    };
    let server = LockFile::take_until(&directory.join(LOCK_FILE), deadline.min(Instant::now() + GOING))?;
    Ok(server.map(|server| (opening, server)))
}

/// Few hosts have any, and what cannot be removed now is tried again by the next server.
fn sweep_rules() {
    if let Err(error) = gateway::sweep(&BTreeSet::new()) {
        log::warn!("take the rules of the DNS server back: {error}");
    }
}

/// Removes the server's own files and then the directories, whose locks are held.
fn remove_own(state: &StateDir) -> Result<()> {
    let control = state.path().join(CONTROL_SOCKET);
    for path in [
        &seqpacket::aside(&control),
        &control,
        &state.path().join(LOCK_FILE),
        &state.path().join(OPENING_LOCK),
    ] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // A record that has just been written keeps its directory, and one of another namespace the one above.
    let directories = std::iter::once(state.path()).chain(state.base());
    directories.map(fs::remove_dir).take_while(Result::is_ok).for_each(drop);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{NetnsRef, Record};

    /// The state of a namespace where a server has been, and a record of `netns`.
    fn left(base: &Path, name: &str, netns: &str) -> StateDir {
        let state = StateDir::at(base.join(name));
        let record: Record = serde_json::from_value(serde_json::json!({
            "network": "testnet", "containerID": "c1", "ifname": "eth0", "joined": 1, "bridge": "br0",
            "gateways": ["172.20.0.1/16"], "addresses": ["172.20.0.2"], "names": ["c1"], "domain": "testnet",
            "ttl": 5, "forward": true, "netns": { "path": netns, "inode": 1, "seenFrom": NetnsRef::of_nobody().seen_from },
        }))
        .unwrap();
        Store::new(&state).write(&record).unwrap();
        fs::write(state.path().join(LOCK_FILE), "").unwrap();
        state
    }

    #[test]
    fn only_a_namespace_whose_containers_are_all_provably_dead_is_forgotten() {
        let base = tempfile::tempdir().unwrap();
        let gone = "/run/netns/of nobody";
        let own = left(base.path(), "own", gone);
        let dead = left(base.path(), "dead", gone);
        // What is no namespace proves nothing.
        let alive = left(base.path(), "alive", base.path().to_str().unwrap());
        let unreadable = left(base.path(), "unreadable", gone);
        fs::write(unreadable.records().join("testnet/c2:eth0"), "{").unwrap();
        let served = left(base.path(), "served", gone);
        let lock = LockFile::try_take(&served.path().join(LOCK_FILE)).unwrap();
        forget_dead_namespaces(&own);
        let left = [&own, &dead, &alive, &unreadable, &served].map(|state| state.path().exists());
        assert_eq!(left, [true, false, true, true, true]);
        drop(lock);
    }
}
