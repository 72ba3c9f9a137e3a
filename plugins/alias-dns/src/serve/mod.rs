//! Bytes in, bytes out: the sockets of the gateway addresses, the queries that come in by them, and the responses.
//!
//! What is answered is decided by [`crate::answer`]; what is not ours is asked by [`crate::forward`]. Nothing here opens
//! a file or knows who started the server. One thread does everything and never waits for anybody.

pub(crate) mod edns;
mod flood;
pub mod listen;
pub(crate) mod own_address;
pub(crate) mod query;
pub(crate) mod response;
mod strangers;
mod tcp;
mod turns;
mod udp;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use domain::base::iana::Rcode;
use serde::{Deserialize, Serialize};
use slab::Slab;

use self::flood::{Flood, Residents as _};
use self::listen::Sockets;
use self::query::Received;
use self::strangers::Strangers;
use self::tcp::{Connections, Made, Source};
use self::turns::Turns;
use self::udp::Batch;
use crate::answer::{self, Answer, Asker, Question};
use crate::descriptors::Descriptors;
use crate::forward::{Asked, Forwarder, Party, Recipient, ResolvConf, Waiting};
use crate::poller::{Interest, Kind, Poller, Token};
use crate::zone::{Listener, Zones};

/// How long no connection is taken after descriptors or memory have run out.
const RECOVERY: Duration = Duration::from_millis(100);

/// The longest message over TCP.
const TCP_LIMIT: usize = 65_535;

/// Queries since the worker started, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// Packets that came in.
    pub received: u64,
    /// NOERROR with records, of our own.
    pub answered: u64,
    /// NOERROR without records, of our own.
    pub no_data: u64,
    /// NXDOMAIN, of our own.
    pub nx_domain: u64,
    /// Asked upstream, or answered from what was asked before.
    pub forwarded: u64,
    /// SERVFAIL because nobody could be asked.
    pub failed: u64,
    /// REFUSED: the asker is nobody we know.
    pub refused: u64,
    /// No proper queries.
    pub faulty: u64,
    /// Queries that met a fault of this program and got SERVFAIL.
    pub panicked: u64,
}

/// The sockets of one gateway address.
#[derive(Debug)]
struct Gateway {
    listener: Rc<Listener>,
    address: SocketAddr,
    sockets: Sockets,
    generation: u16,
    flood: Flood,
}

/// Everything that serves queries.
pub(crate) struct Server {
    gateways: Slab<Gateway>,
    slots: HashMap<Listener, usize>,
    connections: Connections,
    batch: Batch,
    /// Listening sockets that are not looked at until then.
    resting: Option<Instant>,
    /// When it is looked whether a flood is over.
    flood_deadline: Option<Instant>,
    generation: u16,
    desk: Desk,
}

/// What a query is answered from.
pub(crate) struct Desk {
    pub(crate) zones: Zones,
    pub(crate) forwarder: Forwarder,
    counters: Counters,
    strangers: Strangers,
    /// Where a question would come back to this server.
    own: HashSet<SocketAddr>,
    turns: Turns,
}

impl Server {
    /// A server of `zones` without sockets yet, which takes no more than `descriptors` are enough for.
    pub(crate) fn new(zones: Zones, resolv_conf: ResolvConf, descriptors: Descriptors) -> Self {
        Self {
            gateways: Slab::new(),
            slots: HashMap::new(),
            connections: Connections::new(descriptors),
            batch: Batch::new(),
            resting: None,
            flood_deadline: None,
            generation: 0,
            desk: Desk {
                zones,
                forwarder: Forwarder::new(resolv_conf, descriptors),
                counters: Counters::default(),
                strangers: Strangers::default(),
                own: HashSet::new(),
                turns: Turns::default(),
            },
        }
    }

    /// What is answered from.
    pub(crate) fn desk(&mut self) -> &mut Desk {
        if self.flood_deadline.is_some() {
            // Whoever gets it may change who is known.
            for (_, Gateway { listener, flood, sockets, .. }) in &mut self.gateways {
                flood.forget_strangers(sockets.udp.as_fd(), &OnBridge { zones: &self.desk.zones, listener });
            }
        }
        &mut self.desk
    }

    /// Queries so far.
    pub(crate) fn counters(&self) -> Counters {
        self.desk.counters
    }

