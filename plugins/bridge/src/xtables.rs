//! The forward chain of iptables as it was before nf_tables, whose rules nf_tables does not show: there the accept rules
//! of `acceptForward` are written through the programs, and without that key a chain that drops is looked for. Nothing is
//! started or read where that table is not in use.
//!
//! The same rules in the same places as [`crate::nft`] writes into its chains, found again by the same comment.

use std::collections::BTreeSet;

use cni_types::Error;
use nft_netlink::{End, Fate};

use crate::family::Family;
use crate::iptables::{Tool, comment_of, quoted};
use crate::netns::Netns;
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

/// Brings in the rules where the chain drops, once the record of an attachment of that network is there; says which were
/// missing. Rules of the network for another policy go.
///
/// # Errors
/// Code 7 when the programs are missing, 11 when the rules are locked for too long, 999 when they fail.
pub(crate) fn accept(traffic: Traffic<'_>) -> Result<Vec<String>, Error> {
    let tools = tools()?;
    if tools.is_empty() {
        return Ok(Vec::new());
    }
    // What two calls both add stands there twice; and one that removes may have looked for the record already.
    let home = Netns::own()?;
    let _alone = home.exclude()?;
    let mut words = Vec::new();
    for tool in tools {
        words.extend(tool.change(tool.list()?, |present| {
            let changes = changes(present, traffic);
            let script = changes.iter().map(Change::script).collect();
            (script, changes.iter().map(Change::words).collect::<Vec<_>>())
        })?);
    }
    Ok(words)
}

/// Each of the rules that is missing, and each that is there for another policy, in words.
///
/// # Errors
/// As [`accept`].
pub(crate) fn differences(traffic: Traffic<'_>) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    for tool in tools()? {
        words.extend(changes(&tool.list()?, traffic).iter().map(Change::words));
    }
    Ok(words)
}

/// Removes the rules with a comment that `is_meant`, but not those with one that `needed` tells. It looks while nobody
/// else writes or removes any; who is about to write some has left his record before. Nothing is started where there are
/// none to be removed.
///
/// # Errors
/// As [`accept`], what `needed` says, and code 999 when a table cannot be read.
pub(crate) fn remove(
    is_meant: impl Fn(&str) -> bool,
    needed: impl FnOnce() -> Result<BTreeSet<String>, Error>,
) -> Result<(), Error> {
    if !has(&is_meant)? {
        return Ok(());
    }
    let home = Netns::own()?;
    let _alone = home.exclude()?;
    let needed = needed()?;
    let is_gone = |comment: &str| is_meant(comment) && !needed.contains(comment);
    if !has(is_gone)? {
        return Ok(());
    }
    for tool in tools()? {
        tool.change(tool.list()?, |present| {
            let gone = present.iter().filter_map(|rule| {
                let body = rule.strip_prefix("-A ")?;
                comment_of(rule).is_some_and(|comment| is_gone(&comment)).then_some(body)
            });
            (gone.map(|body| format!("-D {body}\n")).collect(), ())
        })?;
    }
    Ok(())
}

/// Whether there is a rule with a comment that `is_sought`.
fn has(is_sought: impl Fn(&str) -> bool) -> Result<bool, Error> {
    Ok(comments(TABLE)?.iter().any(|comment| is_sought(comment)))
}

/// The programs of the families whose table is in use.
fn tools() -> Result<Vec<Tool>, Error> {
    let in_use = [Family::V4, Family::V6].into_iter().filter(|family| in_use(*family, TABLE));
    in_use.map(|family| Tool::legacy(family, TABLE)).collect()
}

/// Whether rules are written here for what is forwarded, or may be.
pub(crate) fn is_in_use() -> bool {
    in_use(Family::V4, TABLE) || in_use(Family::V6, TABLE)
}

/// Whether a table is in use in this network namespace.
fn in_use(family: Family, table: &str) -> bool {
    let family = match family {
        Family::V4 => nft_netlink::Family::Ipv4,
        Family::V6 => nft_netlink::Family::Ipv6,
    };
    nft_netlink::is_legacy_table_in_use(family, table)
}

/// What the rules of a network lack, or have beyond what its policy is by now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Add {
        chain: &'static str,
        /// Where in the chain, from 1; `None` at its end.
        at: Option<u64>,
        body: String,
    },
    Remove {
        chain: &'static str,
        body: String,
    },
}

impl Change {
    /// As a line for `iptables-restore`.
    fn script(&self) -> String {
        match self {
            Self::Add { chain, at: Some(position), body } => format!("-I {chain} {position} {body}\n"),
            Self::Add { chain, at: None, body } => format!("-A {chain} {body}\n"),
            Self::Remove { chain, body } => format!("-D {chain} {body}\n"),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Add { chain, body, .. } => {
                format!("iptables rule is missing in table {TABLE}: -A {chain} {body}")
            }
            Self::Remove { chain, body } => {
                format!("iptables rule of another ingressPolicy is in table {TABLE}: -A {chain} {body}")
            }
        }
    }
}

