//! The tables of iptables from before nf_tables as the kernel keeps them. Only looks.
//!
//! Read as the programs read it, by two socket options, and without them: they wait for a lock that whoever changes the
//! rules may hold for long, and need not be installed. Layouts: `linux/netfilter_ipv4/ip_tables.h`,
//! `linux/netfilter_ipv6/ip6_tables.h`, `linux/netfilter/x_tables.h`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _};

use cni_types::Error;
use nft_netlink::{End, Packet, address_key, conntrack_passes, ifname_key};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::family::Family;
use crate::flows::Flows;
use crate::nft::ForeignDrop;

use super::{FORWARD, TABLE};

/// `IPT_SO_GET_INFO`, and `IP6T_SO_GET_INFO`.
const GET_INFO: i32 = 64;

/// `IPT_SO_GET_ENTRIES`, and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: i32 = 65;

/// Bytes of the name of a table (`XT_TABLE_MAXNAMELEN`).
const TABLE_NAME: usize = 32;

/// Bytes of `struct ipt_getinfo`: name, valid hooks, where each hook begins, where its policy is, entries, their size.
const INFO: usize = TABLE_NAME + 4 + 20 + 20 + 4 + 4;

/// Bytes of `struct ipt_get_entries` before the entries.
const ENTRIES_HEADER: usize = 40;

/// The forward hook among the five (`NF_INET_FORWARD`).
const HOOK_FORWARD: usize = 2;
const HOOKS: usize = 5;

/// What is tested for its opposite (`IPT_INV_VIA_IN` and so on, and `IP6T_INV_VIA_IN`).
const INVERTED_FROM: u8 = 0x01;
const INVERTED_TO: u8 = 0x02;
const INVERTED_SOURCE: u8 = 0x08;
const INVERTED_DESTINATION: u8 = 0x10;
const INVERTED: u8 = INVERTED_FROM | INVERTED_TO | INVERTED_SOURCE | INVERTED_DESTINATION;

/// Bytes of an interface's name with its NUL.
const IFNAME: usize = 16;

/// Bytes of the text in a match that is a comment (`XT_MAX_COMMENT_LEN`).
const COMMENT: usize = 256;

/// Bytes of the head of a match or a target: size, name, revision.
const HEAD: usize = 32;

/// How often a table is read that others change meanwhile.
const ATTEMPTS: usize = 8;

/// Chains that drop `flows`.
///
/// # Errors
/// Code 999 when a table cannot be read.
pub(crate) fn drops(flows: &mut Flows<'_>) -> Result<Vec<ForeignDrop>, Error> {
    let mut drops = Vec::new();
    for (family, program) in [(Family::V4, "iptables-legacy"), (Family::V6, "ip6tables-legacy")] {
        let chain = format!("{program} {TABLE} {FORWARD}");
        let layout = Layout::of(family);
        let Some((info, entries)) = read(family, &layout, TABLE)? else { continue };
        let unknown = || Error::internal(format!("read {chain}: unknown layout"));
        let table = Table::parse(&layout, &info, &entries).ok_or_else(unknown)?;
        let mut packets = flows.packets();
        packets.retain(|packet| packet.is_seen_by(layout.table_family));
        let reason = packets.iter().find_map(|packet| table.drops(packet));
        drops.extend(reason.map(|reason| ForeignDrop { chain, reason }));
    }
    Ok(drops)
}

/// The comments of all rules of a table, of both families.
///
/// # Errors
/// Code 999 when the table cannot be read.
pub(crate) fn comments(table: &str) -> Result<Vec<String>, Error> {
    let mut comments = Vec::new();
    for family in [Family::V4, Family::V6] {
        let layout = Layout::of(family);
        let Some((_, entries)) = read(family, &layout, table)? else { continue };
        let unknown = || Error::internal(format!("read table {table} of iptables: unknown layout"));
        for entry in Entry::all(&layout, &entries).ok_or_else(unknown)? {
            comments.extend(entry.matches().ok_or_else(unknown)?.into_iter().filter_map(comment_in));
        }
    }
    Ok(comments)
}

/// A test that an extension makes.
#[derive(Debug, Clone, Copy)]
struct Match<'a> {
    name: &'a str,
    revision: u8,
    content: &'a [u8],
}

/// The text of a match that is a comment.
fn comment_in(Match { name, content, .. }: Match<'_>) -> Option<String> {
    (name == "comment").then(|| text(content.get(..COMMENT).unwrap_or(content)).to_owned())
}

