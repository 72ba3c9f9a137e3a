//! Who is connected to the control socket, what they ask, and what they are told.

use std::fs::File;
use std::io::{Result, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::listeners::Place;
use super::{Life, Worker};
use crate::daemon::channel::Channel;
use crate::daemon::control::{
    Applied, Asked, Build, ListenerStatus, NetworkStatus, Open, Status, Told, UpstreamStatus, decode, encode,
};
use crate::daemon::explain;
use crate::daemon::seqpacket::Seqpacket;
use crate::poller::{Interest, Kind, Token};
use crate::serve::listen::Sockets;

/// Listeners in one message at most: as many as fit.
const MAX_CLOSED: usize = 256;

/// How long no client is taken after descriptors or memory have run out.
const RECOVERY: Duration = Duration::from_millis(100);

/// How long a successor may take for a part of what it is handed over.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(1);

/// Who is connected to the control socket.
pub(super) struct Client {
    socket: Seqpacket,
    generation: u16,
}

impl Client {
    /// Says `told`, or writes it into the file that was brought for it.
    fn tell(&self, told: &Told, room: Option<File>) -> Result<()> {
        let octets = encode(told)?;
        match room {
            Some(mut room) => {
                room.write_all(&octets)?;
                self.socket.send(&encode(&Told::Written)?, &[])
            }
            None => self.socket.send(&octets, &[]),
        }
    }
}

impl Worker {
    pub(super) fn accept(&mut self) -> Life {
        if self.successor.is_some() {
            return Life::On;
        }
        match Seqpacket::accept(self.control.as_fd()) {
            Ok(Some(socket)) => self.welcome(socket),
            Ok(None) => {}
            // Whoever waits would else wake this worker again and again.
            Err(error) => {
                log::warn!("take a client: {error}");
                self.resting = Some(Instant::now() + RECOVERY);
                self.look_for_clients_or_warn(Interest::Nothing);
            }
        }
        Life::On
    }

    /// Looks for clients again where it was not looked for them because descriptors or memory had run out.
    pub(super) fn end_rest(&mut self) {
        if self.resting.is_some_and(|until| until <= Instant::now()) {
            self.resting = None;
            if self.successor.is_none() {
                self.look_for_clients_or_warn(Interest::Read);
            }
        }
    }

    pub(super) fn welcome(&mut self, socket: Seqpacket) {
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
    pub(super) fn converse(&mut self, token: Token) -> Life {
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
                self.look_for_clients_or_warn(Interest::Read);
            }
            return Life::On;
        };
        if self.is_homeless() {
            // The client starts a server where the directory is now.
            return Life::Over;
        }
        let (told, room) = match asked {
            Ok(Asked::Retire) if self.successor == Some(token) => return Life::Retired,
            Ok(Asked::HandOver) => (self.hand_over(token), None),
            Ok(asked @ (Asked::Query { .. } | Asked::Status)) => {
                (self.comply(asked, Vec::new()), fds.into_iter().next().map(File::from))
            }
            Ok(asked) => (self.comply(asked, fds), None),
            Err(error) => (Told::Failed(format!("not understood: {error}")), None),
        };
        if self.clients[slot].tell(&told, room).is_err() {
            self.clients.remove(slot);
        }
        Life::On
    }

    fn comply(&mut self, asked: Asked, fds: Vec<OwnedFd>) -> Told {
        match asked {
            Asked::Apply { key, wanted } => {
                let looked = self.look_at(&key);
                let (mut open, mut missing) = (Vec::new(), Vec::new());
                for wanted in wanted {
                    match self.open.get(&wanted.listener()) {
                        Some(&Place { ifindex, port }) if ifindex == wanted.ifindex => {
                            open.push(Open { wanted, port });
                        }
                        _ => missing.push(wanted),
                    }
                }
                self.note_records();
                match looked {
                    Ok(Some(rivals)) => {
                        let guarded = self.guard.is_some();
                        Told::Applied(Applied { rivals, missing, open, build: Build::own(), guarded })
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
                let told = self.closed.len().min(MAX_CLOSED);
                let closed = self.closed.drain(..told).collect();
                Told::Removed { closed, more: !self.closed.is_empty(), unguarded: self.guard.is_none() }
            }
            Asked::Contains { key } => Told::Contains(self.server.desk().zones.contains(&key)),
            Asked::Listen { wanted, port } => {
                let Ok([udp, tcp]) = <[OwnedFd; 2]>::try_from(fds) else {
                    return Told::Failed("two sockets belong to it".to_owned());
                };
                if !self.descriptors.are_enough_to_listen(&udp, &tcp) {
                    return Told::Failed(format!(
                        "too few descriptors are left to listen on {} (RLIMIT_NOFILE)",
                        wanted.gateway
                    ));
                }
                match self.open(Open { wanted, port }, Sockets { udp, tcp: tcp.into() }) {
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
        let socket = &self.clients[token.slot as usize].socket;
        let say = |(label, fds): (String, Vec<_>)| socket.send(&encode(&Told::Kept(label))?, &fds);
        // More than the socket holds: waited for, as it is read.
        let sent = socket
            .wait_when_full(SUCCESSOR_PATIENCE)
            .and_then(|()| self.possessions().into_iter().try_for_each(say))
            .and_then(|()| socket.never_wait())
            // Those who wait to be taken would else wake this worker again and again.
            .and_then(|()| self.look_for_clients(Interest::Nothing));
        match sent {
            Ok(()) => {
                self.successor = Some(token);
                Told::Done
            }
            Err(error) => Told::Failed(error.to_string()),
        }
    }

    fn look_for_clients_or_warn(&self, interest: Interest) {
        if let Err(error) = self.look_for_clients(interest) {
            log::warn!("look for clients: {error}");
        }
    }

    fn look_for_clients(&self, interest: Interest) -> Result<()> {
        self.poller.change(&self.control, Token::only(Kind::Control), interest)
    }

    fn status(&mut self) -> Status {
        let now = Instant::now();
        let unreadable = self.still_unreadable();
        let (queries, connections) = (self.server.counters(), self.server.connections());
        let desk = self.server.desk();
        let (in_flight, cached) = desk.forwarder.counts();
        let listeners = desk.zones.listeners().into_iter().map(|listener| {
            let open = self.open.get(&listener);
            ListenerStatus {
                port: open.map(|open| open.port),
                ifindex: open.map(|open| open.ifindex),
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
            host_servers: desk.forwarder.host_servers(now).to_vec(),
            upstreams: desk
                .forwarder
                .health(now)
                .into_iter()
                .map(|(server, health)| UpstreamStatus { server, health })
                .collect(),
        }
    }
}
