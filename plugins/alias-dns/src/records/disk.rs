//! The records on disk: `<records>/<network>/<container id>:<ifname>`, one JSON file per attachment.
//!
//! The directory is the truth. ADD and DEL of different attachments never touch the same file, and a file appears whole
//! or not at all, so that no lock is needed and a plugin killed at any instruction leaves nothing half-written. A file
//! that cannot be read is reported and passed over: it costs its own names and nobody else's.
//!
//! Neither `:` nor `/` can stand in a container id or an ifname, so the path alone tells whose record a file is.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cni_types::Attachment;

use super::{Record, RecordKey};
use crate::state_dir::{StateDir, create_private};

/// What a file that is still being written is called; no container id begins with a dot.
const UNFINISHED: &str = ".unfinished-";

/// How many unfinished files of other writers with this process's id are passed before giving up; processes of other
/// PID namespaces can share it.
const MAX_NAMESAKES: u32 = 64;

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

    /// The directory with one directory a network.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the record of `key` stands.
    pub fn path(&self, key: &RecordKey) -> PathBuf {
        self.root.join(key.network()).join(format!("{}:{}", key.container_id(), key.ifname()))
    }

    /// Whose record `path` is; `None` for a file that is no record by its name.
    pub fn key_of(&self, path: &Path) -> Option<RecordKey> {
        let mut parts = path.strip_prefix(&self.root).ok()?.iter().map(OsStr::to_str);
        let (network, file) = (parts.next()??, parts.next()??);
        let (container_id, ifname) = file.split_once(':')?;
        if parts.next().is_some() {
            return None;
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
        // The last DEL of the network may take the directory away between the two steps; it cannot do so for ever.
        loop {
            match write_aside_and_rename(&path, &text) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    create_private(path.parent().unwrap_or(&self.root))?;
                    match write_aside_and_rename(&path, &text) {
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        written => return written,
                    }
                }
                written => return written,
            }
        }
    }

    /// Removes the record of `key`, and its network's directory with the last one. Tells whether there was one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&self, key: &RecordKey) -> io::Result<bool> {
        let path = self.path(key);
        let removed = match fs::remove_file(&path) {
            Ok(()) => true,
            // A name too long for a file was never written.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => false,
            Err(error) => return Err(error),
        };
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
        match fs::read(&path) {
            Ok(text) => parse(&text, key).map(Some).map_err(|reason| Unreadable { path, reason }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => {
                Ok(None)
            }
            Err(error) => Err(Unreadable { path, reason: error.to_string() }),
        }
    }

    /// Every record of every network.
    pub fn load(&self) -> Loaded {
        let mut loaded = Loaded::default();
        for network in self.entries(&self.root, &mut loaded.unreadable) {
            self.load_directory(&network, &mut loaded);
        }
        loaded
    }

    /// Every record of `network`; none for a name that no network can have.
    pub fn load_network(&self, network: &str) -> Loaded {
        let mut loaded = Loaded::default();
        if cni_types::is_identifier(network) {
            self.load_directory(&self.root.join(network), &mut loaded);
        }
        loaded
    }

    fn load_directory(&self, network: &Path, loaded: &mut Loaded) {
        for path in self.entries(network, &mut loaded.unreadable) {
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()))
            {
                continue;
            }
            let Some(key) = self.key_of(&path) else {
                loaded.unreadable.push(Unreadable { path, reason: "not the name of a record".into() });
                continue;
            };
            match self.read(&key) {
                Ok(record) => loaded.records.extend(record),
                Err(unreadable) => loaded.unreadable.push(unreadable),
            }
        }
    }

    /// What stands in `directory`; nothing when it does not exist.
    fn entries(&self, directory: &Path, unreadable: &mut Vec<Unreadable>) -> Vec<PathBuf> {
        let listed = fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| entry.map(|entry: DirEntry| entry.path())).collect());
        match listed {
            Ok(paths) => paths,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                unreadable.push(Unreadable { path: directory.to_owned(), reason: error.to_string() });
                Vec::new()
            }
        }
    }
}

fn parse(text: &[u8], key: &RecordKey) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
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

fn write_aside_and_rename(path: &Path, text: &[u8]) -> io::Result<()> {
    let (aside, mut file) = create_aside(path)?;
    // No fsync: the directory lives in memory, and as long as the containers do.
    let written = file.write_all(text).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

fn create_aside(path: &Path) -> io::Result<(PathBuf, File)> {
    let process_id = std::process::id();
    let mut namesakes = 0;
    loop {
        let aside = path.with_file_name(format!("{UNFINISHED}{process_id}-{namesakes}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside) {
            Ok(file) => return Ok((aside, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && namesakes < MAX_NAMESAKES => {
                namesakes += 1;
            }
            Err(error) => return Err(error),
        }
    }
}
