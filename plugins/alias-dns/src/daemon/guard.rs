//! The guard: outlives a server, worker and supervisor both, and then does what is left to do. It starts another server
//! while there are records, and takes back what the host was changed for when there are none.
//!
//! It is the one part that keeps the rights of whoever started it, for neither can be done without. So it hears nobody
//! but the worker, and of that no more than what to keep: as the supervisor it holds the lock and all sockets, so that
//! what is asked while there is neither waits for the next worker. It also sees when somebody removes the server's
//! files by hand, which the worker has no right to look at.

use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cni_types::regular_file::stands_at;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::channel::{Channel, Kept, Message};
use super::clear::forget_dead_namespaces;
use super::client::{self, OPENING_LOCK};
use super::image;
use super::lock_file::LockFile;
use super::seqpacket::Seqpacket;
use super::tend;
use super::worker::{CONTROL, CONTROL_SOCKET, LOCK, LOCK_FILE};
use crate::records::disk::Store;
use crate::state_dir::StateDir;

/// How long a server may take to come up. Nobody waits for the guard, and a busy machine may have many names.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries to start a server: the first pause, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long it may take to connect to the control socket; one that takes longer is there.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);

/// How often a server is started with what the last one had. If it never comes up, what it was given may be why.
const MAX_STARTS: usize = 5;

/// Guards the server at the other end of `channel`, whose state is `state`.
pub(crate) fn run(channel: &Channel, state: &StateDir) -> Result<()> {
    // From now on it goes by its own name. Before, whoever kills all processes of the server kills this one, too.
    // A server that has ended already need not hear it.
    let _ = channel.go();
    forget_dead_namespaces(state);
    // Without a watch, edits by hand are noticed by the next plugin.
    let watch = watch(state).map_err(|error| log::warn!("watch {}: {error}", state.path().display())).ok();
    image::forget_code();
    match keep(channel, watch.as_ref(), state) {
        Some(kept) => bring_back(kept, state),
        None => Ok(()),
    }
}

/// Keeps what the worker hands over until the server's end; `None` when another guard has taken over.
fn keep(channel: &Channel, watch: Option<&Inotify>, state: &StateDir) -> Option<Kept> {
    let mut kept = Kept::new();
    loop {
        let mut ready = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        ready.extend(watch.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut ready, PollTimeout::NONE);
        let mut has_changed = ready.get(1).is_some_and(|watch| watch.any().unwrap_or(false));
        if ready[0].any().unwrap_or(true) {
            match channel.receive() {
                Ok(Some(Message::Keep(more))) => {
                    // Something may have happened to them before they were watched.
                    has_changed |= more.contains_key(CONTROL);
                    kept.extend(more);
                }
                Ok(Some(Message::Drop(label))) => drop(kept.remove(&label)),
                Ok(Some(Message::Go)) => {}
                Ok(Some(Message::Quit)) => return None,
                Ok(None) | Err(_) => return Some(kept),
            }
        }
        if has_changed {
            // What it was does not matter.
            let _ = watch.map(Inotify::read_events);
            if !is_intact(&kept, state) {
                // Nobody finds the server any more. It leaves, and another one starts from what is there.
                let _ = channel.quit();
            }
        }
    }
}

/// Sees to it that there is a server if there are records, and nothing left over if there are none.
fn bring_back(mut kept: Kept, state: &StateDir) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..MAX_STARTS {
        if !Store::new(state).has_records() {
            break;
        }
        log::info!("the server is gone, and there are records: starting another one");
        match restart(&mut kept, state) {
            Ok(()) => return Ok(()),
            Err(reason) => log::warn!("start the DNS server: {reason}"),
        }
        wait(&mut pause);
    }
    drop(kept);
    log::info!("the server has ended");
    while let Err(error) = tend(state) {
        log::warn!("{error}");
        wait(&mut pause);
    }
    Ok(())
}

/// Starts a server with all that is kept, but for what nobody finds any more.
fn restart(kept: &mut Kept, state: &StateDir) -> std::result::Result<(), String> {
    let in_words = |error: std::io::Error| error.to_string();
    let deadline = Instant::now() + START_PATIENCE;
    let opening = LockFile::take_until(&state.path().join(OPENING_LOCK), deadline).map_err(in_words)?;
    let _opening = opening.ok_or("somebody else is starting one")?;
    if !has_lock(kept, state) {
        kept.remove(LOCK);
    }
    if !has_control(state) {
        kept.remove(CONTROL);
    }
    client::start(state, kept, deadline).map_err(|error| error.to_string())
}

/// Nothing can happen meanwhile that is of any concern.
fn wait(pause: &mut Duration) {
    let _ = poll(&mut [], PollTimeout::try_from(*pause).unwrap_or(PollTimeout::MAX));
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

fn watch(state: &StateDir) -> Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let flags = AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(state.path(), flags)?;
    Ok(inotify)
}

/// Whether the files by which the server with `kept` is found stand where they stood.
fn is_intact(kept: &Kept, state: &StateDir) -> bool {
    has_lock(kept, state) && has_control(state) && !is_missing(&state.records())
}

fn has_lock(kept: &Kept, state: &StateDir) -> bool {
    let Some([lock]) = kept.get(LOCK).map(Vec::as_slice) else { return true };
    let stands = |lock: &OwnedFd| stands_at(&lock.try_clone()?.into(), &state.path().join(LOCK_FILE));
    stands(lock).unwrap_or(true)
}

/// What stands there may be a file that somebody has put in its place, or the copy of a socket. While the server or
/// anybody who keeps its socket lives, the kernel connects to it.
fn has_control(state: &StateDir) -> bool {
    let reached = Seqpacket::connect(&state.path().join(CONTROL_SOCKET), CONTROL_PATIENCE);
    !reached.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}
