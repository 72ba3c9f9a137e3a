//! [`Host`]: all that the verbs ask of the world around them, in one place, so that they can be tested without it.

use std::net::IpAddr;

use cni_types::{Environment, Error};

use crate::records::{Record, RecordKey};
use crate::state_dir::StateDir;

/// The host, and the server on it.
pub(crate) trait Host {
    /// Where the names of this host network namespace are kept.
    fn state(&self, env: &Environment) -> Result<StateDir, Error>;

    /// The device with the address `ip`: one of `listed`, or else any other.
    fn device_with(&self, ip: IpAddr, listed: &[&str]) -> Result<Option<String>, Error>;

    /// Nanoseconds since this host booted.
    fn now(&self) -> u64;

    /// Whether the server could listen on the DNS port, with the reason why not.
    fn can_listen(&self) -> Result<(), String>;

    /// Has the server answer by `record`, which is on disk; starts it when there is none. Tells which
    /// records it shares an address or a name with.
    fn publish(&self, state: &StateDir, record: &Record) -> Result<Vec<RecordKey>, Error>;

    /// Has the server, if there is one, forget `keys`, whose records are gone from the disk.
    fn withdraw(&self, state: &StateDir, keys: &[RecordKey]) -> Result<Withdrawn, Error>;

    /// Has the server run if there are records, and nothing of it left over if there are none.
    fn tend(&self, state: &StateDir) -> Result<(), Error>;

    /// Clears away what a server has left, provided that there is neither a server nor a record.
    fn clear(&self, state: &StateDir) -> Result<(), Error>;

    /// Whether the server answers by `record`, which is on disk, from its gateway addresses; starts it when there is
    /// none, and opens what can be opened.
    fn answers(&self, state: &StateDir, record: &Record) -> Result<bool, Error>;
}

/// Who was told that a record is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Withdrawn {
    /// The server.
    FromServer,
    /// Nobody: there is none.
    FromNobody,
}