    /// Connections of clients.
    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Serves `listener` by `sockets`, in place of others that it may have had.
    pub(crate) fn open(
        &mut self,
        poller: &Poller,
        listener: Listener,
        port: u16,
        sockets: Sockets,
    ) -> std::io::Result<()> {
        self.close(poller, &listener);
        self.generation = self.generation.wrapping_add(1);
        let entry = self.gateways.vacant_entry();
        let (slot, generation) = (entry.key(), self.generation);
        flood::detach(sockets.udp.as_fd())?;
        poller.add(&sockets.udp, token(Kind::Datagrams, slot, generation), Interest::Read)?;
        poller.add(&sockets.tcp, token(Kind::Connections, slot, generation), Interest::Read)?;
        let address = SocketAddr::new(listener.gateway, port);
        self.desk.own.extend(places(address));
        entry.insert(Gateway {
            listener: Rc::new(listener.clone()),
            address,
            sockets,
            generation,
            flood: Flood::default(),
        });
        self.slots.insert(listener, slot);
        Ok(())
    }

    /// No longer serves `listener`.
    pub(crate) fn close(&mut self, poller: &Poller, listener: &Listener) {
        let Some(slot) = self.slots.remove(listener) else { return };
        let gateway = self.gateways.remove(slot);
        // The sockets may live on with the supervisor, so that closing them would not take them out.
        let _ = poller.remove(&gateway.sockets.udp);
        let _ = poller.remove(&gateway.sockets.tcp);
        self.desk.own = self.gateways.iter().flat_map(|(_, other)| places(other.address)).collect();
    }

    /// Reads nothing any more at the gateways.
    pub(crate) fn take_no_more(&mut self, poller: &Poller) {
        for (_, Gateway { sockets, .. }) in &self.gateways {
            // They live on with another worker, so that it would not do to close them here.
            let _ = poller.remove(&sockets.udp);
            let _ = poller.remove(&sockets.tcp);
        }
        self.resting = None;
        // What is attached to the sockets because of a flood is the other worker's.
        self.flood_deadline = None;
    }

    /// Has each connection end as soon as nothing is under way on it.
    pub(crate) fn leave_connections(&mut self, poller: &Poller) {
        let now = Instant::now();
        for token in self.connections.leave() {
            self.connection(poller, token, now);
        }
    }

    /// No longer serves what no record needs.
    pub(crate) fn close_unneeded(&mut self, poller: &Poller) {
        let zones = &self.desk.zones;
        let unneeded: Vec<Listener> =
            self.slots.keys().filter(|listener| !zones.needs(listener)).cloned().collect();
        unneeded.iter().for_each(|listener| self.close(poller, listener));
    }

    /// Whether somebody waits for an answer from elsewhere, or has still to take one.
    pub(crate) fn is_awaited(&self) -> bool {
        self.desk.forwarder.counts().0 > 0 || self.connections.len() > 0
    }

    /// The sockets of `listener`.
    pub(crate) fn sockets(&self, listener: &Listener) -> Option<&Sockets> {
        self.slots.get(listener).map(|slot| &self.gateways[*slot].sockets)
    }

    /// Goes on with what `token` is for.
    pub(crate) fn ready(&mut self, poller: &Poller, token: Token) {
        let now = Instant::now();
        match token.kind {
            Kind::Datagrams => self.datagrams(poller, token, now),
            Kind::Connections => self.accept(poller, token, now),
            Kind::Connection => self.connection(poller, token, now),
            Kind::Upstream => {
                let Self { gateways, connections, desk, .. } = self;
                desk.forwarder.ready(poller, now, token, &mut |recipient, response| {
                    deliver(gateways, connections, poller, recipient, response);
                });
                self.resume(poller, now);
            }
            Kind::Control | Kind::ControlConnection | Kind::Supervisor | Kind::Guard | Kind::Records => {}
        }
    }

