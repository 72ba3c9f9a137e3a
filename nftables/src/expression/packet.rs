//! A packet that is only partly known, against the tests of a rule. Pure but for the sets, which the caller looks up.
//!
//! Only what is certain counts: a rule that tests anything else than what is known of the packet does not apply to it.

use std::net::IpAddr;

use super::{
    BITWISE_DREG, BITWISE_MASK, BITWISE_SREG, BITWISE_XOR, CMP_DATA, CMP_OP, CMP_SREG, CT_DREG, CT_KEY,
    Expression, LOOKUP_DREG, LOOKUP_F_INV, LOOKUP_FLAGS, LOOKUP_SET, LOOKUP_SREG, META_DREG, META_KEY,
    Operator, PAYLOAD_BASE, PAYLOAD_DREG, PAYLOAD_LEN, PAYLOAD_OFFSET, end_by, end_of, only_counts, xtables,
};
use crate::attribute::{find, find_text, find_u32};
use crate::data::find_value;
use crate::object::{Element, End, Family};
use crate::rule::{CtState, Field, Place, Rule, address_key, ifname_key};

/// `NFTA_BITWISE_OP`: absent or 0 for mask and xor; shifts have another one.
const BITWISE_OP: u16 = 6;

/// What is known of a packet that is on its way through the host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packet<'a> {
    /// The interface that it came in by.
    pub from: Option<&'a Interface>,
    /// The interface that it goes out by.
    pub to: Option<&'a Interface>,
    /// The state of its flow; in one that is established, it goes the other way than the first packet did.
    pub state: Option<CtState>,
    /// Where it comes from; of the same family as [`destination`](Self::destination), where both are known.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: Option<IpAddr>,
}

impl Packet<'_> {
    /// Whether tables of `family` see it, or may.
    pub fn is_seen_by(&self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.is_ipv4() != Some(false),
            Family::Ipv6 => self.is_ipv4() != Some(true),
            _ => true,
        }
    }

    fn is_ipv4(&self) -> Option<bool> {
        self.source.or(self.destination).map(|address| address.is_ipv4())
    }
}

/// An interface as rules tell it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number in its network namespace.
    pub index: u32,
}

/// What a set says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InSet {
    /// Nothing: its keys are longer than what is known of this one.
    Unknown,
    /// It is in none of its elements.
    No,
    /// The element.
    Yes(Element),
}

/// What `rule` does to `packet`; `None` when it goes on to the next rule, or may. `look_up` is given the name of a set and
/// what a key of it begins with.
///
/// # Errors
/// Those of `look_up`.
pub(crate) fn end<E>(
    rule: &Rule,
    packet: &Packet<'_>,
    look_up: &mut impl FnMut(&str, &[u8]) -> Result<InSet, E>,
) -> Result<Option<End>, E> {
    let mut registers = Registers::default();
    for expression in rule.expressions.iter().filter(|expression| !only_counts(expression)) {
        if let Some(end) = end_of(expression) {
            return Ok(Some(end));
        }
        let Some((set, key)) = registers.key_of(expression) else {
            match registers.step(expression, packet) {
                Some(true) => continue,
                Some(false) | None => return Ok(None),
            }
        };
        let is_inverted =
            find_u32(&expression.data, LOOKUP_FLAGS).is_some_and(|flags| flags & LOOKUP_F_INV != 0);
        let has_verdicts = find_u32(&expression.data, LOOKUP_DREG).is_some();
        match look_up(&set, &key)? {
            InSet::Yes(Element { verdict, .. }) if has_verdicts => return Ok(verdict.and_then(end_by)),
            InSet::Yes(_) if !is_inverted => {}
            InSet::No if is_inverted => {}
            InSet::Yes(_) | InSet::No | InSet::Unknown => return Ok(None),
        }
    }
    Ok(None)
}

/// The registers of nf_tables, byte by byte, as far as they are known.
struct Registers([Option<u8>; Self::BYTES]);

impl Default for Registers {
    fn default() -> Self {
        Self([None; Self::BYTES])
    }
}

impl Registers {
    const BYTES: usize = 64;

    /// Where a register begins: it has a number among the four of 16 bytes, or among the sixteen of 4.
    fn place(number: u32) -> Option<usize> {
        const FIRST_FOUR_BYTES: u32 = libc::NFT_REG32_00 as u32;
        match number {
            1..=4 => Some(16 * (number as usize - 1)),
            FIRST_FOUR_BYTES..24 => Some(4 * (number - FIRST_FOUR_BYTES) as usize),
            _ => None,
        }
    }

    /// The bytes from a register on, as far as they are known one after the other.
    fn known(&self, register: u32) -> Option<Vec<u8>> {
        Some(self.0.get(Self::place(register)?..)?.iter().map_while(|byte| *byte).collect())
    }

    /// Fills a register; `None` stands for what is not known.
    fn put(&mut self, register: u32, value: Option<&[u8]>) -> Option<()> {
        let place = Self::place(register)?;
        match value {
            Some(value) => {
                let bytes = self.0.get_mut(place..place + value.len())?;
                bytes.iter_mut().zip(value).for_each(|(byte, value)| *byte = Some(*value));
            }
            // Of a value that is not known, neither is the length.
            None => self.0[place..].fill(None),
        }
        Some(())
    }

