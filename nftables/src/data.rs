//! What a register or an element holds, as netlink bytes: a value, or a verdict.
//!
//! Names of constants are those of `nf_tables.h`, shortened.

use crate::attribute::{find, find_text, find_u32, nest, put, put_text, put_u32};
use crate::object::Verdict;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
pub(crate) const NF_DROP: u32 = 0;
pub(crate) const NF_ACCEPT: u32 = 1;
const NFT_CONTINUE: u32 = libc::NFT_CONTINUE.cast_unsigned();
const NFT_JUMP: u32 = libc::NFT_JUMP.cast_unsigned();
const NFT_GOTO: u32 = libc::NFT_GOTO.cast_unsigned();
const NFT_RETURN: u32 = libc::NFT_RETURN.cast_unsigned();

pub(crate) fn put_value(buffer: &mut Vec<u8>, value: &[u8]) {
    put(buffer, DATA_VALUE, value);
}

pub(crate) fn find_value(data: &[u8]) -> Option<&[u8]> {
    find(data, DATA_VALUE)
}

pub(crate) fn put_verdict(buffer: &mut Vec<u8>, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Continue => (NFT_CONTINUE, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
        Verdict::Other(code) => (*code, None),
    };
    nest(buffer, DATA_VERDICT, |buffer| {
        put_u32(buffer, VERDICT_CODE, code);
        if let Some(chain) = chain {
            put_text(buffer, VERDICT_CHAIN, chain);
        }
    });
}

pub(crate) fn find_verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = find(data, DATA_VERDICT)?;
    let chain = || find_text(verdict, VERDICT_CHAIN).unwrap_or_default();
    Some(match find_u32(verdict, VERDICT_CODE)? {
        NF_ACCEPT => Verdict::Accept,
        NF_DROP => Verdict::Drop,
        NFT_RETURN => Verdict::Return,
        NFT_CONTINUE => Verdict::Continue,
        NFT_JUMP => Verdict::Jump(chain()),
        NFT_GOTO => Verdict::Goto(chain()),
        other => Verdict::Other(other),
    })
}
