//! What the tools of a host list, as lines that change only if something changed.

use std::collections::BTreeSet;
use std::path::Path;

use super::Lines;
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

/// Words of the listings of `ip` that are followed by a value of the kernel's own, which changes by itself.
const FOLLOWED_BY_A_NUMBER: [&str; 4] = ["expires", "link-netnsid", "qlen", "state"];

/// The processes of the name server: it stays for some seconds after the last record is gone, so it is left out here,
/// and that it goes is a story of its own.
const NAME_SERVER: [&str; 3] = ["alias-dns serve", "alias-dns supervise", "cni-names guard"];

/// Where the name server has its directories, and the files in them that are its own as its processes are.
const NAME_SERVER_STATE: &str = "/run/cni/alias-dns";
const NAME_SERVER_FILES: [&str; 3] = ["control", "lock", "opening.lock"];

/// Every section of the host of `world`.
#[track_caller]
pub(super) fn of(world: &World) -> std::collections::BTreeMap<&'static str, Lines> {
    let run = |command: &str| world.host().run(command).success().to_owned();
    let by_iptables = [("ip", run("iptables-save")), ("ip6", run("ip6tables-save"))];
    // A table of iptables is left to it: how nft words its rules differs from version to version.
    let of_iptables = by_iptables.iter().flat_map(|(family, saved)| iptables_tables(family, saved)).collect();
    let sections = [
        ("links", of_ip(&run("ip -o -d link show"))),
        ("addresses", of_ip(&run("ip -o address show scope global"))),
        ("routes", of_ip(&(run("ip -4 route show table all") + &run("ip -6 route show table all")))),
        ("neighbours", of_ip(&run("ip -o neighbour show nud permanent"))),
        ("nftables", nftables(&run("nft --stateless list ruleset"), &of_iptables)),
        ("iptables", by_iptables.iter().flat_map(|(family, saved)| iptables(family, saved)).collect()),
        ("sysctls", sysctls(world)),
        ("files", STATE.iter().flat_map(|dir| files(world, Path::new(dir))).collect()),
        ("processes", processes(world)),
    ];
    sections.map(|(section, lines)| (section, counted(lines))).into()
}

fn counted(listed: Vec<String>) -> Lines {
    let mut lines = Lines::new();
    for line in listed {
        *lines.entry(line).or_default() += 1;
    }
    lines
}

/// A listing of `ip` without what the kernel does by itself: a link gets its link-local address some time after it was
/// made, and the kernel its own local routes to an IPv6 address some time after that was added; the address itself is
/// listed.
fn of_ip(listed: &str) -> Vec<String> {
    let is_late =
        |line: &String| line.contains("fe80:") || line.contains("table local proto kernel metric 0");
    listed.lines().map(without_numbers).filter(|line| !line.is_empty() && !is_late(line)).collect()
}

/// A line without interface indices, counters and the state of a link that comes and goes with its users.
fn without_numbers(line: &str) -> String {
    let line = line.trim();
    let after_index = match line.split_once(": ") {
        Some((index, rest)) if index.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => line,
    };
    let mut words = after_index.split_whitespace();
    let mut kept: Vec<&str> = Vec::new();
    while let Some(word) = words.next() {
        if FOLLOWED_BY_A_NUMBER.contains(&word) || word.ends_with("_timer") {
            words.next();
        } else if word != "linkdown" {
            kept.push(word.split('@').next().unwrap_or(word));
        }
    }
    // Carrier is noticed some time after it has come or gone.
    kept.join(" ").replace("NO-CARRIER,", "").replace(",LOWER_UP", "")
}

/// The tables of `family` that `iptables-save` lists whole, as nft calls them.
fn iptables_tables(family: &str, saved: &str) -> Vec<String> {
    let is_whole = |name: &&str| {
        let quoted = format!("`{name}'");
        !saved.lines().any(|line| line.starts_with('#') && line.contains(&quoted))
    };
    let names = saved.lines().filter_map(|line| line.strip_prefix('*')).filter(is_whole);
    names.map(|name| format!("table {family} {name}")).collect()
}

/// What `iptables-save` lists, each line after its family and table, without counters.
fn iptables(family: &str, saved: &str) -> Vec<String> {
    let mut table = "";
    let mut lines = Vec::new();
    for line in saved.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if !line.is_empty() && !line.starts_with('#') && line != "COMMIT" {
            let line = if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line };
            lines.push(format!("{family} {table}: {line}"));
        }
    }
    lines
}

