//! What stays on a host by intent, as patterns of whole differences.

/// What an allocator of the layout of host-local keeps besides leases: its place in each range, its lock and its index.
pub(super) const OF_THE_ALLOCATOR: [&str; 3] = [
    "files: + /var/lib/*/last_reserved_ip.*",
    "files: + /var/lib/*/lock",
    "files: + /var/lib/*/.host-local-ipam/*.index",
];

/// What may stay when a host's last container is gone: forwarding, and the tables and chains
/// of the reference's portmap and firewall, as they are when they hold nothing of a container.
pub(super) const KEPT: [&str; 23] = [
    "sysctls: - net/ipv4/ip_forward = 0",
    "sysctls: + net/ipv4/ip_forward = 1",
    "sysctls: - net/ipv6/conf/all/forwarding = 0",
    "sysctls: + net/ipv6/conf/all/forwarding = 1",
    "iptables: + * nat: :PREROUTING ACCEPT",
    "iptables: + * nat: :INPUT ACCEPT",
    "iptables: + * nat: :OUTPUT ACCEPT",
    "iptables: + * nat: :POSTROUTING ACCEPT",
    "iptables: + * filter: :INPUT ACCEPT",
    "iptables: + * filter: :FORWARD ACCEPT",
    "iptables: + * filter: :OUTPUT ACCEPT",
    // Of portmap.
    "iptables: + * nat: :CNI-HOSTPORT-DNAT -",
    "iptables: + * nat: :CNI-HOSTPORT-MASQ -",
    "iptables: + * nat: :CNI-HOSTPORT-SETMARK -",
    "iptables: + * nat: -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    "iptables: + * nat: -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    "iptables: + * nat: -A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ",
    "iptables: + * nat: -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
    "iptables: + * nat: -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" \
     -j MARK --set-xmark 0x2000/0x2000",
    // Of firewall.
    "iptables: + * filter: :CNI-ADMIN -",
    "iptables: + * filter: :CNI-FORWARD -",
    "iptables: + * filter: -A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD",
    "iptables: + * filter: -A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN",
];

/// What the reference's firewall keeps of a bridge that it isolated.
pub(super) const OF_THE_REFERENCES_ISOLATION: [&str; 7] = [
    "iptables: + * filter: :CNI-ISOLATION-STAGE-1 -",
    "iptables: + * filter: :CNI-ISOLATION-STAGE-2 -",
    "iptables: + * filter: -A FORWARD -m comment --comment \"*\" -j CNI-ISOLATION-STAGE-1",
    "iptables: + * filter: -A CNI-ISOLATION-STAGE-1 -i * ! -o * -m comment --comment \"*\" -j CNI-ISOLATION-STAGE-2",
    "iptables: + * filter: -A CNI-ISOLATION-STAGE-1 -m comment --comment \"*\" -j RETURN",
    "iptables: + * filter: -A CNI-ISOLATION-STAGE-2 -o * -m comment --comment \"*\" -j DROP",
    "iptables: + * filter: -A CNI-ISOLATION-STAGE-2 -m comment --comment \"*\" -j RETURN",
];

/// What stays by intent when the last container is gone: [`KEPT`], [`OF_THE_ALLOCATOR`] and these bridges themselves,
/// not their ports and rules.
pub(super) fn after_the_last(bridges: &[&str]) -> Vec<String> {
    let constant = KEPT.iter().chain(&OF_THE_ALLOCATOR).map(|&pattern| pattern.to_owned());
    constant.chain(of_bridges(bridges)).collect()
}

fn of_bridges(names: &[&str]) -> impl Iterator<Item = String> {
    let of_bridge = |name: &&str| {
        // Without an index behind it, a name is followed by a colon.
        let links = ["", ":"].map(|end| format!("links: + {name}{end} *"));
        let others = [
            format!("addresses: + {name} *"),
            format!("routes: + * dev {name} *"),
            format!("routes: + * dev {name}"),
        ];
        links.into_iter().chain(others)
    };
    names.iter().flat_map(of_bridge)
}

/// Whether `pattern`, in which each `*` stands for any text, is the whole of `line`.
pub(super) fn matches(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == line };
    let Some(mut line) = line.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = line.find(piece) else { return false };
        line = &line[at + piece.len()..];
    }
    line.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::{after_the_last, matches};

    #[test]
    fn a_pattern_is_of_the_whole_line() {
        assert!(
            matches("a*c*e", "abcde") && matches("a*", "a") && matches("a", "a") && matches("*b*", "abc")
        );
        for line in ["abcdef", "xabcde", "abde", "ae", ""] {
            assert!(!matches("a*c*e", line), "{line}");
        }
        assert!(!matches("ab*bc", "abc") && !matches("a", "ab") && !matches("", "a"));
    }

    #[test]
    fn what_is_left_of_a_container_is_kept_by_no_intent() {
        let kept = after_the_last(&["br0"]);
        for left in [
            "iptables: + ip nat: :CNI-0123456789abcdef01234567 -",
            "iptables: + ip nat: -A POSTROUTING -s 10.22.0.2/32 -j CNI-0123456789abcdef01234567",
            "iptables: + ip filter: -A FORWARD -i br0 -m comment --comment accept-forward -j ACCEPT",
            "iptables: + ip nat: :CNI-DN-0123456789abcdef01234 -",
            "nftables: + table inet cni-bridge: chain forward: iifname \"br0\" accept",
            "nftables: + table ip cni-names",
            "nftables: + table inet cni-bridge: set s: elements = { 10.22.0.2 comment \"mynet/c1/eth0\" }",
            "links: + veth0123456789a: <BROADCAST> mtu 1500 master br0 bridge_slave priority 32 forward_delay 1500",
            "files: + /var/lib/cni/networks/mynet/10.22.0.2: \"c1\\r\\neth0\"",
        ] {
            assert!(!kept.iter().any(|pattern| matches(pattern, left)), "{left}");
        }
    }
}
