//! The server as plugins and a person's commands see it. Every step has its time, so that a server that hangs never
//! hangs a runtime.

use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Seek as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use cni_types::ErrorCode;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::channel::{self, Channel, Kept};
use super::control::{
    Applied, Asked, Build, Explained, ListenerStatus, MAX_TOLD, Status, Told, Wanted, decode, encode,
    portions,
};
use super::gateway::{self, Opened, Opening};
use super::lock_file::LockFile;
use super::seqpacket::Seqpacket;
use super::worker::{CONTROL_SOCKET, wanted};
use super::{detach, image};
use crate::records::RecordKey;
use crate::serve::listen::PORT;
use crate::state_dir::StateDir;
use crate::zone::Listener;

/// How long the server is waited for, a start of it included. An ADD that has waited in vain waits once more while it
/// takes its record back, which a server that hangs may have read.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// Milliseconds until the next look while another client starts the server.
const LOOK_AGAIN: u16 = 20;

/// How often a server is started again that dies before it is ready.
const MAX_DEATHS: usize = 4;

/// Held by the one who opens something for all, a server or a listener, or clears everything away.
pub(super) const OPENING_LOCK: &str = "opening.lock";

/// Why the server could not be asked. The text says the cause, too, so that none is told as a source.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none, and none could be started.
    #[error("start the DNS server: {0}")]
    Start(String),
    /// It does not answer.
    #[error("the DNS server does not answer within {} ms", PATIENCE.as_millis())]
    Silent,
    /// It went away again and again.
    #[error("ask the DNS server: {0}")]
    Lost(Error),
    /// It said that it could not.
    #[error("the DNS server: {0}")]
    Refused(String),
    /// What an earlier one has left cannot be cleared away.
    #[error("clear away what the DNS server has left: {0}")]
    Clear(Error),
    /// A gateway address could not be opened.
    #[error("listen on {gateway} port {PORT} by {bridge}: {reason}")]
    Listen {
        /// The bridge.
        bridge: String,
        /// The gateway address.
        gateway: IpAddr,
        /// Why.
        reason: Error,
    },
}

impl From<ClientError> for cni_types::Error {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Start(_) | ClientError::Silent | ClientError::Lost(_) | ClientError::Refused(_) => {
                ErrorCode::TRY_AGAIN_LATER
            }
            ClientError::Listen { .. } | ClientError::Clear(_) => ErrorCode::IO_FAILURE,
        };
        Self::new(code, error.to_string())
    }
}

/// A connection to the server of a state directory.
#[derive(Debug)]
pub struct Client {
    state: StateDir,
    socket: Seqpacket,
    deadline: Instant,
}

impl Client {
    /// The server of `state`; it is started when there is none.
    ///
    /// # Errors
    /// When it cannot be started, or does not come up in time.
    pub fn ensure(state: &StateDir) -> Result<Self, ClientError> {
        let deadline = Instant::now() + PATIENCE;
        Ok(Self { state: state.clone(), socket: reach(state, deadline)?, deadline })
    }

    /// The server of `state`, if there is one.
    ///
    /// # Errors
    /// When the control socket cannot be reached for another reason.
    pub fn connect_existing(state: &StateDir) -> Result<Option<Self>, ClientError> {
        let deadline = Instant::now() + PATIENCE;
        let socket = connect(state, deadline).map_err(ClientError::Lost)?;
        Ok(socket.map(|socket| Self { state: state.clone(), socket, deadline }))
    }

    /// Has the server answer by the record of `key`, which is on disk, from `listeners`. From the return on every query
    /// is answered by it. Tells which records it shares an address or a name with.
    ///
    /// # Errors
    /// When the server does not, or a listener cannot be opened.
    pub fn apply(&mut self, key: &RecordKey, listeners: &[Listener]) -> Result<Vec<RecordKey>, ClientError> {
        let Applied { rivals, open, build, guarded, .. } = self.have_answered(key, listeners)?;
        self.let_in(&open.into_iter().map(Opened::from).collect::<Vec<_>>());
        let own = Build::own();
        if own.supersedes(&build) {
            if let Err(error) = self.replace() {
                // The old server goes on, so nothing is lost but the newer one's improvements.
                log::warn!("replace the DNS server {} by {}: {error}", build.version, own.version);
            }
        } else if !guarded {
            self.guard_or_warn();
        }
        Ok(rivals)
    }

