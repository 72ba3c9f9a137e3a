//! Questions that are not ours, asked of upstream servers.
//!
//! Each question goes out once however many clients wait for it, from a socket of its own: a random id and a random
//! port, connected, so that the kernel drops what others send, and the question compared when something comes back
//! (RFC 5452). A server that is silent or fails is followed by the next one, and still listened to: one that takes
//! longer may be the only one that knows. All together take less time than a stub resolver waits. What comes back is
//! passed on as it is.
//!
//! It never asks one of our own addresses, and knows neither zones nor who may ask.

mod cache;
mod exchange;
mod flight;
mod reply;
mod resolv_conf;
mod server;
mod waiting;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use self::cache::Cache;
use self::exchange::{Exchange, MAX_MESSAGE, Progress};
pub(crate) use self::flight::Asked;
use self::flight::{Flight, Talk, has_room};
pub(crate) use self::resolv_conf::ResolvConf;
pub use self::server::Health;
use self::server::Server;
pub(crate) use self::waiting::{Party, Recipient, Waiting};
use crate::descriptors::{Descriptors, is_scarcity};
use crate::poller::{Kind, Poller, Token};
use crate::records::since_boot;
use crate::serve::edns::{Edns, PAYLOAD};
use crate::tally::Tally;

/// How long a server may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a question may take altogether: the C libraries give up after five seconds.
pub(crate) const TOTAL: Duration = Duration::from_millis(4500);

/// Questions on their way at once.
const MAX_FLIGHTS: usize = 1024;

/// Of these, questions that one party brought up.
const MAX_FLIGHTS_OF_PARTY: usize = 256;

/// The forwarder.
#[derive(Debug)]
pub(crate) struct Forwarder {
    descriptors: Descriptors,
    resolv_conf: ResolvConf,
    cache: Cache,
    flights: Slab<Flight>,
    by_question: HashMap<Box<[u8]>, usize>,
    of_party: Tally<Party>,
    /// When to lose patience, in order; what no longer counts is told by its generation.
    deadlines: VecDeque<(Instant, Token)>,
    generation: u16,
    servers: HashMap<SocketAddr, Server>,
    hasher: RandomState,
    /// Where messages are read into.
    room: Box<[u8]>,
}

impl Forwarder {
    /// A forwarder that asks the servers of `resolv_conf` where a network names none, and no more at once than
    /// `descriptors` are enough for.
    pub(crate) fn new(resolv_conf: ResolvConf, descriptors: Descriptors) -> Self {
        Self {
            descriptors,
            resolv_conf,
            cache: Cache::default(),
            flights: Slab::new(),
            by_question: HashMap::new(),
            of_party: Tally::default(),
            deadlines: VecDeque::new(),
            generation: 0,
            servers: HashMap::new(),
            hasher: RandomState::new(),
            room: vec![0; MAX_MESSAGE].into(),
        }
    }

    /// Asks what `client` asks at `upstreams`, the host's own when there are none; never at an address that `is_own`. A
    /// response that is there already is written to `out`.
    pub(crate) fn ask(
        &mut self,
        poller: &Poller,
        now: Instant,
        client: Waiting,
        upstreams: &[SocketAddr],
        is_own: impl Fn(SocketAddr) -> bool,
        out: &mut Vec<u8>,
    ) -> Asked {
        let upstreams = if upstreams.is_empty() { self.host_servers(now) } else { upstreams };
        let servers: Vec<SocketAddr> =
            upstreams.iter().copied().map(canonical).filter(|server| !is_own(*server)).collect();
        if servers.is_empty() {
            return Asked::Failed;
        }
        let key = self.key(&client, &servers);
        if let Some((reply, age)) = self.cache.get(&key, of_cache()) {
            reply.compose(out, &client.client(), age);
            return Asked::Answered;
        }
        match self.by_question.get(&key) {
            Some(slot) => self.flights[*slot].join(client),
            None => self.launch(poller, now, key, servers, client),
        }
    }

    /// Asks the first of `servers` that can be asked what nobody else waits for yet.
    fn launch(
        &mut self,
        poller: &Poller,
        now: Instant,
        key: Box<[u8]>,
        mut servers: Vec<SocketAddr>,
        client: Waiting,
    ) -> Asked {
        let party = client.party;
        let own = self.of_party.of(&party);
        if !has_room(own, MAX_FLIGHTS_OF_PARTY, MAX_FLIGHTS - self.flights.len()) {
            return Asked::Failed;
        }
        servers.sort_by_key(|server| self.avoids(*server, now));
        let slot = self.flights.insert(Flight {
            key: key.clone(),
            question: client.question.clone(),
            dnssec_ok: client.wants_dnssec(),
            wishes: client.wishes(),
            servers: servers.into(),
            talks: Vec::with_capacity(1),
            current: 0,
            generation: 0,
            began: now,
            party,
            waiting: vec![client],
            failure: None,
        });
        self.by_question.insert(key, slot);
        self.of_party.add(party);
        while !self.attempt(poller, slot, now) {
            let flight = &mut self.flights[slot];
            flight.current += 1;
            if flight.current >= flight.servers.len() {
                self.land(slot);
                return Asked::Failed;
            }
        }
        Asked::Waiting
    }

