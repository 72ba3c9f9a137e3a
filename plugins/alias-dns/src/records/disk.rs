//! The records on disk: `<records>/<network>/<container id>:<ifname>`, one JSON file per attachment.
//!
//! The directory is the truth. ADD and DEL of different attachments never write the same file, and a file appears whole
//! or not at all, so that a plugin killed at any instruction leaves nothing half-written. A file that cannot be read is
//! reported and passed over: it costs its own names and nobody else's.
//!
//! Who removes a record because its container is dead holds the file from the look at it to its removal, and who replaces
//! or removes one waits for that: else what is written in between would go with what it has replaced.
//!
//! Neither `:` nor `/` can stand in a container id or an ifname, so the path alone tells whose record a file is. Only of
//! an id that is too long for a file's name a hash stands there, and the file tells.

mod held;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni_types::{Attachment, Error, Failures, regular_file};

use self::held::Held;
use super::{Record, RecordKey, since_boot};
use crate::descriptors::is_scarcity;
use crate::state_dir::{StateDir, create_private};

/// In front of the name of a file that is still being written; no container id begins with a dot. The name tells whose
/// it is, so that DEL finds what a killed ADD has left.
const UNFINISHED: &str = ".new-";

/// In front of the hash of an id; no container id begins with it.
const HASHED: &str = "~";

/// The longest name of a file (NAME_MAX), less what stands in front of it while it is written.
const LONGEST_NAME: usize = 255 - UNFINISHED.len();

/// Modes of a record and of the directories, whatever the caller's umask is.
const READABLE: u32 = 0o644;
const READABLE_DIRECTORY: u32 = 0o755;

/// How often the directory of a network is made again for one record, when the last DEL before keeps taking it away.
const MAX_ATTEMPTS: usize = 16;

/// How long whoever holds a record is waited for. He looks at it for microseconds; one that is stopped shall hold nobody
/// up for good.
const HOLDERS_TIME: Duration = Duration::from_secs(2);

/// The records of one host network namespace.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Why a record file was passed over.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Whether nothing is wrong with it, but descriptors or memory had run out when it was looked at.
    pub(crate) is_scarcity: bool,
}

impl Unreadable {
    /// One that will not be readable before somebody changes it.
    fn wrong(path: PathBuf, reason: String) -> Self {
        Self { path, reason, is_scarcity: false }
    }

    /// One that the operating system did not let be read.
    fn failed(path: PathBuf, error: &io::Error) -> Self {
        let is_scarcity = is_scarcity(error);
        Self { path, reason: error.to_string(), is_scarcity }
    }
}

/// All that could be read, and what could not.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The records, in no order.
    pub records: Vec<Record>,
    /// The files passed over.
    pub unreadable: Vec<Unreadable>,
}

impl Store {
    /// The records below `state`.
    pub fn new(state: &StateDir) -> Self {
        Self { root: state.records() }
    }

    /// The records below `root`.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory with one directory a network.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the record of `key` stands.
    pub fn path(&self, key: &RecordKey) -> PathBuf {
        self.root.join(key.network()).join(file_name(key.container_id(), key.ifname()))
    }

    /// Whose record `path` is; `None` for a file that is no record by its name, or by what it says where that has to
    /// tell.
    pub fn key_of(&self, path: &Path) -> Option<RecordKey> {
        let mut parts = path.strip_prefix(&self.root).ok()?.iter().map(OsStr::to_str);
        let (network, file) = (parts.next()??, parts.next()??);
        let (container_id, ifname) = file.split_once(':')?;
        if parts.next().is_some() {
            return None;
        }
        if is_hashed(path) {
            let Record { key, .. } = serde_json::from_slice(&regular_file::read(path).ok()?).ok()?;
            return (self.path(&key) == path).then_some(key);
        }
        RecordKey::new(network, Attachment::new(container_id, ifname).ok()?).ok()
    }