/// Where the parts of an entry are, in bytes from its start.
#[derive(Debug)]
struct Layout {
    address_family: AddressFamily,
    table_family: nft_netlink::Family,
    level: i32,
    /// Bytes of an address. An entry begins with its source and its destination, and the masks of both.
    address: usize,
    /// Name of the interface that the packet came in by; behind it that of the one it goes out by, and the masks of both.
    interfaces: usize,
    flags: usize,
    /// The flag of a target that is gone to, not jumped to.
    flag_goto: u8,
    inverted: usize,
    /// Length of what is tested without matches.
    tests: usize,
    target_offset: usize,
    next_offset: usize,
    /// Where the matches begin.
    matches: usize,
}

impl Layout {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                address_family: AddressFamily::Inet,
                table_family: nft_netlink::Family::Ipv4,
                address: 4,
                level: libc::SOL_IP,
                interfaces: 16,
                flags: 82,
                flag_goto: 0x02,
                inverted: 83,
                tests: 84,
                target_offset: 88,
                next_offset: 90,
                matches: 112,
            },
            Family::V6 => Self {
                address_family: AddressFamily::Inet6,
                table_family: nft_netlink::Family::Ipv6,
                address: 16,
                level: libc::SOL_IPV6,
                interfaces: 64,
                flags: 131,
                flag_goto: 0x04,
                inverted: 132,
                tests: 136,
                target_offset: 140,
                next_offset: 142,
                matches: 168,
            },
        }
    }
}

/// What the kernel says of a table, and its entries.
type Raw = (Vec<u8>, Vec<u8>);

/// What the kernel says of a table, and its entries; `None` when it is not in use.
fn read(family: Family, layout: &Layout, table: &str) -> Result<Option<Raw>, Error> {
    if !super::in_use(family, table) {
        return Ok(None);
    }
    match read_in_use(layout, table) {
        Ok(raw) => Ok(Some(raw)),
        // It has gone meanwhile.
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => {
            let why = errno.desc().to_lowercase();
            Err(Error::internal(format!("read table {table} of iptables-legacy: {why}")))
        }
    }
}

fn read_in_use(layout: &Layout, table: &str) -> Result<Raw, Errno> {
    let socket = socket(layout.address_family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for _ in 0..ATTEMPTS {
        let mut info = vec![0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        get(&socket, layout.level, GET_INFO, &mut info)?;
        let size = u32_at(&info, INFO - 4).unwrap_or_default();
        let mut entries = vec![0; ENTRIES_HEADER + size as usize];
        entries[..table.len()].copy_from_slice(table.as_bytes());
        entries[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match get(&socket, layout.level, GET_ENTRIES, &mut entries) {
            // It has another size by now.
            Err(Errno::EAGAIN) => {}
            asked => {
                asked?;
                entries.drain(..ENTRIES_HEADER);
                return Ok((info, entries));
            }
        }
    }
    Err(Errno::EAGAIN)
}

/// Asks for a socket option by what `buffer` begins with; the kernel fills all of it.
fn get(socket: &impl AsFd, level: i32, option: i32, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::E2BIG)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes no more than `len` bytes of `buffer`, which are ours alone meanwhile.
    #[allow(unsafe_code, reason = "nix knows socket options by their types, and has none for these")]
    let answer = unsafe { libc::getsockopt(fd, level, option, buffer.as_mut_ptr().cast(), &mut len) };
    Errno::result(answer).map(drop)
}

/// An entry of a table: a rule, or what a chain begins with.
#[derive(Debug)]
struct Entry<'a> {
    /// Where it begins.
    at: usize,
    bytes: &'a [u8],
    matches: &'a [u8],
    target: Target<'a>,
}

impl<'a> Entry<'a> {
    /// All of them; `None` when these are none.
    fn all(layout: &Layout, entries: &'a [u8]) -> Option<Vec<Self>> {
        let mut all = Vec::new();
        let mut at = 0;
        while at < entries.len() {
            let bytes = entries.get(at..)?;
            let len = usize::from(u16_at(bytes, layout.next_offset)?);
            // An entry is never empty.
            let bytes = bytes.get(..len).filter(|_| len > layout.matches)?;
            let target = usize::from(u16_at(bytes, layout.target_offset)?);
            let matches = bytes.get(layout.matches..target)?;
            all.push(Self { at, bytes, matches, target: Target::parse(bytes.get(target..)?)? });
            at += len;
        }
        Some(all)
    }

    /// Where the next begins.
    fn end(&self) -> usize {
        self.at + self.bytes.len()
    }

    /// Its matches; `None` when these are none.
    fn matches(&self) -> Option<Vec<Match<'a>>> {
        let mut matches = Vec::new();
        let mut rest = self.matches;
        while !rest.is_empty() {
            let len = usize::from(u16_at(rest, 0)?);
            let (found, others) = rest.split_at_checked(len).filter(|_| len >= HEAD)?;
            let (name, revision) = (text(&found[2..HEAD - 1]), found[HEAD - 1]);
            matches.push(Match { name, revision, content: &found[HEAD..] });
            rest = others;
        }
        Some(matches)
    }
}

