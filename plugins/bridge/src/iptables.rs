//! Masquerade through the iptables programs (`ipMasqBackend: iptables`), for hosts whose firewall is made of them.
//!
//! The same chains and rules as the reference's: in table nat a chain for each container, and a jump to it for each of
//! its addresses. Only the comment of a jump says more, the interface: two interfaces of one container on one network
//! share the chain, and it goes with the last jump.
//!
//! Two processes for each family and call: one lists, one changes what differs in a single transaction.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cni_types::{Attachment, Error, ErrorCode, MAX_IFNAME_LEN};
use ipnetwork::IpNetwork;
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest as _, Sha512};

use crate::family::Family;
use crate::names;

/// The table that translates addresses.
pub(crate) const NAT: &str = "nat";

/// Where the programs are looked for when the runtime has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest wait for other programs that change the rules, in seconds.
const LOCK_PATIENCE: &str = "20";

/// Exit status of iptables when somebody else changed the rules at the same time.
const RESOURCE_PROBLEM: i32 = 4;

/// Longest name of a chain in bytes that every iptables takes.
const CHAIN_LEN: usize = 28;

/// Longest comment in bytes (`XT_MAX_COMMENT_LEN` less the NUL).
const COMMENT_LEN: usize = 255;

/// Whose jumps are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jumps<'a> {
    /// The network.
    pub(crate) network: &'a str,
    /// Container id and interface name.
    pub(crate) attachment: &'a Attachment,
}

/// The programs of one family, for one table.
#[derive(Debug)]
pub(crate) struct Tool {
    table: &'static str,
    program: PathBuf,
}

/// Refuses a host without the programs.
///
/// # Errors
/// Code 7.
pub(crate) fn require() -> Result<(), Error> {
    Tool::find(Family::V4).map(drop)
}

/// Brings in the rules for the addresses of an attachment; what is there already is kept.
///
/// Where nobody of the network has any, somebody may have flushed them. Then `restore` is asked first, once, to bring in
/// those of all in one transaction, and says whether it has.
///
/// # Errors
/// Code 11 when the rules are locked for too long, 7 when the programs are missing, 999 when they fail.
pub(crate) fn install(
    jumps: Jumps<'_>,
    addresses: &[IpNetwork],
    restore: impl FnOnce() -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut restore = Some(restore);
    for (family, rules) in by_family(jumps, addresses) {
        let tool = Tool::find(family)?;
        let present = tool.list()?;
        let is_known = present
            .iter()
            .filter_map(|rule| comment_of(rule))
            .any(|comment| is_of_network(&comment, jumps.network));
        if !is_known
            && let Some(restore) = restore.take()
            && restore()?
        {
            return Ok(());
        }
        add(&tool, &present, &[(chain(jumps), rules)])?;
    }
    Ok(())
}

/// Brings in the rules for the addresses of attachments, all of a family in one transaction; says which were missing.
///
/// # Errors
/// As [`install`].
pub(crate) fn repair(attached: &[(Jumps<'_>, &[IpNetwork])]) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family = |(jumps, addresses): &(Jumps<'_>, &[IpNetwork])| {
            by_family(*jumps, addresses)
                .into_iter()
                .find(|(found, _)| *found == family)
                .map(|(_, rules)| rules)
        };
        let wished: Vec<(String, Vec<String>)> =
            attached.iter().filter_map(|attached| Some((chain(attached.0), of_family(attached)?))).collect();
        if wished.is_empty() {
            continue;
        }
        let tool = Tool::find(family)?;
        words.extend(add(&tool, &tool.list()?, &wished)?);
    }
    Ok(words)
}

