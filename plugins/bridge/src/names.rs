//! Names as marks spell them: a link's alias has room for 255 bytes and a rule's comment for 250, but nothing limits the
//! names of networks and containers.
//!
//! A longer one is cut and ends with a hash of the whole, so that no two are alike. The result is a legal name, and
//! spelt the same again. Pure.

use std::borrow::Cow;

use cni_types::MAX_IFNAME_LEN;
use sha2::{Digest as _, Sha256};

/// Longest name of a network in bytes that is spelt out.
const MAX_NETWORK: usize = 100;

/// Longest container id in bytes that is spelt out; runtimes have 64.
const MAX_CONTAINER_ID: usize = 112;

/// Hex digits of the hash.
const HASH_DIGITS: usize = 16;

/// A network's name.
pub(crate) fn network(name: &str) -> Cow<'_, str> {
    spelt(name, MAX_NETWORK)
}

/// A container id.
pub(crate) fn container_id(id: &str) -> Cow<'_, str> {
    spelt(id, MAX_CONTAINER_ID)
}

/// Whether one of the two may have been cut, so that it does not say the whole name.
pub(crate) fn may_be_cut(network: &str, container_id: &str) -> bool {
    network.len() == MAX_NETWORK || container_id.len() == MAX_CONTAINER_ID
}

/// Whether a link that is asked for by `name` gets this very name. The kernel takes a `%` for the place of a number, and
/// keeps two names for settings of all links.
pub(crate) fn is_link_name(name: &str) -> bool {
    let has_its_place = !matches!(name, "" | "." | ".." | "all" | "default");
    let fits = name.len() <= MAX_IFNAME_LEN;
    has_its_place
        && fits
        && !name.contains(|c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace())
}

fn spelt(name: &str, max: usize) -> Cow<'_, str> {
    if name.len() <= max {
        return Cow::Borrowed(name);
    }
    let kept = &name[..name.floor_char_boundary(max - HASH_DIGITS - "-".len())];
    let digits = Sha256::digest(name).into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let digits = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).take(HASH_DIGITS);
    Cow::Owned(kept.chars().chain(['-']).chain(digits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_links_do_not_get_are_known() {
        for name in ["br0", "br-0.1_x", "a\\b", "alle"] {
            assert!(is_link_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\u{a0}b",
            "br%d",
            "%",
            "all",
            "default",
            "sixteen-bytes---",
        ] {
            assert!(!is_link_name(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_fits_is_spelt_out_and_a_longer_one_is_cut_and_told_from_others() {
        let name = "n".repeat(MAX_NETWORK);
        assert_eq!(network(&name), name);
        let (one, other) = (format!("{name}1"), format!("{name}2"));
        let cut = network(&one);
        assert_eq!(cut.len(), MAX_NETWORK);
        assert_ne!(cut, network(&other));
        assert_eq!(network(&cut), cut);
        assert!(may_be_cut(&cut, "c") && !may_be_cut("n", "c"));
    }
}
