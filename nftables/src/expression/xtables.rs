//! Matches of xtables inside rules: what `iptables-nft` writes, and all that it can read. A chain of its tables that
//! has another word for the same is "incompatible" to it, as a whole.
//!
//! Sources: `xt_comment.h` and `xt_conntrack.h` of Linux; `struct xt_entry_match` is what the kernel fills in.

use std::ffi::CStr;

use super::{Expression, expression};
use crate::attribute::{find, find_text, find_u32, put, put_text, put_u32};
use crate::rule::CtState;

const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;

const COMMENT: &str = "comment";
/// Bytes of a comment with its NUL (`XT_MAX_COMMENT_LEN`).
const COMMENT_LEN: usize = 256;

const CONNTRACK: &str = "conntrack";
/// Bytes of `struct xt_conntrack_mtinfo3`, filled up to what xtables aligns to.
const CONNTRACK_LEN: usize = 168;
const CONNTRACK_REVISION: u32 = 3;
/// Where that struct has `match_flags`, `invert_flags` and `state_mask`; so have those before it, the first of them only
/// one byte of the last.
const CONNTRACK_FLAGS_OFFSET: usize = 146;
const CONNTRACK_INVERTED_OFFSET: usize = 148;
const CONNTRACK_STATES_OFFSET: usize = 150;
/// `XT_CONNTRACK_STATE`
const CONNTRACK_BY_STATE: u16 = 1;
/// `XT_CONNTRACK_STATE_ALIAS`: it was written as `-m state`.
const CONNTRACK_ALIAS: u16 = 1 << 13;

/// What `iptables` calls states of connection tracking; a rule tests for any of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IptablesState {
    /// Packets were seen both ways.
    Established,
    /// Started because of another flow, such as an ICMP error.
    Related,
    /// The flow's destination was translated.
    Dnat,
}

fn matching(name: &str, revision: u32, info: &[u8]) -> Expression {
    expression("match", |data| {
        put_text(data, MATCH_NAME, name);
        put_u32(data, MATCH_REVISION, revision);
        put(data, MATCH_INFO, info);
    })
}

/// `-m comment`; the text is cut to what fits.
pub(crate) fn comment(text: &str) -> Expression {
    let mut info = text.as_bytes()[..text.floor_char_boundary(COMMENT_LEN - 1)].to_vec();
    info.resize(COMMENT_LEN, 0);
    matching(COMMENT, 0, &info)
}

/// The text of `-m comment`, if that is what the expression is.
pub(crate) fn comment_of(expression: &Expression) -> Option<&str> {
    if expression.name != "match" || find_text(&expression.data, MATCH_NAME)? != COMMENT {
        return None;
    }
    CStr::from_bytes_until_nul(find(&expression.data, MATCH_INFO)?).ok()?.to_str().ok()
}

/// `-m conntrack --ctstate`
pub(crate) fn conntrack(states: &[IptablesState]) -> Expression {
    let bits: u16 = states
        .iter()
        .map(|state| match state {
            // XT_CONNTRACK_STATE_BIT(n) is 1 << (n + 1), as for `ct state`; XT_CONNTRACK_STATE_DNAT stands behind all
            // states that there are.
            IptablesState::Established => 1 << 1,
            IptablesState::Related => 1 << 2,
            IptablesState::Dnat => 1 << 7,
        })
        .sum();
    let mut info = [0; CONNTRACK_LEN];
    info[CONNTRACK_FLAGS_OFFSET..][..2].copy_from_slice(&CONNTRACK_BY_STATE.to_ne_bytes());
    info[CONNTRACK_STATES_OFFSET..][..2].copy_from_slice(&bits.to_ne_bytes());
    matching(CONNTRACK, CONNTRACK_REVISION, &info)
}

/// Whether a packet of a flow in this state gets past the expression; `None` when that depends on anything else.
pub(crate) fn passes(expression: &Expression, state: CtState) -> Option<bool> {
    if find_text(&expression.data, MATCH_NAME)? != CONNTRACK {
        return None;
    }
    conntrack_passes(find_u32(&expression.data, MATCH_REVISION)?, find(&expression.data, MATCH_INFO)?, state)
}

/// Whether a packet of a flow in this state gets past a match of the name `conntrack` with this content; `None` when
/// that depends on anything else. Both `-m conntrack --ctstate` and `-m state` are written so.
pub fn conntrack_passes(revision: u32, info: &[u8], state: CtState) -> Option<bool> {
    let number = |at: usize| info.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes);
    if number(CONNTRACK_FLAGS_OFFSET)? & !CONNTRACK_ALIAS != CONNTRACK_BY_STATE {
        return None;
    }
    let states = match revision {
        1 => u16::from(*info.get(CONNTRACK_STATES_OFFSET)?),
        2 | CONNTRACK_REVISION => number(CONNTRACK_STATES_OFFSET)?,
        _ => return None,
    };
    let is_inverted = number(CONNTRACK_INVERTED_OFFSET)? & CONNTRACK_BY_STATE != 0;
    Some((u32::from(states) & state.bit() != 0) != is_inverted)
}
