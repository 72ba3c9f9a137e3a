//! The conversation with the kernel: transactions out, objects in.
//!
//! netlink answers within the call that sends: when a send returns, every answer to it is queued, and a dump goes on
//! in the call that receives. So nothing here ever blocks; an answer that is not there is an error.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NetlinkPayload};
use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};

use crate::wire::Object;
use crate::{Batch, Chain, Element, Family, FoundRule, Table, wire};

/// The kernel's dumps fill at most 32 KiB at a time.
const RECEIVE_BYTES: usize = 32 * 1024;

/// What a socket can send without asking for more (`net.core.wmem_default` is at least this).
const DEFAULT_SEND_BYTES: usize = 128 * 1024;

/// Dumps that the ruleset changed under are taken again; a writer that commits faster than this is another fault.
const DUMP_ATTEMPTS: usize = 100;

/// A state of the whole ruleset of a network namespace; every transaction makes a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(pub(crate) u32);

/// nf_tables did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("nf_tables socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("nf_tables: {action}: {source}")]
    Refused {
        /// What was asked, such as `create chain inet t c`.
        action: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel's answer made no sense.
    #[error("nf_tables: unreadable answer: {0}")]
    Unreadable(String),
}

impl Error {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(source) | Self::Refused { source, .. } => source.raw_os_error(),
            Self::Unreadable(_) => None,
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

    /// An object is still referred to, or an element has another verdict.
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(libc::EBUSY)
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
    socket: netlink_sys::Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Socket {
    /// # Errors
    /// The system's, when it has no netlink or no nf_tables netlink family.
    pub fn open() -> Result<Self, Error> {
        let socket = netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
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
        let (bytes, last) = batch.encode(self.sequence + 1);
        self.sequence = last + 1;
        if bytes.len() > DEFAULT_SEND_BYTES {
            self.grow_send_buffer(bytes.len())?;
        }
        self.send(&bytes)?;
        let mut refusal = None;
        loop {
            let len = match self.receive() {
                Ok(len) => len,
                // A batch that is refused as a whole is answered once, for its opening mark.
                Err(error) => return Err(refusal.unwrap_or(Error::Socket(error))),
            };
            for message in messages(&self.received[..len]) {
                let message = message?;
                let NetlinkPayload::Error(answer) = message.payload else { continue };
                if answer.code.is_some() {
                    refusal.get_or_insert_with(|| Error::Refused {
                        action: action(&bytes, message.header.sequence_number),
                        source: answer.to_io(),
                    });
                }
                if message.header.sequence_number == last {
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// The ruleset's generation.
    ///
    /// # Errors
    /// The kernel's.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        let ask = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        match self.get(None, ask)? {
            Some(Object::Generation(id)) => Ok(Generation(id)),
            other => Err(Error::Unreadable(format!("{other:?} instead of a generation"))),
        }
    }

    /// How many chains, sets and other objects a table has; `None` without the table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn table_uses(&mut self, table: Table<'_>) -> Result<Option<u32>, Error> {
        match self.get(Some(table.family), NfTablesMessage::GetTable(wire::table(table.name, None)))? {
            None => Ok(None),
            Some(Object::Table { uses }) => Ok(Some(uses)),
            Some(other) => Err(Error::Unreadable(format!("{other:?} instead of a table"))),
        }
    }

    /// A chain; `None` without it or without the table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn chain(&mut self, table: Table<'_>, name: &str) -> Result<Option<Chain>, Error> {
        let ask = NfTablesMessage::GetChain(wire::chain(table.name, name, None, None));
        match self.get(Some(table.family), ask)? {
            None => Ok(None),
            Some(Object::Chain(chain)) => Ok(Some(chain)),
            Some(other) => Err(Error::Unreadable(format!("{other:?} instead of a chain"))),
        }
    }

    /// Whether there is such a set or map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_set(&mut self, table: Table<'_>, name: &str) -> Result<bool, Error> {
        let ask = NfTablesMessage::GetSet(wire::set_reference(table.name, name));
        Ok(self.get(Some(table.family), ask)?.is_some())
    }

