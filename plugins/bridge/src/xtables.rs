//! The forward chain of iptables as it was before nf_tables, whose rules nf_tables does not show: there the accept rules
//! of `acceptForward` are written through the programs, and without that key a chain that drops is looked for. Nothing is
//! started or read where that table is not in use.
//!
//! The same rules in the same places as [`crate::nft`] writes into its chains, found again by the same comment.

use std::fmt::Write as _;

use cni_types::Error;
use nft_netlink::{End, Fate};

use crate::family::Family;
use crate::iptables::{Tool, comment_of, quoted};
use crate::nft::{self, IngressPolicy};

mod tables;

pub(crate) use tables::{comments, drops};

const TABLE: &str = "filter";
const FORWARD: &str = "FORWARD";
const DOCKER_USER: &str = "DOCKER-USER";

/// Whose traffic is let through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic<'a> {
    pub(crate) network: &'a str,
    pub(crate) link: &'a str,
    /// The bridge, where `link` is the gateway interface of a VLAN on it.
    pub(crate) bridged: Option<&'a str>,
    pub(crate) ingress: IngressPolicy,
}

/// Brings in the rules where the chain drops; says which were missing.
///
/// # Errors
/// Code 7 when the programs are missing, 11 when the rules are locked for too long, 999 when they fail.
pub(crate) fn accept(traffic: Traffic<'_>) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for family in [Family::V4, Family::V6] {
        let Some(tool) = tool(family)? else { continue };
        let missing = missing(&tool.list()?, traffic);
        let script: String = missing.iter().fold(String::new(), |mut script, Missing { chain, at, body }| {
            // Writing to a string cannot fail.
            let _ = match at {
                Some(position) => writeln!(script, "-I {chain} {position} {body}"),
                None => writeln!(script, "-A {chain} {body}"),
            };
            script
        });
        tool.apply(&script)?;
        words.extend(missing.iter().map(Missing::words));
    }
    Ok(words)
}

/// Each of the rules that is missing, in words.
///
/// # Errors
/// As [`accept`].
pub(crate) fn differences(traffic: Traffic<'_>) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for family in [Family::V4, Family::V6] {
        if let Some(tool) = tool(family)? {
            words.extend(missing(&tool.list()?, traffic).iter().map(Missing::words));
        }
    }
    Ok(words)
}

/// Whether there is a rule with a comment that `is_sought`. Starts no program.
///
/// # Errors
/// Code 999 when a table cannot be read.
pub(crate) fn has(is_sought: impl Fn(&str) -> bool) -> Result<bool, Error> {
    Ok(comments(TABLE)?.iter().any(|comment| is_sought(comment)))
}

/// Removes the rules of every network that `is_gone`, by the comment of its rules.
///
/// # Errors
/// As [`accept`] and [`has`].
pub(crate) fn remove(is_gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    if !has(&is_gone)? {
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        let Some(tool) = tool(family)? else { continue };
        let present = tool.list()?;
        let gone = present.iter().filter_map(|rule| {
            let body = rule.strip_prefix("-A ")?;
            comment_of(rule).is_some_and(|comment| is_gone(&comment)).then_some(body)
        });
        let script: String = gone.map(|body| format!("-D {body}\n")).collect();
        tool.apply(&script)?;
    }
    Ok(())
}

/// The programs, where the table is in use.
fn tool(family: Family) -> Result<Option<Tool>, Error> {
    in_use(family, TABLE).then(|| Tool::legacy(family, TABLE)).transpose()
}

/// Whether a table is in use in this network namespace.
fn in_use(family: Family, table: &str) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // A kernel without these tables has no such file.
    std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == table))
}

/// A rule that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Missing {
    chain: &'static str,
    /// Where in the chain, from 1; `None` at its end.
    at: Option<u64>,
    body: String,
}

impl Missing {
    fn words(&self) -> String {
        format!("iptables rule is missing in table {TABLE}: -A {} {}", self.chain, self.body)
    }
}

fn missing(present: &[String], traffic: Traffic<'_>) -> Vec<Missing> {
    let forward = undecided(present, FORWARD);
    let drops = match forward.fate {
        Fate::Dropped { .. } => true,
        Fate::GoesOn => present.iter().any(|rule| rule == "-P FORWARD DROP"),
        Fate::Passes => false,
    };
    if !drops {
        return Vec::new();
    }
    let Traffic { network, link, bridged, ingress } = traffic;
    let comment = quoted(&nft::accept_comment(network));
    let rule = |tests: String| format!("{tests} -m comment --comment {comment} -j ACCEPT");
    let leads_to_docker_user = present
        .iter()
        .any(|rule| rule.starts_with("-A FORWARD ") && rule.ends_with(&format!(" -j {DOCKER_USER}")));
    let (inward, inward_at) = match leads_to_docker_user {
        true => (DOCKER_USER, undecided(present, DOCKER_USER).at),
        false => (FORWARD, forward.at),
    };
    let wished = [
        (
            inward,
            inward_at,
            rule(match ingress {
                IngressPolicy::Open => format!("-o {link}"),
                IngressPolicy::SameBridge | IngressPolicy::Isolated => {
                    format!("-o {link} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT")
                }
            }),
        ),
        (
            FORWARD,
            forward.at,
            rule(match ingress {
                IngressPolicy::Isolated => format!("-i {link} ! -o {link}"),
                IngressPolicy::Open | IngressPolicy::SameBridge => format!("-i {link}"),
            }),
        ),
    ];
    let bridged = bridged.map(|bridge| (FORWARD, forward.at, rule(format!("-i {bridge} -o {bridge}"))));
    let wished = wished.into_iter().chain(bridged).map(|(chain, at, body)| Missing { chain, at, body });
    wished.filter(|wish| !present.contains(&format!("-A {} {}", wish.chain, wish.body))).collect()
}

