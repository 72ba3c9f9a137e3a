//! The steps of a rule, as the kernel knows them, and what those of a rule that was read say.
//!
//! Names of constants are those of `nf_tables.h`, shortened.

pub(crate) mod packet;
pub(crate) mod xtables;

use std::borrow::Cow;

use crate::attribute::{find, find_text, find_u32, nest, put_text, put_u32, walk};
use crate::data::{find_verdict, put_value, put_verdict};
use crate::object::{End, Family, Verdict};

const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_DREG: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
const LOOKUP_F_INV: u32 = 1;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_REG_ADDR_MIN: u16 = 3;
const NAT_REG_PROTO_MIN: u16 = 5;
const NAT_FLAGS: u16 = 7;
const NAT_DNAT: u32 = libc::NFT_NAT_DNAT as u32;
const REG_VERDICT: u32 = libc::NFT_REG_VERDICT as u32;
const REG_1: u32 = libc::NFT_REG_1 as u32;
/// `NFTA_OBJREF_IMM_TYPE`, and `NFT_OBJECT_COUNTER`.
const OBJECT_TYPE: u16 = 1;
const OBJECT_COUNTER: u32 = 1;
/// `NFTA_TARGET_NAME`.
const TARGET_NAME: u16 = 1;
/// Where an Ethernet header has its type.
const ETHER_TYPE_OFFSET: u32 = 12;

/// A step of a rule, as the kernel knows it: its type, and its encoded attributes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Expression {
    pub(crate) name: Cow<'static, str>,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetaField {
    EtherType = libc::NFT_META_PROTOCOL as isize,
    Iifname = libc::NFT_META_IIFNAME as isize,
    Oifname = libc::NFT_META_OIFNAME as isize,
    Nfproto = libc::NFT_META_NFPROTO as isize,
    L4Proto = libc::NFT_META_L4PROTO as isize,
    Iiftype = libc::NFT_META_IIFTYPE as isize,
    Iifgroup = libc::NFT_META_IIFGROUP as isize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Link = libc::NFT_PAYLOAD_LL_HEADER as isize,
    Network = libc::NFT_PAYLOAD_NETWORK_HEADER as isize,
    Transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as isize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CtField {
    State = libc::NFT_CT_STATE as isize,
    Status = libc::NFT_CT_STATUS as isize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    Present,
    Absent,
    Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal = libc::NFT_CMP_EQ as isize,
    Differs = libc::NFT_CMP_NEQ as isize,
}

fn expression(name: &'static str, data: impl FnOnce(&mut Vec<u8>)) -> Expression {
    let mut bytes = Vec::with_capacity(64);
    data(&mut bytes);
    Expression { name: Cow::Borrowed(name), data: bytes }
}

/// The register at `offset` bytes into the joined key. The kernel names the sixteen-byte registers where it can, so
/// the same choice here lets rules be compared.
fn register(offset: u32) -> u32 {
    const SIXTEEN_BYTES: u32 = 16;
    const FIRST_FOUR_BYTES: u32 = libc::NFT_REG32_00 as u32;
    if offset.is_multiple_of(SIXTEEN_BYTES) {
        REG_1 + offset / SIXTEEN_BYTES
    } else {
        FIRST_FOUR_BYTES + offset / 4
    }
}

pub(crate) fn meta(field: MetaField, offset: u32) -> Expression {
    expression("meta", |data| {
        put_u32(data, META_KEY, field as u32);
        put_u32(data, META_DREG, register(offset));
    })
}

pub(crate) fn payload(header: Header, at: u32, len: u32, offset: u32) -> Expression {
    expression("payload", |data| {
        put_u32(data, PAYLOAD_DREG, register(offset));
        put_u32(data, PAYLOAD_BASE, header as u32);
        put_u32(data, PAYLOAD_OFFSET, at);
        put_u32(data, PAYLOAD_LEN, len);
    })
}

pub(crate) fn ct(field: CtField) -> Expression {
    expression("ct", |data| {
        put_u32(data, CT_KEY, field as u32);
        put_u32(data, CT_DREG, REG_1);
    })
}

