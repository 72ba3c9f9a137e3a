//! How a worker comes to be: by a plugin that found no server, by the supervisor after an earlier worker died, by a plugin
//! of a later build, by a person or by a service manager. It gets the lock, the control socket and the directories, and
//! makes the [`Worker`] of them.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use super::possession::{Handed, Possession};
use super::start_error::{StartError, io};
use super::{CONTROL_SOCKET, LOCK_FILE, Worker};
use crate::daemon::channel::Channel;
use crate::daemon::lock_file::LockFile;
use crate::daemon::seqpacket::{self, Seqpacket};
use crate::daemon::service_manager::ServiceManager;
use crate::daemon::{detach, image};
use crate::state_dir::StateDir;

/// Runs a worker until it has nothing to do any more. `state` is where a first one settles.
pub(crate) fn run(state: &StateDir) -> std::result::Result<(), StartError> {
    if let Some(supervisor) = image::inherited_channel().map_err(io("supervisor"))? {
        let channel = Channel::from(supervisor);
        let kept = channel.receive_all().map_err(io("supervisor"))?;
        // The supervisor is gone already: so is everything that it had.
        let Some(kept) = kept else { return Ok(()) };
        return Worker::new(Handed::from(kept).try_into()?, Some(channel))?.serve();
    }
    let (starter, state) = match detach::inherited_starter() {
        Some((starter, state)) => (Some(starter), state),
        None => (None, state.clone()),
    };
    detach::settle(starter.as_ref().map(|starter| starter.as_fd().as_raw_fd()));
    // Before anything else is opened, for its place is fixed.
    let opened = image::open_own().map_err(io("open the binary"));
    let outcome = opened.and_then(|()| match &starter {
        Some(starter) => first(&state, starter),
        None => alone(&state).map(Some),
    });
    match outcome {
        Ok(Some(worker)) => {
            drop(starter);
            worker.serve()
        }
        Ok(None) => Ok(()),
        Err(error) => {
            if let Some(starter) = starter {
                let reason = match &error {
                    StartError::Held => "held".to_owned(),
                    StartError::Io(..) => error.to_string(),
                };
                let _ = starter.send(reason.as_bytes(), &[]);
            }
            Err(error)
        }
    }
}

/// The first worker of its image, that a plugin starts.
fn first(state: &StateDir, starter: &Seqpacket) -> std::result::Result<Option<Worker>, StartError> {
    let channel =
        Channel::from(Seqpacket::from(starter.as_fd().try_clone_to_owned().map_err(io("starter"))?));
    let Some(kept) = channel.receive_all().map_err(io("starter"))? else { return Ok(None) };
    enter(state)?;
    let Handed { lock, control, guard, gateways } = Handed::from(kept);
    // Nothing is handed over where there was no server, and not all where somebody has removed a file.
    let is_successor = lock.is_some();
    let lock = lock.map_or_else(|| take_lock(state).map(OwnedFd::from), Ok)?;
    let control = control.map_or_else(|| take_control(state), Ok)?;
    let worker = Worker::new(Possession { lock, control, guard, gateways }, None)?;
    let heard = starter.send(b"ready", &[]).is_ok();
    if is_successor && !heard {
        // Nobody waits for it any more: who had the lock serves on, or another one is started with it.
        worker.withdraw();
        return Ok(None);
    }
    Ok(Some(worker))
}

/// The first worker where a person or a service manager starts it.
///
/// In a unit a server that a plugin has started is not thrown out, but waited for; and when there is no name to serve,
/// the unit does not end all the same.
fn alone(state: &StateDir) -> std::result::Result<Worker, StartError> {
    let manager = ServiceManager::of_process();
    state.create().map_err(io(state.path().display()))?;
    let lock = match (take_lock(state), &manager) {
        (Err(StartError::Held), Some(manager)) => {
            manager.say_ready("waiting for the end of a server that a plugin has started");
            wait_for_lock(state)?
        }
        (taken, _) => taken?,
    };
    enter(state)?;
    let possession =
        Possession { lock: lock.into(), control: take_control(state)?, guard: None, gateways: Vec::new() };
    let worker = Worker::new(possession, None)?;
    let Some(manager) = manager else { return Ok(worker) };
    manager.say_ready("serving");
    Ok(Worker { grace: None, ..worker })
}

/// The lock, once the server that has it is gone and has cleared its directory away.
fn wait_for_lock(state: &StateDir) -> std::result::Result<LockFile, StartError> {
    let path = state.path().join(LOCK_FILE);
    loop {
        match LockFile::take(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                state.create().map_err(io(state.path().display()))?;
            }
            taken => return taken.map_err(io(path.display())),
        }
    }
}

/// Makes the directories, and steps into the records: from here on they are found wherever the path leads, and whoever
/// may walk it.
fn enter(state: &StateDir) -> std::result::Result<(), StartError> {
    state.create().map_err(io(state.path().display()))?;
    let records = state.records();
    crate::records::disk::create_readable(&records).map_err(io(records.display()))?;
    std::env::set_current_dir(&records).map_err(io(records.display()))
}

fn take_lock(state: &StateDir) -> std::result::Result<LockFile, StartError> {
    let path = state.path().join(LOCK_FILE);
    LockFile::try_take(&path).map_err(io(path.display()))?.ok_or(StartError::Held)
}

fn take_control(state: &StateDir) -> std::result::Result<OwnedFd, StartError> {
    let path = state.path().join(CONTROL_SOCKET);
    seqpacket::listen_at(&path).map_err(io(path.display()))
}