    /// Whether the server answers by the record of `key`, which is on disk, from `listeners`; those that can be opened
    /// are.
    ///
    /// # Errors
    /// When the server does not answer, and no other one can be started.
    pub fn listens(&mut self, key: &RecordKey, listeners: &[Listener]) -> Result<bool, ClientError> {
        match self.have_answered(key, listeners) {
            Ok(Applied { open, .. }) => {
                self.let_in(&open.into_iter().map(Opened::from).collect::<Vec<_>>());
                Ok(true)
            }
            Err(error @ ClientError::Listen { .. }) => {
                log::debug!("{error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn have_answered(&mut self, key: &RecordKey, listeners: &[Listener]) -> Result<Applied, ClientError> {
        let mut all = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let wanted = wanted(listener).map_err(|reason| cannot_listen(listener, reason))?;
            // Two subnets may have the same gateway.
            if !all.contains(&wanted) {
                all.push(wanted);
            }
        }
        let apply = Asked::Apply { key: key.clone(), wanted: all };
        let mut applied = self.applied(&apply, true)?;
        let mut rivals = std::mem::take(&mut applied.rivals);
        while !applied.missing.is_empty() {
            match self.open_missing(&apply) {
                Ok(more) => {
                    rivals.extend(more);
                    break;
                }
                // The server died on the way; the next one may miss nothing.
                Err(ClientError::Lost(_)) if Instant::now() < self.deadline => {
                    applied = self.applied(&apply, true)?;
                    rivals.append(&mut applied.rivals);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Applied { rivals, ..applied })
    }

    /// Lets queries to these through the host's rules again: a firewall that was loaded anew has forgotten what was put
    /// into it when they were opened.
    fn let_in(&mut self, opened: &[Opened]) {
        if !opened.is_empty() {
            self.let_in_by(opened, Self::let_all_in_alone);
        }
    }

    /// Where something keeps queries to these away, lets them in `by` that.
    ///
    /// Where that fails they wait in vain, but that is nothing of this call's; and few hosts have a rule in the way, and
    /// one that has is told by its own counters as well.
    fn let_in_by(&mut self, opened: &[Opened], by: impl FnOnce(&mut Self) -> Result<(), String>) {
        let is_let_in = match gateway::are_let_in(opened) {
            Ok(true) => Ok(()),
            Ok(false) => by(self),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = is_let_in {
            log::warn!("let queries through the host's firewall: {error}");
        }
    }

    fn let_all_in_alone(&mut self) -> Result<(), String> {
        let _opening = lock(&self.state, self.deadline).map_err(|error| error.to_string())?;
        self.let_all_in()
    }

    /// Lets queries through the host's rules, on every network: what is in the way of one is most likely in that of all,
    /// and nobody else may come for long. Whoever calls it has the lock.
    fn let_all_in(&mut self) -> Result<(), String> {
        let listeners = self.status().map_err(|error| error.to_string())?.listeners;
        let opened: Vec<Opened> = listeners.iter().filter_map(Opened::told).collect();
        gateway::let_in(&opened).map_err(|error| error.to_string())
    }

    /// Gives the server a guard. It goes on without, too, and the next call tries again.
    fn guard_or_warn(&mut self) {
        if let Err(error) = self.guard() {
            log::warn!("start a guard of the DNS server: {error}");
        }
    }

    /// Gives the server a guard, which only somebody with rights can start.
    fn guard(&mut self) -> Result<(), ClientError> {
        let guard = detach::start_guard(&self.state).map_err(ClientError::Lost)?;
        self.socket.limit(self.left()).map_err(ClientError::Lost)?;
        let asked = encode(&Asked::Guard).map_err(ClientError::Lost)?;
        self.socket.send(&asked, &[guard.as_fd()]).map_err(ClientError::Lost)?;
        match self.hear().map_err(ClientError::Lost)? {
            (Told::Done, _) => Ok(()),
            (told, _) => Err(unexpected(&told)),
        }
    }

    /// Opens what the server still misses of `apply`; tells which records it shares an address or a name
    /// with.
    ///
    /// Two plugins that both bring the first record of a network both find the same listener missing: one of them opens
    /// it. Nor is a server started meanwhile, for that takes the same lock.
    fn open_missing(&mut self, apply: &Asked) -> Result<Vec<RecordKey>, ClientError> {
        let _opening = lock(&self.state, self.deadline)?;
        let applied = self.applied(apply, false)?;
        applied.missing.iter().try_for_each(|wanted| self.open(wanted))?;
        Ok(applied.rivals)
    }

    fn applied(&mut self, apply: &Asked, start: bool) -> Result<Applied, ClientError> {
        match self.ask(apply, start)? {
            Told::Applied(applied) => Ok(applied),
            told => Err(unexpected(&told)),
        }
    }

    /// Has the server forget `keys`, whose records are gone from the disk. From the return on no query is answered by
    /// them.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn remove(&mut self, keys: &[RecordKey]) -> Result<(), ClientError> {
        for keys in portions(keys) {
            let mut asked = Asked::Remove { keys: keys.to_vec() };
            while self.removed(&asked)? {
                asked = Asked::Remove { keys: Vec::new() };
            }
        }
        Ok(())
    }

    /// Tells whether there are other listeners to be closed.
    fn removed(&mut self, asked: &Asked) -> Result<bool, ClientError> {
        match self.ask(asked, false)? {
            Told::Removed { closed, more, unguarded } => {
                if let Err(error) = self.take_rules_back(&closed) {
                    // The names are gone, and that is what was asked for.
                    log::warn!("take the host's rules back: {error}");
                }
                if unguarded && !more {
                    self.guard_or_warn();
                }
                Ok(more)
            }
            told => Err(unexpected(&told)),
        }
    }

    /// Takes back the host's rules for what the server has closed, but for what somebody has opened again since.
    fn take_rules_back(&mut self, closed: &[Wanted]) -> Result<(), String> {
        if closed.is_empty() {
            return Ok(());
        }
        let _opening = lock(&self.state, self.deadline).map_err(|error| error.to_string())?;
        let listeners = match self.status() {
            Ok(status) => status.listeners,
            // There is no server any more, and nothing is open.
            Err(ClientError::Lost(_) | ClientError::Start(_)) => Vec::new(),
            // What may be open keeps its rules; they go with the server, which sweeps up.
            Err(error) => return Err(error.to_string()),
        };
        let is_open = |wanted: &&Wanted| {
            let is_it =
                |open: &ListenerStatus| open.bridge == wanted.bridge && open.gateway == wanted.gateway;
            listeners.iter().any(|open| open.port.is_some() && is_it(open))
        };
        for wanted in closed.iter().filter(|wanted| !is_open(wanted)) {
            gateway::close(&wanted.listener()).map_err(|error| format!("{}: {error}", wanted.gateway))?;
        }
        Ok(())
    }

    /// Whether the server answers by the record of `key`, which is on disk.
    ///
    /// # Errors
    /// When the server does not answer, and no other one can be started.
    pub fn contains(&mut self, key: &RecordKey) -> Result<bool, ClientError> {
        match self.ask(&Asked::Contains { key: key.clone() }, true)? {
            Told::Contains(contains) => Ok(contains),
            told => Err(unexpected(&told)),
        }
    }

    /// Opens the gateway addresses that records name and nobody listens on, as far as that is possible: records that
    /// somebody puts back, after the last one of a network was gone, come to a server that has no right to open them
    /// again, and sockets that were bound to a bridge hear nothing of another one that has its name now. Queries to the
    /// others are let through the host's rules, whatever these are by now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(super) fn open_closed(&mut self) -> Result<(), ClientError> {
        let listeners = self.status()?.listeners;
        let open = listeners.iter().filter(|listener| hears(listener));
        self.let_in(&open.filter_map(Opened::told).collect::<Vec<_>>());
        if listeners.iter().all(hears) {
            return Ok(());
        }
        let _opening = lock(&self.state, self.deadline)?;
        for listener in self.closed()? {
            let opened = wanted(&listener)
                .map_err(|reason| cannot_listen(&listener, reason))
                .and_then(|wanted| self.open(&wanted));
            match opened {
                Ok(()) => {}
                // Its bridge may be gone, which whoever attaches a container to it is told.
                Err(error @ ClientError::Listen { .. }) => log::debug!("{error}"),
                // A server that has not answered in time may listen or not.
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn closed(&mut self) -> Result<Vec<Listener>, ClientError> {
        let listeners = self.status()?.listeners.into_iter();
        let closed = listeners.filter(|listener| !hears(listener));
        Ok(closed.map(|closed| Listener { bridge: closed.bridge, gateway: closed.gateway }).collect())
    }

    /// What `source`, or without one the host itself, would be answered to `name` and `rtype`, and why.
    ///
    /// # Errors
    /// When the server does not answer, or one of the texts cannot be read.
    pub fn query(
        &mut self,
        name: &str,
        rtype: &str,
        source: Option<IpAddr>,
    ) -> Result<Vec<Explained>, ClientError> {
        let asked = Asked::Query { name: name.to_owned(), rtype: rtype.to_owned(), source };
        match self.ask(&asked, false)? {
            Told::Explained(explained) => Ok(explained),
            told => Err(unexpected(&told)),
        }
    }

    /// Makes sure that the server lives: one that has been killed is connected to until the kernel has closed its
    /// socket.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(super) fn greet(&mut self) -> Result<(), ClientError> {
        self.hello(false)
    }

    /// Has the server of `state` run.
    ///
    /// # Errors
    /// When it cannot be started, or does not come up in time.
    pub(super) fn revive(state: &StateDir) -> Result<(), ClientError> {
        Self::ensure(state)?.hello(true)
    }

    fn hello(&mut self, start: bool) -> Result<(), ClientError> {
        // A server of another build may not know the question; it has answered all the same.
        self.ask(&Asked::Hello, start).map(drop)
    }

    /// How the server does.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Asked::Status, false)? {
            Told::Status(status) => Ok(*status),
            told => Err(unexpected(&told)),
        }
    }

    /// Asks, and again when the server died meanwhile: another one reads the same records. `start` tells whether one is
    /// started when there is none any more.
    fn ask(&mut self, asked: &Asked, start: bool) -> Result<Told, ClientError> {
        loop {
            match self.say(asked) {
                Ok(told) => return Ok(told),
                Err(error) if is_silence(&error) => return Err(ClientError::Silent),
                Err(error) if Instant::now() >= self.deadline => return Err(ClientError::Lost(error)),
                Err(_) if start => self.socket = reach(&self.state, self.deadline)?,
                Err(error) => match connect(&self.state, self.deadline).map_err(ClientError::Lost)? {
                    Some(socket) => self.socket = socket,
                    None => return Err(ClientError::Lost(error)),
                },
            }
        }
    }

    fn say(&self, asked: &Asked) -> Result<Told, Error> {
        self.socket.limit(self.left())?;
        // Two may be answered by more than goes into a message.
        let room = match asked {
            Asked::Status | Asked::Query { .. } => Some(File::from(image::memory_file()?)),
            _ => None,
        };
        let attached: Vec<_> = room.iter().map(File::as_fd).collect();
        self.socket.send(&encode(asked)?, &attached)?;
        match (self.hear()?, room) {
            ((Told::Written, _), Some(mut room)) => {
                room.rewind()?;
                let mut octets = Vec::new();
                room.read_to_end(&mut octets)?;
                decode(&octets)
            }
            ((told, _), _) => Ok(told),
        }
    }

    fn hear(&self) -> Result<(Told, Vec<std::os::fd::OwnedFd>), Error> {
        let mut buffer = vec![0; MAX_TOLD];
        match self.socket.receive(&mut buffer)? {
            Some((octets, fds)) => Ok((decode(octets)?, fds)),
            None => Err(ErrorKind::ConnectionReset.into()),
        }
    }

    /// Opens a listener and hands it over. Whoever calls it has the lock.
    fn open(&mut self, wanted: &Wanted) -> Result<(), ClientError> {
        let listener = wanted.listener();
        let Opening { sockets, port } =
            gateway::open(&listener).map_err(|reason| cannot_listen(&listener, reason))?;
        let asked = Asked::Listen { wanted: wanted.clone(), port };
        let asked = encode(&asked).map_err(ClientError::Lost)?;
        self.socket.limit(self.left()).map_err(ClientError::Lost)?;
        let told = self
            .socket
            .send(&asked, &[sockets.udp.as_fd(), sockets.tcp.as_fd()])
            .and_then(|()| self.hear())
            .map_err(
                |error| if is_silence(&error) { ClientError::Silent } else { ClientError::Lost(error) },
            )?;
        match told.0 {
            Told::Done => {}
            told => return Err(unexpected(&told)),
        }
        self.let_in_by(&[Opened { listener, port }], Self::let_all_in);
        Ok(())
    }

    /// Has a server of this build take over everything that the running one has, sockets included, so that no query
    /// goes unanswered meanwhile.
    fn replace(&self) -> Result<(), ClientError> {
        let lost = ClientError::Lost;
        self.socket.limit(self.left()).map_err(lost)?;
        self.socket.send(&encode(&Asked::HandOver).map_err(lost)?, &[]).map_err(lost)?;
        let mut kept = Kept::new();
        loop {
            match self.hear().map_err(lost)? {
                (Told::Kept(label), fds) => {
                    kept.insert(label, fds);
                }
                (Told::Done, _) => break,
                (told, _) => return Err(unexpected(&told)),
            }
        }
        start(&self.state, &kept, self.deadline).map_err(|error| ClientError::Start(error.to_string()))?;
        // It ends without an answer.
        self.socket.send(&encode(&Asked::Retire).map_err(lost)?, &[]).map_err(lost)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Whether queries come in there.
fn hears(listener: &ListenerStatus) -> bool {
    let is_same = |ifindex| if_nametoindex(listener.bridge.as_str()) == Ok(ifindex);
    listener.port.is_some() && listener.ifindex.is_none_or(is_same)
}

fn cannot_listen(listener: &Listener, reason: Error) -> ClientError {
    ClientError::Listen { bridge: listener.bridge.clone(), gateway: listener.gateway, reason }
}

fn unexpected(told: &Told) -> ClientError {
    match told {
        Told::Failed(reason) => ClientError::Refused(reason.clone()),
        told => ClientError::Refused(format!("unexpected answer {told:?}")),
    }
}

/// Whether nothing has been said within the time that a socket was given.
pub(super) fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Connects to the server of `state`; `None` when nobody listens.
fn connect(state: &StateDir, deadline: Instant) -> Result<Option<Seqpacket>, Error> {
    match Seqpacket::connect(
        &state.path().join(CONTROL_SOCKET),
        deadline.saturating_duration_since(Instant::now()),
    ) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Ok(None),
            _ => Err(error),
        },
    }
}

/// Waits for the right to open something.
fn lock(state: &StateDir, deadline: Instant) -> Result<LockFile, ClientError> {
    match LockFile::take_until(&state.path().join(OPENING_LOCK), deadline) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(ClientError::Silent),
        Err(error) => Err(ClientError::Lost(error)),
    }
}

/// Connects to the server of `state`, which one of all the clients that find none starts.
fn reach(state: &StateDir, deadline: Instant) -> Result<Seqpacket, ClientError> {
    let failed = |error: Error| ClientError::Start(format!("{}: {error}", state.path().display()));
    if let Some(socket) = connect(state, deadline).map_err(failed)? {
        return Ok(socket);
    }
    let arrival = Arrival::watch(state).map_err(failed)?;
    let lock = state.path().join(OPENING_LOCK);
    let mut deaths = 0;
    loop {
        let opening = match LockFile::try_take(&lock) {
            // Somebody clears the directory away.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                state.create().map_err(failed)?;
                None
            }
            taken => taken.map_err(failed)?,
        };
        if let Some(socket) = connect(state, deadline).map_err(failed)? {
            return Ok(socket);
        }
        if let Some(_held) = opening {
            match start(state, &Kept::new(), deadline) {
                Ok(()) | Err(NotStarted::Held) => {}
                Err(NotStarted::Died(_)) if deaths < MAX_DEATHS => deaths += 1,
                Err(NotStarted::Died(reason) | NotStarted::Failed(reason)) => {
                    return Err(ClientError::Start(reason));
                }
            }
            if let Some(socket) = connect(state, deadline).map_err(failed)? {
                return Ok(socket);
            }
        }
        if Instant::now() >= deadline {
            return Err(ClientError::Silent);
        }
        arrival.wait();
    }
}

/// How a start ended that did not lead to a server.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStarted {
    /// Another server has the lock: it is just coming, or just going.
    #[error("another one has the lock")]
    Held,
    /// It was killed, or ended without a word.
    #[error("{0}")]
    Died(String),
    /// It said why, or could not be started at all.
    #[error("{0}")]
    Failed(String),
}

