//! The worker: loads the records, serves queries, takes what the control socket asks, and follows the record directory.
//!
//! It starts in one of three ways: by a plugin that found no server, and then it takes the lock and opens everything as
//! the user that it was started by; by the supervisor after an earlier worker died, with everything that one had; or by
//! a plugin of a later build, with everything that the earlier build had. After that all are the same.

mod clients;
mod keepers;
mod listeners;
mod possession;
mod records;
mod retired;
mod start;
mod start_error;

use std::collections::{BTreeMap, HashMap};
use std::io::Result;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, signal};
use slab::Slab;

use self::clients::Client;
use self::listeners::Place;
pub(super) use self::listeners::wanted;
use self::possession::Possession;
use self::records::{by_path, in_words};
use self::retired::Retired;
pub(super) use self::start::run;
use self::start_error::{StartError, io};
use super::channel::Channel;
use super::control::{MAX_ASKED, Open, Wanted};
use super::privileges;
use super::seqpacket::Seqpacket;
use crate::descriptors::Descriptors;
use crate::forward::ResolvConf;
use crate::poller::{Interest, Kind, Poller, Token};
use crate::records::disk::Store;
use crate::records::watch::Watch;
use crate::serve::Server;
use crate::zone::{Listener, Zones};

/// How long a server without records waits for the next one.
const GRACE: Duration = Duration::from_secs(10);

/// How long after a failed attempt another supervisor is started.
const SUPERVISOR_PAUSE: Duration = Duration::from_secs(1);

/// What the parts keep the sockets under.
pub(super) const LOCK: &str = "lock";
pub(super) const CONTROL: &str = "control";
const GUARD: &str = "guard";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the lock file and the control socket are called in the state directory.
pub(crate) const LOCK_FILE: &str = "lock";
pub(crate) const CONTROL_SOCKET: &str = "control";

/// The records: the working directory of every worker.
fn store() -> Store {
    Store::at(Path::new("."))
}

struct Worker {
    poller: Poller,
    server: Server,
    descriptors: Descriptors,
    store: Store,
    /// `None` where the kernel has none to give.
    watch: Option<Watch>,
    lock: OwnedFd,
    control: OwnedFd,
    /// Where queries are taken.
    open: HashMap<Listener, Place>,
    /// Closed since a client was told last, so that it takes the host's rules for them back.
    closed: Vec<Wanted>,
    supervisor: Option<Channel>,
    guard: Option<Channel>,
    supervisor_tried: Instant,
    clients: Slab<Client>,
    /// The control socket is not looked at until then.
    resting: Option<Instant>,
    generation: u16,
    /// The client that has got everything and whose own worker takes over.
    successor: Option<Token>,
    /// Files that were passed over when they were last looked at, and why.
    unreadable: BTreeMap<PathBuf, String>,
    /// When the records are read again, some of which could not be.
    unread: Option<Instant>,
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
    /// Another worker has everything.
    Retired,
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
        let watch = Watch::new(store.clone())
            .map_err(|error| {
                log::warn!("watch the records: {error}; what nobody tells of them is not noticed");
            })
            .ok();
        let mut zones = Zones::default();
        let unreadable = store.read_each(|record| {
            if !record.is_of_earlier_boot() {
                zones.apply(record);
            } else if store.remove(&record.key).is_ok() {
                // A worker that an earlier one has left its place to has no right to, and leaves it to GC.
                log::info!("removed the record of {}, of an earlier boot", in_words(&record.key));
            }
        });
        // Names would be denied, and gateways closed that such a worker has no right to open again. Whoever starts it
        // tries again, and what is asked meanwhile waits.
        if let Some(unread) = unreadable.iter().find(|unreadable| unreadable.is_scarcity) {
            return Err(io(unread.path.display())(std::io::Error::other(unread.reason.clone())));
        }
        // Told now: the question is refused to a worker without rights.
        let descriptors = Descriptors::of_process();
        let mut resolv_conf = ResolvConf::at(RESOLV_CONF);
        // A file that only its owner may read is read once at least.
        resolv_conf.refresh(Instant::now());
        let mut worker = Self {
            server: Server::new(zones, resolv_conf, descriptors),
            descriptors,
            unreadable: by_path(unreadable),
            unread: None,
            poller,
            store,
            watch,
            lock,
            control,
            open: HashMap::new(),
            closed: Vec::new(),
            supervisor: None,
            guard,
            supervisor_tried: Instant::now(),
            clients: Slab::new(),
            resting: None,
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
            worker.open(Open { wanted, port }, sockets).map_err(io("epoll"))?;
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
        if let Some(watch) = &self.watch {
            self.poller.add(watch, Token::only(Kind::Records), Interest::Read)?;
        }
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
            if ready.contains(&Token::only(Kind::Records)) && self.follow() != Life::On {
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
                match life {
                    Life::On => {}
                    Life::Over => return self.leave(),
                    Life::Retired => return self.retire(),
                }
            }
            self.server.expire(&self.poller);
            self.end_rest();
            self.read_again();
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
        [self.server.deadline(), self.end(), supervisor, self.resting, self.unread]
            .into_iter()
            .flatten()
            .min()
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

    /// Leaves, and ends when those have their answers who wait for somebody elsewhere.
    fn retire(self) -> std::result::Result<(), StartError> {
        log::info!("leaves");
        let Self { poller, server, store, watch, lock, control, supervisor, guard, clients, .. } = self;
        if let Some(supervisor) = supervisor {
            let _ = supervisor.quit();
        }
        let is_removed = poller.remove(&control).is_ok();
        drop((lock, control, guard, clients));
        // Who cannot see what changes might keep what is needed no more.
        let Some(watch) = watch.filter(|_| is_removed) else { return Ok(()) };
        Retired { poller, server, store, watch }.finish().map_err(io("epoll"))
    }

    /// Ends as if it had never been: nobody starts another one for it.
    fn withdraw(self) {
        log::warn!("comes too late and leaves");
        for keeper in self.keepers() {
            // One that is gone already need not be told.
            let _ = keeper.quit();
        }
    }
}