    /// Does what has to be done by now because of the time.
    pub(crate) fn expire(&mut self, poller: &Poller) {
        let now = Instant::now();
        let Self { gateways, connections, desk, .. } = self;
        connections.expire(now);
        desk.forwarder.expire(poller, now, &mut |recipient, response| {
            deliver(gateways, connections, poller, recipient, response);
        });
        self.resume(poller, now);
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            self.look_at_listeners(poller, Interest::Read);
        }
        if self.flood_deadline.is_some_and(|deadline| deadline <= now) {
            self.flood_deadline = None;
            for (_, Gateway { listener, flood, sockets, .. }) in &mut self.gateways {
                flood.expire(sockets.udp.as_fd(), &OnBridge { zones: &self.desk.zones, listener }, now);
                self.flood_deadline = earliest(self.flood_deadline, flood.deadline());
            }
        }
    }

    /// When [`expire`](Self::expire) has to be called next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.connections.deadline(), self.desk.forwarder.deadline(), self.resting, self.flood_deadline]
            .into_iter()
            .flatten()
            .min()
    }

    fn datagrams(&mut self, poller: &Poller, token: Token, now: Instant) {
        let Self { gateways, batch, desk, flood_deadline, .. } = self;
        let Some(gateway) =
            gateways.get_mut(token.slot as usize).filter(|gateway| gateway.generation == token.generation)
        else {
            return;
        };
        let Gateway { listener, sockets, flood, .. } = gateway;
        let socket = sockets.udp.as_fd();
        batch.receive(socket);
        let skipped = flood.received(socket, batch.peers(), &OnBridge { zones: &desk.zones, listener }, now);
        batch.answer(socket, skipped, |packet, peer, out| {
            let recipient = Recipient::Datagram { socket: token, peer };
            desk.serve(poller, now, listener, recipient, packet, out);
        });
        *flood_deadline = earliest(*flood_deadline, gateway.flood.deadline());
    }

    fn accept(&mut self, poller: &Poller, token: Token, now: Instant) {
        let Self { gateways, connections, desk, .. } = self;
        let Some(gateway) =
            gateways.get(token.slot as usize).filter(|gateway| gateway.generation == token.generation)
        else {
            return;
        };
        let listener = &gateway.listener;
        let whose = |source| OnBridge { zones: &desk.zones, listener }.whose(source);
        if connections.accept(poller, &gateway.sockets.tcp, listener, whose).is_err() {
            self.resting = Some(now + RECOVERY);
            self.look_at_listeners(poller, Interest::Nothing);
        }
    }

    fn look_at_listeners(&self, poller: &Poller, interest: Interest) {
        for (slot, gateway) in &self.gateways {
            let token = token(Kind::Connections, slot, gateway.generation);
            let _ = poller.change(&gateway.sockets.tcp, token, interest);
        }
    }

    fn connection(&mut self, poller: &Poller, token: Token, now: Instant) {
        let Self { connections, desk, .. } = self;
        connections.ready(poller, token, &mut |listener, peer, connection, packet, out| {
            desk.serve(poller, now, listener, Recipient::Connection { connection, peer }, packet, out)
        });
    }

    fn resume(&mut self, poller: &Poller, now: Instant) {
        while let Some(token) = self.connections.resumed() {
            self.connection(poller, token, now);
        }
    }
}

impl Desk {
    /// Writes the response to `packet` into `out`, or nothing. A fault of this program costs one query its answer and
    /// nobody else anything.
    fn serve(
        &mut self,
        poller: &Poller,
        now: Instant,
        listener: &Listener,
        recipient: Recipient,
        packet: &[u8],
        out: &mut Vec<u8>,
    ) -> Made {
        self.counters.received += 1;
        let made =
            catch_unwind(AssertUnwindSafe(|| self.respond(poller, now, listener, recipient, packet, out)));
        made.unwrap_or_else(|_| {
            self.counters.panicked += 1;
            out.clear();
            if let Received::Query(query) = query::read(packet) {
                response::error(out, &query, Rcode::SERVFAIL, limit(recipient, query.edns));
            }
            Made::Done
        })
    }