/// What becomes of the rest of a chain's packets, and at which rule, counted from 1.
fn undecided(present: &[String], chain: &str) -> nft_netlink::Undecided {
    let mut ends = |name: &str| {
        let prefix = format!("-A {name} ");
        let rules = present.iter().filter_map(|rule| rule.strip_prefix(prefix.as_str()));
        Ok::<_, std::convert::Infallible>((1..).zip(rules.map(|body| end(present, body))).collect())
    };
    let Ok(undecided) = nft_netlink::follow(chain, &mut ends);
    undecided
}

/// What a rule does to every packet; `None` when it tests anything, or only counts.
fn end(present: &[String], body: &str) -> Option<End> {
    let body = match body.strip_prefix("-m comment --comment ") {
        Some(commented) => &commented[commented.find(" -j ").or_else(|| commented.find(" -g "))? + 1..],
        None => body,
    };
    let target = |flag: &str| body.strip_prefix(flag)?.split(' ').next();
    if let Some(chain) = target("-g ") {
        return Some(End::Goto(chain.to_owned()));
    }
    match target("-j ")? {
        "ACCEPT" => Some(End::Accept),
        "DROP" => Some(End::Drop),
        "REJECT" => Some(End::Reject),
        "RETURN" => Some(End::Return),
        chain if present.iter().any(|rule| rule.strip_prefix("-N ") == Some(chain)) => {
            Some(End::Jump(chain.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(present: &str, ingress: IngressPolicy, wished: &[(&'static str, Option<u64>, &str)]) {
        let present: Vec<String> = present.lines().map(|line| line.trim().to_owned()).collect();
        let traffic = Traffic { network: "n", link: "br0", bridged: None, ingress };
        let wished: Vec<Missing> = wished
            .iter()
            .map(|(chain, at, tests)| Missing {
                chain,
                at: *at,
                body: format!("{tests} -m comment --comment \"cni-bridge accept-forward-n\" -j ACCEPT"),
            })
            .collect();
        assert_eq!(missing(&present, traffic), wished, "{present:?}");
    }

    #[test]
    fn rules_stand_before_what_drops_the_rest() {
        check("-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP", IngressPolicy::Open, &[]);
        check(
            "-P FORWARD DROP",
            IngressPolicy::Isolated,
            &[
                ("FORWARD", None, "-o br0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"),
                ("FORWARD", None, "-i br0 ! -o br0"),
            ],
        );
        check(
            "-P FORWARD ACCEPT\n-A FORWARD -s 192.0.2.0/24 -j DROP\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable",
            IngressPolicy::Open,
            &[("FORWARD", Some(2), "-o br0"), ("FORWARD", Some(2), "-i br0")],
        );
        check(
            "-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j DROP\n\
             -A DOCKER-USER -m comment --comment \"the end\" -j RETURN",
            IngressPolicy::Open,
            &[("DOCKER-USER", Some(1), "-o br0"), ("FORWARD", None, "-i br0")],
        );
    }

    #[test]
    fn what_is_bridged_passes_too_where_a_vlan_has_its_gateway_on_the_bridge() {
        let present = ["-P FORWARD DROP".to_owned()];
        let traffic =
            |bridged| Traffic { network: "n", link: "br0.5", bridged, ingress: IngressPolicy::Isolated };
        let of_vlan = missing(&present, traffic(Some("br0")));
        let rule = "-i br0 -o br0 -m comment --comment \"cni-bridge accept-forward-n\" -j ACCEPT";
        let bridged = Missing { chain: FORWARD, at: None, body: rule.to_owned() };
        assert_eq!(of_vlan, [missing(&present, traffic(None)), vec![bridged]].concat());
    }

    #[test]
    fn what_is_there_is_not_missing() {
        let comment = "-m comment --comment \"cni-bridge accept-forward-n\" -j ACCEPT";
        let present = format!("-P FORWARD DROP\n-A FORWARD -o br0 {comment}\n-A FORWARD -i br0 {comment}");
        check(&present, IngressPolicy::Open, &[]);
        check(
            &present,
            IngressPolicy::SameBridge,
            &[("FORWARD", None, "-o br0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT")],
        );
    }
}
