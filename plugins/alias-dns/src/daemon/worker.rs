//! The worker: loads the records, serves queries, takes what the control socket asks, and follows the record directory.
//!
//! It starts in one of three ways: by a plugin that found no server, and then it takes the lock and opens everything as
//! the user that it was started by; by the supervisor after an earlier worker died, with everything that one had; or by
//! a plugin of a later build, with everything that the earlier build had. After that all are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Result};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, signal};
use slab::Slab;

use super::channel::{Channel, Kept, Message};
use super::client::is_silence;
use super::control::{
    Applied, Asked, Build, ListenerStatus, MAX_ASKED, NetworkStatus, Status, Told, UpstreamStatus, Wanted,
    decode, encode,
};
use super::image::{self, Part};
use super::lock_file::LockFile;
use super::seqpacket::{self, Seqpacket};
use super::service_manager::ServiceManager;
use super::{detach, explain, gateway, privileges};
use crate::forward::ResolvConf;
use crate::poller::{Interest, Kind, Poller, Token};
use crate::records::RecordKey;
use crate::records::disk::{Store, Unreadable};
use crate::records::watch::{Change, Watch};
use crate::serve::Server;
use crate::serve::listen::Sockets;
use crate::state_dir::StateDir;
use crate::zone::{Listener, Zones};

/// How long a server without records waits for the next one.
const GRACE: Duration = Duration::from_secs(10);

/// How long after a failed attempt another supervisor is started.
const SUPERVISOR_PAUSE: Duration = Duration::from_secs(1);

/// How long a guard is waited for. One that comes later guards all the same.
const GUARD_PATIENCE: Duration = Duration::from_millis(500);

/// How often a guard is started that is killed before it is there.
const MAX_GUARDS: usize = 3;

/// Files that were passed over, of which a status tells.
const MAX_UNREADABLE_TOLD: usize = 64;

/// What the parts keep the sockets under.
pub(super) const LOCK: &str = "lock";
pub(super) const CONTROL: &str = "control";
const GUARD: &str = "guard";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the lock file and the control socket are called in the state directory.
pub(crate) const LOCK_FILE: &str = "lock";
pub(crate) const CONTROL_SOCKET: &str = "control";

/// How a start ended that did not lead to serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Another server has the lock.
    #[error("another server is running")]
    Held,
    /// It could not get what it needs.
    #[error("{0}: {1}")]
    Io(String, Error),
}

fn io(what: impl std::fmt::Display) -> impl FnOnce(Error) -> StartError {
    move |error| StartError::Io(what.to_string(), error)
}

/// What every worker has from its start on.
struct Possession {
    lock: OwnedFd,
    control: OwnedFd,
    guard: Option<Channel>,
    gateways: Vec<(Wanted, u16, Sockets)>,
}

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

/// What an earlier worker had, as far as it was handed over.
#[derive(Default)]
struct Handed {
    lock: Option<OwnedFd>,
    control: Option<OwnedFd>,
    guard: Option<Channel>,
    gateways: Vec<(Wanted, u16, Sockets)>,
}

impl From<Kept> for Handed {
    fn from(kept: Kept) -> Self {
        let mut handed = Self::default();
        for (label, fds) in kept {
            let mut fds = fds.into_iter();
            match (label.as_str(), fds.next(), fds.next()) {
                (LOCK, Some(fd), None) => handed.lock = Some(fd),
                (CONTROL, Some(fd), None) => handed.control = Some(fd),
                (GUARD, Some(fd), None) => handed.guard = Some(Channel::from(Seqpacket::from(fd))),
                (label, Some(udp), Some(tcp)) => {
                    let gateway =
                        gateway_of(label).map(|(wanted, port)| (wanted, port, Sockets { udp, tcp }));
                    handed.gateways.extend(gateway);
                }
                _ => {}
            }
        }
        handed
    }
}

impl TryFrom<Handed> for Possession {
    type Error = StartError;

    /// A worker that has no rights cannot take what is missing.
    fn try_from(handed: Handed) -> std::result::Result<Self, StartError> {
        let Handed { lock: Some(lock), control: Some(control), guard, gateways } = handed else {
            return Err(io("what was handed over")(Error::other("lock or control socket is missing")));
        };
        Ok(Self { lock, control, guard, gateways })
    }
}

