//! What the host has, to be compared: links, addresses, routes, rules, leases, names, kept results, processes.
//!
//! Each is a set of lines; numbers that the kernel counts up by itself (interface indices, packet counters,
//! lifetimes) are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::world::World;

/// Switches of the kernel that plugins of this kind touch.
const SYSCTLS: [&str; 6] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/accept_ra",
    "net/ipv6/conf/default/accept_dad",
];

/// Files and directories that plugins write to.
const STATE: [&str; 5] =
    ["/var/lib/cni", "/var/lib/runtime", "/run/cni", "/run/containers", "/run/xtables.lock"];

/// Words of the listings that are followed by a value of the kernel's own, which changes by itself.
const FOLLOWED_BY_A_NUMBER: [&str; 4] = ["expires", "link-netnsid", "qlen", "state"];

/// Parts of lines that belong to the name server itself: it stays for some seconds after the last record is gone, so
/// it is left out here, and that it goes is a story of its own.
const NAME_SERVER: [&str; 5] =
    ["alias-dns serve", "alias-dns supervise", "cni-names guard", "/control None", "/opening.lock None"];

/// What a host has at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Snapshot {
    /// What stays on a host by intent when its last container is gone, as parts of lines: forwarding, the allocator's
    /// place and index, and the tables and chains of the reference's portmap and firewall, as they are when they hold
    /// nothing of a container. (The bridge stays too.)
    pub const KEPT: [&str; 38] = [
        "sysctls: - net/ipv4/ip_forward = 0",
        "sysctls: + net/ipv4/ip_forward = 1",
        "sysctls: - net/ipv6/conf/all/forwarding = 0",
        "sysctls: + net/ipv6/conf/all/forwarding = 1",
        "/last_reserved_ip",
        "/lock ",
        ".index ",
        "iptables: + *nat",
        "iptables: + *filter",
        "iptables: + COMMIT",
        "iptables: + :PREROUTING ACCEPT",
        "iptables: + :INPUT ACCEPT",
        "iptables: + :FORWARD ACCEPT",
        "iptables: + :OUTPUT ACCEPT",
        "iptables: + :POSTROUTING ACCEPT",
        "iptables: + :CNI-ADMIN ",
        "iptables: + :CNI-FORWARD ",
        "iptables: + :CNI-HOSTPORT-",
        "CNI-ISOLATION-STAGE-",
        "-j CNI-ADMIN",
        "-j CNI-FORWARD",
        "-j CNI-HOSTPORT-",
        "iptables: + -A CNI-HOSTPORT-",
        "nftables: + table ip nat {",
        "nftables: + table ip filter {",
        "nftables: + table ip6 nat {",
        "nftables: + table ip6 filter {",
        "nftables: + chain INPUT {",
        "nftables: + chain FORWARD {",
        "nftables: + chain OUTPUT {",
        "nftables: + chain POSTROUTING {",
        "nftables: + chain PREROUTING {",
        "nftables: + chain CNI-",
        "counter jump CNI-",
        "nftables: + type ",
        "nftables: + counter meta mark set mark or 0x2000",
        "nftables: + meta mark & 0x00002000",
        "nftables: + }",
    ];

    /// Looks at the host of `world`.
    #[track_caller]
    pub fn of(world: &World) -> Self {
        let host = world.host();
        let lines = |line: &str| -> BTreeSet<String> {
            let listed = host.run(line).success().lines().map(without_numbers).collect::<BTreeSet<_>>();
            // A link gets its link-local address some time after it was made, and the kernel its own local routes to
            // an IPv6 address some time after that was added; the address itself is listed.
            let is_late =
                |line: &str| line.contains("fe80:") || line.contains("table local proto kernel metric 0");
            listed.into_iter().filter(|line| !line.is_empty() && !is_late(line)).collect()
        };
        let sections = BTreeMap::from([
            ("links", lines("ip -o -d link show")),
            ("addresses", lines("ip -o address show scope global")),
            ("routes", &lines("ip -4 route show table all") | &lines("ip -6 route show table all")),
            ("neighbours", lines("ip -o neighbour show nud permanent")),
            ("nftables", lines("nft --stateless list ruleset")),
            ("iptables", &lines("iptables-save") | &lines("ip6tables-save")),
            ("sysctls", sysctls(world)),
            ("files", STATE.iter().flat_map(|dir| files(world, Path::new(dir))).collect()),
            ("processes", processes(world)),
        ]);
        Self { sections }
    }

    /// Every difference, as `section: - line` (only before) and `section: + line` (only after).
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (section, before) in &self.sections {
            let now = &after.sections[section];
            differences.extend(before.difference(now).map(|line| format!("{section}: - {line}")));
            differences.extend(now.difference(before).map(|line| format!("{section}: + {line}")));
        }
        differences
    }

    /// Asserts that the host of `world` is as it was, once everything on its way out is gone.
    ///
    /// # Panics
    /// With every difference.
    #[track_caller]
    pub fn assert_unchanged(&self, world: &World) {
        self.assert_unchanged_but(world, &[]);
    }

    /// The same, where differences that contain one of `expected` do not count.
    ///
    /// # Panics
    /// With every other difference.
    #[track_caller]
    pub fn assert_unchanged_but(&self, world: &World, expected: &[&str]) {
        let unexpected = || {
            let mut differences = self.differences(&Self::of(world));
            differences.retain(|line| !expected.iter().any(|part| line.contains(part)));
            differences
        };
        // The kernel and detached processes take a moment to go: look again, for half a minute at most.
        let end = Instant::now() + Duration::from_secs(30);
        let mut left = unexpected();
        while !left.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            left = unexpected();
        }
        if left.is_empty() {
            return;
        }
        let mut text = String::from("the host is not as it was:");
        for line in left {
            let _infallible = write!(text, "\n  {line}");
        }
        panic!("{text}");
    }

    /// Asserts that nothing of any container is left on the host of `world`, where there was none before: what is
    /// [`KEPT`](Self::KEPT) and these bridges themselves, not their ports and rules, stay by intent, as does what
    /// `kept` are parts of.
    ///
    /// # Panics
    /// With everything else.
    #[track_caller]
    pub fn assert_nothing_is_left(&self, world: &World, bridges: &[&str], kept: &[&str]) {
        // Without an index behind it, a name is followed by a colon.
        let of_bridge = |name: &&str| {
            let link = ["", ":"].map(|end| format!("links: + {name}{end} "));
            link.into_iter().chain([format!("addresses: + {name} "), format!(" dev {name} ")])
        };
        let bridges: Vec<String> = bridges.iter().flat_map(of_bridge).collect();
        let bridges: Vec<&str> = bridges.iter().map(String::as_str).collect();
        self.assert_unchanged_but(world, &[&Self::KEPT[..], &bridges, kept].concat());
    }

    /// The lines of one section.
    pub fn section(&self, name: &str) -> &BTreeSet<String> {
        &self.sections[name]
    }
}

