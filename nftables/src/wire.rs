//! Messages as netlink bytes, and back: the one place that knows their layout.
//!
//! Names of constants are those of `nf_tables.h` and `nfnetlink.h`, shortened. Text in user data follows libnftnl:
//! type, length, bytes, NUL.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::attribute::{find, find_text, find_u32, find_u64, nest, put, put_text, put_u32, put_u64, walk};
use crate::data::{NF_ACCEPT, NF_DROP, find_value, find_verdict, put_value, put_verdict};
use crate::expression::Expression;
use crate::object::Holds;
use crate::{
    Base, Chain, ChainKind, Element, Family, FoundRule, FoundTable, Hook, KeyType, Policy, Rule, Set,
};

/// Longest name of a table, chain or set in bytes (`NFT_NAME_MAXLEN` less the NUL).
pub const MAX_NAME: usize = 255;

/// Longest text of a comment in bytes; a longer one is cut. The kernel counts an element's user data with its own frame
/// in one byte, and loses what is longer, or refuses it; ours takes three bytes more than the text.
pub const MAX_COMMENT: usize = 250;

const UDATA_COMMENT: u8 = 0;
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const UDATA_SET_COMMENT: u8 = 7;
const BYTE_ORDER_HOST: u32 = 1;
const BYTE_ORDER_BIG: u32 = 2;

const LIST_ELEM: u16 = 1;

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
/// Of include/uapi/linux/netfilter/nf_tables.h.
const NFT_TABLE_F_DORMANT: u32 = 1;
const NFT_TABLE_F_OWNER: u32 = 2;
const TABLE_USE: u16 = 3;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const CHAIN_TYPE: u16 = 7;
const CHAIN_USERDATA: u16 = 12;
const HOOK_HOOKNUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_POSITION: u16 = 6;
const RULE_USERDATA: u16 = 7;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
const SET_F_MAP: u32 = libc::NFT_SET_MAP as u32;
const SET_DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
const ELEM_LIST_TABLE: u16 = 1;
const ELEM_LIST_SET: u16 = 2;
const ELEM_LIST_ELEMENTS: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_USERDATA: u16 = 6;
const GEN_ID: u16 = 1;
const BATCH_GENID: u16 = 1;

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_FILTER_F_IP_SRC: u32 = 1;

/// What a message asks of nf_tables, by its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    NewTable = libc::NFT_MSG_NEWTABLE as isize,
    GetTable = libc::NFT_MSG_GETTABLE as isize,
    DeleteTable = libc::NFT_MSG_DELTABLE as isize,
    NewChain = libc::NFT_MSG_NEWCHAIN as isize,
    GetChain = libc::NFT_MSG_GETCHAIN as isize,
    DeleteChain = libc::NFT_MSG_DELCHAIN as isize,
    NewRule = libc::NFT_MSG_NEWRULE as isize,
    GetRule = libc::NFT_MSG_GETRULE as isize,
    DeleteRule = libc::NFT_MSG_DELRULE as isize,
    NewSet = libc::NFT_MSG_NEWSET as isize,
    GetSet = libc::NFT_MSG_GETSET as isize,
    NewElements = libc::NFT_MSG_NEWSETELEM as isize,
    GetElements = libc::NFT_MSG_GETSETELEM as isize,
    DeleteElements = libc::NFT_MSG_DELSETELEM as isize,
    GetGeneration = libc::NFT_MSG_GETGEN as isize,
}

/// Bytes of `struct nlmsghdr`.
pub(crate) const MESSAGE_HEADER: usize = 16;
/// Bytes of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// The fixed part of a message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageHeader {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
}

/// Appends a request; its sequence number and further flags are set when it is sent.
pub(crate) fn put_request(
    buffer: &mut Vec<u8>,
    request: Request,
    family: Option<Family>,
    flags: u16,
    attributes: impl FnOnce(&mut Vec<u8>),
) {
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | request as u16;
    let family = family.map_or(libc::NFPROTO_UNSPEC, Family::number) as u8;
    put_message(buffer, kind, flags, [family, 0, 0, 0], attributes);
}