pub(crate) fn mask(mask: &[u8]) -> Expression {
    expression("bitwise", |data| {
        put_u32(data, BITWISE_SREG, REG_1);
        put_u32(data, BITWISE_DREG, REG_1);
        put_u32(data, BITWISE_LEN, mask.len() as u32);
        nest(data, BITWISE_MASK, |data| put_value(data, mask));
        nest(data, BITWISE_XOR, |data| put_value(data, &vec![0; mask.len()]));
    })
}

pub(crate) fn compare(operator: Operator, value: &[u8]) -> Expression {
    expression("cmp", |data| {
        put_u32(data, CMP_SREG, REG_1);
        put_u32(data, CMP_OP, operator as u32);
        nest(data, CMP_DATA, |data| put_value(data, value));
    })
}

pub(crate) fn lookup(set: &str, lookup: Lookup) -> Expression {
    expression("lookup", |data| {
        put_text(data, LOOKUP_SET, set);
        put_u32(data, LOOKUP_SREG, REG_1);
        if lookup == Lookup::Verdict {
            put_u32(data, LOOKUP_DREG, REG_VERDICT);
        }
        // Always told, since the kernel always shows it: a lookup must not pass for its opposite.
        put_u32(data, LOOKUP_FLAGS, if lookup == Lookup::Absent { LOOKUP_F_INV } else { 0 });
    })
}

/// The registers that a destination is translated by: the address, then the port.
pub(crate) const REG_ADDRESS: u32 = REG_1;
pub(crate) const REG_PORT: u32 = libc::NFT_REG_2 as u32;

pub(crate) fn immediate(register: u32, value: &[u8]) -> Expression {
    expression("immediate", |data| {
        put_u32(data, IMMEDIATE_DREG, register);
        nest(data, IMMEDIATE_DATA, |data| put_value(data, value));
    })
}

pub(crate) fn verdict(verdict: &Verdict) -> Expression {
    expression("immediate", |data| {
        put_u32(data, IMMEDIATE_DREG, REG_VERDICT);
        nest(data, IMMEDIATE_DATA, |data| put_verdict(data, verdict));
    })
}

pub(crate) fn counter() -> Expression {
    expression("counter", |_| {})
}

pub(crate) fn masquerade() -> Expression {
    expression("masq", |_| {})
}

pub(crate) fn notrack() -> Expression {
    expression("notrack", |_| {})
}

/// To the address in [`REG_ADDRESS`]; the port stays.
pub(crate) fn destination_nat_of_address(family: Family) -> Expression {
    /// Newer kernels add it by themselves, and show it.
    const NF_NAT_RANGE_MAP_IPS: u32 = 1;
    expression("nat", |data| {
        put_u32(data, NAT_TYPE, NAT_DNAT);
        put_u32(data, NAT_FAMILY, family.number() as u32);
        put_u32(data, NAT_REG_ADDR_MIN, REG_ADDRESS);
        put_u32(data, NAT_FLAGS, NF_NAT_RANGE_MAP_IPS);
    })
}

/// To the address in [`REG_ADDRESS`] and the port in [`REG_PORT`].
pub(crate) fn destination_nat(family: Family) -> Expression {
    expression("nat", |data| {
        put_u32(data, NAT_TYPE, NAT_DNAT);
        put_u32(data, NAT_FAMILY, family.number() as u32);
        put_u32(data, NAT_REG_ADDR_MIN, REG_ADDRESS);
        put_u32(data, NAT_REG_PROTO_MIN, REG_PORT);
    })
}

// What those of a rule that was read say.

