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
mod reply;
mod resolv_conf;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use slab::Slab;

use self::cache::Cache;
use self::exchange::{Exchange, MAX_MESSAGE, Progress};
use self::reply::{Client, Reply};
pub(crate) use self::resolv_conf::ResolvConf;
use crate::descriptors::Descriptors;
use crate::poller::{Kind, Poller, Token};
use crate::records::since_boot;
use crate::serve::edns::{Edns, PAYLOAD};
use crate::serve::query::{HEADER_LEN, Query};
use crate::tally::Tally;

/// How long a server may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a question may take altogether: the C libraries give up after five seconds.
pub(crate) const TOTAL: Duration = Duration::from_millis(4500);

/// Questions on their way at once.
const MAX_FLIGHTS: usize = 1024;

/// Of these, questions that one party brought up.
const MAX_FLIGHTS_OF_PARTY: usize = 256;

/// Clients that wait for one question at once.
const MAX_WAITING: usize = 256;

/// Of these, clients of one party.
const MAX_WAITING_OF_PARTY: usize = 128;

/// A server that was silent this short a time ago is asked last.
const GRUDGE: Duration = Duration::from_secs(30);

/// How long it is remembered of a server whether it answers what has EDNS: as long as unbound remembers it
/// (`infra-host-ttl`).
const EDNS_REMEMBERED: Duration = Duration::from_secs(900);

/// Where a response goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recipient {
    /// A datagram from the gateway socket in this slot.
    Datagram { socket: Token, peer: SocketAddr },
    /// A message on this connection.
    Connection { connection: Token, peer: SocketAddr },
}

impl Recipient {
    /// The client.
    pub(crate) fn peer(self) -> SocketAddr {
        match self {
            Self::Datagram { peer, .. } | Self::Connection { peer, .. } => peer,
        }
    }

    /// The client's address.
    pub(crate) fn source(self) -> IpAddr {
        self.peer().ip()
    }
}

/// On whose account a question goes, however many addresses he asks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Party {
    /// The host.
    Host,
    /// The container with this number.
    Container(u32),
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The response has been written.
    Answered,
    /// The response comes later.
    Waiting,
    /// Nobody can be asked: SERVFAIL.
    Failed,
}

/// How an upstream server does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Questions sent to it.
    pub asked: u64,
    /// Answers that were taken.
    pub answered: u64,
    /// Times that it was silent, unreachable or failed.
    pub failed: u64,
    /// Whether it is passed over while another one answers.
    pub avoided: bool,
    /// Whether it is asked without EDNS, for with it there was no answer.
    pub without_edns: bool,
}

#[derive(Debug, Default)]
struct Server {
    health: Health,
    failed_last: Option<Instant>,
    edns: Option<SeenOfEdns>,
}

/// What an answer has shown of a server.
#[derive(Debug, Clone, Copy)]
struct SeenOfEdns {
    answers_it: bool,
    at: Instant,
}

impl Server {
    /// Whether it was silent a short time ago.
    fn is_avoided(&self, now: Instant) -> bool {
        self.failed_last.is_some_and(|failed| now.saturating_duration_since(failed) < GRUDGE)
    }

    /// Whether it is known to answer what has EDNS, or not to.
    fn answers_edns(&self, now: Instant) -> Option<bool> {
        let seen = self.edns.filter(|seen| now.saturating_duration_since(seen.at) < EDNS_REMEMBERED);
        seen.map(|seen| seen.answers_it)
    }

    /// Takes note of what a message shows that came after the server was asked with EDNS, or first with it and then
    /// without. One that has answered with it does not understand this one question.
    fn note_edns(&mut self, reply: &Reply, has_fallen_back: bool, now: Instant) {
        if reply.has_edns() {
            self.edns = Some(SeenOfEdns { answers_it: true, at: now });
        } else if has_fallen_back && !reply.is_failure() && self.answers_edns(now).is_none() {
            self.edns = Some(SeenOfEdns { answers_it: false, at: now });
        }
    }
}

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

#[derive(Debug)]
struct Flight {
    key: Box<[u8]>,
    /// As whoever asked first has written it.
    question: Box<[u8]>,
    dnssec_ok: bool,
    checking_disabled: bool,
    servers: Box<[SocketAddr]>,
    /// With the first of the servers, in their order; each is listened to until the question is over.
    talks: Vec<Talk>,
    /// Whose turn it is.
    current: usize,
    /// Of the last attempt.
    generation: u16,
    began: Instant,
    party: Party,
    waiting: Vec<Waiting>,
    /// A failure that some server has told, for the case that no other one knows better.
    failure: Option<Reply>,
}