/// The mark that opens a batch; with a generation, the kernel refuses the batch when the ruleset has changed since.
pub(crate) fn put_batch_begin(buffer: &mut Vec<u8>, generation: Option<u32>) {
    put_mark(buffer, libc::NFNL_MSG_BATCH_BEGIN as u16, |buffer| {
        if let Some(id) = generation {
            put_u32(buffer, BATCH_GENID, id);
        }
    });
}

/// The mark that ends a batch.
pub(crate) fn put_batch_end(buffer: &mut Vec<u8>) {
    put_mark(buffer, libc::NFNL_MSG_BATCH_END as u16, |_| {});
}

fn put_mark(buffer: &mut Vec<u8>, kind: u16, attributes: impl FnOnce(&mut Vec<u8>)) {
    // The marks have no subsystem in their type; it stands in the resource id.
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    put_message(buffer, kind, 0, [libc::NFPROTO_UNSPEC as u8, 0, high, low], attributes);
}

fn put_message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: [u8; FAMILY_HEADER],
    attributes: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.extend([0; 4]);
    buffer.extend(kind.to_ne_bytes());
    buffer.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence number, and the port that the kernel fills in.
    buffer.extend([0; 8]);
    buffer.extend(family);
    attributes(buffer);
    let len = (buffer.len() - start) as u32;
    buffer[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// What an address is to a tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It sent the first packet, be it by another address that it is translated to.
    Opens,
    /// It answers, be it for another one that was asked and is translated to it.
    Answers,
}

/// Appends the order to forget all tracked flows that `address` is `role` of.
pub(crate) fn put_forget_flows(buffer: &mut Vec<u8>, address: IpAddr, role: Role) {
    let (family, source, octets) = match address {
        IpAddr::V4(v4) => (libc::NFPROTO_IPV4, CTA_IP_V4_SRC, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::NFPROTO_IPV6, CTA_IP_V6_SRC, v6.octets().to_vec()),
    };
    let (tuple, tuple_flags) = match role {
        Role::Opens => (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS),
        Role::Answers => (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS),
    };
    let kind = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | CT_DELETE;
    put_message(buffer, kind, libc::NLM_F_ACK as u16, [family as u8, 0, 0, 0], |buffer| {
        nest(buffer, tuple, |buffer| {
            nest(buffer, CTA_TUPLE_IP, |buffer| put(buffer, source, &octets));
        });
        // The one attribute that the kernel wants to be marked as nested.
        nest(buffer, CTA_FILTER | libc::NLA_F_NESTED as u16, |buffer| {
            put(buffer, tuple_flags, &CTA_FILTER_F_IP_SRC.to_ne_bytes());
        });
    });
}

/// Sets a message's sequence number, and adds flags to its own.
pub(crate) fn address(message: &mut [u8], sequence: u32, flags: u16) {
    let own = u16::from_ne_bytes([message[6], message[7]]);
    message[6..8].copy_from_slice(&(own | flags).to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// The messages of a datagram, each with its header and what follows that; `None` in the place of a malformed one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Option<(MessageHeader, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some(len) = message_len(bytes) else {
            bytes = &[];
            return Some(None);
        };
        let (message, rest) = bytes.split_at(len);
        bytes = rest.get(len.next_multiple_of(4) - len..).unwrap_or_default();
        let header = MessageHeader {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
        };
        Some(Some((header, &message[MESSAGE_HEADER..])))
    })
}

/// The length of the message that `bytes` starts with.
pub(crate) fn message_len(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    (MESSAGE_HEADER..=bytes.len()).contains(&len).then_some(len)
}

pub(crate) fn put_table(buffer: &mut Vec<u8>, name: &str, comment: Option<&str>) {
    put_text(buffer, TABLE_NAME, name);
    if let Some(text) = comment {
        put(buffer, TABLE_USERDATA, &user_text(UDATA_COMMENT, text));
    }
}

/// A table whose chains are at their hooks.
pub(crate) fn put_awake_table(buffer: &mut Vec<u8>, name: &str) {
    put_text(buffer, TABLE_NAME, name);
    put_u32(buffer, TABLE_FLAGS, 0);
}

