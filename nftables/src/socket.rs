//! The conversation with the kernel: transactions out, objects in.
//!
//! netlink answers within the call that sends: when a send returns, every answer to it is queued, and a dump goes on
//! in the call that receives. So nothing here ever blocks; an answer that is not there is an error.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};

use crate::wire::{self, Request, Role};
use crate::{Batch, Chain, Element, Family, FoundRule, FoundTable, InSet, Packet, Table, Undecided, follow};

/// The kernel's dumps fill at most 32 KiB at a time.
const RECEIVE_BYTES: usize = 32 * 1024;

/// A refusal carries the whole message back that it refuses, unless it is told not to; so long it can be received.
const LONGEST_TO_COME_BACK: usize = RECEIVE_BYTES - 64;

/// What a socket can send without asking for more (`net.core.wmem_default` is at least this).
const DEFAULT_SEND_BYTES: usize = 128 * 1024;

/// Addresses whose flows are forgotten by one send: what answers it waits in the socket's receive buffer, which has room
/// for some 270 answers (`net.core.rmem_default` of 208 KiB).
const ADDRESSES_AT_ONCE: usize = 64;

/// Dumps that the ruleset changed under are taken again; a writer that commits faster than this is another fault.
const DUMP_ATTEMPTS: usize = 100;

/// A generation that another one has followed is asked for again, at most this often; each time the kernel lets the
/// writers before us go first.
const SETTLE_ATTEMPTS: usize = 1000;

/// A state of the whole ruleset of a network namespace; every transaction makes a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(pub(crate) u32);

/// nf_tables did not do what it was asked. What an error says has its reason in it, so it hands on no source, which whoever
/// prints a chain of causes would print once more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("nf_tables socket: {0}")]
    Socket(io::Error),
    /// The kernel refused.
    #[error("nf_tables: {action}: {reason}")]
    Refused {
        /// What was asked, such as `create chain inet t c`.
        action: String,
        /// The kernel's reason.
        reason: io::Error,
    },
    /// The kernel's answer made no sense.
    #[error("nf_tables: unreadable answer")]
    Unreadable,
    /// The ruleset changed during every attempt to read it.
    #[error("nf_tables: the ruleset changed during each of {DUMP_ATTEMPTS} readings")]
    Restless,
}

impl Error {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(reason) | Self::Refused { reason, .. } => reason.raw_os_error(),
            Self::Unreadable | Self::Restless => None,
        }
    }

    /// An object (or its table) that was asked for or referred to does not exist.
    pub fn is_absent(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }

    /// An object that was to be created exists.
    pub fn exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The kernel has no netlink of its packet filters.
    pub fn is_unsupported(&self) -> bool {
        self.errno() == Some(libc::EPROTONOSUPPORT)
    }

    /// The kernel did not understand what was asked.
    pub fn is_invalid(&self) -> bool {
        self.errno() == Some(libc::EINVAL)
    }

    /// The ruleset changed since the batch's generation was read.
    pub fn is_stale(&self) -> bool {
        self.errno() == Some(libc::ERESTART)
    }
}

/// An open conversation with nf_tables, in the network namespace it was opened in.
///
/// Closing it waits until everything that was deleted in the namespace is destroyed, about 12 ms after the deletion:
/// drop it late.
#[derive(Debug)]
pub struct Socket {
    /// `None` where the kernel has no netlink of its packet filters.
    socket: Option<netlink_sys::Socket>,
    sequence: u32,
    received: Vec<u8>,
}

