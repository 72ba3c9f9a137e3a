//! Records: what one attachment has to be answered with. [`disk`] keeps one file for each.
//!
//! The types here are plain values; nothing in this module opens a file.

pub mod disk;
pub(crate) mod watch;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use cni_types::{Attachment, BootId, Error, ErrorCode, is_identifier};
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::domain_name::DomainName;

/// What identifies an attachment on this host: network, container id, ifname, each well-formed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "WrittenKey", into = "WrittenKey")]
pub struct RecordKey {
    network: String,
    attachment: Attachment,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenKey {
    network: String,
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl RecordKey {
    /// The attachment of a container to `network`.
    ///
    /// # Errors
    /// Code 7 for a network name that the spec does not allow.
    pub fn new(network: &str, attachment: Attachment) -> Result<Self, Error> {
        if !is_identifier(network) {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "invalid characters found in network name")
                .with_details(network));
        }
        Ok(Self { network: network.to_owned(), attachment })
    }

    /// The network's name.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The runtime's name for the container.
    pub fn container_id(&self) -> &str {
        self.attachment.container_id()
    }

    /// The interface inside the container.
    pub fn ifname(&self) -> &str {
        self.attachment.ifname()
    }

    /// Container id and ifname.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

/// Nanoseconds since this host booted.
pub(crate) fn since_boot() -> u64 {
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    // Enough for 584 years.
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl TryFrom<WrittenKey> for RecordKey {
    type Error = Error;

    fn try_from(written: WrittenKey) -> Result<Self, Error> {
        Self::new(&written.network, Attachment::new(&written.container_id, &written.ifname)?)
    }
}

impl From<RecordKey> for WrittenKey {
    fn from(key: RecordKey) -> Self {
        Self {
            container_id: key.container_id().to_owned(),
            ifname: key.ifname().to_owned(),
            network: key.network,
        }
    }
}

/// Everything that the server has to know about one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Whose record it is.
    #[serde(flatten)]
    pub key: RecordKey,
    /// The boot in which the attachment was made, if the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootId>,
    /// When the attachment was made: nanoseconds since this host booted. A container that joined several networks is
    /// answered from the one that it joined first.
    pub joined: u64,
    /// The bridge device that the container's queries come in by.
    pub bridge: String,
    /// The network's gateway addresses, each with the prefix of its subnet. The server listens on them.
    pub gateways: Vec<IpNetwork>,
    /// The container's addresses on this network.
    pub addresses: Vec<IpAddr>,
    /// The container's names, most important first: the first one is what its address is reversed to.
    pub names: Vec<DomainName>,
    /// Names that only this container sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// The domain that the names stand in, and that an address is reversed into.
    pub domain: DomainName,
    /// Other domains that the same names stand in: the network's name where `domain` is another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_domains: Vec<DomainName>,
    /// How long an answer may be kept, in seconds.
    pub ttl: u32,
    /// Whether names of elsewhere are asked for elsewhere.
    pub forward: bool,
    /// Where they are asked for; empty means the host's own name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<SocketAddr>,
    /// The container's namespace, if it could be seen at ADD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsRef>,
}

impl Record {
    /// Whether it was provably made before this host was started last.
    pub(crate) fn is_of_earlier_boot(&self) -> bool {
        self.boot.is_some_and(BootId::is_over)
    }
}

/// A private name: the container that has it finds `target`, whatever its address is by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// A name of another container on the same network.
    pub target: DomainName,
    /// What the linking container calls it.
    pub alias: DomainName,
}

/// A network namespace as it was at ADD, kept to tell later whether it is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetnsRef {
    /// The path that the runtime gave.
    pub path: PathBuf,
    /// Its inode then; inodes of living namespaces are unique on a host.
    pub inode: u64,
    /// The mount namespace in which that path was seen, by its inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_from: Option<u64>,
    /// The index of the host's device that led there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<u32>,
}