/// What is said with one server about one question.
#[derive(Debug)]
struct Talk {
    exchange: Exchange,
    /// Of the socket.
    generation: u16,
    /// Whether the server has told a failure, cannot be reached or has broken off, which it would do again.
    has_failed: bool,
}

impl Flight {
    /// Has `client` wait for the answer, too.
    fn join(&mut self, client: Waiting) -> Asked {
        // A client that asks again what it still waits for gets one response.
        if self.waiting.contains(&client) {
            return Asked::Waiting;
        }
        let own = self.waiting.iter().filter(|other| other.party == client.party).count();
        if !has_room(own, MAX_WAITING_OF_PARTY, MAX_WAITING - self.waiting.len()) {
            return Asked::Failed;
        }
        self.waiting.push(client);
        Asked::Waiting
    }

    /// The next server that may know better.
    fn next(&self) -> Option<usize> {
        let count = self.servers.len();
        (1..=count)
            .map(|step| (self.current + step) % count)
            .find(|server| self.talks.get(*server).is_none_or(|talk| !talk.has_failed))
    }
}

/// A client that waits for an answer, and what it has asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    party: Party,
    recipient: Recipient,
    id: u16,
    flags: [u8; 2],
    question: Box<[u8]>,
    edns: Option<Edns>,
    limit: usize,
}

impl Waiting {
    /// Whoever has sent `query`, whose octets are `packet`, on the account of `party`; a response may have `limit`
    /// octets.
    pub(crate) fn for_answer_to(
        query: &Query<'_>,
        packet: &[u8],
        party: Party,
        recipient: Recipient,
        limit: usize,
    ) -> Self {
        Self {
            party,
            recipient,
            id: query.header.id(),
            flags: [packet[2], packet[3]],
            question: packet[HEADER_LEN..HEADER_LEN + query.asked.name.len() + 4].into(),
            edns: query.edns,
            limit,
        }
    }