/// A table.
#[derive(Debug, Default)]
struct Table<'a> {
    /// The rules of each chain, without the policy of the forward chain.
    chains: BTreeMap<&'a str, Vec<Rule<'a>>>,
    policy_drops: bool,
}

/// A rule.
#[derive(Debug)]
struct Rule<'a> {
    /// Source and destination.
    addresses: [Test<'a>; 2],
    /// What it comes in by, and goes out by.
    interfaces: [Test<'a>; 2],
    /// What asks for states of connection tracking: revision and content of such a match.
    states: Vec<(u8, &'a [u8])>,
    /// Whether anything else is tested.
    has_other_tests: bool,
    target: Option<End>,
}

/// The test of an interface's name or an address.
#[derive(Debug, Clone, Copy)]
struct Test<'a> {
    wanted: &'a [u8],
    mask: &'a [u8],
    inverted: bool,
}

impl<'a> Table<'a> {
    /// `None` when this is no table.
    fn parse(layout: &Layout, info: &[u8], entries: &'a [u8]) -> Option<Self> {
        let hook = |index: usize| u32_at(info, TABLE_NAME + 4 + 4 * index).map(|at| at as usize);
        let valid = u32_at(info, TABLE_NAME)?;
        let begins: Vec<usize> =
            (0..HOOKS).filter(|index| valid & (1 << index) != 0).map(hook).collect::<Option<_>>()?;
        let forward = hook(HOOK_FORWARD)?;
        let policy = u32_at(info, TABLE_NAME + 24 + 4 * HOOK_FORWARD)? as usize;

        let places = Entry::all(layout, entries)?;
        // What jumps lead to: the entry behind a chain's name.
        let names: BTreeMap<usize, &str> = places
            .iter()
            .filter_map(|entry| match entry.target {
                Target::Named("ERROR", data) => Some((entry.end(), text(data))),
                _ => None,
            })
            .collect();

        let mut table = Self::default();
        table.chains.insert(FORWARD, Vec::new());
        let mut chain = None;
        for entry in &places {
            if begins.contains(&entry.at) {
                chain = (entry.at == forward).then_some(FORWARD);
            }
            if let Some(name) = names.get(&entry.end()) {
                chain = Some(*name);
                table.chains.entry(name).or_default();
                continue;
            }
            let rule = Rule::parse(layout, entry, &names)?;
            if entry.at == policy {
                table.policy_drops = rule.target == Some(End::Drop);
                chain = None;
            }
            if let Some(rules) = chain.and_then(|chain| table.chains.get_mut(chain)) {
                rules.push(rule);
            }
        }
        Some(table)
    }

    /// How the forward chain drops a packet, if that is certain by what is known of it and no other test picks it out.
    fn drops(&self, packet: &Packet<'_>) -> Option<String> {
        let mut ends = |name: &str| {
            let rules = self.chains.get(name).into_iter().flatten();
            Ok::<_, std::convert::Infallible>((1..).zip(rules.map(|rule| rule.end(packet))).collect())
        };
        let Ok(undecided) = nft_netlink::follow(FORWARD, &mut ends);
        undecided.fate.drops(FORWARD, self.policy_drops)
    }
}

/// What an entry ends with.
#[derive(Debug, Clone, Copy)]
enum Target<'a> {
    /// An extension, with its data.
    Named(&'a str, &'a [u8]),
    /// The standard target: a verdict when negative, or where to go on.
    Standard(i32),
}

