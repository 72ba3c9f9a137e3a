//! A transaction as it is put together: the messages between the marks of one batch.
//!
//! Pure: [`Socket::commit`](crate::Socket::commit) sends it.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;

use crate::{Base, Element, Family, Generation, Rule, Set, Table, wire};

/// Elements in one message: an attribute's length is sixteen bits, and one element takes at most about 600 bytes.
const ELEMENTS_PER_MESSAGE: usize = 100;

/// Changes that take effect together or not at all.
#[derive(Debug)]
pub struct Batch {
    messages: Vec<(Family, NfTablesMessage, u16)>,
    generation: Option<u32>,
}

impl Batch {
    /// A batch without changes.
    pub fn new() -> Self {
        Self { messages: Vec::new(), generation: None }
    }

    /// A batch that the kernel refuses (see [`Error::is_stale`](crate::Error::is_stale)) when anything in the ruleset
    /// has changed since `generation` was read.
    pub fn since(generation: Generation) -> Self {
        Self { messages: Vec::new(), generation: Some(generation.0) }
    }

    /// Whether it has no changes.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// A table that must not exist yet.
    pub fn create_table(&mut self, table: Table<'_>, comment: &str) {
        let message = NfTablesMessage::NewTable(wire::table(table.name, Some(comment)));
        self.push(table.family, message, NLM_F_CREATE | NLM_F_EXCL);
    }

    /// A table with all that it holds.
    pub fn delete_table(&mut self, table: Table<'_>) {
        self.push(table.family, NfTablesMessage::DeleteTable(wire::table(table.name, None)), 0);
    }

    /// A chain that must not exist yet, reached by jumps.
    pub fn create_chain(&mut self, table: Table<'_>, name: &str, comment: &str) {
        self.new_chain(table, name, None, comment);
    }

    /// A chain that must not exist yet, at a hook.
    pub fn create_base_chain(&mut self, table: Table<'_>, name: &str, base: &Base, comment: &str) {
        self.new_chain(table, name, Some(base), comment);
    }

    fn new_chain(&mut self, table: Table<'_>, name: &str, base: Option<&Base>, comment: &str) {
        let message = NfTablesMessage::NewChain(wire::chain(table.name, name, base, Some(comment)));
        self.push(table.family, message, NLM_F_CREATE | NLM_F_EXCL);
    }

    /// A chain with its rules; refused while something jumps to it.
    pub fn delete_chain(&mut self, table: Table<'_>, name: &str) {
        let message = NfTablesMessage::DeleteChain(wire::chain(table.name, name, None, None));
        self.push(table.family, message, 0);
    }

    /// All rules of a chain.
    pub fn flush_chain(&mut self, table: Table<'_>, chain: &str) {
        let message = NfTablesMessage::DeleteRule(wire::rule_reference(table.name, chain, None));
        self.push(table.family, message, 0);
    }

    /// A rule at the end of a chain.
    pub fn add_rule(&mut self, table: Table<'_>, chain: &str, rule: &Rule) {
        let message = NfTablesMessage::NewRule(wire::rule(table.name, chain, rule));
        self.push(table.family, message, NLM_F_CREATE | NLM_F_APPEND);
    }

    /// The rule with this handle.
    pub fn delete_rule(&mut self, table: Table<'_>, chain: &str, handle: u64) {
        let message = NfTablesMessage::DeleteRule(wire::rule_reference(table.name, chain, Some(handle)));
        self.push(table.family, message, 0);
    }

    /// A set or verdict map that must not exist yet.
    pub fn create_set(&mut self, table: Table<'_>, set: &Set<'_>, comment: &str) {
        // An id is asked for, unique within the batch.
        let id = self.messages.len() as u32 + 1;
        let message = NfTablesMessage::NewSet(wire::set(table.name, set, id, Some(comment)));
        self.push(table.family, message, NLM_F_CREATE | NLM_F_EXCL);
    }

    /// Elements of a set; none of their keys may be there yet.
    pub fn create_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let message = NfTablesMessage::NewSetElement(wire::elements(table.name, set, part));
            self.push(table.family, message, NLM_F_CREATE | NLM_F_EXCL);
        }
    }

    /// Elements of a set, by their keys; each must be there.
    pub fn delete_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let message = NfTablesMessage::DeleteSetElement(wire::elements(table.name, set, part));
            self.push(table.family, message, 0);
        }
    }

    fn push(&mut self, family: Family, message: NfTablesMessage, flags: u16) {
        self.messages.push((family, message, flags));
    }

    /// The bytes to send, and the sequence number whose answer ends the transaction: only the last change is
    /// acknowledged, since an error of another is reported anyway.
    pub(crate) fn encode(self, first: u32) -> (Vec<u8>, u32) {
        let mut bytes = Vec::with_capacity(256 * (self.messages.len() + 2));
        let mut sequence = first;
        wire::append(&mut bytes, None, wire::batch_begin(self.generation), 0, sequence);
        let changes = self.messages.len();
        for (number, (family, message, flags)) in self.messages.into_iter().enumerate() {
            sequence += 1;
            let acknowledged = if number + 1 == changes { NLM_F_ACK } else { 0 };
            wire::append(&mut bytes, Some(family), message, flags | acknowledged, sequence);
        }
        wire::append(&mut bytes, None, ControlMessage::BatchEnd, 0, sequence + 1);
        (bytes, sequence)
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
