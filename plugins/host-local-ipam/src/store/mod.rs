//! Where leases are kept: the contract that the allocator works against, and what a lease says.
//!
//! [`disk`] is the store of this host, in the reference plugin's files; [`index`] is what makes it as fast with many
//! leases as with none; [`lock`] keeps every other caller out meanwhile. Nothing here knows ranges or configurations.

mod access;
mod disk;
mod files;
mod hash;
mod index;
mod lock;
mod names;
mod past;
mod scan;
mod stamp;

use std::path::{Path, PathBuf};

use cni_types::{Attachment, is_identifier};

use crate::span::{Point, Span};

pub(crate) use access::require_writable;
pub(crate) use disk::{Content, DiskStore, LeaseFile};
pub(crate) use names::StickyName;

/// Leases of one network. Whoever holds one has it to itself.
pub(crate) trait Store {
    /// The leases of `attachment`, and those that carry its container id alone: one of them may be its own.
    fn held_by(&mut self, attachment: &Attachment) -> Result<Vec<Held>, StoreError>;

    /// The lowest address of `span` that nobody holds.
    fn first_free(&mut self, span: Span) -> Result<Option<Point>, StoreError>;

    /// Leases `address` to `attachment`, unless somebody holds it.
    fn reserve(&mut self, address: Point, attachment: &Attachment) -> Result<Reservation, StoreError>;

    /// Gives `address` back, whoever holds it. A free one is no error.
    fn release(&mut self, address: Point) -> Result<(), StoreError>;

    /// Releases leases in `within` whose holders are provably dead. Tells whether an address that was not free
    /// may be so now.
    fn reclaim(&mut self, within: &[Span]) -> Result<bool, StoreError>;

    /// The address leased last from range set `set`.
    fn last_reserved(&mut self, set: usize) -> Option<Point>;

    /// Remembers `address` as the one leased last from range set `set`.
    fn set_last_reserved(&mut self, set: usize, address: Point) -> Result<(), StoreError>;
}

/// An address and whether its holder can still be alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) address: Point,
    pub(crate) life: Life,
}

/// Whether the holder of a lease can still be alive, as far as it can be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It is alive, or nobody knows.
    Possible,
    /// The host was started since, or the container's network namespace is gone.
    Over,
}

/// When a lease was made, as far as it can be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// Since the host started, or nobody knows: the holder may be alive.
    ThisBoot,
    /// Before the host started: the holder is dead.
    EarlierBoot,
}

/// What came of [`Store::reserve`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reservation {
    Made,
    Taken { holder: Option<Holder>, life: Life },
}

/// Whom a lease belongs to, as its file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    Attachment(Attachment),
    /// Written by a version of the reference that did not record interfaces.
    Container(String),
}

impl Holder {
    /// Reads the content of a lease file. Space around it does not count, nor does how somebody's editor ends a line.
    /// `None` when it names nobody, as does a file that was created but, by a kill or a power loss, never written.
    ///
    /// The kernel takes interface names that are no text, and so does the reference: what is none of it is read as
    /// U+FFFD, which is also what a runtime's JSON says of such a name.
    pub(crate) fn parse(content: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(content);
        let text = text.trim();
        match text.split_once('\n') {
            Some((id, ifname)) => {
                let id = id.strip_suffix('\r').unwrap_or(id);
                Attachment::new(id, ifname).ok().map(Self::Attachment)
            }
            None => is_identifier(text).then(|| Self::Container(text.to_owned())),
        }
    }

    /// The lease file's content: `<container id>\r\n<ifname>`, or the id alone.
    pub(crate) fn content(&self) -> String {
        match self {
            Self::Attachment(attachment) => content_of(attachment),
            Self::Container(id) => id.clone(),
        }
    }

    pub(crate) fn container_id(&self) -> &str {
        match self {
            Self::Attachment(attachment) => attachment.container_id(),
            Self::Container(id) => id,
        }
    }