    fn client(&self) -> Client<'_> {
        let Self { id, flags, ref question, edns, limit, .. } = *self;
        Client { id, flags, question, edns, limit }
    }

    fn wants_dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    fn disables_checking(&self) -> bool {
        self.flags[1] & 0x10 != 0
    }
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
            checking_disabled: client.disables_checking(),
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
                server.health.answered += 1;
                server.failed_last = None;
                let flight = self.land(slot);
                // Without EDNS there are no signatures: whoever wants them may get them the next time.
                if reply.has_edns() || !flight.dnssec_ok {
                    self.cache.put(&flight.key, &reply, of_cache());
                }
                respond(&flight, &reply, deliver);
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
        let health = |server: &Server| Health {
            avoided: server.is_avoided(now),
            without_edns: server.answers_edns(now) == Some(false),
            ..server.health.clone()
        };
        let mut all: Vec<_> =
            self.servers.iter().map(|(address, server)| (*address, health(server))).collect();
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
        key.push(u8::from(client.wants_dnssec()) | u8::from(client.disables_checking()) << 1);
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
                let failure = flight.failure.take().unwrap_or_else(|| Reply::failure(&flight.question));
                // One that was told at once costs little to ask for again, and the next answer may be another.
                if taken >= PATIENCE {
                    self.cache.put_failure(&flight.key, &failure, of_cache());
                }
                return respond(&flight, &failure, deliver);
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
        let blamed = self.servers.entry(flight.servers[flight.current]).or_default();
        blamed.health.failed += 1;
        blamed.failed_last = Some(now);
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
        if !exchange::is_own(&error) {
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
            let exchange = Exchange::new(&flight.question, edns, flight.checking_disabled, self.descriptors);
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

/// Whether a party with `own` places may have one more: of `share` at most, and never more than are still `free`, so that
/// a few of them do not take all, and whoever has none yet finds one. As what is under way ends, all those who want more
/// than they get come to have the same (A. K. Choudhury, E. L. Hahne, "Dynamic queue length thresholds for shared-memory
/// packet switches", 1998).
fn has_room(own: usize, share: usize, free: usize) -> bool {
    own < share.min(free)
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

fn respond(flight: &Flight, reply: &Reply, deliver: &mut dyn FnMut(Recipient, &[u8])) {
    let mut out = Vec::new();
    for waiting in &flight.waiting {
        reply.compose(&mut out, &waiting.client(), 0);
        deliver(waiting.recipient, &out);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::serve::query::{self, Received};

    const QUESTION: [u8; 5] = [0, 0, 1, 0, 1];

    /// An answer of nothing, with an OPT record or without.
    fn reply(with_edns: bool) -> Reply {
        let mut octets = vec![0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_edns)];
        octets.extend(QUESTION);
        if with_edns {
            octets.extend(crate::serve::edns::opt_octets(
                Edns { payload: PAYLOAD, version: 0, dnssec_ok: false },
                domain::base::iana::OptRcode::NOERROR,
            ));
        }
        Reply::read(&octets, 1, &QUESTION).unwrap()
    }

    /// Has whoever is at 172.20.0.`last` ask `forwarder` question number `number`, to be asked at `upstream`.
    fn ask(forwarder: &mut Forwarder, upstream: &UdpSocket, last: u8, number: u16) -> Asked {
        ask_at(forwarder, &[upstream.local_addr().unwrap()], last, number)
    }

    fn ask_at(forwarder: &mut Forwarder, upstreams: &[SocketAddr], last: u8, number: u16) -> Asked {
        ask_for(forwarder, upstreams, last, &format!("\x05{number:05}\0"), 1)
    }

    /// The same for the name `name`, as it stands in a message, and type `rtype`.
    fn ask_for(
        forwarder: &mut Forwarder,
        upstreams: &[SocketAddr],
        last: u8,
        name: &str,
        rtype: u16,
    ) -> Asked {
        let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let packet = [&header[..], name.as_bytes(), &rtype.to_be_bytes(), &[0, 1]].concat();
        let Received::Query(query) = query::read(&packet) else { panic!("{packet:?}") };
        let socket = Token::only(Kind::Datagrams);
        let recipient = Recipient::Datagram { socket, peer: ([172, 20, 0, last], 4000).into() };
        let party = Party::Container(last.into());
        let client = Waiting::for_answer_to(&query, &packet, party, recipient, 512);
        let poller = Poller::new().unwrap();
        forwarder.ask(&poller, Instant::now(), client, upstreams, |_| false, &mut Vec::new())
    }

    #[test]
    fn a_server_that_cannot_even_be_asked_is_followed_by_the_next_one() {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // Nobody connects to that without having asked for it (socket(7), SO_BROADCAST).
        let all = SocketAddr::from(([255; 4], 53));
        let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
        assert_eq!(ask_at(&mut forwarder, &[all, upstream], 2, 0), Asked::Waiting);
        assert_eq!(ask_at(&mut forwarder, &[all], 2, 1), Asked::Failed);
        let avoided = forwarder.health(Instant::now()).into_iter().filter(|(_, health)| health.avoided);
        assert_eq!(avoided.map(|(server, _)| server).collect::<Vec<_>>(), [all]);
    }

    #[test]
    fn the_same_name_in_another_case_is_one_question_and_another_type_is_another() {
        let upstream = [UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()];
        let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
        // Types whose numbers are letters: 65 (HTTPS) is 'A'.
        for (name, rtype, under_way) in
            [("\x01a\0", 65, 1), ("\x01A\0", 65, 1), ("\x01a\0", 97, 2), ("\x01a\0", 65 << 8, 3)]
        {
            assert_eq!(ask_for(&mut forwarder, &upstream, 2, name, rtype), Asked::Waiting);
            assert_eq!(forwarder.counts().0, under_way, "{name:?} {rtype}");
        }
    }

    #[test]
    fn what_no_server_knew_is_not_asked_again_at_once_unless_others_can_be() {
        let [silent, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let poller = Poller::new().unwrap();
        let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
        // On a busy machine a second may be over before the next line is run.
        let number = (0..100).find(|number| {
            assert_eq!(ask(&mut forwarder, &silent, 2, *number), Asked::Waiting);
            while let Some(deadline) = forwarder.deadline() {
                forwarder.expire(&poller, deadline, &mut |_, _| ());
            }
            ask(&mut forwarder, &silent, 3, *number) == Asked::Answered
        });
        let number = number.unwrap();
        assert_eq!(ask(&mut forwarder, &silent, 2, number + 1), Asked::Waiting);
        assert_eq!(ask(&mut forwarder, &other, 2, number), Asked::Waiting);
    }

    #[test]
    fn no_server_is_blamed_for_what_this_host_lacks() {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut without = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::up_to(0));
        assert_eq!(ask(&mut without, &upstream, 2, 0), Asked::Failed);
        let [(_, health)] = without.health(Instant::now()).try_into().unwrap();
        assert_eq!((health.failed, health.avoided), (0, false));
    }

    #[test]
    fn one_container_has_its_share_of_the_questions_under_way() {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
        let began = Instant::now();
        let mut ask = |last, number| ask(&mut forwarder, &upstream, last, number);
        let share = MAX_FLIGHTS_OF_PARTY as u16;
        assert!((0..share).all(|number| ask(2, number) == Asked::Waiting));
        assert_eq!(ask(2, share), Asked::Failed);
        // What is under way already may be waited for, and the others have theirs.
        assert_eq!([ask(2, 0), ask(3, 0), ask(3, share)], [Asked::Waiting; 3]);
        // Who has asked twice is told once.
        let (poller, mut told) = (Poller::new().unwrap(), 0);
        while let Some(deadline) = forwarder.deadline() {
            assert!(deadline.saturating_duration_since(began) <= TOTAL * 2, "it never ends");
            forwarder.expire(&poller, deadline, &mut |_, _| told += 1);
        }
        assert_eq!((told, forwarder.counts().0), (share + 2, 0));
        // What is over no longer counts.
        let again = |number| self::tests::ask(&mut forwarder, &upstream, 2, number);
        assert!((share + 1..=2 * share).map(again).all(|asked| asked == Asked::Waiting));
    }

    #[test]
    fn a_few_containers_leave_room_for_the_others() {
        for (most, share) in [(MAX_FLIGHTS, MAX_FLIGHTS_OF_PARTY), (MAX_WAITING, MAX_WAITING_OF_PARTY)] {
            for parties in [1, 2, 4, 7] {
                let mut taken = vec![0; parties];
                let free = |taken: &[usize]| most - taken.iter().sum::<usize>();
                // Each takes what it gets before the next one comes.
                for party in 0..parties {
                    while has_room(taken[party], share, free(&taken)) {
                        taken[party] += 1;
                    }
                }
                assert!(taken[0] == share && has_room(0, share, free(&taken)), "{taken:?}");
            }
        }
    }

    #[test]
    fn whoever_comes_late_has_as_much_as_the_others_once_what_is_under_way_has_ended() {
        let mut taken = [0; 8];
        for party in (0..7).chain((0..8).cycle().take(8 * MAX_FLIGHTS)) {
            // One of its questions ends, and it asks as many as it may.
            taken[party] -= usize::from(taken[party] > 0);
            while has_room(taken[party], MAX_FLIGHTS_OF_PARTY, MAX_FLIGHTS - taken.iter().sum::<usize>()) {
                taken[party] += 1;
            }
        }
        assert!(taken.iter().all(|taken| taken.abs_diff(MAX_FLIGHTS / 9) <= 1), "{taken:?}");
    }

    #[test]
    fn what_an_answer_shows_of_edns_is_remembered_for_a_while() {
        let (now, failure) = (Instant::now(), Reply::failure(&QUESTION));
        let seen = |earlier: Option<bool>, reply: &Reply, has_fallen_back| {
            let edns = earlier.map(|answers_it| SeenOfEdns { answers_it, at: now });
            let mut server = Server { edns, ..Server::default() };
            server.note_edns(reply, has_fallen_back, now);
            server.answers_edns(now + EDNS_REMEMBERED / 2)
        };
        assert_eq!(seen(None, &reply(true), false), Some(true));
        assert_eq!(seen(Some(false), &reply(true), false), Some(true));
        // Not every server that takes EDNS answers with it.
        assert_eq!(seen(None, &reply(false), false), None);
        assert_eq!(seen(None, &reply(false), true), Some(false));
        assert_eq!(seen(Some(true), &reply(false), true), Some(true));
        // It may fail for any reason.
        assert_eq!(seen(None, &failure, true), None);
        let mut server = Server::default();
        server.note_edns(&reply(false), true, now);
        assert_eq!(server.answers_edns(now + EDNS_REMEMBERED), None);
    }
}