/// Adds what is missing of the wished rules of chains, in one transaction; says what that was.
fn add(tool: &Tool, present: &[String], wished: &[(String, Vec<String>)]) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    let mut script = String::new();
    let mut declared = HashSet::new();
    let mut written = HashSet::new();
    for (chain, rules) in wished {
        if !present.contains(&format!("-N {chain}")) && declared.insert(chain) {
            line(&mut script, format_args!(":{chain} - [0:0]"));
        }
        // Two interfaces of a container share the chain.
        for rule in rules.iter().filter(|rule| !present.contains(rule) && written.insert(rule.as_str())) {
            line(&mut script, format_args!("{rule}"));
            words.push(missing(rule));
        }
    }
    tool.apply(&script)?;
    Ok(words)
}

/// Removes the rules of an attachment, and those that the reference left for its container. No error if there are
/// none, or no programs that could have made any.
///
/// # Errors
/// As [`install`].
pub(crate) fn remove(jumps: Jumps<'_>) -> Result<(), Error> {
    let comments = comments(jumps);
    remove_where(Some(&chain(jumps)), |found| comments.iter().any(|comment| comment == found))
}

/// The comments that jumps of an attachment may have: ours, and the reference's.
pub(crate) fn comments(jumps: Jumps<'_>) -> [String; 2] {
    [comment(jumps), reference_comment(jumps.network, jumps.attachment.container_id())]
}

/// Whether a comment is that of a jump of ours for `network`.
pub(crate) fn is_of_network(comment: &str, network: &str) -> bool {
    Told::by(comment).is_some_and(|told| names::network(told.network) == names::network(network))
}

/// Removes the rules of the network's attachments but of those that are `valid`.
///
/// # Errors
/// As [`install`].
pub(crate) fn collect(network: &str, valid: &[Attachment]) -> Result<(), Error> {
    let kept: HashSet<String> =
        valid.iter().map(|attachment| comment(Jumps { network, attachment })).collect();
    remove_where(None, |found| is_of_network(found, network) && !kept.contains(found))
}

/// Each rule of an attachment that is missing, in words.
///
/// # Errors
/// As [`install`].
pub(crate) fn verify(jumps: Jumps<'_>, addresses: &[IpNetwork]) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for (family, wished) in by_family(jumps, addresses) {
        let present = Tool::find(family)?.list()?;
        words.extend(wished.iter().filter(|rule| !present.contains(rule)).map(|rule| missing(rule)));
    }
    Ok(words)
}

fn missing(rule: &str) -> String {
    format!("iptables rule is missing in table {NAT}: {rule}")
}

