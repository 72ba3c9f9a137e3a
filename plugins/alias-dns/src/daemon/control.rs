//! What plugins, and a person's commands, say to the server and get back: one JSON document a message, over the control
//! socket, which is its owner's alone. A message is no longer than the kernel keeps for a socket, so that an answer
//! without a bound goes into a file, which the client has attached to its question.
//!
//! Both sides may be of different builds: unknown keys are passed over, and a question that the server does not know
//! gets an error, never silence.

use std::cmp::Ordering;
use std::io::Result;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use crate::forward::Health;
use crate::records::RecordKey;
use crate::serve::Counters;
use crate::zone::Listener;

/// The longest message that a server takes: a container id may have as many characters as a variable of the environment
/// (128 KiB).
pub(crate) const MAX_ASKED: usize = 160 << 10;

/// The longest message that a client takes. What grows with the host is written into a file that the client brings.
pub(crate) const MAX_TOLD: usize = 192 << 10;

/// Octets of the keys in one message at most, beyond the first one.
const MAX_KEYS: usize = 16 << 10;

/// Octets of a key in a message beside those that differ.
const KEY_ROOM: usize = 64;

/// Which binary somebody runs: the version, and of two with the same version the one that was written later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Build {
    /// As in the package.
    pub version: String,
    /// When the file was written: nanoseconds since 1970.
    pub written: i64,
}

impl Build {
    /// This process' own.
    pub(crate) fn own() -> Self {
        let written = std::fs::metadata("/proc/self/exe")
            .map(|file| file.mtime().saturating_mul(1_000_000_000).saturating_add(file.mtime_nsec()))
            .unwrap_or_default();
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), written }
    }

    /// Whether a server of `other` should make room for this one.
    pub(crate) fn supersedes(&self, other: &Self) -> bool {
        let numbers = |build: &Self| -> Vec<u64> {
            build.version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
        };
        match numbers(self).cmp(&numbers(other)) {
            Ordering::Equal => self.written > other.written,
            order => order.is_gt(),
        }
    }
}

/// A listener, and the index of its bridge now. A bridge that was made anew has another index, and sockets that were
/// bound to the old one hear nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Wanted {
    pub(crate) bridge: String,
    pub(crate) gateway: IpAddr,
    pub(crate) ifindex: u32,
}

impl Wanted {
    pub(crate) fn new(listener: &Listener, ifindex: u32) -> Self {
        Self { bridge: listener.bridge.clone(), gateway: listener.gateway, ifindex }
    }

    pub(crate) fn listener(&self) -> Listener {
        Listener { bridge: self.bridge.clone(), gateway: self.gateway }
    }
}

/// What is said to the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Asked {
    /// Answer by the record of `key`, which is on disk, from these listeners.
    Apply { key: RecordKey, wanted: Vec<Wanted> },
    /// Look at the records of these keys again: they are gone.
    Remove { keys: Vec<RecordKey> },
    /// Is the record of `key` answered by?
    Contains { key: RecordKey },
    /// Serve this listener, by the two attached sockets at `port`.
    Listen { wanted: Wanted, port: u16 },
    /// What would be answered? With a file for the answer.
    Query { name: String, rtype: String, source: Option<IpAddr> },
    /// The other end of the attached channel is your guard.
    Guard,
    /// Are you there?
    Hello,
    /// How does it go? With a file for the answer.
    Status,
    /// Give me all that you keep, and take no other client until I am gone or say [`Retire`](Self::Retire).
    HandOver,
    /// Another server has everything: leave.
    Retire,
}

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Told {
    /// To [`Asked::Apply`].
    Applied(Applied),
    /// To [`Asked::Remove`].
    Removed {
        /// Listeners that no record needs any more, so that they were closed.
        closed: Vec<Wanted>,
        /// Whether there are others, to be asked for once more.
        #[serde(default)]
        more: bool,
        /// Whether nobody would clear away what this server leaves; one of an earlier build does not tell.
        #[serde(default)]
        unguarded: bool,
    },
    /// Done.
    Done,
    /// To [`Asked::Contains`].
    Contains(bool),
    /// What would stand here is in the file that came with the question.
    Written,
    /// To [`Asked::Query`].
    Explained(Vec<Explained>),
    /// To [`Asked::Status`].
    Status(Box<Status>),
    /// To [`Asked::HandOver`], once for each label, with the descriptors.
    Kept(String),
    /// It could not be done.
    Failed(String),
}

/// A listener that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Open {
    pub(crate) wanted: Wanted,
    pub(crate) port: u16,
}

/// The server answers by a record.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Applied {
    /// Records that the new one shares an address or a name with, a few of many.
    #[serde(rename = "displaced")]
    pub(crate) rivals: Vec<RecordKey>,
    /// Listeners that have to be opened still.
    pub(crate) missing: Vec<Wanted>,
    /// The others that were asked for; a server of an earlier build does not tell.
    #[serde(default)]
    pub(crate) open: Vec<Open>,
    /// The server's build.
    pub(crate) build: Build,
    /// Whether somebody would start another server if this one were killed.
    #[serde(default)]
    pub(crate) guarded: bool,
}