    /// Writes `record`, in place of an earlier one of the same attachment.
    ///
    /// # Errors
    /// The operating system's; what stood there before still stands.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        let path = self.path(&record.key);
        let network = path.parent().unwrap_or(&self.root);
        let _held = Held::wait_for(&path, Instant::now() + HOLDERS_TIME);
        let written = self.write_into(network, &path, &text);
        if written.is_err() {
            // Made for nothing, perhaps; it stays when it holds other records.
            let _ = fs::remove_dir(network);
        }
        written
    }

    fn write_into(&self, network: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            match write_aside_and_rename(path, text) {
                Err(error) if error.kind() == ErrorKind::NotFound => match self.create(network) {
                    // Taken away while it is made, with all that is above it.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    created => created?,
                },
                written => return written,
            }
        }
        write_aside_and_rename(path, text)
    }

    /// Makes the directory of a network, and what is missing above it.
    fn create(&self, network: &Path) -> io::Result<()> {
        if let Some(state) = self.root.parent() {
            create_private(state)?;
        }
        create_readable(&self.root)?;
        create_readable(network)
    }

    /// Removes the record of `key`, and its network's directory with the last one. Tells whether there was one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&self, key: &RecordKey) -> io::Result<bool> {
        let path = self.path(key);
        let _held = Held::wait_for(&path, Instant::now() + HOLDERS_TIME);
        self.take_away(&path)
    }

    fn remove_if_dead(&self, key: &RecordKey) -> io::Result<bool> {
        let path = self.path(key);
        let is_dead = || matches!(self.read(key), Ok(Some(record)) if record.is_dead());
        // Nobody who writes or removes that of a living one has to wait.
        if !is_dead() {
            return Ok(false);
        }
        // Whoever else holds it takes it away, or makes it anew.
        let Some(_held) = Held::at_once(&path)? else { return Ok(false) };
        if is_dead() { self.take_away(&path) } else { Ok(false) }
    }

    fn take_away(&self, path: &Path) -> io::Result<bool> {
        remove_if_there(&aside(path))?;
        let removed = remove_if_there(path)?;
        // Fails while there are other records, which is as it should be.
        let _ = fs::remove_dir(path.parent().unwrap_or(&self.root));
        Ok(removed)
    }

    /// The record of `key`, if there is one.
    ///
    /// # Errors
    /// When its file cannot be read, or is not its record.
    pub fn read(&self, key: &RecordKey) -> Result<Option<Record>, Unreadable> {
        let path = self.path(key);
        match regular_file::read(&path) {
            Ok(text) => parse(&text, key).map(Some).map_err(|reason| Unreadable::wrong(path, reason)),
            Err(error) if is_absence(&error) => Ok(None),
            // Without a descriptor to open it by, the kernel does not look whether it is there.
            Err(error) => match fs::symlink_metadata(&path) {
                Err(missing) if is_absence(&missing) => Ok(None),
                _ => Err(Unreadable::failed(path, &error)),
            },
        }
    }

    /// Every record of every network.
    pub fn load(&self) -> Loaded {
        Loaded::by(|put| self.read_each(put))
    }

    /// Whether there is a record that can be read.
    pub fn has_records(&self) -> bool {
        let networks = entries(&self.root).flatten();
        let mut files = networks.flat_map(|network| entries(&network).flatten());
        files.any(|path| self.key_of(&path).is_some_and(|key| matches!(self.read(&key), Ok(Some(_)))))
    }

    /// Removes the records of `keys`, each also when another one cannot be. Tells which are gone; `failures` gets the
    /// others.
    pub(crate) fn remove_each(&self, keys: Vec<RecordKey>, failures: &mut Failures) -> Vec<RecordKey> {
        self.gone_of(keys, failures, |key| self.remove(key).map(|_| true))
    }

    /// Removes those records of `keys` whose container is provably dead when each is removed, however they are written
    /// anew meanwhile. Tells which are gone; `failures` gets those that cannot be removed.
    pub(crate) fn remove_dead(&self, keys: Vec<RecordKey>, failures: &mut Failures) -> Vec<RecordKey> {
        self.gone_of(keys, failures, |key| self.remove_if_dead(key))
    }

    fn gone_of(
        &self,
        mut keys: Vec<RecordKey>,
        failures: &mut Failures,
        remove: impl Fn(&RecordKey) -> io::Result<bool>,
    ) -> Vec<RecordKey> {
        keys.retain(|key| {
            let outcome = remove(key).map_err(|error| cannot_remove(&self.path(key), &error));
            failures.note(outcome).unwrap_or(false)
        });
        keys
    }

    /// Removes every record, each also when another one cannot be, then what [`remove_if_empty`](Self::remove_if_empty)
    /// removes.
    ///
    /// # Errors
    /// Code 5, with the files that stay.
    pub(crate) fn remove_all(&self) -> Result<(), Error> {
        let mut failures = Failures::default();
        for path in entries(&self.root).flatten().flat_map(|network| entries(&network).flatten()) {
            failures.note(remove_if_there(&path).map_err(|error| cannot_remove(&path, &error)));
        }
        failures.into_result()?;
        self.remove_if_empty().map_err(|error| cannot_remove(&self.root, &error))
    }

    /// Removes the directories, provided that there is no file left in any. Whoever calls this makes sure that no
    /// server lives in them.
    ///
    /// # Errors
    /// The operating system's; [`DirectoryNotEmpty`](ErrorKind::DirectoryNotEmpty) when something is left.
    pub(crate) fn remove_if_empty(&self) -> io::Result<()> {
        for network in entries(&self.root).flatten() {
            // What cannot go keeps the directory above from going.
            let _ = fs::remove_dir(network);
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Hands every record of every network to `put`, one by one, so that they are never all in memory twice. Tells what
    /// could not be read.
    pub fn read_each(&self, mut put: impl FnMut(Record)) -> Vec<Unreadable> {
        let mut unreadable = Vec::new();
        let networks = entries(&self.root).filter_map(|network| note(network, &self.root, &mut unreadable));
        for network in networks.collect::<Vec<_>>() {
            self.read_directory(&network, &mut put, &mut unreadable);
        }
        unreadable
    }

    /// Hands every record of `network` to `put`; there are none for a name that no network can have. Tells what could not
    /// be read.
    pub(crate) fn read_each_on(&self, network: &str, mut put: impl FnMut(Record)) -> Vec<Unreadable> {
        let mut unreadable = Vec::new();
        if cni_types::is_identifier(network) {
            self.read_directory(&self.root.join(network), &mut put, &mut unreadable);
        }
        unreadable
    }

    /// Every record of `network`.
    pub fn load_network(&self, network: &str) -> Loaded {
        Loaded::by(|put| self.read_each_on(network, put))
    }

    /// Whose files stand in `network`, finished or not, without a look into them where their names tell.
    pub fn keys(&self, network: &str) -> Vec<RecordKey> {
        let finished = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            self.key_of(&path.with_file_name(name.strip_prefix(UNFINISHED).unwrap_or(name)))
        };
        let mut keys: Vec<RecordKey> = if cni_types::is_identifier(network) {
            entries(&self.root.join(network)).flatten().filter_map(finished).collect()
        } else {
            Vec::new()
        };
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn read_directory(&self, network: &Path, put: &mut dyn FnMut(Record), unreadable: &mut Vec<Unreadable>) {
        let is_unfinished = |path: &Path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()))
        };
        for entry in entries(network) {
            let Some(path) = note(entry, network, unreadable) else { continue };
            if is_unfinished(&path) {
                continue;
            }
            let Some(key) = self.key_of(&path) else {
                unreadable.push(Unreadable::wrong(path, "not the name of a record".to_owned()));
                continue;
            };
            match self.read(&key) {
                Ok(record) => record.into_iter().for_each(&mut *put),
                Err(wrong) => unreadable.push(wrong),
            }
        }
    }
}