/// Removes the jumps whose comment `is_meant` and is one of ours.
///
/// # Errors
/// As [`install`].
pub(crate) fn remove_gone(is_meant: impl Fn(&Told<'_>) -> bool) -> Result<(), Error> {
    remove_where(None, |comment| Told::by(comment).is_some_and(|told| is_meant(&told)))
}

/// Removes the jumps whose comment `is_meant`, and of their chains and `own` those that nothing jumps to any more.
fn remove_where(own: Option<&str>, is_meant: impl Fn(&str) -> bool) -> Result<(), Error> {
    for family in [Family::V4, Family::V6] {
        let Ok(tool) = Tool::find(family) else { continue };
        tool.apply(&removal(&tool.list()?, own, &is_meant))?;
    }
    Ok(())
}

/// What removes from `present` the jumps whose comment `is_meant`, and of their chains and `own` those that nothing
/// jumps to any more.
fn removal(present: &[String], own: Option<&str>, is_meant: impl Fn(&str) -> bool) -> String {
    let jumps = present.iter().filter_map(|rule| {
        let body = rule.strip_prefix("-A POSTROUTING ")?;
        let target = body.rsplit_once(" -j ")?.1;
        target.starts_with("CNI-").then_some((body, target))
    });
    let (meant, kept): (Vec<_>, Vec<_>) =
        jumps.partition(|(body, _)| comment_of(body).is_some_and(|comment| is_meant(&comment)));
    let mut script = String::new();
    for (body, _) in &meant {
        line(&mut script, format_args!("-D POSTROUTING {body}"));
    }
    // Somebody may have flushed the jumps and left the chain.
    let own = own.filter(|own| present.iter().any(|rule| rule.strip_prefix("-N ") == Some(own)));
    let mut chains: Vec<&str> = meant.iter().map(|(_, target)| *target).chain(own).collect();
    chains.sort_unstable();
    chains.dedup();
    for chain in chains.into_iter().filter(|chain| !kept.iter().any(|(_, target)| target == chain)) {
        line(&mut script, format_args!("-F {chain}"));
        line(&mut script, format_args!("-X {chain}"));
    }
    script
}

/// The rules for the addresses of each family, as iptables lists them.
fn by_family(jumps: Jumps<'_>, addresses: &[IpNetwork]) -> Vec<(Family, Vec<String>)> {
    let families = [(Family::V4, "224.0.0.0/4"), (Family::V6, "ff00::/8")].into_iter();
    families
        .map(|(family, multicast)| {
            let of_family = addresses.iter().filter(|address| Family::of(address.ip()) == family);
            (family, of_family.flat_map(|address| rules(jumps, *address, multicast)).collect::<Vec<_>>())
        })
        .filter(|(_, rules)| !rules.is_empty())
        .collect()
}

/// Traffic within the subnet keeps its source, and so does multicast; the rest gets the host's.
fn rules(jumps: Jumps<'_>, address: IpNetwork, multicast: &str) -> [String; 3] {
    let chain = chain(jumps);
    let container = quoted(&reference_comment(jumps.network, jumps.attachment.container_id()));
    let interface = quoted(&comment(jumps));
    let (subnet, prefix) = (address.network(), address.prefix());
    let source = IpNetwork::from(address.ip());
    [
        format!("-A {chain} -d {subnet}/{prefix} -m comment --comment {container} -j ACCEPT"),
        format!("-A {chain} ! -d {multicast} -m comment --comment {container} -j MASQUERADE"),
        format!("-A POSTROUTING -s {source} -m comment --comment {interface} -j {chain}"),
    ]
}

/// The reference's chain for a container on a network.
fn chain(jumps: Jumps<'_>) -> String {
    let mut hash = Sha512::new();
    hash.update(jumps.network);
    hash.update(jumps.attachment.container_id());
    let mut name = String::from("CNI-");
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(CHAIN_LEN);
    name
}

/// The reference's comment on the rules of a container. One that iptables would refuse for its length, as it does the
/// reference's, has its names cut.
fn reference_comment(network: &str, container_id: &str) -> String {
    let with = |network: &str, id: &str| format!("name: \"{network}\" id: \"{id}\"");
    let full = with(network, container_id);
    match full.len() <= COMMENT_LEN - " if: \"\"".len() - MAX_IFNAME_LEN {
        true => full,
        false => with(&names::network(network), &names::container_id(container_id)),
    }
}

fn comment(jumps: Jumps<'_>) -> String {
    let container = reference_comment(jumps.network, jumps.attachment.container_id());
    format!("{container} if: \"{}\"", jumps.attachment.ifname())
}

/// Whose a jump of ours is, as its comment tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told<'a> {
    pub(crate) network: &'a str,
    pub(crate) container_id: &'a str,
    pub(crate) ifname: &'a str,
}

impl<'a> Told<'a> {
    /// `None` when it is no comment of ours.
    pub(crate) fn by(comment: &'a str) -> Option<Self> {
        let (network, rest) = comment.strip_prefix("name: \"")?.split_once("\" id: \"")?;
        let (container_id, ifname) = rest.split_once("\" if: \"")?;
        Some(Self { network, container_id, ifname: ifname.strip_suffix('"')? })
    }

    /// Whether it is of this attachment, however much of the names either of them spells out.
    pub(crate) fn is(&self, jumps: Jumps<'_>) -> bool {
        let Self { network, container_id, ifname } = *self;
        names::network(network) == names::network(jumps.network)
            && names::container_id(container_id) == names::container_id(jumps.attachment.container_id())
            && ifname == jumps.attachment.ifname()
    }
}

/// The comment in a listed rule.
pub(crate) fn comment_of(rule: &str) -> Option<String> {
    let quoted = rule.split_once(" --comment \"")?.1;
    let mut comment = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some(comment),
            '\\' => comment.push(characters.next()?),
            other => comment.push(other),
        }
    }
}