    fn respond(
        &mut self,
        poller: &Poller,
        now: Instant,
        listener: &Listener,
        recipient: Recipient,
        packet: &[u8],
        out: &mut Vec<u8>,
    ) -> Made {
        let Listener { bridge, gateway } = listener;
        let asker = Asker { bridge, gateway: *gateway, source: recipient.source() };
        let query = match query::read(packet) {
            Received::Query(query) => query,
            Received::Fault(fault) => {
                self.counters.faulty += 1;
                if !answer::knows(&self.zones, asker) && !self.strangers.may_be_told(recipient, now) {
                    return Made::Done;
                }
                response::fault(out, &fault, limit(recipient, fault.edns));
                return Made::Done;
            }
            Received::Nothing => {
                self.counters.faulty += 1;
                return Made::Done;
            }
        };
        let limit = limit(recipient, query.edns);
        let Self { zones, forwarder, counters, strangers, own, turns } = self;
        let question = Question { name: query.asked.name, rtype: query.asked.rtype };
        let rotation = turns.next(question);
        let mut answer = answer::answer(zones, asker, question, rotation);
        let is_here = || own_address::is_on(bridge, recipient.peer());
        if matches!(answer, Answer::Refused) && strangers.is_host(recipient, now, is_here) {
            answer = answer::answer(zones, Asker { source: *gateway, ..asker }, question, rotation);
        }
        match &answer {
            Answer::Addresses(_) | Answer::Pointer(_) | Answer::Soa(_) | Answer::Ns(_) => {
                counters.answered += 1;
            }
            Answer::NoData(_) => counters.no_data += 1,
            Answer::NxDomain(_) => counters.nx_domain += 1,
            Answer::Refused => {
                counters.refused += 1;
                if !strangers.may_be_told(recipient, now) {
                    return Made::Done;
                }
            }
            Answer::Forward(upstreams) => {
                let is_own = |server| own.contains(&server);
                let container = zones.container_at(bridge, recipient.source());
                let party = container.map_or(Party::Host, |container| Party::Container(container.number()));
                let client = Waiting::for_answer_to(&query, packet, party, recipient, limit);
                return match forwarder.ask(poller, now, client, upstreams, is_own, out) {
                    Asked::Answered => {
                        counters.forwarded += 1;
                        Made::Done
                    }
                    Asked::Waiting => {
                        counters.forwarded += 1;
                        Made::Awaited
                    }
                    Asked::Failed => {
                        counters.failed += 1;
                        response::error(out, &query, Rcode::SERVFAIL, limit);
                        Made::Done
                    }
                };
            }
        }
        response::answer(out, &query, &answer, limit);
        Made::Done
    }
}

/// Who is known on the bridge of a listener.
struct OnBridge<'a> {
    zones: &'a Zones,
    listener: &'a Listener,
}

impl OnBridge<'_> {
    fn whose(&self, source: IpAddr) -> Source {
        match self.zones.container_at(&self.listener.bridge, source) {
            Some(container) => Source::Container(container.number()),
            None if self.include(source) => Source::Host(source),
            None => Source::Strangers,
        }
    }
}

impl flood::Residents for OnBridge<'_> {
    fn include(&self, source: IpAddr) -> bool {
        let Listener { bridge, gateway } = self.listener;
        answer::knows(self.zones, Asker { bridge, gateway: *gateway, source })
    }

    fn all(&self) -> Vec<IpAddr> {
        let Listener { bridge, gateway } = self.listener;
        let addresses = self.zones.addresses_on(bridge);
        addresses.filter(|address| address.is_ipv4() == gateway.is_ipv4()).collect()
    }
}

/// Where the one that listens at `address` is asked: there, and at the DNS port, which is redirected where that is not
/// the same.
fn places(address: SocketAddr) -> [SocketAddr; 2] {
    [address, SocketAddr::new(address.ip(), listen::PORT)]
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// Octets that a response may have.
fn limit(recipient: Recipient, edns: Option<edns::Edns>) -> usize {
    match recipient {
        Recipient::Datagram { .. } => edns::udp_limit(edns),
        Recipient::Connection { .. } => TCP_LIMIT,
    }
}

fn token(kind: Kind, slot: usize, generation: u16) -> Token {
    Token { kind, slot: slot as u32, generation }
}

/// Sends a response that came from upstream to whoever waits for it.
fn deliver(
    gateways: &Slab<Gateway>,
    connections: &mut Connections,
    poller: &Poller,
    recipient: Recipient,
    response: &[u8],
) {
    match recipient {
        Recipient::Datagram { socket, peer } => {
            let gateway = gateways.get(socket.slot as usize);
            if let Some(gateway) = gateway.filter(|gateway| gateway.generation == socket.generation) {
                udp::send(gateway.sockets.udp.as_fd(), peer, response);
            }
        }
        Recipient::Connection { connection, .. } => connections.deliver(poller, connection, response),
    }
}

#[cfg(test)]
mod tests;