pub(crate) fn put_chain(
    buffer: &mut Vec<u8>,
    table: &str,
    name: &str,
    base: Option<&Base>,
    comment: Option<&str>,
) {
    put_text(buffer, CHAIN_TABLE, table);
    put_text(buffer, CHAIN_NAME, name);
    if let Some(base) = base {
        nest(buffer, CHAIN_HOOK, |buffer| {
            put_u32(buffer, HOOK_HOOKNUM, base.hook.number());
            put_u32(buffer, HOOK_PRIORITY, base.priority.cast_unsigned());
        });
        put_u32(
            buffer,
            CHAIN_POLICY,
            match base.policy {
                Policy::Accept => NF_ACCEPT,
                Policy::Drop => NF_DROP,
            },
        );
        put_text(
            buffer,
            CHAIN_TYPE,
            match &base.kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
                ChainKind::Other(name) => name,
            },
        );
    }
    if let Some(text) = comment {
        put(buffer, CHAIN_USERDATA, &user_text(UDATA_COMMENT, text));
    }
}

/// A rule; with a handle its place is at the rule that has it.
pub(crate) fn put_rule(buffer: &mut Vec<u8>, table: &str, chain: &str, at: Option<u64>, rule: &Rule) {
    put_rule_reference(buffer, table, chain, None);
    if let Some(handle) = at {
        put_u64(buffer, RULE_POSITION, handle);
    }
    nest(buffer, RULE_EXPRESSIONS, |buffer| {
        for expression in &rule.expressions {
            nest(buffer, LIST_ELEM, |buffer| {
                put_text(buffer, EXPR_NAME, &expression.name);
                put(buffer, EXPR_DATA, &expression.data);
            });
        }
    });
    if let Some(text) = &rule.comment {
        put(buffer, RULE_USERDATA, &user_text(UDATA_COMMENT, text));
    }
}

/// All rules of a chain, or (with a handle) one of them.
pub(crate) fn put_rule_reference(buffer: &mut Vec<u8>, table: &str, chain: &str, handle: Option<u64>) {
    put_table_of_rule(buffer, table);
    put_text(buffer, RULE_CHAIN, chain);
    if let Some(handle) = handle {
        put_u64(buffer, RULE_HANDLE, handle);
    }
}

/// All rules of a table, to be read.
pub(crate) fn put_table_of_rule(buffer: &mut Vec<u8>, table: &str) {
    put_text(buffer, RULE_TABLE, table);
}

/// All sets of a table, to be read.
pub(crate) fn put_table_of_set(buffer: &mut Vec<u8>, table: &str) {
    put_text(buffer, SET_TABLE, table);
}

pub(crate) fn put_set(buffer: &mut Vec<u8>, table: &str, set: &Set<'_>, id: u32, comment: &str) {
    /// Bits that `nft` has for each part's type in the number of a joined type.
    const TYPE_BITS: u32 = 6;
    let number = set.key.iter().fold(0, |number, part| number << TYPE_BITS | part.number());
    // A single part is not padded.
    let len = match set.key {
        [part] => part.len(),
        parts => parts.iter().map(|part| part.len().next_multiple_of(4)).sum(),
    };
    put_set_reference(buffer, table, set.name);
    put_u32(buffer, SET_FLAGS, if set.holds == Holds::Verdicts { SET_F_MAP } else { 0 });
    put_u32(buffer, SET_KEY_TYPE, number);
    put_u32(buffer, SET_KEY_LEN, len as u32);
    if set.holds == Holds::Verdicts {
        put_u32(buffer, SET_DATA_TYPE, SET_DATA_TYPE_VERDICT);
    }
    put_u32(buffer, SET_ID, id);
    let byte_order = if set.key == [KeyType::Ifname] { BYTE_ORDER_HOST } else { BYTE_ORDER_BIG };
    let mut user_data = vec![UDATA_SET_KEY_BYTE_ORDER, 4];
    user_data.extend(byte_order.to_ne_bytes());
    user_data.extend(user_text(UDATA_SET_COMMENT, comment));
    put(buffer, SET_USERDATA, &user_data);
}

pub(crate) fn put_set_reference(buffer: &mut Vec<u8>, table: &str, set: &str) {
    put_table_of_set(buffer, table);
    put_text(buffer, SET_NAME, set);
}