    /// Whether the packet gets past a step; `None` when that is not known.
    fn step(&mut self, step: &Expression, packet: &Packet<'_>) -> Option<bool> {
        let data = &step.data;
        match step.name.as_ref() {
            // Without a register it sets something.
            "meta" => {
                if let Some(register) = find_u32(data, META_DREG) {
                    let value = meta(find_u32(data, META_KEY)?, packet);
                    self.put(register, value.as_deref())?;
                }
            }
            "ct" => {
                if let Some(register) = find_u32(data, CT_DREG) {
                    let value = ct(find_u32(data, CT_KEY)?, packet);
                    self.put(register, value.as_deref())?;
                }
            }
            "payload" => {
                let value = payload(data, packet);
                self.put(find_u32(data, PAYLOAD_DREG)?, value.as_deref())?;
            }
            "bitwise" => {
                if find_u32(data, BITWISE_OP).is_some_and(|operation| operation != 0) {
                    return None;
                }
                let mask = find(data, BITWISE_MASK).and_then(find_value)?;
                let flip = find(data, BITWISE_XOR).and_then(find_value)?;
                let value = self.known(find_u32(data, BITWISE_SREG)?)?;
                let value = value.get(..mask.len())?;
                let masked = value.iter().zip(mask).zip(flip).map(|((byte, mask), flip)| byte & mask ^ flip);
                self.put(find_u32(data, BITWISE_DREG)?, Some(&masked.collect::<Vec<_>>()))?;
            }
            "cmp" => {
                let wanted = find(data, CMP_DATA).and_then(find_value)?;
                let value = self.known(find_u32(data, CMP_SREG)?)?;
                // The start of a name stands there without a NUL.
                let is_equal = value.get(..wanted.len())? == wanted;
                let operator = find_u32(data, CMP_OP)?;
                return match operator {
                    _ if operator == Operator::Equal as u32 => Some(is_equal),
                    _ if operator == Operator::Differs as u32 => Some(!is_equal),
                    _ => None,
                };
            }
            "match" => return xtables::passes(step, packet.state?),
            _ => return None,
        }
        Some(true)
    }

    /// The set that a step looks into, and what is known of the key.
    fn key_of(&self, step: &Expression) -> Option<(String, Vec<u8>)> {
        let data = Some(&step.data).filter(|_| step.name == "lookup")?;
        Some((find_text(data, LOOKUP_SET)?, self.known(find_u32(data, LOOKUP_SREG)?)?))
    }
}

fn meta(key: u32, packet: &Packet<'_>) -> Option<Vec<u8>> {
    const IIF: u32 = libc::NFT_META_IIF as u32;
    const OIF: u32 = libc::NFT_META_OIF as u32;
    const IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
    const OIFNAME: u32 = libc::NFT_META_OIFNAME as u32;
    const NFPROTO: u32 = libc::NFT_META_NFPROTO as u32;
    match key {
        IIF => Some(packet.from?.index.to_ne_bytes().to_vec()),
        OIF => Some(packet.to?.index.to_ne_bytes().to_vec()),
        IIFNAME => Some(ifname_key(&packet.from?.name)),
        OIFNAME => Some(ifname_key(&packet.to?.name)),
        NFPROTO => {
            let number = if packet.is_ipv4()? { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
            Some(vec![number as u8])
        }
        _ => None,
    }
}

/// What of an address a step loads.
fn payload(data: &[u8], packet: &Packet<'_>) -> Option<Vec<u8>> {
    let (base, offset) = (find_u32(data, PAYLOAD_BASE)?, find_u32(data, PAYLOAD_OFFSET)?);
    let len = find_u32(data, PAYLOAD_LEN)? as usize;
    let fields = match packet.is_ipv4()? {
        true => [(Field::Ip4Saddr, packet.source), (Field::Ip4Daddr, packet.destination)],
        false => [(Field::Ip6Saddr, packet.source), (Field::Ip6Daddr, packet.destination)],
    };
    fields.into_iter().find_map(|(field, address)| {
        let Place::Payload { base: of_field, offset: at } = field.place() else { return None };
        let from = offset.checked_sub(at).filter(|_| base == of_field as u32)? as usize;
        Some(address_key(address?).get(from..)?.get(..len)?.to_vec())
    })
}

fn ct(key: u32, packet: &Packet<'_>) -> Option<Vec<u8>> {
    const STATE: u32 = libc::NFT_CT_STATE as u32;
    const DIRECTION: u32 = libc::NFT_CT_DIRECTION as u32;
    let state = packet.state?;
    match (key, state) {
        (STATE, _) => Some(state.bit().to_ne_bytes().to_vec()),
        (DIRECTION, CtState::New) => Some(vec![0]),
        (DIRECTION, CtState::Established) => Some(vec![1]),
        _ => None,
    }
}