impl Loaded {
    fn by(read: impl FnOnce(&mut dyn FnMut(Record)) -> Vec<Unreadable>) -> Self {
        let mut records = Vec::new();
        let unreadable = read(&mut |record| records.push(record));
        Self { records, unreadable }
    }
}

/// The path that was listed in `directory`; what could not be is noted.
fn note(listed: io::Result<PathBuf>, directory: &Path, unreadable: &mut Vec<Unreadable>) -> Option<PathBuf> {
    listed
        .map_err(|error| {
            unreadable.push(Unreadable::failed(directory.to_owned(), &error));
        })
        .ok()
}

/// What stands in `directory`, as it is read; nothing when it does not exist.
fn entries(directory: &Path) -> impl Iterator<Item = io::Result<PathBuf>> + use<> {
    let (listing, failure) = match fs::read_dir(directory) {
        Ok(listing) => (Some(listing), None),
        Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
        Err(error) => (None, Some(Err(error))),
    };
    let paths = listing.into_iter().flatten().map(|entry| entry.map(|entry: DirEntry| entry.path()));
    paths.chain(failure)
}

fn parse(text: &[u8], key: &RecordKey) -> Result<Record, String> {
    let mut record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if record.is_of_earlier_boot() || record.joined > since_boot() {
        // Where the directory outlives a boot. By the clock of this one it could be newer than what is made today.
        record.joined = 0;
    }
    if record.key != *key {
        return Err(format!(
            "it is the record of {}/{}/{}",
            record.key.network(),
            record.key.container_id(),
            record.key.ifname()
        ));
    }
    Ok(record)
}

fn cannot_remove(path: &Path, error: &io::Error) -> Error {
    Error::io(format!("remove {}", path.display()), error)
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absence(&error) => Ok(false),
        // Not ours; one with something in it is its owner's to remove.
        Err(error) if error.kind() == ErrorKind::IsADirectory => fs::remove_dir(path).map(|()| true),
        // A read-only filesystem refuses before it looks.
        Err(error) => match fs::symlink_metadata(path) {
            Err(missing) if is_absence(&missing) => Ok(false),
            _ => Err(error),
        },
    }
}

/// A name too long for a file was never written, nor is there a record in what is no directory.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}

fn file_name(container_id: &str, ifname: &str) -> String {
    let name = format!("{container_id}:{ifname}");
    if name.len() <= LONGEST_NAME { name } else { format!("{HASHED}{:032x}:{ifname}", hash(container_id)) }
}

/// Whether the name of `path` does not tell whose record it is.
pub(crate) fn is_hashed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(HASHED.as_bytes()))
}

/// FNV-1a of 128 bits: the same in every build, which the hashes of the standard library are not.
fn hash(text: &str) -> u128 {
    text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, octet| {
        (hash ^ u128::from(octet)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(UNFINISHED);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Makes `directory` so that the server finds its way inside, for it has no rights of its own.
/// Nobody else gets there, for the state directory above is its owner's alone.
pub(crate) fn create_readable(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(READABLE_DIRECTORY)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_aside_and_rename(path: &Path, text: &[u8]) -> io::Result<()> {
    let aside = aside(path);
    // Left by a killed ADD of the same attachment; of one that runs, the runtime makes sure that there is none.
    remove_if_there(&aside)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&aside)?;
    file.set_permissions(Permissions::from_mode(READABLE))?;
    // No fsync: the directory lives in memory, and as long as the containers do.
    let written = file.write_all(text).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What is said of the failure is the first error, not that of cleaning up after it.
        let _ = fs::remove_file(&aside);
    }
    written
}

#[cfg(test)]
mod tests;