    /// Goes on with the question that `token` is for; `deliver` gets the responses that are ready.
    pub(crate) fn ready(
        &mut self,
        poller: &Poller,
        now: Instant,
        token: Token,
        deliver: &mut dyn FnMut(Recipient, &[u8]),
    ) {
        let slot = token.slot as usize;
        let Some(flight) = self.flights.get_mut(slot) else { return };
        let of_token = |talk: &Talk| talk.generation == token.generation;
        let Some(index) = flight.talks.iter().position(of_token) else { return };
        let (server, is_current) = (flight.servers[index], index == flight.current);
        let talk = &mut flight.talks[index];
        match talk.exchange.proceed(poller, token, server, &mut self.room) {
            Progress::Pending => {}
            Progress::Broken => {
                talk.has_failed = true;
                // Else another server is being asked already.
                if is_current {
                    self.give_up(poller, slot, now, deliver);
                }
            }
            Progress::Starved => {
                talk.has_failed = true;
                if is_current {
                    self.next(poller, slot, now, deliver);
                }
            }
            Progress::WithoutEdns => {
                let is_asked = if is_current {
                    self.attempt(poller, slot, now)
                } else {
                    self.begin(poller, slot, index, now).is_ok()
                };
                if is_current && !is_asked {
                    self.next(poller, slot, now, deliver);
                }
            }
            Progress::Reply(reply) => {
                let server = self.servers.entry(server).or_default();
                server.note_edns(&reply, talk.exchange.has_fallen_back(), now);
                if reply.is_failure() {
                    talk.has_failed = true;
                    flight.failure = Some(reply);
                    // It is there, so that nothing is held against it: of the next question it may know more than others.
                    server.health.failed += 1;
                    if is_current {
                        self.next(poller, slot, now, deliver);
                    }
                    return;
                }
                server.note_answer();
                let flight = self.land(slot);
                // Without EDNS there are no signatures: whoever wants them may get them the next time.
                if reply.has_edns() || !flight.dnssec_ok {
                    self.cache.put(&flight.key, &reply, of_cache());
                }
                flight.respond(&reply, deliver);
            }
        }
    }

    /// Loses patience with the servers that have been silent for too long.
    pub(crate) fn expire(
        &mut self,
        poller: &Poller,
        now: Instant,
        deliver: &mut dyn FnMut(Recipient, &[u8]),
    ) {
        while self.deadlines.front().is_some_and(|(deadline, _)| *deadline <= now) {
            let Some((_, token)) = self.deadlines.pop_front() else { return };
            let slot = token.slot as usize;
            if self.flights.get(slot).is_some_and(|flight| flight.generation == token.generation) {
                self.give_up(poller, slot, now, deliver);
            }
        }
    }

    /// When [`expire`](Self::expire) has to be called next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// How every server does that was ever asked.
    pub(crate) fn health(&self, now: Instant) -> Vec<(SocketAddr, Health)> {
        let mut all: Vec<_> =
            self.servers.iter().map(|(address, server)| (*address, server.health(now))).collect();
        all.sort_by_key(|(address, _)| *address);
        all
    }