/// First what is to come in, as long as the places are those that were seen.
fn changes(present: &[String], traffic: Traffic<'_>) -> Vec<Change> {
    let forward = undecided(present, FORWARD);
    let drops = match forward.fate {
        Fate::Dropped { .. } => true,
        Fate::GoesOn => present.iter().any(|rule| rule == "-P FORWARD DROP"),
        Fate::Passes => false,
    };
    if !drops {
        return Vec::new();
    }
    let leads_to_docker_user = present
        .iter()
        .any(|rule| rule.starts_with("-A FORWARD ") && rule.ends_with(&format!(" -j {DOCKER_USER}")));
    let (inward, inward_at) = match leads_to_docker_user {
        true => (DOCKER_USER, undecided(present, DOCKER_USER).at),
        false => (FORWARD, forward.at),
    };
    let is_there = |chain: &str, body: &String| present.contains(&format!("-A {chain} {body}"));
    let Bodies { inward: goes_in, others } = Bodies::of(traffic);
    let wished = others.iter().map(|body| (FORWARD, forward.at, body));
    let missing = [(inward, inward_at, &goes_in)]
        .into_iter()
        .chain(wished)
        .filter(|(chain, _, body)| !is_there(chain, body))
        .map(|(chain, at, body)| Change::Add { chain, at, body: body.clone() });
    let of_another_policy: BTreeSet<String> = IngressPolicy::ALL
        .into_iter()
        .map(|ingress| Bodies::of(Traffic { ingress, ..traffic }))
        .flat_map(|Bodies { inward, others }| others.into_iter().chain([inward]))
        .filter(|body| *body != goes_in && !others.contains(body))
        .collect();
    let unwished = of_another_policy.iter().flat_map(|body| {
        [FORWARD, DOCKER_USER]
            .into_iter()
            .filter(|chain| is_there(chain, body))
            .map(|chain| Change::Remove { chain, body: body.clone() })
    });
    missing.chain(unwished).collect()
}

/// The rules that let a network's traffic through, without their chains.
struct Bodies {
    /// Of what goes to the link.
    inward: String,
    others: Vec<String>,
}

impl Bodies {
    fn of(traffic: Traffic<'_>) -> Self {
        let Traffic { network, link, bridged, ingress } = traffic;
        let comment = quoted(&nft::accept_comment(network));
        let rule = |tests: String| format!("{tests} -m comment --comment {comment} -j ACCEPT");
        let inward = match ingress {
            IngressPolicy::Open => format!("-o {link}"),
            IngressPolicy::SameBridge | IngressPolicy::Isolated => {
                format!("-o {link} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT")
            }
        };
        let outward = match ingress {
            IngressPolicy::Isolated => format!("-i {link} ! -o {link}"),
            IngressPolicy::Open | IngressPolicy::SameBridge => format!("-i {link}"),
        };
        let bridged = bridged.map(|bridge| format!("-i {bridge} -o {bridge}"));
        Self { inward: rule(inward), others: [outward].into_iter().chain(bridged).map(rule).collect() }
    }
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

    fn body(tests: &str) -> String {
        format!("{tests} -m comment --comment \"cni-bridge accept-forward-n\" -j ACCEPT")
    }

    fn check(present: &str, ingress: IngressPolicy, wished: &[(&'static str, Option<u64>, &str)]) {
        let present: Vec<String> = present.lines().map(|line| line.trim().to_owned()).collect();
        let traffic = Traffic { network: "n", link: "br0", bridged: None, ingress };
        let wished: Vec<Change> = wished
            .iter()
            .map(|(chain, at, tests)| Change::Add { chain, at: *at, body: body(tests) })
            .collect();
        assert_eq!(changes(&present, traffic), wished, "{present:?}");
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
        let of_vlan = changes(&present, traffic(Some("br0")));
        let bridged = Change::Add { chain: FORWARD, at: None, body: body("-i br0 -o br0") };
        assert_eq!(of_vlan, [changes(&present, traffic(None)), vec![bridged]].concat());
    }

    #[test]
    fn what_is_there_is_not_missing_and_what_another_policy_left_goes() {
        let present = |rules: &[(&str, &str)]| -> Vec<String> {
            let rules = rules.iter().map(|(chain, tests)| format!("-A {chain} {}", body(tests)));
            ["-P FORWARD DROP".to_owned()].into_iter().chain(rules).collect()
        };
        let traffic = |ingress| Traffic { network: "n", link: "br0", bridged: None, ingress };
        let answers = "-o br0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT";
        let add = |tests| Change::Add { chain: FORWARD, at: None, body: body(tests) };
        let remove = |chain, tests| Change::Remove { chain, body: body(tests) };
        let open = present(&[(FORWARD, "-o br0"), (FORWARD, "-i br0"), (DOCKER_USER, "-o br0")]);
        assert_eq!(changes(&open, traffic(IngressPolicy::Open)), []);
        assert_eq!(
            changes(&open, traffic(IngressPolicy::SameBridge)),
            [add(answers), remove(FORWARD, "-o br0"), remove(DOCKER_USER, "-o br0")]
        );
        let isolated = present(&[(FORWARD, answers), (FORWARD, "-i br0 ! -o br0")]);
        assert_eq!(changes(&isolated, traffic(IngressPolicy::Isolated)), []);
        assert_eq!(
            changes(&isolated, traffic(IngressPolicy::Open)),
            [add("-o br0"), add("-i br0"), remove(FORWARD, "-i br0 ! -o br0"), remove(FORWARD, answers)]
        );
        let of_others = Traffic { network: "other", ..traffic(IngressPolicy::Isolated) };
        assert!(changes(&open, of_others).iter().all(|change| matches!(change, Change::Add { .. })));
    }
}
