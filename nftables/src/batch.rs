//! A transaction as it is put together: the messages between the marks of one batch.
//!
//! Pure: [`Socket::commit`](crate::Socket::commit) sends it.

use crate::wire::{self, Request};
use crate::{Base, Element, Family, Generation, Rule, Set, Table};

/// Elements in one message: an attribute's length is sixteen bits, and one element takes at most about 600 bytes.
const ELEMENTS_PER_MESSAGE: usize = 100;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const APPEND: u16 = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;

/// Changes that take effect together or not at all.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message starts, the opening mark's included.
    starts: Vec<usize>,
}

impl Batch {
    /// A batch without changes.
    pub fn new() -> Self {
        Self::open(None)
    }

    /// A batch that the kernel refuses (see [`Error::is_stale`](crate::Error::is_stale)) when anything in the ruleset
    /// has changed since `generation` was read.
    pub fn since(generation: Generation) -> Self {
        Self::open(Some(generation.0))
    }

    fn open(generation: Option<u32>) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        wire::put_batch_begin(&mut bytes, generation);
        Self { bytes, starts: vec![0] }
    }

    /// Whether it has no changes.
    pub fn is_empty(&self) -> bool {
        self.starts.len() == 1
    }

    /// A table that must not exist yet.
    pub fn create_table(&mut self, table: Table<'_>, comment: &str) {
        self.push(Request::NewTable, table, EXCLUSIVE, |bytes| {
            wire::put_table(bytes, table.name, Some(comment));
        });
    }

    /// A table that somebody has put to sleep (`flags dormant`): its chains take part again.
    pub fn wake_table(&mut self, table: Table<'_>) {
        self.push(Request::NewTable, table, 0, |bytes| wire::put_awake_table(bytes, table.name));
    }

    /// A table with all that it holds.
    pub fn delete_table(&mut self, table: Table<'_>) {
        self.push(Request::DeleteTable, table, 0, |bytes| wire::put_table(bytes, table.name, None));
    }

    /// A chain that must not exist yet, reached by jumps.
    pub fn create_chain(&mut self, table: Table<'_>, name: &str, comment: &str) {
        self.push(Request::NewChain, table, EXCLUSIVE, |bytes| {
            wire::put_chain(bytes, table.name, name, None, Some(comment));
        });
    }

    /// A chain that must not exist yet, at a hook.
    pub fn create_base_chain(&mut self, table: Table<'_>, name: &str, base: &Base, comment: &str) {
        self.push(Request::NewChain, table, EXCLUSIVE, |bytes| {
            wire::put_chain(bytes, table.name, name, Some(base), Some(comment));
        });
    }

    /// A chain with its rules; refused while something jumps to it.
    pub fn delete_chain(&mut self, table: Table<'_>, name: &str) {
        self.push(Request::DeleteChain, table, 0, |bytes| {
            wire::put_chain(bytes, table.name, name, None, None);
        });
    }

    /// All rules of a chain go.
    pub fn flush_chain(&mut self, table: Table<'_>, chain: &str) {
        self.push(Request::DeleteRule, table, 0, |bytes| {
            wire::put_rule_reference(bytes, table.name, chain, None);
        });
    }

    /// A rule at the end of a chain.
    pub fn add_rule(&mut self, table: Table<'_>, chain: &str, rule: &Rule) {
        self.push(Request::NewRule, table, APPEND, |bytes| {
            wire::put_rule(bytes, table.name, chain, None, rule);
        });
    }

    /// A rule at the start of a chain.
    pub fn insert_rule(&mut self, table: Table<'_>, chain: &str, rule: &Rule) {
        self.push(Request::NewRule, table, CREATE, |bytes| {
            wire::put_rule(bytes, table.name, chain, None, rule);
        });
    }

    /// A rule before the one with this handle.
    pub fn insert_rule_before(&mut self, table: Table<'_>, chain: &str, handle: u64, rule: &Rule) {
        self.push(Request::NewRule, table, CREATE, |bytes| {
            wire::put_rule(bytes, table.name, chain, Some(handle), rule);
        });
    }

    /// The rule with this handle goes.
    pub fn delete_rule(&mut self, table: Table<'_>, chain: &str, handle: u64) {
        self.push(Request::DeleteRule, table, 0, |bytes| {
            wire::put_rule_reference(bytes, table.name, chain, Some(handle));
        });
    }

    /// A set or verdict map that must not exist yet.
    pub fn create_set(&mut self, table: Table<'_>, set: &Set<'_>, comment: &str) {
        // An id is asked for, unique within the batch.
        let id = self.starts.len() as u32;
        self.push(Request::NewSet, table, EXCLUSIVE, |bytes| {
            wire::put_set(bytes, table.name, set, id, comment);
        });
    }

    /// Elements of a set; none of their keys may be there yet.
    pub fn create_elements<'a>(
        &mut self,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.push_elements(Request::NewElements, EXCLUSIVE, table, set, elements);
    }

    /// Elements of a set, which may be there already; refused where one with that key has another verdict.
    pub fn add_elements<'a>(
        &mut self,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.push_elements(Request::NewElements, CREATE, table, set, elements);
    }

    /// Elements of a set go, by their keys; each must be there.
    pub fn delete_elements<'a>(
        &mut self,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.push_elements(Request::DeleteElements, 0, table, set, elements);
    }

    fn push_elements<'a>(
        &mut self,
        request: Request,
        flags: u16,
        table: Table<'_>,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let elements: Vec<&Element> = elements.into_iter().collect();
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.push(request, table, flags, |bytes| wire::put_elements(bytes, table.name, set, part));
        }
    }

    fn push(
        &mut self,
        request: Request,
        table: Table<'_>,
        flags: u16,
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        let family: Option<Family> = Some(table.family);
        self.starts.push(self.bytes.len());
        wire::put_request(&mut self.bytes, request, family, flags, attributes);
    }

    /// The bytes of a batch without changes, of which nothing is acknowledged, and the number of its closing mark.
    pub(crate) fn into_marks(mut self, first: u32) -> (Vec<u8>, u32) {
        debug_assert!(self.is_empty(), "a batch with changes is answered");
        let closing = self.bytes.len();
        wire::put_batch_end(&mut self.bytes);
        wire::address(&mut self.bytes, first, 0);
        wire::address(&mut self.bytes[closing..], first + 1, 0);
        (self.bytes, first + 1)
    }

    /// The bytes to send with sequence numbers from `first` on, and the number whose answer ends the transaction: only
    /// the last change is acknowledged, since an error of another is reported anyway.
    pub(crate) fn into_bytes(mut self, first: u32) -> (Vec<u8>, u32) {
        let last_change = self.starts.len() - 1;
        self.starts.push(self.bytes.len());
        wire::put_batch_end(&mut self.bytes);
        for (number, start) in self.starts.iter().enumerate() {
            let acknowledge = if number == last_change { libc::NLM_F_ACK as u16 } else { 0 };
            wire::address(&mut self.bytes[*start..], first + number as u32, acknowledge);
        }
        (self.bytes, first + last_change as u32)
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