impl Socket {
    /// A kernel without netlink for its packet filters has no rules: nothing is found there, and nothing can be made.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> Result<Self, Error> {
        let socket = match netlink_sys::Socket::new(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            opened => Some(opened.map_err(Error::Socket)?),
        };
        Ok(Self { socket, sequence: 0, received: vec![0; RECEIVE_BYTES] })
    }

    /// Makes all changes of `batch`, or none.
    ///
    /// # Errors
    /// The first refusal, with what was refused; see the predicates of [`Error`].
    pub fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, last) = batch.into_bytes(self.sequence.wrapping_add(1));
        // The closing mark has a number as well.
        self.sequence = last + 1;
        if bytes.len() > LONGEST_TO_COME_BACK {
            connected(&self.socket).and_then(|socket| socket.set_cap_ack(true)).map_err(Error::Socket)?;
        }
        if bytes.len() > DEFAULT_SEND_BYTES {
            self.grow_send_buffer(bytes.len())?;
        }
        self.order(&bytes, last)
    }

    /// Has the kernel's connection tracking forget the flows that one of `addresses` opened or answers, as itself or as
    /// what another address is translated to. It goes through all flows of the host twice for each. A kernel without
    /// netlink for its packet filters tells of none.
    ///
    /// # Errors
    /// The first refusal; kernels before 6.11 do not search by address and refuse it as invalid.
    pub fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        if self.socket.is_none() {
            return Ok(());
        }
        for addresses in addresses.chunks(ADDRESSES_AT_ONCE) {
            let mut bytes = Vec::new();
            for (address, role) in addresses.iter().flat_map(|ip| [(*ip, Role::Opens), (*ip, Role::Answers)])
            {
                let start = bytes.len();
                wire::put_forget_flows(&mut bytes, address, role);
                self.sequence = self.sequence.wrapping_add(1);
                wire::address(&mut bytes[start..], self.sequence, 0);
            }
            self.order(&bytes, self.sequence)?;
        }
        Ok(())
    }

    /// Sends orders, and waits for the answer to the one with the sequence number `last`.
    fn order(&mut self, bytes: &[u8], last: u32) -> Result<(), Error> {
        self.send(bytes)?;
        let mut refusal = None;
        let mut overrun = None;
        loop {
            let len = match self.receive() {
                Ok(len) => len,
                // There were more refusals than the socket has room for; the first of them can be read.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    overrun = Some(error);
                    continue;
                }
                // A batch that is refused as a whole is answered once, for its opening mark.
                Err(error) => {
                    return Err(refusal.unwrap_or_else(|| Error::Socket(overrun.unwrap_or(error))));
                }
            };
            for message in wire::messages(&self.received[..len]) {
                let (header, body) = message.ok_or(Error::Unreadable)?;
                if i32::from(header.kind) != libc::NLMSG_ERROR {
                    continue;
                }
                if let Some(errno) = wire::decode_error(body) {
                    refusal.get_or_insert_with(|| refused(bytes, header.sequence, errno));
                }
                if header.sequence == last {
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// The ruleset's generation, which may be one that is still on its way in: see
    /// [`settled_generation`](Self::settled_generation).
    ///
    /// # Errors
    /// The kernel's.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        connected(&self.socket).map_err(Error::Socket)?;
        let id = self.get(Request::GetGeneration, None, |_| {}, wire::decode_generation)?;
        id.map(Generation).ok_or(Error::Unreadable)
    }

    /// The ruleset's generation, all of which can be read.
    ///
    /// The kernel gives a transaction's generation its number first and then brings its changes in one by one
    /// (`nf_tables_commit` in net/netfilter/nf_tables_api.c). Who reads under the new number alone may read what was
    /// before, and a batch [since](Batch::since) that number would be taken all the same.
    ///
    /// # Errors
    /// The kernel's; [`Error::Restless`] when each generation was followed by another before it could be read.
    pub fn settled_generation(&mut self) -> Result<Generation, Error> {
        if self.socket.is_none() {
            return Ok(Generation(0));
        }
        for _ in 0..SETTLE_ATTEMPTS {
            let generation = self.generation()?;
            if self.is_settled(generation)? {
                return Ok(generation);
            }
        }
        Err(Error::Restless)
    }

    /// Waits for the transaction that is on its way in, if one is; then whether `generation` is still the newest.
    fn is_settled(&mut self, generation: Generation) -> Result<bool, Error> {
        let batch = Batch::since(generation);
        self.sequence = self.sequence.wrapping_add(1);
        let opening = self.sequence;
        let (bytes, closing) = batch.into_marks(opening);
        self.sequence = closing;
        // The kernel takes its lock for changes before it compares generations, also for a batch without changes, which
        // makes no new one.
        self.send(&bytes)?;
        let answer = match self.receive() {
            // Nothing is answered where nothing is refused.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            answer => answer.map_err(Error::Socket)?,
        };
        for message in wire::messages(&self.received[..answer]) {
            let (header, body) = message.ok_or(Error::Unreadable)?;
            if i32::from(header.kind) != libc::NLMSG_ERROR || header.sequence != opening {
                continue;
            }
            if let Some(errno) = wire::decode_error(body) {
                let refused = refused(&bytes, opening, errno);
                return if refused.is_stale() { Ok(false) } else { Err(refused) };
            }
        }
        Err(Error::Unreadable)
    }

    /// A table; `None` without it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn table(&mut self, table: Table<'_>) -> Result<Option<FoundTable>, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_table(bytes, table.name, None);
        self.get(Request::GetTable, Some(table.family), name, wire::decode_table)
    }

    /// A chain; `None` without it or without the table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn chain(&mut self, table: Table<'_>, name: &str) -> Result<Option<Chain>, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_chain(bytes, table.name, name, None, None);
        self.get(Request::GetChain, Some(table.family), name, wire::decode_chain)
    }

    /// The names of the sets and maps of a table; none without the table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_names(&mut self, table: Table<'_>) -> Result<Vec<String>, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_table_of_set(bytes, table.name);
        self.dump(Request::GetSet, Some(table.family), name, |body, names| {
            names.extend(wire::decode_set_name(body));
        })
    }

    /// The element with this key; `None` without it, its set or its table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn element(&mut self, table: Table<'_>, set: &str, key: &[u8]) -> Result<Option<Element>, Error> {
        let wanted = Element::new(key.to_vec());
        let name = |bytes: &mut Vec<u8>| wire::put_elements(bytes, table.name, set, &[&wanted]);
        self.get(Request::GetElements, Some(table.family), name, |body| wire::decode_elements(body).next())
    }

    /// Every chain of every table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn chains(&mut self) -> Result<Vec<Chain>, Error> {
        self.dump(Request::GetChain, None, |_| {}, |body, chains| chains.extend(wire::decode_chain(body)))
    }

    /// The rules of a chain in order; none without the chain or its table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rules(&mut self, table: Table<'_>, chain: &str) -> Result<Vec<FoundRule>, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_rule_reference(bytes, table.name, chain, None);
        self.dump(Request::GetRule, Some(table.family), name, |body, rules| {
            rules.extend(wire::decode_rule(body));
        })
    }

    /// What a chain makes of a packet which none of its tests picks out but by what is known of it; it goes on where
    /// there is no such chain.
    ///
    /// # Errors
    /// The kernel's.
    pub fn follow(&mut self, table: Table<'_>, chain: &str, packet: &Packet<'_>) -> Result<Undecided, Error> {
        self.follow_by(&mut BTreeMap::new(), table, chain, packet)
    }

    /// The same for each of several packets; the rules are read once.
    ///
    /// # Errors
    /// The kernel's.
    pub fn follow_each(
        &mut self,
        table: Table<'_>,
        chain: &str,
        packets: &[Packet<'_>],
    ) -> Result<Vec<Undecided>, Error> {
        let mut rules = BTreeMap::new();
        packets.iter().map(|packet| self.follow_by(&mut rules, table, chain, packet)).collect()
    }

    /// By the rules of chains that were read already, and those of others, which are added to them.
    fn follow_by(
        &mut self,
        rules: &mut BTreeMap<String, Vec<FoundRule>>,
        table: Table<'_>,
        chain: &str,
        packet: &Packet<'_>,
    ) -> Result<Undecided, Error> {
        follow(chain, &mut |name| {
            if !rules.contains_key(name) {
                rules.insert(name.to_owned(), self.rules(table, name)?);
            }
            let ends = rules[name].iter().map(|rule| {
                let end = rule.end(packet, &mut |set, key| self.look_up(table, set, key))?;
                Ok((rule.handle, end))
            });
            ends.collect()
        })
    }

    /// Looks up a key of which it is known what it begins with, be it in intervals.
    fn look_up(&mut self, table: Table<'_>, set: &str, start: &[u8]) -> Result<InSet, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_set_reference(bytes, table.name, set);
        let len = self.get(Request::GetSet, Some(table.family), name, wire::decode_set_key_len)?;
        let Some(key) = len.and_then(|len| start.get(..len as usize)) else { return Ok(InSet::Unknown) };
        Ok(self.element(table, set, key)?.map_or(InSet::No, InSet::Yes))
    }

    /// The rules of all chains of a table, each chain's in order; no chains without the table. `None` when the kernel
    /// needs more than one pass for so many: those of a chain that does not change are better asked for by its name,
    /// where the changes of other chains do not matter.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rules_at_once(
        &mut self,
        table: Table<'_>,
    ) -> Result<Option<BTreeMap<String, Vec<FoundRule>>>, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_table_of_rule(bytes, table.name);
        for _ in 0..DUMP_ATTEMPTS {
            let dump = self.read(Request::GetRule, Some(table.family), name, |body, rules| {
                rules.extend(wire::decode_chain_of_rule(body).zip(wire::decode_rule(body)));
            })?;
            if dump.passes > 1 {
                return Ok(None);
            }
            if !dump.interrupted {
                let mut rules = BTreeMap::<String, Vec<FoundRule>>::new();
                for (chain, rule) in dump.objects {
                    rules.entry(chain).or_default().push(rule);
                }
                return Ok(Some(rules));
            }
        }
        Err(Error::Restless)
    }

    /// The elements of a set or map, in no order; none without the set or its table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn elements(&mut self, table: Table<'_>, set: &str) -> Result<Vec<Element>, Error> {
        let name = |bytes: &mut Vec<u8>| wire::put_elements(bytes, table.name, set, &[]);
        self.dump(Request::GetElements, Some(table.family), name, |body, elements| {
            elements.extend(wire::decode_elements(body));
        })
    }

    /// One object, by name.
    fn get<T>(
        &mut self,
        request: Request,
        family: Option<Family>,
        name: impl Fn(&mut Vec<u8>),
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        if self.socket.is_none() {
            return Ok(None);
        }
        let sent = self.ask(request, family, 0, name)?;
        loop {
            let len = self.receive().map_err(Error::Socket)?;
            for message in wire::messages(&self.received[..len]) {
                let (header, body) = message.ok_or(Error::Unreadable)?;
                if header.sequence != self.sequence {
                    continue;
                }
                if i32::from(header.kind) != libc::NLMSG_ERROR {
                    return decode(body).map(Some).ok_or(Error::Unreadable);
                }
                return match wire::decode_error(body) {
                    None => Err(Error::Unreadable),
                    Some(libc::ENOENT) => Ok(None),
                    Some(errno) => Err(refused(&sent, self.sequence, errno)),
                };
            }
        }
    }

    /// Many objects, as they were at one time. An absent container is empty.
    ///
    /// The kernel marks a dump that a new generation came under. For a dump of several passes that is not enough. Each
    /// pass starts where the one before it ended, by count, and what others do shifts that place: a transaction under
    /// way, before its generation has its number or after, and one that is refused in the end, which never gets one. So
    /// such a dump counts only if the next one is the same.
    fn dump<T: PartialEq>(
        &mut self,
        request: Request,
        family: Option<Family>,
        name: impl Fn(&mut Vec<u8>),
        decode: impl Fn(&[u8], &mut Vec<T>),
    ) -> Result<Vec<T>, Error> {
        let mut previous = None;
        for _ in 0..DUMP_ATTEMPTS {
            let dump = self.read(request, family, &name, &decode)?;
            if dump.interrupted {
                continue;
            }
            if dump.passes <= 1 || previous.as_ref() == Some(&dump.objects) {
                return Ok(dump.objects);
            }
            previous = Some(dump.objects);
        }
        Err(Error::Restless)
    }

    fn read<T>(
        &mut self,
        request: Request,
        family: Option<Family>,
        name: impl Fn(&mut Vec<u8>),
        decode: impl Fn(&[u8], &mut Vec<T>),
    ) -> Result<Dump<T>, Error> {
        let mut dump = Dump { objects: Vec::new(), passes: 0, interrupted: false };
        if self.socket.is_none() {
            return Ok(dump);
        }
        let sent = self.ask(request, family, libc::NLM_F_DUMP as u16, name)?;
        loop {
            let len = self.receive().map_err(Error::Socket)?;
            let before = dump.objects.len();
            for message in wire::messages(&self.received[..len]) {
                let (header, body) = message.ok_or(Error::Unreadable)?;
                if header.sequence != self.sequence {
                    continue;
                }
                dump.interrupted |= header.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(header.kind) {
                    // An error of a dump comes in the message that ends it as well.
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        return match wire::decode_error(body) {
                            None | Some(libc::ENOENT) => Ok(dump),
                            Some(errno) => Err(refused(&sent, self.sequence, errno)),
                        };
                    }
                    _ => decode(body, &mut dump.objects),
                }
            }
            dump.passes += usize::from(dump.objects.len() > before);
        }
    }

    fn ask(
        &mut self,
        request: Request,
        family: Option<Family>,
        flags: u16,
        name: impl Fn(&mut Vec<u8>),
    ) -> Result<Vec<u8>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(256);
        wire::put_request(&mut bytes, request, family, flags, name);
        wire::address(&mut bytes, self.sequence, 0);
        self.send(&bytes)?;
        Ok(bytes)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let socket = connected(&self.socket).map_err(Error::Socket)?;
        let sent = retry(|| socket.send(bytes, 0)).map_err(Error::Socket)?;
        if sent == bytes.len() {
            return Ok(());
        }
        Err(Error::Socket(io::Error::other(format!("{sent} of {} bytes were sent", bytes.len()))))
    }

    fn receive(&mut self) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let socket = connected(&self.socket)?;
        let len = retry(|| socket.recv(&mut &mut self.received[..], flags))?;
        if len > self.received.len() {
            return Err(io::Error::other(format!("an answer of {len} bytes was cut")));
        }
        Ok(len)
    }

    /// A repair of many attachments is larger than a socket sends unasked. Beyond the system's limit only with
    /// CAP_NET_ADMIN, which nf_tables asks for anyway.
    fn grow_send_buffer(&self, bytes: usize) -> Result<(), Error> {
        // The kernel keeps some of it for itself.
        let size = bytes + bytes / 4;
        let socket = connected(&self.socket).map_err(Error::Socket)?;
        setsockopt(socket, sockopt::SndBufForce, &size)
            .or_else(|_| setsockopt(socket, sockopt::SndBuf, &size))
            .map_err(|errno| Error::Socket(errno.into()))
    }
}

fn connected(socket: &Option<netlink_sys::Socket>) -> io::Result<&netlink_sys::Socket> {
    socket.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTONOSUPPORT))
}

/// What came of one dump.
struct Dump<T> {
    objects: Vec<T>,
    /// Those with objects; what came of each is a datagram.
    passes: usize,
    /// Whether the kernel saw a new generation between its passes.
    interrupted: bool,
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// What the kernel refused: the message of those sent that has this sequence number.
fn refused(sent: &[u8], sequence: u32, errno: i32) -> Error {
    let action = wire::messages(sent)
        .flatten()
        .find(|(header, _)| header.sequence == sequence)
        .map_or_else(|| "transaction".to_owned(), |(header, body)| wire::describe(header, body));
    Error::Refused { action, reason: io::Error::from_raw_os_error(errno) }
}
