//! nf_tables over netlink, as far as container networks need it.
//!
//! A [`Batch`] collects changes and [`Socket::commit`] makes them one atomic transaction: all of them or none. A
//! [`Rule`] is written word by word (`Rule::new().ipv4().vmap(&[Field::Ip4Saddr], "addresses")`). The reading side
//! ([`Socket::rules`], [`Socket::elements`], [`Socket::chains`]) is there to verify and to find objects by comment.
//!
//! Never starts a process, never waits: the kernel has answered by the time a send returns. It knows no network, no
//! plugin and no table of its own. Attribute layouts are in `wire` (messages), `expression` (steps of rules) and `data`
//! (values and verdicts) alone; how any attribute is written and found is in [`attribute`], for others, too.
//!
//! Sources: `include/uapi/linux/netfilter/nf_tables.h` and `net/netfilter/nf_tables_api.c` of Linux; for what `nft`
//! shows (comments, data types), libnftnl's `udata.h` and nftables' `datatype.h`.

pub mod attribute;
mod batch;
mod data;
mod expression;
mod legacy;
mod object;
mod rule;
mod socket;
mod undecided;
mod wire;

pub use batch::Batch;
pub use expression::packet::{InSet, Interface, Packet};
pub use expression::xtables::{IptablesState, conntrack_passes};
pub use legacy::is_legacy_table_in_use;
pub use object::{
    Base, Chain, ChainKind, Element, End, Family, FoundRule, FoundTable, Holds, Hook, KeyType, Policy, Set,
    Table, Verdict,
};
pub use rule::{CtState, Field, Rule, address_key, ifname_key, join_keys};
pub use socket::{Error, Generation, Socket};
pub use undecided::{Fate, Undecided, follow};
pub use wire::{MAX_COMMENT, MAX_NAME};