/// What `nft list ruleset` lists without the tables `of_iptables`, each line after the blocks that it stands in.
fn nftables(listed: &str, of_iptables: &BTreeSet<String>) -> Vec<String> {
    let mut blocks: Vec<&str> = Vec::new();
    let mut lines = Vec::new();
    for line in listed.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "}" {
            blocks.pop();
            continue;
        }
        let opened = line.strip_suffix(" {");
        let table = blocks.first().copied().or(opened).unwrap_or_default();
        if !of_iptables.contains(table) {
            let place: String = blocks.iter().map(|block| format!("{block}: ")).collect();
            lines.push(format!("{place}{}", opened.unwrap_or(line)));
        }
        blocks.extend(opened);
    }
    lines
}

fn sysctls(world: &World) -> Vec<String> {
    let value = |name: &str| world.host().run(&format!("cat /proc/sys/{name}")).stdout.trim().to_owned();
    SYSCTLS.iter().map(|name| format!("{name} = {}", value(name))).collect()
}

/// Every file below `dir`, with its content where it is a lease.
fn files(world: &World, dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(world.path(dir)) else {
        let is_there = world.path(dir).exists();
        return is_there.then(|| dir.display().to_string()).into_iter().collect();
    };
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let path = dir.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.append(&mut files(world, &path));
            continue;
        }
        let is_lease = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.replace('_', ":").parse::<std::net::IpAddr>().is_ok());
        let content = if is_lease { std::fs::read_to_string(entry.path()).ok() } else { None };
        let is_of_name_server = dir.starts_with(NAME_SERVER_STATE)
            && NAME_SERVER_FILES.iter().any(|name| entry.file_name() == *name);
        if !is_of_name_server {
            let path = path.display().to_string();
            found.push(content.map_or(path.clone(), |content| format!("{path}: {content:?}")));
        }
    }
    found
}

/// The command line of every process that is not on its way out.
fn processes(world: &World) -> Vec<String> {
    let listed = world.host().run("ps -e -o pid= -o stat= -o args=").success().to_owned();
    let mut processes = Vec::new();
    for line in listed.lines() {
        let mut fields = line.split_whitespace();
        let (pid, state) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let command: Vec<&str> = fields.collect();
        let command = command.join(" ");
        let counts = pid != "1" && !state.starts_with('Z') && !command.starts_with("ps -e");
        if counts && !NAME_SERVER.iter().any(|name| command.contains(name)) {
            processes.push(format!("{pid} {command}"));
        }
    }
    processes
}

#[cfg(test)]
mod tests {
    use super::{BTreeSet, iptables, iptables_tables, nftables, without_numbers};

    #[test]
    fn what_the_kernel_counts_is_left_out() {
        assert_eq!(
            without_numbers("7: veth1@if2: <UP,LOWER_UP> mtu 1500 master br0 state UP link-netnsid 3"),
            "veth1 <UP> mtu 1500 master br0"
        );
    }

    #[test]
    fn a_line_of_iptables_tells_its_table() {
        let saved =
            "# Generated by iptables-save\n*nat\n:OUTPUT ACCEPT [12:840]\n-A OUTPUT -j ACCEPT\nCOMMIT\n";
        assert_eq!(iptables("ip", saved), ["ip nat: :OUTPUT ACCEPT", "ip nat: -A OUTPUT -j ACCEPT"]);
        assert_eq!(iptables_tables("ip", saved), ["table ip nat"]);
        let half =
            format!("{saved}# Table `nat' contains incompatible base-chains, use 'nft' tool to list them.\n");
        assert_eq!(iptables_tables("ip", &half), [] as [&str; 0]);
    }

    #[test]
    fn a_line_of_nft_tells_its_table_and_chain() {
        let listed = "table ip nat {\n\tchain OUTPUT {\n\t\tcounter accept\n\t}\n}\n\
            table inet t {\n\tset s {\n\t\telements = { 10.0.0.1,\n\t\t\t     10.0.0.2 }\n\t}\n}\n";
        let of_iptables = BTreeSet::from(["table ip nat".to_owned()]);
        let told = ["table inet t", "table inet t: set s", "table inet t: set s: elements = { 10.0.0.1,"];
        assert_eq!(nftables(listed, &of_iptables)[..3], told);
        assert_eq!(nftables(listed, &of_iptables)[3..], ["table inet t: set s: 10.0.0.2 }"]);
        assert_eq!(nftables(listed, &BTreeSet::new())[2], "table ip nat: chain OUTPUT: counter accept");
    }
}