    /// The interface, if the lease tells it.
    pub(crate) fn ifname(&self) -> Option<&str> {
        match self {
            Self::Attachment(attachment) => Some(attachment.ifname()),
            Self::Container(_) => None,
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attachment(attachment) => {
                write!(f, "{} ({})", attachment.container_id(), attachment.ifname())
            }
            Self::Container(id) => f.write_str(id),
        }
    }
}

fn content_of(attachment: &Attachment) -> String {
    format!("{}\r\n{}", attachment.container_id(), attachment.ifname())
}

/// A file operation that failed, with the reason: it is told with the rest, so no chain of sources may tell it again.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {reason}", path = .path.display())]
pub(crate) struct StoreError {
    operation: &'static str,
    path: PathBuf,
    reason: std::io::Error,
}

impl StoreError {
    fn new(operation: &'static str, path: &Path, reason: std::io::Error) -> Self {
        Self { operation, path: path.to_owned(), reason }
    }
}

impl From<StoreError> for cni_types::Error {
    fn from(error: StoreError) -> Self {
        Self::io(format_args!("{} {}", error.operation, error.path.display()), &error.reason)
    }
}

/// Bytes of a network's name in the names of our own files, which leaves room for a hash and a kind in the 255 that file
/// systems allow.
const LONGEST_STEM: usize = 200;

/// Where the leases of one network are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    data_dir: PathBuf,
    network: String,
}

impl Place {
    /// The name of the directory in the data directory that holds what the reference does not know. No network can
    /// have it: their names begin with a letter or a digit.
    const OWN: &'static str = ".host-local-ipam";

    /// `network` is a valid network name.
    pub(crate) fn new(data_dir: &Path, network: &str) -> Self {
        Self { data_dir: data_dir.to_owned(), network: network.to_owned() }
    }

    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// The directory that is shared with the reference.
    pub(crate) fn directory(&self) -> PathBuf {
        self.data_dir.join(&self.network)
    }

    fn own_directory(&self) -> PathBuf {
        self.data_dir.join(Self::OWN)
    }

    /// A file of our own about this network. Its name is the network's and `kind`; of a network whose own directory has
    /// about the longest name that there can be, it is the beginning and a hash, joined as in no network's name.
    fn own_file(&self, kind: &str) -> PathBuf {
        let network = &self.network;
        let name = match network.get(..LONGEST_STEM) {
            Some(beginning) if network.len() > LONGEST_STEM => {
                format!("{beginning}~{:016x}.{kind}", hash::hash(network.as_bytes()))
            }
            _ => format!("{network}.{kind}"),
        };
        self.own_directory().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_back_as_it_was_written_and_space_around_it_does_not_count() {
        let attachment = Holder::Attachment(Attachment::new("c1", "eth0").unwrap());
        assert_eq!(attachment.content().as_bytes(), b"c1\r\neth0");
        assert_eq!(Holder::parse(b"c1\r\neth0"), Some(attachment.clone()));
        for edited in [&b" \nc1\r\neth0\r\n\n"[..], b"c1\neth0\n"] {
            assert_eq!(Holder::parse(edited), Some(attachment.clone()), "{edited:?}");
        }
        assert_eq!(Holder::parse(b"c1\n"), Some(Holder::Container("c1".into())));
    }

    #[test]
    fn our_own_files_have_names_that_file_systems_allow_and_no_two_networks_share() {
        let file_name = |network: &str| {
            let file = Place::new(Path::new("/data"), network).own_file("index.new");
            file.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(file_name("net"), "net.index.new");
        let (long, longer) = ("n".repeat(254), "n".repeat(255));
        assert!(file_name(&longer).len() < 255);
        assert_ne!(file_name(&long), file_name(&longer));
        assert_eq!(file_name(&"n".repeat(200)), format!("{}.index.new", "n".repeat(200)));
    }

    #[test]
    fn a_file_that_names_nobody_has_no_holder() {
        for content in [&b""[..], b"\r\n", b"\0\0\0\0", b"a b", b"c1\r\neth0/1", b"c1\n\neth0", b"\xff\xfe"] {
            assert_eq!(Holder::parse(content), None, "{content:?}");
        }
    }
}