    /// Questions on their way, and replies that are kept.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.flights.len(), self.cache.len())
    }

    /// The host's own servers as they are now.
    pub(crate) fn host_servers(&mut self, now: Instant) -> &[SocketAddr] {
        if self.resolv_conf.refresh(now) {
            self.cache.clear();
        }
        self.resolv_conf.servers()
    }

    /// What makes two questions the same: name in any case, type, class, what is wanted with the answer, and who is
    /// asked, for networks with other servers may get other answers.
    fn key(&self, client: &Waiting, servers: &[SocketAddr]) -> Box<[u8]> {
        let mut key = Vec::with_capacity(client.question.len() + 9);
        let (name, kind) = reply::split(&client.question);
        key.extend(name.iter().map(u8::to_ascii_lowercase));
        key.extend(kind);
        key.push(u8::from(client.wants_dnssec()) | client.wishes());
        key.extend(self.hasher.hash_one(servers).to_be_bytes());
        key.into()
    }

    fn avoids(&self, server: SocketAddr, now: Instant) -> bool {
        self.servers.get(&server).is_some_and(|server| server.is_avoided(now))
    }

    /// What a question to `server` has of EDNS.
    fn edns(&self, server: SocketAddr, dnssec_ok: bool, now: Instant) -> Option<Edns> {
        let is_answered = self.servers.get(&server).and_then(|server| server.answers_edns(now));
        (is_answered != Some(false)).then_some(Edns { payload: PAYLOAD, version: 0, dnssec_ok })
    }

    /// Blames the server whose turn it is, and asks the next one.
    fn give_up(
        &mut self,
        poller: &Poller,
        slot: usize,
        now: Instant,
        deliver: &mut dyn FnMut(Recipient, &[u8]),
    ) {
        self.blame(slot, now);
        self.next(poller, slot, now, deliver);
    }

    /// Asks the next server, or tells everybody that none knows.
    fn next(
        &mut self,
        poller: &Poller,
        slot: usize,
        now: Instant,
        deliver: &mut dyn FnMut(Recipient, &[u8]),
    ) {
        loop {
            let flight = &mut self.flights[slot];
            let taken = now.saturating_duration_since(flight.began);
            let is_over = taken + PATIENCE > TOTAL;
            let Some(next) = flight.next().filter(|_| !is_over) else {
                let mut flight = self.land(slot);
                let reply = flight.take_last_resort();
                // One that was told at once costs little to ask for again, and the next answer may be another.
                if taken >= PATIENCE {
                    self.cache.put_failure(&flight.key, &reply, of_cache());
                }
                return flight.respond(&reply, deliver);
            };
            flight.current = next;
            if self.attempt(poller, slot, now) {
                return;
            }
        }
    }

    /// Holds it against the server whose turn it is that nothing came of it.
    fn blame(&mut self, slot: usize, now: Instant) {
        let flight = &self.flights[slot];
        self.servers.entry(flight.servers[flight.current]).or_default().blame(now);
    }

    /// Asks the server whose turn it is. Tells whether the question went out; if not, it is held against the server, unless
    /// this host was not able to ask.
    fn attempt(&mut self, poller: &Poller, slot: usize, now: Instant) -> bool {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let flight = &mut self.flights[slot];
        flight.generation = generation;
        let index = flight.current;
        let server = self.servers.entry(flight.servers[index]).or_default();
        server.health.asked += 1;
        let answers_edns = server.answers_edns(now) == Some(true);
        let token = Token { kind: Kind::Upstream, slot: slot as u32, generation };
        self.deadlines.push_back((now + PATIENCE, token));
        let asked = match flight.talks.get_mut(index) {
            Some(talk) if talk.exchange.is_under_way() && answers_edns => talk.exchange.repeat(),
            Some(talk) if talk.exchange.is_under_way() => talk.exchange.repeat_without_edns(),
            _ => self.begin(poller, slot, index, now),
        };
        let Err(error) = asked else { return true };
        if let Some(talk) = self.flights[slot].talks.get_mut(index) {
            talk.has_failed = true;
        }
        if !is_scarcity(&error) {
            self.blame(slot, now);
        }
        false
    }

    /// Asks the server number `index` from the beginning.
    fn begin(&mut self, poller: &Poller, slot: usize, index: usize, now: Instant) -> std::io::Result<()> {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        while self.flights[slot].talks.len() <= index {
            let flight = &self.flights[slot];
            let edns = self.edns(flight.servers[flight.talks.len()], flight.dnssec_ok, now);
            let exchange = Exchange::new(&flight.question, edns, flight.wishes, self.descriptors);
            self.flights[slot].talks.push(Talk { exchange, generation: 0, has_failed: false });
        }
        let flight = &mut self.flights[slot];
        let token = Token { kind: Kind::Upstream, slot: slot as u32, generation };
        let talk = &mut flight.talks[index];
        talk.generation = generation;
        talk.exchange.begin(poller, token, flight.servers[index])
    }

    /// Takes a question that is over out of every book.
    fn land(&mut self, slot: usize) -> Flight {
        let flight = self.flights.remove(slot);
        self.by_question.remove(&flight.key);
        self.of_party.remove(&flight.party);
        flight
    }
}

/// The time by the clock of the cache.
fn of_cache() -> Duration {
    Duration::from_nanos(since_boot())
}

/// An address of IPv4 as such, where it is written as one of IPv6 (RFC 4291, section 2.5.5.2): it may be our own.
fn canonical(server: SocketAddr) -> SocketAddr {
    match server.ip().to_canonical() {
        ip if ip == server.ip() => server,
        ip => SocketAddr::new(ip, server.port()),
    }
}

#[cfg(test)]
mod tests;
