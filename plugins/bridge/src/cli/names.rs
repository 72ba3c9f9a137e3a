//! Names of containers, as the alias-dns plugin has recorded them on this host. Only reads, and takes the absence of a
//! record for the absence of names: there may be no alias-dns.
//!
//! Its records are at `<state>/<inode of the host's namespace>-<cookie>/records/<network>/<container id>:<ifname>`, before
//! Linux 5.14 without a cookie. It is not asked for: a record is of this host if it has an address of the attachment.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use serde::Deserialize;

use crate::attachment::Identity;
use crate::survey::FoundEnd;

/// Where alias-dns keeps its state, below `/run` or `XDG_RUNTIME_DIR`.
const STATE: &str = "cni/alias-dns";

/// What is read of a record.
#[derive(Deserialize)]
struct Record {
    names: Vec<String>,
    addresses: Vec<std::net::IpAddr>,
}

/// The names of an attachment, most important first.
pub(super) fn of(identity: &Identity, end: &FoundEnd) -> Vec<String> {
    let Ok(inode) = fs::metadata("/proc/thread-self/ns/net").map(|netns| netns.ino()) else {
        return Vec::new();
    };
    let (id, ifname) = (identity.attachment().container_id(), identity.attachment().ifname());
    let runs = [Some(PathBuf::from("/run")), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)];
    for host in runs.into_iter().flatten().filter_map(|run| fs::read_dir(run.join(STATE)).ok()).flatten() {
        let Ok(host) = host else { continue };
        if !is_named_after(&host.file_name().to_string_lossy(), inode) {
            continue;
        }
        let network = host.path().join("records").join(&*identity.network());
        let record = fs::read(network.join(format!("{id}:{ifname}"))).ok();
        if let Some(record) = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok())
            && end.addresses.iter().any(|address| record.addresses.contains(&address.ip()))
        {
            return record.names;
        }
    }
    Vec::new()
}

/// Whether `state` is the name of a directory for the network namespace that has this inode.
fn is_named_after(state: &str, inode: u64) -> bool {
    state.split('-').next() == Some(&*inode.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_directory_with_a_cookie_and_without() {
        for (state, is_its_own) in [
            ("4026531840-1", true),
            ("4026531840", true),
            ("40265318401-1", false),
            ("402653184", false),
            ("", false),
        ] {
            assert_eq!(is_named_after(state, 4_026_531_840), is_its_own, "{state}");
        }
    }
}
