//! Matches of xtables inside rules: what `iptables-nft` writes, and all that it can read. A chain of its tables that
//! has another word for the same is "incompatible" to it, as a whole.
//!
//! Sources: `xt_comment.h` and `xt_conntrack.h` of Linux; `struct xt_entry_match` is what the kernel fills in.

use std::ffi::CStr;

use super::{Expression, expression};
use crate::attribute::{find, find_text, put, put_text, put_u32};

const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;

const COMMENT: &str = "comment";
/// Bytes of a comment with its NUL (`XT_MAX_COMMENT_LEN`).
const COMMENT_LEN: usize = 256;

/// Bytes of `struct xt_conntrack_mtinfo3`, filled up to what xtables aligns to.
const CONNTRACK_LEN: usize = 168;
const CONNTRACK_REVISION: u32 = 3;
/// Where that struct has `match_flags` and `state_mask`.
const CONNTRACK_FLAGS_OFFSET: usize = 146;
const CONNTRACK_STATES_OFFSET: usize = 150;
/// `XT_CONNTRACK_STATE`
const CONNTRACK_BY_STATE: u16 = 1;

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
    matching("conntrack", CONNTRACK_REVISION, &info)
}