/// Starts a server that takes over `kept`, and waits until it serves. One that does not in time, and has got the lock of
/// another one, will not serve at all: there would be two.
pub(super) fn start(state: &StateDir, kept: &Kept, deadline: Instant) -> Result<(), NotStarted> {
    let failed = |error: Error| NotStarted::Failed(error.to_string());
    let socket = detach::start_server(state).map_err(failed)?;
    socket.limit(deadline.saturating_duration_since(Instant::now())).map_err(failed)?;
    let channel = Channel::from(socket);
    let died = |error: Error| NotStarted::Died(error.to_string());
    channel.keep_all(channel::borrowed(kept)).and_then(|()| channel.go()).map_err(died)?;
    let socket = channel.into_socket();
    let mut buffer = [0; 1024];
    match socket.receive(&mut buffer) {
        Ok(Some((said, _))) => heard(said),
        Ok(None) => Err(NotStarted::Died("it ended without a word".to_owned())),
        Err(error) if is_silence(&error) => {
            socket.hear_no_more().map_err(failed)?;
            match socket.receive(&mut buffer) {
                // In the last moment.
                Ok(Some((said, _))) => heard(said),
                Ok(None) => Err(NotStarted::Failed("it did not come up in time".to_owned())),
                Err(error) => Err(died(error)),
            }
        }
        Err(error) => Err(died(error)),
    }
}

/// What a server has said to whoever started it.
fn heard(said: &[u8]) -> Result<(), NotStarted> {
    match said {
        b"ready" => Ok(()),
        b"held" => Err(NotStarted::Held),
        reason => Err(NotStarted::Failed(String::from_utf8_lossy(reason).into_owned())),
    }
}

/// Waits for a control socket to appear.
struct Arrival(Option<Inotify>);

impl Arrival {
    fn watch(state: &StateDir) -> Result<Self, Error> {
        loop {
            state.create()?;
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
            let watched = inotify.and_then(|inotify| {
                inotify.add_watch(state.path(), AddWatchFlags::IN_MOVED_TO)?;
                Ok(inotify)
            });
            match watched {
                // Somebody clears the directory away.
                Err(Errno::ENOENT) => {}
                // There may be no more to be had: to look again now and then does, too.
                watched => return Ok(Self(watched.ok())),
            }
        }
    }

    /// Returns when one has, or when it is time to look whether the client that starts the server has given up.
    fn wait(&self) {
        let mut watched: Vec<_> =
            self.0.iter().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut watched, PollTimeout::from(LOOK_AGAIN));
        let _ = self.0.as_ref().map(Inotify::read_events);
    }
}