    /// Every chain of every table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn chains(&mut self) -> Result<Vec<Chain>, Error> {
        let ask = NfTablesMessage::GetChain(netlink_packet_netfilter::nftables::ChainMessage {
            attributes: Vec::new(),
        });
        let mut chains = Vec::new();
        self.dump(None, &ask, |object| {
            if let Object::Chain(chain) = object {
                chains.push(chain);
            }
        })?;
        Ok(chains)
    }

    /// The rules of a chain in order; none without the chain or its table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rules(&mut self, table: Table<'_>, chain: &str) -> Result<Vec<FoundRule>, Error> {
        let ask = NfTablesMessage::GetRule(wire::rule_reference(table.name, chain, None));
        let mut rules = Vec::new();
        self.dump(Some(table.family), &ask, |object| {
            if let Object::Rule(rule) = object {
                rules.push(rule);
            }
        })?;
        Ok(rules)
    }

    /// The elements of a set or map, in no order; none without the set or its table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn elements(&mut self, table: Table<'_>, set: &str) -> Result<Vec<Element>, Error> {
        let ask = NfTablesMessage::GetSetElement(wire::elements(table.name, set, &[]));
        let mut elements = Vec::new();
        self.dump(Some(table.family), &ask, |object| {
            if let Object::Elements(part) = object {
                elements.extend(part);
            }
        })?;
        Ok(elements)
    }

    /// The element with this key; `None` without it, its set or its table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn element(&mut self, table: Table<'_>, set: &str, key: &[u8]) -> Result<Option<Element>, Error> {
        let wanted = Element::new(key.to_vec());
        let ask = NfTablesMessage::GetSetElement(wire::elements(table.name, set, &[wanted]));
        match self.get(Some(table.family), ask)? {
            None => Ok(None),
            Some(Object::Elements(elements)) => Ok(elements.into_iter().next()),
            Some(other) => Err(Error::Unreadable(format!("{other:?} instead of an element"))),
        }
    }

    /// One object, by name.
    fn get(&mut self, family: Option<Family>, ask: NfTablesMessage) -> Result<Option<Object>, Error> {
        let bytes = self.ask(family, ask, 0)?;
        loop {
            let len = self.receive().map_err(Error::Socket)?;
            for message in messages(&self.received[..len]) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                return match message.payload {
                    NetlinkPayload::InnerMessage(inner) => Ok(Some(wire::decode(inner))),
                    NetlinkPayload::Error(answer) if answer.raw_code() == -libc::ENOENT => Ok(None),
                    NetlinkPayload::Error(answer) => {
                        Err(Error::Refused { action: action(&bytes, self.sequence), source: answer.to_io() })
                    }
                    other => Err(Error::Unreadable(format!("{other:?}"))),
                };
            }
        }
    }

    /// Many objects; taken again from the start when the ruleset changed under it. An absent container is empty.
    fn dump(
        &mut self,
        family: Option<Family>,
        ask: &NfTablesMessage,
        mut each: impl FnMut(Object),
    ) -> Result<(), Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut objects = Vec::new();
            if self.dump_once(family, ask, |object| objects.push(object))? == Dump::Whole {
                objects.into_iter().for_each(&mut each);
                return Ok(());
            }
        }
        Err(Error::Unreadable(format!("the ruleset changed during each of {DUMP_ATTEMPTS} dumps")))
    }

    fn dump_once(
        &mut self,
        family: Option<Family>,
        ask: &NfTablesMessage,
        mut each: impl FnMut(Object),
    ) -> Result<Dump, Error> {
        let bytes = self.ask(family, ask.clone(), NLM_F_DUMP)?;
        let mut state = Dump::Whole;
        loop {
            let len = match self.receive() {
                Ok(len) => len,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(state),
                Err(error) => return Err(Error::Socket(error)),
            };
            for message in messages(&self.received[..len]) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    state = Dump::Interrupted;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(state),
                    NetlinkPayload::InnerMessage(inner) => each(wire::decode(inner)),
                    NetlinkPayload::Error(answer) if answer.raw_code() == -libc::ENOENT => return Ok(state),
                    NetlinkPayload::Error(answer) => {
                        return Err(Error::Refused {
                            action: action(&bytes, self.sequence),
                            source: answer.to_io(),
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn ask(&mut self, family: Option<Family>, ask: NfTablesMessage, flags: u16) -> Result<Vec<u8>, Error> {
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(256);
        wire::append(&mut bytes, family, ask, flags, self.sequence);
        self.send(&bytes)?;
        Ok(bytes)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let sent = retry(|| self.socket.send(bytes, 0)).map_err(Error::Socket)?;
        if sent == bytes.len() {
            return Ok(());
        }
        Err(Error::Socket(io::Error::other(format!("{sent} of {} bytes were sent", bytes.len()))))
    }

    fn receive(&mut self) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let len = retry(|| self.socket.recv(&mut &mut self.received[..], flags))?;
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
        setsockopt(&self.socket, sockopt::SndBufForce, &size)
            .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &size))
            .map_err(|errno| Error::Socket(errno.into()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dump {
    Whole,
    Interrupted,
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The messages of a datagram.
fn messages(
    mut bytes: &[u8],
) -> impl Iterator<
    Item = Result<netlink_packet_core::NetlinkMessage<netlink_packet_netfilter::NetfilterMessage>, Error>,
> {
    const HEADER: usize = 16;
    std::iter::from_fn(move || {
        let len: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
        let len = u32::from_ne_bytes(len) as usize;
        if len < HEADER || len > bytes.len() {
            bytes = &[];
            return Some(Err(Error::Unreadable(format!("a message of {len} bytes"))));
        }
        let message = wire::parse(&bytes[..len]).map_err(|error| Error::Unreadable(format!("{error}")));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// What the message with this sequence number asked.
fn action(sent: &[u8], sequence: u32) -> String {
    messages(sent)
        .filter_map(Result::ok)
        .find(|message| message.header.sequence_number == sequence)
        .and_then(|message| match message.payload {
            NetlinkPayload::InnerMessage(inner) => Some(wire::describe(&inner)),
            _ => None,
        })
        .unwrap_or_else(|| "transaction".to_owned())
}