/// What somebody would be answered, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The bridge that the question comes in by.
    pub bridge: String,
    /// Who asks.
    pub source: IpAddr,
    /// `NOERROR`, `NXDOMAIN`, `REFUSED`, or `FORWARD` for what is asked elsewhere.
    pub rcode: String,
    /// The data of the answer, one text a record.
    pub answer: Vec<String>,
    /// In words.
    pub reason: String,
}

/// How the server does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Which binary it runs.
    pub build: Build,
    /// Its process id.
    pub pid: u32,
    /// Seconds since this worker started.
    pub uptime: u64,
    /// Whether a supervisor would start another worker.
    pub supervised: bool,
    /// Whether a guard would start another server.
    pub guarded: bool,
    /// The user that packets are parsed as.
    pub uid: u32,
    /// Why some right could not be given up; empty when all were.
    pub unconfined: String,
    /// Attachments answered by.
    pub records: usize,
    /// Files that were passed over when they were last looked at; of very many the first, and how many more.
    pub unreadable: Vec<String>,
    /// The networks, with their attachments.
    pub networks: Vec<NetworkStatus>,
    /// Where queries are taken.
    pub listeners: Vec<ListenerStatus>,
    /// Queries so far.
    pub queries: Counters,
    /// Questions that are being asked upstream.
    pub in_flight: usize,
    /// Upstream answers that are kept.
    pub cached: usize,
    /// Clients' TCP connections.
    pub connections: usize,
    /// The host's own name servers.
    pub host_servers: Vec<SocketAddr>,
    /// Every server that was asked.
    pub upstreams: Vec<UpstreamStatus>,
}

/// A network of [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// Its attachments.
    pub records: usize,
}

/// A listener of [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The bridge.
    pub bridge: String,
    /// The gateway address.
    pub gateway: IpAddr,
    /// The port; `None` when nothing is open there, though records want it.
    pub port: Option<u16>,
    /// The index that the bridge had when the port was opened; a server of an earlier build does not tell.
    #[serde(default)]
    pub ifindex: Option<u32>,
}

/// An upstream server of [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its address.
    pub server: SocketAddr,
    /// How it does.
    #[serde(flatten)]
    pub health: Health,
}

/// `keys` in portions that fit into a message each.
pub(crate) fn portions(keys: &[RecordKey]) -> impl Iterator<Item = &[RecordKey]> {
    let mut size = 0;
    keys.chunk_by(move |_, next| {
        size += KEY_ROOM + next.network().len() + next.container_id().len() + next.ifname().len();
        let fits = size <= MAX_KEYS;
        if !fits {
            size = 0;
        }
        fits
    })
}

/// `message` as it goes over the socket.
pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

/// The message in `octets`.
pub(crate) fn decode<'m, T: Deserialize<'m>>(octets: &'m [u8]) -> Result<T> {
    Ok(serde_json::from_slice(octets)?)
}

#[cfg(test)]
mod tests {
    use cni_types::Attachment;

    use super::*;

    #[test]
    fn a_later_version_or_a_later_file_supersedes() {
        let build = |version: &str, written| Build { version: version.to_owned(), written };
        let old = build("0.9.1", 5);
        for (newer, supersedes) in [
            (build("0.10.0", 1), true),
            (build("0.9.1", 6), true),
            (build("0.9.1", 5), false),
            (build("0.9.0", 9), false),
            (build("1.0.0-rc1", 1), true),
            (Build::default(), false),
        ] {
            assert_eq!(newer.supersedes(&old), supersedes, "{newer:?}");
        }
        assert!(Build::own().supersedes(&Build::default()));
    }

    #[test]
    fn keys_go_in_portions_that_fit() {
        let key = |id: &str| RecordKey::new("testnet", Attachment::new(id, "eth0").unwrap()).unwrap();
        let mut keys: Vec<RecordKey> = (0..2000).map(|n| key(&format!("{n:064}"))).collect();
        keys.insert(7, key(&"a".repeat(128 << 10)));
        let portions: Vec<_> = portions(&keys).collect();
        assert!(portions.len() < 40, "{}", portions.len());
        assert_eq!(portions.concat(), keys);
        for keys in portions {
            assert!(encode(&Asked::Remove { keys: keys.to_vec() }).unwrap().len() <= MAX_ASKED);
        }
    }

    #[test]
    fn messages_survive_and_unknown_keys_are_passed_over() {
        let key = RecordKey::new("testnet", Attachment::new("c1", "eth0").unwrap()).unwrap();
        let wanted =
            vec![Wanted { bridge: "br0".into(), gateway: "172.20.0.1".parse().unwrap(), ifindex: 4 }];
        let octets = encode(&Asked::Apply { key: key.clone(), wanted: wanted.clone() }).unwrap();
        let Asked::Apply { key: back, wanted: wanted_back } = decode(&octets).unwrap() else { panic!() };
        assert_eq!((back, wanted_back), (key, wanted));
        let status: Status =
            decode(br#"{"pid":7,"later":{"key":1},"queries":{"received":3,"new":1}}"#).unwrap();
        assert_eq!((status.pid, status.queries.received), (7, 3));
        assert!(decode::<Asked>(br#"{"dance":{}}"#).is_err());
    }
}
