//! The server as a process: one for each host network namespace, started when it is missed, never lost while a record
//! needs it.
//!
//! ```text
//! plugin -- control socket --> worker: answers queries, without rights
//!                                | channel: keeps its descriptors, starts the next one
//!                              supervisor: parses nothing
//! ```
//! Both hold the lock, the control socket and every gateway's sockets. When the worker dies, the supervisor starts
//! another one at once, and what is asked meanwhile waits in the sockets. When the supervisor dies, the worker starts
//! another one. When both die, the lock is free, and the next plugin starts a worker that reads the records.
//!
//! No process id is stored anywhere and no signal is ever sent.

mod channel;
mod client;
mod control;
mod detach;
mod explain;
mod gateway;
mod image;
mod privileges;
mod seqpacket;
mod supervise;
mod worker;

pub use self::client::{Client, ClientError};
pub use self::control::{Build, Explained, ListenerStatus, NetworkStatus, Status, UpstreamStatus};
pub(crate) use self::explain::explain;
use crate::state_dir::StateDir;

/// `alias-dns serve`: serves the records of `state` until there have been none for a while.
///
/// # Errors
/// When another server does already, or something that it needs cannot be had.
pub fn serve(state: &StateDir) -> anyhow::Result<()> {
    call_itself();
    Ok(worker::run(state)?)
}

/// `alias-dns supervise`: what the server starts beside itself; no command for a person.
///
/// # Errors
/// When it was started by anybody else.
pub fn supervise() -> anyhow::Result<()> {
    call_itself();
    let Some(worker) = image::inherited_channel()? else {
        anyhow::bail!("only `alias-dns serve` starts this");
    };
    privileges::drop_rights().map_err(anyhow::Error::msg)?;
    Ok(supervise::run(channel::Channel::from(worker))?)
}

/// Executed by a descriptor, the process would go by that one's number in process lists.
fn call_itself() {
    // Only a name for people to read.
    let _ = nix::sys::prctl::set_name(c"alias-dns");
}
