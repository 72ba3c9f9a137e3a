//! The objects of nf_tables as values: tables, chains, sets, elements, verdicts.
//!
//! Pure: nothing here is sent or received.

use crate::Rule;
use crate::expression::packet::{self, InSet, Packet};

/// The packets that a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Frames that cross a bridge.
    Bridge,
    /// ARP.
    Arp,
    /// Ingress and egress of one device.
    Netdev,
}

impl Family {
    /// The word that `nft` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
            Self::Bridge => "bridge",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
        }
    }

    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Ipv4 => libc::NFPROTO_IPV4,
            Self::Ipv6 => libc::NFPROTO_IPV6,
            Self::Bridge => libc::NFPROTO_BRIDGE,
            Self::Arp => libc::NFPROTO_ARP,
            Self::Netdev => libc::NFPROTO_NETDEV,
        }
    }

    pub(crate) fn from_number(number: i32) -> Option<Self> {
        [Self::Inet, Self::Ipv4, Self::Ipv6, Self::Bridge, Self::Arp, Self::Netdev]
            .into_iter()
            .find(|family| family.number() == number)
    }
}

/// The name of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name within the family.
    pub name: &'a str,
}

/// Where in a packet's way a base chain sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To a socket of this host.
    Input,
    /// Through this host.
    Forward,
    /// From a socket of this host.
    Output,
    /// After routing.
    Postrouting,
    /// Any other, by its number.
    Other(u32),
}

impl Hook {
    /// `NF_INET_*`; the bridge family numbers its hooks the same way.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Other(number) => number,
        }
    }

    pub(crate) fn from_number(number: u32) -> Self {
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting]
            .into_iter()
            .find(|hook| hook.number() == number)
            .unwrap_or(Self::Other(number))
    }
}

/// What a base chain may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Accept and drop.
    Filter,
    /// Translate addresses; sees the first packet of a flow.
    Nat,
    /// Another kind, by its name.
    Other(String),
}

/// What becomes of a packet that no rule of a base chain decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is gone.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Base {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it sits.
    pub hook: Hook,
    /// Its order among the chains of that hook, lowest first.
    pub priority: i32,
    /// For packets that no rule decided.
    pub policy: Policy,
}

/// A table as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundTable {
    /// How many chains, sets and other objects it has.
    pub uses: u32,
    /// Whether its chains are taken off their hooks.
    pub dormant: bool,
    /// Whether it is one socket's alone, or was and waits for its owner: the kernel refuses everybody else's changes.
    pub owned: bool,
}

/// A chain as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its table's family; `None` for one that this crate does not know.
    pub family: Option<Family>,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Present on a base chain.
    pub base: Option<Base>,
    /// How many rules it has and how many rules and elements jump to it, together.
    pub uses: u32,
}

impl Chain {
    /// Whether it drops the packets that none of its rules decides on.
    pub fn policy_drops(&self) -> bool {
        self.base.as_ref().is_some_and(|base| base.policy == Policy::Drop)
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this hook's chain.
    Accept,
    /// It is gone.
    Drop,
    /// The calling chain goes on.
    Return,
    /// The next rule.
    Continue,
    /// Into a chain, and back after it.
    Jump(String),
    /// Into a chain, and not back.
    Goto(String),
    /// Another one, by its number.
    Other(u32),
}

/// One part of a set's key: what it is, and how `nft` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// An IPv4 address.
    Ipv4Addr,
    /// An IPv6 address.
    Ipv6Addr,
    /// A MAC address.
    EtherAddr,
    /// An interface name.
    Ifname,
}

impl KeyType {
    /// Bytes of a value, without padding.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Ipv4Addr => 4,
            Self::Ipv6Addr | Self::Ifname => 16,
            Self::EtherAddr => 6,
        }
    }

    /// The number that `nft` has for the type.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::Ifname => 41,
        }
    }
}

/// A named set, or (with verdicts) a verdict map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// Its name.
    pub name: &'a str,
    /// The parts of its key, at least one.
    pub key: &'a [KeyType],
    /// Whether each element carries a verdict.
    pub holds: Holds,
}

/// What an element of a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A key.
    Keys,
    /// A key and the verdict for it.
    Verdicts,
}

/// An element of a set or verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key's bytes: each part in network order, padded to four bytes.
    pub key: Vec<u8>,
    /// In a verdict map.
    pub verdict: Option<Verdict>,
    /// Text for a person.
    pub comment: Option<String>,
}

impl Element {
    /// An element of a set.
    pub fn new(key: Vec<u8>) -> Self {
        Self { key, verdict: None, comment: None }
    }

    /// The same element of a verdict map.
    #[must_use]
    pub fn with_verdict(self, verdict: Verdict) -> Self {
        Self { verdict: Some(verdict), ..self }
    }

    /// The same element with a comment, cut to what nf_tables can hold.
    #[must_use]
    pub fn with_comment(self, comment: &str) -> Self {
        Self { comment: Some(comment.to_owned()), ..self }
    }
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    /// Its number within the table, for [`Batch::delete_rule`](crate::Batch::delete_rule).
    pub handle: u64,
    pub(crate) rule: Rule,
}

impl FoundRule {
    /// Whether it does what `rule` says; comments are not compared.
    pub fn does(&self, rule: &Rule) -> bool {
        self.rule.includes(rule)
    }

    /// Its comment; `iptables-nft` keeps it in an expression.
    pub fn comment(&self) -> Option<&str> {
        self.rule.comment.as_deref().or_else(|| self.rule.xtables_comment())
    }

    /// The chains that it jumps or goes to.
    pub fn targets(&self) -> impl Iterator<Item = String> {
        self.rule.targets()
    }

    /// What it does to a packet; `None` when that goes on to the next rule, or may, by all that is known of it. `look_up`
    /// is given the name of a set of the rule's table, and what a key of it begins with.
    ///
    /// # Errors
    /// Those of `look_up`.
    pub fn end<E>(
        &self,
        packet: &Packet<'_>,
        look_up: &mut impl FnMut(&str, &[u8]) -> Result<InSet, E>,
    ) -> Result<Option<End>, E> {
        packet::end(&self.rule, packet, look_up)
    }
}

/// What a rule does to packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It passes this hook's chain.
    Accept,
    /// It is gone.
    Drop,
    /// It is gone, and its sender is told.
    Reject,
    /// The calling chain goes on; of a base chain, its policy.
    Return,
    /// Into a chain, and back after it.
    Jump(String),
    /// Into a chain, and not back.
    Goto(String),
}
