//! The server as a process: one for each host network namespace, started when it is missed, never lost while a record
//! needs it.
//!
//! ```text
//! plugin -- control socket --> worker: answers queries, without rights
//!                    |           | channel: keeps its descriptors, starts the next one
//!                    |         supervisor: parses nothing, without rights
//!                    | channel that both hold: keeps its descriptors, too
//!                  guard: starts the next server, clears up after the last one, with the rights of the plugin
//! ```
//! All three hold the lock, the control socket and every gateway's sockets. When the worker dies, the supervisor starts
//! another one at once, and what is asked meanwhile waits in the sockets. When the supervisor dies, the worker starts
//! another one. When both die, the guard starts a worker that reads the records. When the guard dies, the next plugin
//! that brings a record or takes one away starts another one. When all die, the lock is free, and whatever verb of a
//! plugin comes next starts a server if there are records. When no record is left, worker and supervisor end by
//! themselves, and the guard clears away what they leave.
//!
//! No process id is stored anywhere and no signal is ever sent.

mod channel;
mod clear;
mod client;
mod control;
mod detach;
mod explain;
mod gateway;
mod guard;
mod image;
mod lock_file;
mod privileges;
mod seqpacket;
mod service_manager;
mod supervise;
mod worker;

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Instant;

pub(crate) use self::clear::Left;
pub use self::client::{Client, ClientError, PATIENCE};
pub use self::control::{Build, Explained, ListenerStatus, NetworkStatus, Status, UpstreamStatus};
pub(crate) use self::explain::explain;
use self::image::Part;
use crate::state_dir::StateDir;

/// `alias-dns serve`: serves the records of `state` until there have been none for a while.
///
/// # Errors
/// When another server does already, or something that it needs cannot be had.
pub fn serve(state: &StateDir) -> anyhow::Result<()> {
    call_itself(Part::Worker);
    Ok(worker::run(state)?)
}

/// `alias-dns supervise`: what the server starts beside itself; no command for a person.
///
/// # Errors
/// When it was started by anybody else.
pub fn supervise() -> anyhow::Result<()> {
    call_itself(Part::Supervisor);
    let Some(worker) = image::inherited_channel()? else {
        anyhow::bail!("only `alias-dns serve` starts this");
    };
    privileges::drop_rights().map_err(anyhow::Error::msg)?;
    Ok(supervise::run(channel::Channel::from(worker))?)
}

/// `cni-names guard`: what the server or a plugin starts beside it; no command for a person.
///
/// # Errors
/// When it was started by anybody else.
pub fn guard() -> anyhow::Result<()> {
    call_itself(Part::Guard);
    let Some(server) = image::inherited_channel()? else {
        anyhow::bail!("only a server of alias-dns or its plugin starts this");
    };
    // Whoever starts a guard stands in the records.
    let records = std::env::current_dir()?;
    let state = StateDir::at(records.parent().unwrap_or(&records));
    std::env::set_current_dir("/")?;
    detach::settle(Some(server.as_fd().as_raw_fd()));
    Ok(guard::run(&channel::Channel::from(server), &state)?)
}

/// Has the server of `state` run, and listen, if there are records, and nothing of it left over if there are none.
///
/// # Errors
/// When there are records and no server can be started, or something cannot be cleared away.
pub fn tend(state: &StateDir) -> Result<(), ClientError> {
    if let Some(mut server) = Client::connect_existing(state)? {
        match server.greet().and_then(|()| server.open_closed()) {
            Err(ClientError::Lost(_)) => {}
            tended => return tended.map(drop),
        }
    }
    match clear(state)? {
        Left::Nothing => Ok(()),
        Left::Records | Left::Server => Client::revive(state),
    }
}

/// Clears away what an earlier server of `state` has left, provided that there is neither a server nor a record.
///
/// # Errors
/// When something cannot be cleared away.
pub(crate) fn clear(state: &StateDir) -> Result<Left, ClientError> {
    clear::clear(state, Instant::now() + client::PATIENCE).map_err(ClientError::Clear)
}

/// Executed by a descriptor, the process would go by that one's number in process lists.
fn call_itself(part: Part) {
    // Only a name for people to read.
    let _ = nix::sys::prctl::set_name(part.name());
    detach::follow_log(part);
}