/// A comment as iptables lists it.
pub(crate) fn quoted(comment: &str) -> String {
    format!("\"{}\"", comment.replace('\\', "\\\\").replace('"', "\\\""))
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(script, "{text}");
}

impl Tool {
    fn find(family: Family) -> Result<Self, Error> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .find(|program| program.is_file())
            .map(|program| Self { table: NAT, program })
            .ok_or_else(|| {
                Error::invalid_config(
                    "ipMasqBackend",
                    format_args!("failed to find {name} in {}", path.display()),
                )
            })
    }

    /// The programs that work on the tables from before nf_tables.
    ///
    /// # Errors
    /// Code 7 when there are none.
    pub(crate) fn legacy(family: Family, table: &'static str) -> Result<Self, Error> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let find = |name: String| {
            std::env::split_paths(&path)
                .map(|directory| directory.join(&name))
                .find(|program| program.is_file())
        };
        // Where both are installed, the plain name is a link to one of them.
        let plain = || {
            find(name.to_owned()).filter(|program| {
                let is_nft = |target: PathBuf| target.to_string_lossy().contains("nft");
                !program.canonicalize().is_ok_and(is_nft)
            })
        };
        find(format!("{name}-legacy")).or_else(plain).map(|program| Self { table, program }).ok_or_else(
            || {
                Error::invalid_config(
                    "acceptForward",
                    format_args!("failed to find {name}-legacy in {}", path.display()),
                )
            },
        )
    }

    /// The rules of the table.
    ///
    /// # Errors
    /// As [`install`].
    pub(crate) fn list(&self) -> Result<Vec<String>, Error> {
        let output = run(&self.program, &["-w", LOCK_PATIENCE, "-t", self.table, "-S"], None)?;
        Ok(String::from_utf8_lossy(&output).lines().map(str::to_owned).collect())
    }

    /// Changes the table in one transaction.
    ///
    /// # Errors
    /// As [`install`].
    pub(crate) fn apply(&self, script: &str) -> Result<(), Error> {
        if script.is_empty() {
            return Ok(());
        }
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let restore = self.program.with_file_name(format!("{name}-restore"));
        let script = format!("*{}\n{script}COMMIT\n", self.table);
        run(&restore, &["-w", LOCK_PATIENCE, "--noflush"], Some(&script)).map(drop)
    }
}

fn run(program: &Path, arguments: &[&str], stdin: Option<&str>) -> Result<Vec<u8>, Error> {
    let failed = |error: std::io::Error| Error::io(format_args!("execute {}", program.display()), &error);
    let stdin = match stdin {
        Some(text) => Stdio::from(file_of(text).map_err(failed)?),
        None => Stdio::null(),
    };
    let output = Command::new(program).args(arguments).stdin(stdin).output().map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let code = match output.status.code() {
        Some(RESOURCE_PROBLEM) => ErrorCode::TRY_AGAIN_LATER,
        _ => ErrorCode::INTERNAL,
    };
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(code, format!("{} failed ({}): {}", program.display(), output.status, words.trim_end())))
}

