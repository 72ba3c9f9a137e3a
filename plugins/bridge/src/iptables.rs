//! Masquerade through the iptables programs (`ipMasqBackend: iptables`), for hosts whose firewall is made of them.
//!
//! The same chains and rules as the reference's: in table nat a chain for each container, and a jump to it for each of
//! its addresses. Only the comment of a jump says more, the interface: two interfaces of one container on one network
//! share the chain, and it goes with the last jump. And where a container has several subnets of a family, what stays
//! within one of them comes before what is masqueraded.
//!
//! Two processes for each family and call: one lists, one changes what differs in a single transaction. Two more where
//! somebody else has made a change in between.

mod text;
mod tool;

use std::collections::HashSet;
use std::fmt::Write as _;

use cni_types::{Attachment, Error, Failures};
use ipnetwork::IpNetwork;

use crate::family::Family;
use text::{by_family, comment, is_of_container};

pub(crate) use text::{Jumps, Told, chain, comment_of, comments, is_of_network, quoted};
pub(crate) use tool::Tool;

/// The table that translates addresses.
pub(crate) const NAT: &str = "nat";

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
        add(&tool, present, &[(chain(jumps), rules)])?;
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
        words.extend(add(&tool, tool.list()?, &wished)?);
    }
    Ok(words)
}

/// Adds what is missing of the wished rules of chains and removes what others have put into them, in one transaction;
/// says what was wrong.
fn add(tool: &Tool, present: Vec<String>, wished: &[(String, Vec<String>)]) -> Result<Vec<String>, Error> {
    tool.change(present, |present| addition(present, wished))
}

/// What adds to `present` what is missing of the wished rules of chains, and removes from these what others have put
/// there; and that in words.
fn addition(present: &[String], wished: &[(String, Vec<String>)]) -> (String, Vec<String>) {
    let mut words = Vec::new();
    let mut script = String::new();
    let mut declared = HashSet::new();
    let mut written = HashSet::new();
    for (chain, rules) in wished {
        if !present.contains(&format!("-N {chain}")) && declared.insert(chain) {
            // Fails where somebody else has made it meanwhile: his rules in it would be gone with `:{chain}`.
            line(&mut script, format_args!("-N {chain}"));
        }
        for stray in strays(present, chain).filter(|stray| written.insert(*stray)) {
            line(&mut script, format_args!("-D {}", stray.trim_start_matches("-A ")));
            words.push(unknown(stray));
        }
        // Two interfaces of a container share the chain.
        for rule in rules.iter().filter(|rule| !present.contains(rule) && written.insert(rule.as_str())) {
            // What keeps its source has to be found before all that does not: the container may have other subnets.
            match rule.strip_prefix("-A ").filter(|rule| rule.ends_with(" -j ACCEPT")) {
                Some(first) => line(&mut script, format_args!("-I {first}")),
                None => line(&mut script, format_args!("{rule}")),
            }
            words.push(missing(rule));
        }
    }
    (script, words)
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

/// Removes the rules of the network's attachments but of those that are `valid`.
///
/// # Errors
/// As [`install`].
pub(crate) fn collect(network: &str, valid: &[Attachment]) -> Result<(), Error> {
    let kept: HashSet<String> =
        valid.iter().map(|attachment| comment(Jumps { network, attachment })).collect();
    remove_where(None, |found| is_of_network(found, network) && !kept.contains(found))
}

/// Each rule of an attachment that is missing, and each that others have put into its chain, in words.
///
/// # Errors
/// As [`install`].
pub(crate) fn verify(jumps: Jumps<'_>, addresses: &[IpNetwork]) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for (family, wished) in by_family(jumps, addresses) {
        let present = Tool::find(family)?.list()?;
        words.extend(wished.iter().filter(|rule| !present.contains(rule)).map(|rule| missing(rule)));
        words.extend(strays(&present, &chain(jumps)).map(unknown));
    }
    Ok(words)
}

/// The rules in the chain of a container that are not about any: what stands before ours can undo them.
fn strays<'a>(present: &'a [String], chain: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("-A {chain} ");
    let in_chain = present.iter().map(String::as_str).filter(move |rule| rule.starts_with(&start));
    in_chain.filter(|rule| !comment_of(rule).is_some_and(|comment| is_of_container(&comment)))
}

fn unknown(rule: &str) -> String {
    format!("iptables rule of somebody else is in table {NAT}: {rule}")
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
    let mut failures = Failures::default();
    for family in [Family::V4, Family::V6] {
        let Ok(tool) = Tool::find(family) else { continue };
        let look = |present: &[String]| (removal(present, own, &is_meant), ());
        failures.note(tool.list().and_then(|present| tool.change(present, look)));
    }
    failures.into_result()
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

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(script, "{text}");
}

#[cfg(test)]
mod tests {
    use super::text::tests::{attachment, listed};
    use super::*;

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
}