impl<'a> Target<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, data) = bytes.split_at_checked(HEAD)?;
        Some(match text(&head[2..HEAD - 1]) {
            "" => Self::Standard(i32::from_ne_bytes(*data.first_chunk()?)),
            name => Self::Named(name, data),
        })
    }

    /// What it does; `None` when packets go on with the next rule, as far as is known here.
    fn end(self, entry_end: usize, goes: bool, names: &BTreeMap<usize, &str>) -> Option<End> {
        // A verdict stands as its negative number less one (`NF_DROP`, `NF_ACCEPT`, `XT_RETURN`).
        match self {
            Self::Named("REJECT", _) => Some(End::Reject),
            Self::Named(..) => None,
            Self::Standard(-1) => Some(End::Drop),
            Self::Standard(-2) => Some(End::Accept),
            Self::Standard(-5) => Some(End::Return),
            Self::Standard(to) => {
                // A rule without a target leads to the one behind it.
                let to = usize::try_from(to).ok().filter(|to| *to != entry_end)?;
                let chain = (*names.get(&to)?).to_owned();
                Some(if goes { End::Goto(chain) } else { End::Jump(chain) })
            }
        }
    }
}

impl<'a> Rule<'a> {
    fn parse(layout: &Layout, entry: &Entry<'a>, names: &BTreeMap<usize, &str>) -> Option<Self> {
        let bytes = entry.bytes;
        let (flags, inverted) = (*bytes.get(layout.flags)?, *bytes.get(layout.inverted)?);
        // Two values that are tested stand side by side, and behind them the masks of both.
        let test = |begin: usize, len: usize, index: usize, inversion: u8| {
            let value = begin + index * len;
            let mask = value + 2 * len;
            Some(Test {
                wanted: bytes.get(value..value + len)?,
                mask: bytes.get(mask..mask + len)?,
                inverted: inverted & inversion != 0,
            })
        };
        let address = |index, inversion| test(0, layout.address, index, inversion);
        let interface = |index, inversion| test(layout.interfaces, IFNAME, index, inversion);
        // Everything that is tested is other than zero, but for what is looked at here.
        let others = bytes.get(..layout.tests)?.iter().enumerate().filter(|(place, _)| {
            let known = [0..4 * layout.address, layout.interfaces..layout.interfaces + 4 * IFNAME];
            !known.iter().any(|known| known.contains(place))
                && *place != layout.flags
                && *place != layout.inverted
        });
        let mut has_other_tests = others.map(|(_, byte)| *byte).any(|byte| byte != 0)
            || flags & !layout.flag_goto != 0
            || inverted & !INVERTED != 0;
        let mut states = Vec::new();
        for Match { name, revision, content } in entry.matches()? {
            match name {
                "comment" => {}
                "conntrack" => states.push((revision, content)),
                _ => has_other_tests = true,
            }
        }
        Some(Self {
            addresses: [address(0, INVERTED_SOURCE)?, address(1, INVERTED_DESTINATION)?],
            interfaces: [interface(0, INVERTED_FROM)?, interface(1, INVERTED_TO)?],
            states,
            has_other_tests,
            target: entry.target.end(entry.end(), flags & layout.flag_goto != 0, names),
        })
    }

    /// What it does to a packet; `None` when that goes on to the next rule, or may, by all that is known of it.
    fn end(&self, packet: &Packet<'_>) -> Option<End> {
        let [source, destination] = self.addresses;
        let [from, to] = self.interfaces;
        let name = |interface: Option<&nft_netlink::Interface>| interface.map(|link| ifname_key(&link.name));
        let is_meant = !self.has_other_tests
            && source.is_passed_by(packet.source.map(address_key))
            && destination.is_passed_by(packet.destination.map(address_key))
            && from.is_passed_by(name(packet.from))
            && to.is_passed_by(name(packet.to))
            && self.states.iter().all(|(revision, content)| {
                let passes = |state| conntrack_passes(u32::from(*revision), content, state);
                packet.state.and_then(passes) == Some(true)
            });
        self.target.clone().filter(|_| is_meant)
    }
}

impl Test<'_> {
    /// Whether a packet with this value, if that is known, certainly gets past it.
    fn is_passed_by(self, value: Option<Vec<u8>>) -> bool {
        let is_wanted = |value: Vec<u8>| {
            self.wanted
                .iter()
                .zip(self.mask)
                .zip(value)
                .all(|((wanted, mask), byte)| (wanted ^ byte) & mask == 0)
        };
        match self.mask.iter().all(|byte| *byte == 0) {
            true => !self.inverted,
            false => value.is_some_and(|value| is_wanted(value) != self.inverted),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The text up to its NUL; one that is no text is the name of nothing that is known here.
fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    str::from_utf8(&bytes[..end]).unwrap_or("?")
}

#[cfg(test)]
mod tests;