/// A memory file and not a pipe: a program that does not read its stdin cannot block us.
fn file_of(text: &str) -> std::io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create("iptables-restore", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    file.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(ifname: &str) -> Attachment {
        Attachment::new("abc", ifname).unwrap()
    }

    fn listed(addresses: &[&str], ifname: &str) -> Vec<String> {
        let attachment = attachment(ifname);
        let addresses: Vec<IpNetwork> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let jumps = Jumps { network: "n1", attachment: &attachment };
        by_family(jumps, &addresses).into_iter().flat_map(|(_, rules)| rules).collect()
    }

    #[test]
    fn rules_are_written_as_iptables_lists_them() {
        let chain = "CNI-0dc0301bc9564ed905ff7609";
        let container = r#"-m comment --comment "name: \"n1\" id: \"abc\"""#;
        let interface = r#"-m comment --comment "name: \"n1\" id: \"abc\" if: \"eth0\"""#;
        assert_eq!(
            listed(&["10.1.2.3/24", "fd00::3/64"], "eth0"),
            [
                format!("-A {chain} -d 10.1.2.0/24 {container} -j ACCEPT"),
                format!("-A {chain} ! -d 224.0.0.0/4 {container} -j MASQUERADE"),
                format!("-A POSTROUTING -s 10.1.2.3/32 {interface} -j {chain}"),
                format!("-A {chain} -d fd00::/64 {container} -j ACCEPT"),
                format!("-A {chain} ! -d ff00::/8 {container} -j MASQUERADE"),
                format!("-A POSTROUTING -s fd00::3/128 {interface} -j {chain}"),
            ]
        );
    }

    #[test]
    fn a_shared_chain_goes_with_its_last_jump() {
        let (eth0, eth1) = (listed(&["10.1.2.3/24"], "eth0"), listed(&["10.1.2.4/24"], "eth1"));
        let both = [eth0.as_slice(), &eth1[2..]].concat();
        let gone = attachment("eth1");
        let of_eth1 = comment(Jumps { network: "n1", attachment: &gone });
        let first = removal(&both, None, |comment| comment == of_eth1);
        assert_eq!(first, eth1[2].replace("-A ", "-D ") + "\n");
        let last = removal(&eth1, None, |comment| comment == of_eth1);
        let chain = "CNI-0dc0301bc9564ed905ff7609";
        assert_eq!(last, format!("{first}-F {chain}\n-X {chain}\n"));
        assert_eq!(removal(&both, Some(chain), |_| false), "");
        let flushed = [format!("-N {chain}")];
        assert_eq!(removal(&flushed, Some(chain), |_| false), format!("-F {chain}\n-X {chain}\n"));
    }

    #[test]
    fn the_longest_comment_is_one_that_iptables_takes() {
        for (network, id) in [(300, 300), (300, 1), (1, 300), (100, 112), (113, 100)] {
            let attachment = Attachment::new(&"i".repeat(id), "an-ifname-of-15").unwrap();
            let jumps = Jumps { network: &"n".repeat(network), attachment: &attachment };
            assert!(comment(jumps).len() <= COMMENT_LEN, "{network} {id}: {}", comment(jumps).len());
        }
    }

    #[test]
    fn a_comment_is_told_from_others_however_long_the_names_are() {
        for (network, id) in [(3, 3), (300, 3), (3, 300), (100, 112), (130, 80)] {
            let (attachment, network) =
                (Attachment::new(&"i".repeat(id), "eth0").unwrap(), "n".repeat(network));
            let jumps = Jumps { network: &network, attachment: &attachment };
            let comment = comment(jumps);
            let told = Told::by(&comment).unwrap();
            assert!(told.is(jumps), "{comment}");
            // As the mark of the host veth spells it.
            let marked = Attachment::new(&names::container_id(attachment.container_id()), "eth0").unwrap();
            assert!(told.is(Jumps { network: &names::network(&network), attachment: &marked }), "{comment}");
            let other = Attachment::new(attachment.container_id(), "eth1").unwrap();
            assert!(!told.is(Jumps { network: &network, attachment: &other }), "{comment}");
            assert!(!told.is(Jumps { network: "other", attachment: &attachment }), "{comment}");
        }
    }

    #[test]
    fn a_comment_says_whose_it_is() {
        let rules = listed(&["10.1.2.3/24"], "eth0");
        let comment = comment_of(&rules[2]).unwrap();
        assert_eq!(comment, r#"name: "n1" id: "abc" if: "eth0""#);
        assert_eq!(Told::by(&comment), Some(Told { network: "n1", container_id: "abc", ifname: "eth0" }));
        assert_eq!(Told::by(&comment_of(&rules[0]).unwrap()), None);
        assert_eq!(comment_of("-A POSTROUTING -j ACCEPT"), None);
    }
}