/// Elements of a set; a request to read with none of them means all.
pub(crate) fn put_elements(buffer: &mut Vec<u8>, table: &str, set: &str, elements: &[&Element]) {
    put_text(buffer, ELEM_LIST_TABLE, table);
    put_text(buffer, ELEM_LIST_SET, set);
    if elements.is_empty() {
        return;
    }
    nest(buffer, ELEM_LIST_ELEMENTS, |buffer| {
        for element in elements {
            nest(buffer, LIST_ELEM, |buffer| put_element(buffer, element));
        }
    });
}

fn put_element(buffer: &mut Vec<u8>, element: &Element) {
    nest(buffer, ELEM_KEY, |buffer| put_value(buffer, &element.key));
    if let Some(verdict) = &element.verdict {
        nest(buffer, ELEM_DATA, |buffer| put_verdict(buffer, verdict));
    }
    if let Some(text) = &element.comment {
        put(buffer, ELEM_USERDATA, &user_text(UDATA_COMMENT, text));
    }
}

// Reading back. Each takes what follows a message's header.

/// The family of a message's object.
fn split_family(body: &[u8]) -> (Option<Family>, &[u8]) {
    match body.split_first_chunk::<FAMILY_HEADER>() {
        Some(([family, ..], attributes)) => (Family::from_number(i32::from(*family)), attributes),
        None => (None, &[]),
    }
}

pub(crate) fn decode_generation(body: &[u8]) -> Option<u32> {
    find_u32(split_family(body).1, GEN_ID)
}

pub(crate) fn decode_table(body: &[u8]) -> Option<FoundTable> {
    let attributes = split_family(body).1;
    let flags = find_u32(attributes, TABLE_FLAGS).unwrap_or_default();
    Some(FoundTable {
        uses: find_u32(attributes, TABLE_USE)?,
        dormant: flags & NFT_TABLE_F_DORMANT != 0,
        owned: flags & NFT_TABLE_F_OWNER != 0,
    })
}

pub(crate) fn decode_chain(body: &[u8]) -> Option<Chain> {
    let (family, attributes) = split_family(body);
    let base = find(attributes, CHAIN_HOOK).and_then(|hook| {
        Some(Base {
            kind: match find_text(attributes, CHAIN_TYPE)?.as_str() {
                "filter" => ChainKind::Filter,
                "nat" => ChainKind::Nat,
                name => ChainKind::Other(name.to_owned()),
            },
            hook: Hook::from_number(find_u32(hook, HOOK_HOOKNUM)?),
            priority: find_u32(hook, HOOK_PRIORITY)?.cast_signed(),
            policy: match find_u32(attributes, CHAIN_POLICY) {
                Some(NF_DROP) => Policy::Drop,
                _ => Policy::Accept,
            },
        })
    });
    Some(Chain {
        family,
        table: find_text(attributes, CHAIN_TABLE)?,
        name: find_text(attributes, CHAIN_NAME)?,
        base,
        uses: find_u32(attributes, CHAIN_USE)?,
    })
}

pub(crate) fn decode_rule(body: &[u8]) -> Option<FoundRule> {
    let (_, attributes) = split_family(body);
    let expressions = find(attributes, RULE_EXPRESSIONS).unwrap_or_default();
    let expressions = walk(expressions).map(|(_, expression)| {
        Some(Expression {
            name: Cow::Owned(find_text(expression, EXPR_NAME)?),
            data: find(expression, EXPR_DATA).unwrap_or_default().to_vec(),
        })
    });
    let comment = find(attributes, RULE_USERDATA).and_then(|bytes| text_of(UDATA_COMMENT, bytes));
    Some(FoundRule {
        handle: find_u64(attributes, RULE_HANDLE)?,
        rule: Rule { expressions: expressions.collect::<Option<_>>()?, comment },
    })
}

pub(crate) fn decode_chain_of_rule(body: &[u8]) -> Option<String> {
    let (_, attributes) = split_family(body);
    find_text(attributes, RULE_CHAIN)
}