/// Whether `found`, as the kernel shows it, has every attribute of `wanted`. It shows more than was sent: defaults.
pub(crate) fn includes(found: &Expression, wanted: &Expression) -> bool {
    let has_all = |found: &Expression, wanted: &Expression| {
        found.name == wanted.name
            && choices(found).eq(choices(wanted))
            && walk(&wanted.data).all(|attribute| walk(&found.data).any(|candidate| candidate == attribute))
    };
    // `nft` writes the test of a frame's type in another way, and so does a ruleset that it has saved and loaded.
    let is_ether_type = has_all(wanted, &meta(MetaField::EtherType, 0));
    has_all(found, wanted) || is_ether_type && has_all(found, &payload(Header::Link, ETHER_TYPE_OFFSET, 2, 0))
}

/// The attributes that the kernel shows of an expression only where somebody has chosen something: that ports are random,
/// or which.
fn choices(expression: &Expression) -> impl Iterator<Item = (u16, &[u8])> {
    walk(&expression.data).filter(|(kind, _)| match expression.name.as_ref() {
        "masq" => true,
        "nat" => *kind == NAT_FLAGS,
        "lookup" => *kind == LOOKUP_DREG,
        _ => false,
    })
}

/// The verdict that an expression is.
pub(crate) fn verdict_of(expression: &Expression) -> Option<Verdict> {
    if expression.name != "immediate" {
        return None;
    }
    find_verdict(find(&expression.data, IMMEDIATE_DATA)?)
}

/// What a verdict does, when it decides anything.
pub(crate) fn end_by(verdict: Verdict) -> Option<End> {
    match verdict {
        Verdict::Accept => Some(End::Accept),
        Verdict::Drop => Some(End::Drop),
        Verdict::Return => Some(End::Return),
        Verdict::Jump(chain) => Some(End::Jump(chain)),
        Verdict::Goto(chain) => Some(End::Goto(chain)),
        Verdict::Continue | Verdict::Other(_) => None,
    }
}

/// What an expression does to every packet, when it decides anything.
pub(crate) fn end_of(expression: &Expression) -> Option<End> {
    match verdict_of(expression) {
        Some(verdict) => end_by(verdict),
        None if expression.name == "reject" => Some(End::Reject),
        // How `iptables-nft` writes it.
        None if expression.name == "target"
            && find_text(&expression.data, TARGET_NAME).is_some_and(|name| name == "REJECT") =>
        {
            Some(End::Reject)
        }
        _ => None,
    }
}

/// Whether an expression neither tests nor decides anything.
pub(crate) fn only_counts(expression: &Expression) -> bool {
    let is_named_counter =
        || expression.name == "objref" && find_u32(&expression.data, OBJECT_TYPE) == Some(OBJECT_COUNTER);
    matches!(expression.name.as_ref(), "counter" | "log")
        || is_named_counter()
        || xtables::comment_of(expression).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masquerade_with_a_choice_of_ports_is_another_one() {
        let random = expression("masq", |data| put_u32(data, 1, 4));
        assert!(includes(&masquerade(), &masquerade()) && includes(&random, &random));
        assert!(!includes(&random, &masquerade()) && !includes(&masquerade(), &random));
    }

    #[test]
    fn a_translation_to_random_ports_is_another_one() {
        let wished = destination_nat(Family::Ipv4);
        let shown = |more: &dyn Fn(&mut Vec<u8>)| {
            expression("nat", |data| {
                data.extend(&wished.data);
                // The kernel shows the ends of both ranges.
                put_u32(data, 4, REG_ADDRESS);
                put_u32(data, 6, REG_PORT);
                more(data);
            })
        };
        assert!(includes(&shown(&|_| {}), &wished));
        assert!(!includes(&shown(&|data| put_u32(data, NAT_FLAGS, 4)), &wished));
    }

    #[test]
    fn a_lookup_does_not_pass_for_its_opposite() {
        let (present, absent) = (lookup("s", Lookup::Present), lookup("s", Lookup::Absent));
        assert!(includes(&present, &present) && includes(&absent, &absent));
        assert!(!includes(&absent, &present) && !includes(&present, &absent));
        assert!(!includes(&lookup("s2", Lookup::Present), &present));
        let verdict = lookup("s", Lookup::Verdict);
        assert!(!includes(&verdict, &present) && !includes(&present, &verdict));
    }
}