/// `wanted` with the index that its bridge has now.
pub(crate) fn wanted(listener: &Listener) -> Result<Wanted> {
    let ifindex = nix::net::if_::if_nametoindex(listener.bridge.as_str())?;
    Ok(Wanted { bridge: listener.bridge.clone(), gateway: listener.gateway, ifindex })
}

/// What a gateway's sockets are kept under. A device name has no space.
fn label_of(wanted: &Wanted, port: u16) -> String {
    format!("gateway {} {port} {} {}", wanted.ifindex, wanted.gateway, wanted.bridge)
}

fn gateway_of(label: &str) -> Option<(Wanted, u16)> {
    let mut words = label.strip_prefix("gateway ")?.splitn(4, ' ');
    let ifindex = words.next()?.parse().ok()?;
    let port = words.next()?.parse().ok()?;
    let gateway: IpAddr = words.next()?.parse().ok()?;
    Some((Wanted { bridge: words.next()?.to_owned(), gateway, ifindex }, port))
}

fn by_path(unreadable: Vec<Unreadable>) -> BTreeMap<PathBuf, String> {
    unreadable.into_iter().map(|Unreadable { path, reason }| (path, reason)).collect()
}

fn in_words(key: &RecordKey) -> String {
    format!("{}/{}/{}", key.network(), key.container_id(), key.ifname())
}

/// The records: the working directory of every worker.
fn store() -> Store {
    Store::at(Path::new("."))
}

/// Who is connected to the control socket.
struct Client {
    socket: Seqpacket,
    generation: u16,
}

struct Worker {
    poller: Poller,
    server: Server,
    store: Store,
    watch: Watch,
    lock: OwnedFd,
    control: OwnedFd,
    wanted: Vec<(Wanted, u16)>,
    /// Closed since a client was told last, so that it takes the host's rules for them back.
    closed: Vec<Wanted>,
    supervisor: Option<Channel>,
    guard: Option<Channel>,
    supervisor_tried: Instant,
    clients: Slab<Client>,
    generation: u16,
    /// The client that has got everything and whose own worker takes over.
    successor: Option<Token>,
    /// Files that were passed over when they were last looked at, and why.
    unreadable: BTreeMap<PathBuf, String>,
    unconfined: String,
    owner: u32,
    started: Instant,
    /// How long it waits without a record; for a service manager as long as it is told to.
    grace: Option<Duration>,
    empty_since: Option<Instant>,
    buffer: Vec<u8>,
}

/// Whether the worker goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    On,
    Over,
}

impl Worker {
    /// A worker that is ready to serve, without rights that it no longer needs.
    fn new(possession: Possession, supervisor: Option<Channel>) -> std::result::Result<Self, StartError> {
        let Possession { lock, control, guard, gateways } = possession;
        // SAFETY: ignoring a signal installs no function.
        #[allow(unsafe_code, reason = "nix cannot tell a harmless disposition from a function")]
        let ignored = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
        ignored.map_err(|errno| io("signals")(errno.into()))?;
        let poller = Poller::new().map_err(io("epoll"))?;
        let store = store();
        let owner = std::fs::metadata(store.root()).map_err(io("records"))?.uid();
        // Watched first: what changes while the records are read is looked at again.
        let watch = Watch::new(store.clone()).map_err(io("watch the records"))?;
        let mut zones = Zones::default();
        let unreadable = by_path(store.read_each(|record| drop(zones.apply(record))));
        let mut resolv_conf = ResolvConf::at(RESOLV_CONF);
        // A file that only its owner may read is read once at least.
        resolv_conf.refresh();
        let mut worker = Self {
            server: Server::new(zones, resolv_conf),
            unreadable,
            poller,
            store,
            watch,
            lock,
            control,
            wanted: Vec::new(),
            closed: Vec::new(),
            supervisor: None,
            guard,
            supervisor_tried: Instant::now(),
            clients: Slab::new(),
            generation: 0,
            successor: None,
            unconfined: String::new(),
            owner,
            started: Instant::now(),
            grace: Some(GRACE),
            empty_since: None,
            buffer: vec![0; MAX_ASKED],
        };
        worker.watch().map_err(io("epoll"))?;
        match supervisor {
            Some(channel) => worker.supervised_by(channel).map_err(io("epoll"))?,
            None => worker.renew_guard(),
        }
        for (wanted, port, sockets) in gateways {
            worker.open(wanted, port, sockets).map_err(io("epoll"))?;
        }
        if worker.supervisor.is_none() {
            // Nobody else has handed over what an earlier server had, or not all of it.
            worker.sweep_rules();
            worker.open_missing();
            worker.start_supervisor();
            worker.await_guard();
        }
        let dropped = privileges::drop_rights().and_then(|()| privileges::confine());
        worker.unconfined = dropped.err().unwrap_or_default();
        worker.note_records();
        log::info!("serves {} records", worker.server.desk().zones.len());
        Ok(worker)
    }