pub(crate) fn decode_set_name(body: &[u8]) -> Option<String> {
    let (_, attributes) = split_family(body);
    find_text(attributes, SET_NAME)
}

pub(crate) fn decode_set_key_len(body: &[u8]) -> Option<u32> {
    let (_, attributes) = split_family(body);
    find_u32(attributes, SET_KEY_LEN)
}

pub(crate) fn decode_elements(body: &[u8]) -> impl Iterator<Item = Element> {
    let (_, attributes) = split_family(body);
    walk(find(attributes, ELEM_LIST_ELEMENTS).unwrap_or_default()).filter_map(|(_, element)| {
        Some(Element {
            key: find_value(find(element, ELEM_KEY)?)?.to_vec(),
            verdict: find(element, ELEM_DATA).and_then(find_verdict),
            comment: find(element, ELEM_USERDATA).and_then(|bytes| text_of(UDATA_COMMENT, bytes)),
        })
    })
}

/// The error number of an error message (positive), or `None` of an acknowledgement.
pub(crate) fn decode_error(body: &[u8]) -> Option<i32> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    (code != 0).then_some(code.wrapping_neg())
}

/// What a request was about, in `nft`'s words, for an error's text.
pub(crate) fn describe(header: MessageHeader, body: &[u8]) -> String {
    match i32::from(header.kind >> 8) {
        libc::NFNL_SUBSYS_NFTABLES => {}
        libc::NFNL_SUBSYS_CTNETLINK => return "forget tracked flows".to_owned(),
        // A mark stands for its batch, and has a number that is a request's as well.
        _ => return "transaction".to_owned(),
    }
    let (family, attributes) = split_family(body);
    let names = |kinds: &[u16]| -> String {
        kinds.iter().filter_map(|kind| find_text(attributes, *kind)).map(|name| format!(" {name}")).collect()
    };
    let family = family.map(|family| format!(" {}", family.name())).unwrap_or_default();
    let is = |request: Request| header.kind & 0xff == request as u16;
    let verb = [
        (Request::NewTable, "create table", &[TABLE_NAME][..]),
        (Request::GetTable, "read table", &[TABLE_NAME]),
        (Request::DeleteTable, "delete table", &[TABLE_NAME]),
        (Request::NewChain, "create chain", &[CHAIN_TABLE, CHAIN_NAME]),
        (Request::GetChain, "read chain", &[CHAIN_TABLE, CHAIN_NAME]),
        (Request::DeleteChain, "delete chain", &[CHAIN_TABLE, CHAIN_NAME]),
        (Request::NewRule, "add a rule to chain", &[RULE_TABLE, RULE_CHAIN]),
        (Request::GetRule, "read the rules of chain", &[RULE_TABLE, RULE_CHAIN]),
        (Request::DeleteRule, "delete rules of chain", &[RULE_TABLE, RULE_CHAIN]),
        (Request::NewSet, "create set", &[SET_TABLE, SET_NAME]),
        (Request::GetSet, "read set", &[SET_TABLE, SET_NAME]),
        (Request::NewElements, "add to set", &[ELEM_LIST_TABLE, ELEM_LIST_SET]),
        (Request::GetElements, "read set", &[ELEM_LIST_TABLE, ELEM_LIST_SET]),
        (Request::DeleteElements, "delete from set", &[ELEM_LIST_TABLE, ELEM_LIST_SET]),
        (Request::GetGeneration, "read the ruleset's generation", &[]),
    ];
    verb.iter().find(|(request, ..)| is(*request)).map_or_else(
        || "transaction".to_owned(),
        |(_, verb, kinds)| format!("{verb}{family}{}", names(kinds)),
    )
}

// User data.

fn user_text(kind: u8, text: &str) -> Vec<u8> {
    let text = &text[..text.floor_char_boundary(MAX_COMMENT)];
    let mut bytes = Vec::with_capacity(text.len() + 3);
    bytes.extend([kind, text.len() as u8 + 1]);
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

fn text_of(kind: u8, mut bytes: &[u8]) -> Option<String> {
    while let [found, len, rest @ ..] = bytes {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *found == kind {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = rest;
    }
    None
}

#[cfg(test)]
mod tests;