/// A line without interface indices, counters and the state of a link that comes and goes with its users.
fn without_numbers(line: &str) -> String {
    let line = line.trim();
    if line.starts_with('#') {
        return String::new();
    }
    let after_index = match line.split_once(": ") {
        Some((index, rest)) if index.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => line,
    };
    let mut words = after_index.split_whitespace();
    let mut kept: Vec<&str> = Vec::new();
    while let Some(word) = words.next() {
        if FOLLOWED_BY_A_NUMBER.contains(&word) || word.ends_with("_timer") {
            words.next();
        } else if !(word.starts_with('[') && word.ends_with(']')) && word != "linkdown" {
            kept.push(word.split('@').next().unwrap_or(word));
        }
    }
    // Carrier is noticed some time after it has come or gone.
    kept.join(" ").replace("NO-CARRIER,", "").replace(",LOWER_UP", "")
}

fn sysctls(world: &World) -> BTreeSet<String> {
    let value = |name: &str| world.host().run(&format!("cat /proc/sys/{name}")).stdout.trim().to_owned();
    SYSCTLS.iter().map(|name| format!("{name} = {}", value(name))).collect()
}

/// Every file below `dir`, with its content where it is a lease.
fn files(world: &World, dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = std::fs::read_dir(world.path(dir)) else {
        if world.path(dir).exists() {
            found.insert(dir.display().to_string());
        }
        return found;
    };
    for entry in entries.filter_map(Result::ok) {
        let path = dir.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.append(&mut files(world, &path));
        } else {
            let is_lease = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.replace('_', ":").parse::<std::net::IpAddr>().is_ok());
            let content = if is_lease { std::fs::read_to_string(entry.path()).ok() } else { None };
            let line = format!("{} {content:?}", path.display());
            if !is_of_name_server(&line) {
                found.insert(line);
            }
        }
    }
    found
}

/// The command line of every process that is not on its way out.
fn processes(world: &World) -> BTreeSet<String> {
    let listed = world.host().run("ps -e -o pid= -o stat= -o args=").success().to_owned();
    let mut processes = BTreeSet::new();
    for line in listed.lines() {
        let mut fields = line.split_whitespace();
        let (pid, state) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let command: Vec<&str> = fields.collect();
        let command = command.join(" ");
        let counts = pid != "1" && !state.starts_with('Z') && !command.starts_with("ps -e");
        if counts && !is_of_name_server(&command) {
            processes.insert(format!("{pid} {command}"));
        }
    }
    processes
}

fn is_of_name_server(line: &str) -> bool {
    NAME_SERVER.iter().any(|part| line.contains(part))
}

#[cfg(test)]
mod tests {
    use super::{Snapshot, without_numbers};

    #[test]
    fn what_the_kernel_counts_is_left_out() {
        assert_eq!(
            without_numbers("7: veth1@if2: <UP,LOWER_UP> mtu 1500 master br0 state UP link-netnsid 3"),
            "veth1 <UP> mtu 1500 master br0"
        );
        assert_eq!(without_numbers(":FORWARD ACCEPT [12:840]"), ":FORWARD ACCEPT");
        assert_eq!(without_numbers("# Generated by iptables-save"), "");
    }

    #[test]
    fn what_is_left_of_a_container_is_kept_by_no_intent() {
        for left in [
            "iptables: + :CNI-0123456789abcdef01234567 -",
            "iptables: + -A POSTROUTING -s 10.22.0.2/32 -j CNI-0123456789abcdef01234567",
            "iptables: + -A FORWARD -i br0 -m comment --comment accept-forward -j ACCEPT",
            "iptables: + :CNI-DN-0123456789abcdef01234 -",
            "nftables: + iifname \"br0\" accept comment \"cni-bridge accept-forward\"",
            "nftables: + table ip cni-names {",
            "nftables: + elements = { 10.22.0.2 comment \"mynet/c1/eth0\" }",
            "links: + veth0123456789a: <BROADCAST> mtu 1500 master br0 bridge_slave priority 32 forward_delay 1500",
            "files: + /var/lib/cni/networks/mynet/10.22.0.2 Some(\"c1\\r\\neth0\")",
        ] {
            assert!(!Snapshot::KEPT.iter().any(|part| left.contains(part)), "{left}");
        }
    }
}