    fn watch(&self) -> Result<()> {
        self.poller.add(&self.watch, Token::only(Kind::Records), Interest::Read)?;
        self.poller.add(&self.control, Token::only(Kind::Control), Interest::Read)?;
        match &self.guard {
            Some(guard) => self.poller.add(guard.as_fd(), Token::only(Kind::Guard), Interest::Read),
            None => Ok(()),
        }
    }

    fn serve(mut self) -> std::result::Result<(), StartError> {
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            let limit = self.deadline().map(|deadline| deadline.saturating_duration_since(now));
            self.poller.wait(limit, &mut ready).map_err(io("epoll"))?;
            // What has changed counts for every query that is answered from now on.
            if ready.contains(&Token::only(Kind::Records)) && self.follow() == Life::Over {
                return self.leave();
            }
            for token in ready.drain(..) {
                let life = match token.kind {
                    Kind::Control => self.accept(),
                    Kind::ControlConnection => self.converse(token),
                    Kind::Supervisor => self.supervisor_lost(),
                    Kind::Guard => self.guard_lost(),
                    Kind::Records => Life::On,
                    Kind::Datagrams | Kind::Connections | Kind::Connection | Kind::Upstream => {
                        self.server.ready(&self.poller, token);
                        Life::On
                    }
                };
                if life == Life::Over {
                    return self.leave();
                }
            }
            self.server.expire(&self.poller);
            if self.supervisor.is_none() && self.supervisor_tried.elapsed() >= SUPERVISOR_PAUSE {
                self.start_supervisor();
            }
            if self.end().is_some_and(|end| end <= Instant::now()) && self.is_unneeded() {
                return self.leave();
            }
        }
    }

    /// When it leaves for want of records.
    fn end(&self) -> Option<Instant> {
        Some(self.empty_since? + self.grace?)
    }

    fn deadline(&self) -> Option<Instant> {
        let supervisor = self.supervisor.is_none().then(|| self.supervisor_tried + SUPERVISOR_PAUSE);
        [self.server.deadline(), self.end(), supervisor].into_iter().flatten().min()
    }

    /// Whether really nobody needs this server: no record, and no client that is about to bring one.
    ///
    /// A client that connects after this finds that nobody answers, and starts a server itself.
    fn is_unneeded(&mut self) -> bool {
        if let Ok(Some(socket)) = Seqpacket::accept(self.control.as_fd()) {
            self.welcome(socket);
        }
        self.empty_since = Some(Instant::now());
        self.clients.is_empty() && self.store.load().records.is_empty()
    }

    /// Whether the directory that it stands in was removed.
    fn is_homeless(&self) -> bool {
        std::fs::metadata(self.store.root()).is_ok_and(|directory| directory.nlink() == 0)
    }

    fn leave(self) -> std::result::Result<(), StartError> {
        log::info!("leaves");
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.quit();
        }
        Ok(())
    }

    /// Ends as if it had never been: nobody starts another one for it.
    fn withdraw(self) {
        log::warn!("comes too late and leaves");
        for keeper in self.keepers() {
            // One that is gone already need not be told.
            let _ = keeper.quit();
        }
    }

    // ---- The supervisor ----

    fn start_supervisor(&mut self) {
        self.supervisor_tried = Instant::now();
        let started = image::start(Part::Supervisor, |channel| channel.keep_all(self.possessions()));
        if let Err(error) = started.and_then(|channel| self.supervised_by(channel)) {
            log::warn!("start a supervisor: {error}");
        }
    }

    fn supervised_by(&mut self, channel: Channel) -> Result<()> {
        self.poller.add(channel.as_fd(), Token::only(Kind::Supervisor), Interest::Read)?;
        self.supervisor = Some(channel);
        Ok(())
    }

    fn supervisor_lost(&mut self) -> Life {
        let Some(supervisor) = &self.supervisor else { return Life::On };
        match supervisor.receive() {
            // It has nothing to say but by its end.
            Ok(Some(Message::Keep(_) | Message::Drop(_) | Message::Go | Message::Quit)) => {}
            Ok(None) | Err(_) => {
                self.supervisor = None;
                self.start_supervisor();
            }
        }
        Life::On
    }

    // ---- The guard ----

    /// Starts a guard, in place of an earlier build's. Only possible before the rights are dropped.
    fn renew_guard(&mut self) {
        let started = image::start(Part::Guard, |_| Ok(()));
        if let Err(error) = started.and_then(|channel| self.guarded_by(channel)) {
            log::warn!("start a guard: {error}");
        }
    }

    /// From now on `channel` ends for its guard when both worker and supervisor are gone.
    fn guarded_by(&mut self, channel: Channel) -> Result<()> {
        if let Some(earlier) = self.guard.take() {
            // One that is gone need not be told.
            let _ = earlier.quit();
            let _ = self.poller.remove(earlier.as_fd());
        }
        channel.limit(GUARD_PATIENCE)?;
        // The supervisor first: if this worker is killed after the guard has everything, the guard must not take that
        // for the end of the server, and start a second one beside the supervisor's.
        if let Some(supervisor) = &self.supervisor {
            supervisor.keep(GUARD, &[channel.as_fd()])?;
        }
        let handed_over = channel
            .keep_all(self.possessions())
            .and_then(|()| self.poller.add(channel.as_fd(), Token::only(Kind::Guard), Interest::Read));
        if let (Err(_), Some(supervisor)) = (&handed_over, &self.supervisor) {
            let _ = supervisor.drop(GUARD);
        }
        handed_over?;
        self.guard = Some(channel);
        Ok(())
    }

    /// Waits until the guard is there. One that has been killed before is replaced while that is possible; one that is
    /// slow, on a busy machine, is kept: without a guard, the names would be lost with worker and supervisor.
    fn await_guard(&mut self) {
        for _ in 0..MAX_GUARDS {
            match self.guard.as_ref().map(Channel::receive) {
                Some(Ok(Some(_))) | None => return,
                Some(Err(error)) if is_silence(&error) => return,
                Some(Ok(None) | Err(_)) => {
                    self.guard_gone();
                    self.renew_guard();
                }
            }
        }
    }

    fn guard_lost(&mut self) -> Life {
        match self.guard.as_ref().map(Channel::receive) {
            // Somebody has removed the files by which this server is found.
            Some(Ok(Some(Message::Quit))) => return Life::Over,
            // That it is there.
            Some(Ok(Some(_))) | None => {}
            // The next plugin that brings a record starts another one.
            Some(Ok(None) | Err(_)) => self.guard_gone(),
        }
        Life::On
    }

    fn guard_gone(&mut self) {
        let Some(guard) = self.guard.take() else { return };
        // One that lives all the same must not take the end of its channel for the server's.
        let _ = guard.quit();
        // The supervisor may have the same socket, so that closing it here would not take it out.
        let _ = self.poller.remove(guard.as_fd());
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.drop(GUARD);
        }
    }

    /// Those who keep what another worker would need.
    fn keepers(&self) -> impl Iterator<Item = &Channel> {
        self.supervisor.iter().chain(&self.guard)
    }

    /// Every descriptor that another worker would need, by its label.
    fn possessions(&self) -> Vec<(String, Vec<BorrowedFd<'_>>)> {
        let mut all = vec![
            (LOCK.to_owned(), vec![self.lock.as_fd()]),
            (CONTROL.to_owned(), vec![self.control.as_fd()]),
        ];
        all.extend(self.guard.iter().map(|guard| (GUARD.to_owned(), vec![guard.as_fd()])));
        for (wanted, port) in &self.wanted {
            if let Some(sockets) = self.server.sockets(&wanted.listener()) {
                all.push((label_of(wanted, *port), vec![sockets.udp.as_fd(), sockets.tcp.as_fd()]));
            }
        }
        all
    }

    // ---- Listeners ----

    fn open(&mut self, wanted: Wanted, port: u16, sockets: Sockets) -> Result<()> {
        let listener = wanted.listener();
        self.forget(&listener);
        for keeper in self.keepers() {
            // One that is gone is missed in a moment, and the next one gets everything.
            let _ = keeper.keep(&label_of(&wanted, port), &[sockets.udp.as_fd(), sockets.tcp.as_fd()]);
        }
        self.closed.retain(|closed| closed.listener() != listener);
        self.server.open(&self.poller, listener, port, sockets)?;
        self.wanted.push((wanted, port));
        Ok(())
    }

    /// Takes back rules of an earlier server that no record needs any more.
    fn sweep_rules(&mut self) {
        let needed = self.server.desk().zones.listeners().into_iter().collect();
        if let Err(error) = gateway::sweep(&needed) {
            log::debug!("sweep the host's rules: {error}");
        }
    }

    /// Opens what the records need and nobody has opened. The bridge may be gone: whoever attaches the next container to
    /// it opens it then, and is told what is wrong.
    fn open_missing(&mut self) {
        for listener in self.server.desk().zones.listeners() {
            if self.wanted.iter().any(|(open, _)| open.listener() == listener) {
                continue;
            }
            let opened = wanted(&listener)
                .and_then(|wanted| gateway::open(&listener).map(|(sockets, port)| (wanted, port, sockets)))
                .and_then(|(wanted, port, sockets)| self.open(wanted, port, sockets));
            if let Err(error) = opened {
                log::debug!("open {} on {}: {error}", listener.gateway, listener.bridge);
            }
        }
    }

    fn forget(&mut self, listener: &Listener) {
        self.server.close(&self.poller, listener);
        let all = std::mem::take(&mut self.wanted);
        let (closed, open): (Vec<_>, _) =
            all.into_iter().partition(|(wanted, _)| wanted.listener() == *listener);
        self.wanted = open;
        for (wanted, port) in closed {
            for keeper in self.keepers() {
                // One that is gone has dropped it already.
                let _ = keeper.drop(&label_of(&wanted, port));
            }
        }
    }

    /// Closes what no record needs any more, and notes when the last record went.
    fn note_records(&mut self) {
        let needed: BTreeSet<Listener> = self.server.desk().zones.listeners().into_iter().collect();
        let open = self.wanted.iter().map(|(wanted, _)| wanted);
        let closed: Vec<Wanted> = open.filter(|open| !needed.contains(&open.listener())).cloned().collect();
        for wanted in &closed {
            self.forget(&wanted.listener());
        }
        self.closed.extend(closed);
        if !self.server.desk().zones.is_empty() {
            self.empty_since = None;
        } else if self.empty_since.is_none() {
            self.empty_since = Some(Instant::now());
        }
    }

    // ---- Records ----

    /// Looks at what has changed in the directory.
    fn follow(&mut self) -> Life {
        for change in self.watch.changes() {
            match change {
                Change::Record(key) => {
                    let _ = self.look_at(&key);
                }
                Change::Network(network) => self.look_at_network(&network),
                Change::Everything => self.look_at_everything(),
                Change::Gone => return Life::Over,
            }
        }
        self.note_records();
        Life::On
    }

    /// Answers by what the file of `key` says now; tells whose address the record has taken over, `None` when there is
    /// no record.
    fn look_at(&mut self, key: &RecordKey) -> std::result::Result<Option<Vec<RecordKey>>, String> {
        let read = self.store.read(key);
        if read.is_ok() {
            self.unreadable.remove(&self.store.path(key));
        }
        let zones = &mut self.server.desk().zones;
        match read {
            Ok(Some(record)) => {
                log::debug!("answers by the record of {}", in_words(key));
                Ok(Some(zones.apply(record).displaced))
            }
            Ok(None) => {
                log::debug!("no longer answers by a record of {}", in_words(key));
                zones.remove(key);
                Ok(None)
            }
            // What was known before stays: a broken edit shall not take a name away.
            Err(unreadable) => {
                let told = unreadable.to_string();
                let Unreadable { path, reason } = unreadable;
                if self.unreadable.get(&path) != Some(&reason) {
                    log::warn!("passed over {told}");
                    self.unreadable.insert(path, reason);
                }
                Err(told)
            }
        }
    }

    fn look_at_network(&mut self, network: &str) {
        let known: Vec<RecordKey> =
            self.server.desk().zones.keys().filter(|key| key.network() == network).collect();
        let loaded = self.store.load_network(network);
        for record in loaded.records {
            self.server.desk().zones.apply(record);
        }
        self.unreadable.extend(by_path(loaded.unreadable));
        for key in known {
            let _ = self.look_at(&key);
        }
    }

    /// The files that are passed over, in words; of very many only the first, for it all goes into one message.
    fn still_unreadable(&mut self) -> Vec<String> {
        // Nobody tells of a file that is no record by its name and goes.
        self.unreadable.retain(|path, _| path.symlink_metadata().is_ok());
        let in_words = |(path, reason): (&PathBuf, &String)| format!("{}: {reason}", path.display());
        let mut told: Vec<String> = self.unreadable.iter().take(MAX_UNREADABLE_TOLD).map(in_words).collect();
        if self.unreadable.len() > told.len() {
            told.push(format!("and {} more", self.unreadable.len() - told.len()));
        }
        told
    }

    fn look_at_everything(&mut self) {
        let zones = &mut self.server.desk().zones;
        *zones = Zones::default();
        self.unreadable = by_path(self.store.read_each(|record| drop(zones.apply(record))));
    }

    // ---- Clients of the control socket ----

    fn accept(&mut self) -> Life {
        if self.successor.is_none()
            && let Ok(Some(socket)) = Seqpacket::accept(self.control.as_fd())
        {
            self.welcome(socket);
        }
        Life::On
    }

    fn welcome(&mut self, socket: Seqpacket) {
        // The file's mode says the same; a connection may have been passed on.
        if !socket.peer_uid().is_ok_and(|uid| uid == self.owner || uid == 0) {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = self.clients.vacant_entry();
        let token =
            Token { kind: Kind::ControlConnection, slot: entry.key() as u32, generation: self.generation };
        if self.poller.add(&socket, token, Interest::Read).is_ok() {
            entry.insert(Client { socket, generation: self.generation });
        }
    }

    /// Takes what a client says, and answers it.
    fn converse(&mut self, token: Token) -> Life {
        let slot = token.slot as usize;
        let Some(client) = self.clients.get(slot).filter(|client| client.generation == token.generation)
        else {
            return Life::On;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = client.socket.receive(&mut buffer);
        let asked = match &received {
            Ok(Some((octets, _))) => decode::<Asked>(octets).map_err(|error| error.to_string()),
            Ok(None) => Err(String::new()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.buffer = buffer;
                return Life::On;
            }
            Err(_) => Err(String::new()),
        };
        let fds = received.ok().flatten().map(|(_, fds)| fds);
        self.buffer = buffer;
        let Some(fds) = fds else {
            self.clients.remove(slot);
            if self.successor == Some(token) {
                // It did not come to that.
                self.successor = None;
            }
            return Life::On;
        };
        if self.is_homeless() {
            // The client starts a server where the directory is now.
            return Life::Over;
        }
        let told = match asked {
            Ok(Asked::Retire) if self.successor == Some(token) => return Life::Over,
            Ok(Asked::HandOver) => self.hand_over(token),
            Ok(asked) => self.comply(asked, fds),
            Err(error) => Told::Failed(format!("not understood: {error}")),
        };
        let sent = encode(&told).and_then(|octets| self.clients[slot].socket.send(&octets, &[]));
        if sent.is_err() {
            self.clients.remove(slot);
        }
        Life::On
    }

    fn comply(&mut self, asked: Asked, fds: Vec<OwnedFd>) -> Told {
        match asked {
            Asked::Apply { key, wanted } => {
                let looked = self.look_at(&key);
                let missing = wanted
                    .into_iter()
                    .filter(|one| !self.wanted.iter().any(|(open, _)| open == one))
                    .collect();
                self.note_records();
                match looked {
                    Ok(Some(displaced)) => {
                        let guarded = self.guard.is_some();
                        Told::Applied(Applied { displaced, missing, build: Build::own(), guarded })
                    }
                    Ok(None) => Told::Failed("there is no such record".to_owned()),
                    Err(unreadable) => Told::Failed(unreadable),
                }
            }
            Asked::Remove { keys } => {
                for key in keys {
                    let _ = self.look_at(&key);
                }
                self.note_records();
                Told::Removed { closed: std::mem::take(&mut self.closed) }
            }
            Asked::Contains { key } => Told::Contains(self.server.desk().zones.contains(&key)),
            Asked::Listen { wanted, port } => {
                let Ok([udp, tcp]) = <[OwnedFd; 2]>::try_from(fds) else {
                    return Told::Failed("two sockets belong to it".to_owned());
                };
                match self.open(wanted, port, Sockets { udp, tcp }) {
                    Ok(()) => Told::Done,
                    Err(error) => Told::Failed(error.to_string()),
                }
            }
            Asked::Query { name, rtype, source } => {
                match explain::explain(&self.server.desk().zones, &name, &rtype, source) {
                    Ok(explained) => Told::Explained(explained),
                    Err(reason) => Told::Failed(reason),
                }
            }
            Asked::Guard => match <[OwnedFd; 1]>::try_from(fds) {
                Ok([guard]) => match self.guarded_by(Channel::from(Seqpacket::from(guard))) {
                    Ok(()) => Told::Done,
                    Err(error) => Told::Failed(error.to_string()),
                },
                Err(_) => Told::Failed("one channel belongs to it".to_owned()),
            },
            Asked::Hello => Told::Done,
            Asked::Status => Told::Status(Box::new(self.status())),
            Asked::HandOver | Asked::Retire => Told::Failed("nothing was handed over".to_owned()),
        }
    }

    /// Gives a client everything that a worker of its own needs. Until it is gone, or retires this one, no other client
    /// is taken: it could tell this worker what the other one has to know.
    fn hand_over(&mut self, token: Token) -> Told {
        let client = &self.clients[token.slot as usize];
        let sent = self
            .possessions()
            .into_iter()
            .try_for_each(|(label, fds)| client.socket.send(&encode(&Told::Kept(label))?, &fds));
        match sent {
            Ok(()) => {
                self.successor = Some(token);
                Told::Done
            }
            Err(error) => Told::Failed(error.to_string()),
        }
    }

    fn status(&mut self) -> Status {
        let now = Instant::now();
        let unreadable = self.still_unreadable();
        let (queries, connections) = (self.server.counters(), self.server.connections());
        let desk = self.server.desk();
        let (in_flight, cached) = desk.forwarder.counts();
        let listeners = desk.zones.listeners().into_iter().map(|listener| {
            let open = self.wanted.iter().find(|(open, _)| open.listener() == listener);
            ListenerStatus {
                port: open.map(|(_, port)| *port),
                ifindex: open.map(|(open, _)| open.ifindex),
                bridge: listener.bridge,
                gateway: listener.gateway,
            }
        });
        Status {
            build: Build::own(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs(),
            supervised: self.supervisor.is_some(),
            guarded: self.guard.is_some(),
            uid: nix::unistd::geteuid().as_raw(),
            unconfined: self.unconfined.clone(),
            records: desk.zones.len(),
            unreadable,
            networks: desk
                .zones
                .networks()
                .map(|(name, records)| NetworkStatus { name: name.to_owned(), records })
                .collect(),
            listeners: listeners.collect(),
            queries,
            in_flight,
            cached,
            connections,
            host_servers: desk.forwarder.host_servers().to_vec(),
            upstreams: desk
                .forwarder
                .health(now)
                .into_iter()
                .map(|(server, health)| UpstreamStatus { server, health })
                .collect(),
        }
    }
}
