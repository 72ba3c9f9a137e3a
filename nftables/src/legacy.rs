//! Tables of `iptables-legacy`, which nf_tables knows nothing of.

use crate::Family;

/// Whether a table of `iptables-legacy` of IPv4 or IPv6 is in use in this network namespace.
pub fn is_legacy_table_in_use(family: Family, table: &str) -> bool {
    let names = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
        Family::Inet | Family::Bridge | Family::Arp | Family::Netdev => return false,
    };
    // A kernel without these tables has no such file.
    std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == table))
}
