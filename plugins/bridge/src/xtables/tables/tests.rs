use ipnetwork::IpNetwork;
use nft_netlink::CtState;
use proptest::prelude::*;

use super::*;

/// A rule as words: `i=NAME`, `o=NAME`, `o!NAME` test interfaces, `NAME+` their start; `p` a protocol, `m=NAME` is a
/// match, `s=BITS` and `s!BITS` one of states of connection tracking, and `s1=BITS` an older one; `f=NETWORK`, `t=NETWORK`
/// and `f!NETWORK` test source and destination; the last word is the target: `A`, `D`, `R` for verdicts, `-` for none, `>N` and `=N` to chain N, else its name.
fn entry(layout: &Layout, at: usize, words: &str, chains: &[usize]) -> Vec<u8> {
    let mut entry = vec![0; layout.matches];
    let mut matches = Vec::new();
    let (target, tests) = words.rsplit_once(' ').map_or((words, ""), |(tests, target)| (target, tests));
    for test in tests.split_whitespace() {
        let (what, name) = test.split_at(1);
        let name = name.get(1..).unwrap_or_default();
        if what == "p" {
            entry[layout.inverted - if layout.level == libc::SOL_IP { 3 } else { 4 }] = 6;
        } else if what == "m" {
            let mut found = vec![0; HEAD + 8];
            found[..2].copy_from_slice(&40_u16.to_ne_bytes());
            found[2..2 + name.len()].copy_from_slice(name.as_bytes());
            matches.extend(found);
        } else if what == "s" {
            let mut found = vec![0; HEAD + 168];
            let (revision, states) = test.strip_prefix("s1=").map_or((3, name), |states| (1, states));
            found[..2].copy_from_slice(&200_u16.to_ne_bytes());
            found[2..11].copy_from_slice(b"conntrack");
            found[HEAD - 1] = revision;
            found[HEAD + 146] = 1;
            found[HEAD + 148] = u8::from(test.contains('!'));
            found[HEAD + 150] = states.parse().unwrap();
            matches.extend(found);
        } else if what == "f" || what == "t" {
            let network: IpNetwork = name.parse().unwrap();
            let (len, index) = (layout.address, usize::from(what == "t"));
            entry[index * len..][..len].copy_from_slice(&address_key(network.network()));
            entry[(2 + index) * len..][..len].copy_from_slice(&address_key(network.mask()));
            entry[layout.inverted] |= if test.contains('!') { INVERTED_SOURCE << index } else { 0 };
        } else {
            let index = usize::from(what == "o");
            let place = layout.interfaces + index * IFNAME;
            let tested = name.strip_suffix('+').map_or(name.len() + 1, str::len);
            entry[place..place + name.len()].copy_from_slice(name.as_bytes());
            entry[place + 2 * IFNAME..][..tested].fill(0xff);
            entry[layout.inverted] |= u8::from(test.contains('!')) << index;
        }
    }
    let len = layout.matches + matches.len() + HEAD + 8;
    let chain = |number: &str| chains[number.parse::<usize>().unwrap()] as i32;
    let (name, verdict) = match target.split_at(1) {
        ("A", "") => ("", -2),
        ("D", "") => ("", -1),
        ("R", "") => ("", -5),
        ("-", "") => ("", (at + len) as i32),
        (">", number) => ("", chain(number)),
        ("=", number) => {
            entry[layout.flags] |= layout.flag_goto;
            ("", chain(number))
        }
        _ => (target, 0),
    };
    entry[layout.target_offset..][..2]
        .copy_from_slice(&((layout.matches + matches.len()) as u16).to_ne_bytes());
    entry[layout.next_offset..][..2].copy_from_slice(&(len as u16).to_ne_bytes());
    entry.extend(matches);
    let mut head = vec![0; HEAD];
    head[..2].copy_from_slice(&((HEAD + 8) as u16).to_ne_bytes());
    head[2..2 + name.len()].copy_from_slice(name.as_bytes());
    entry.extend(head);
    entry.extend(verdict.to_ne_bytes());
    entry.extend([0; 4]);
    entry
}

/// The header of a chain: an error with its name.
fn header(layout: &Layout, name: &str) -> Vec<u8> {
    let mut entry = entry(layout, 0, "ERROR", &[]);
    let data = entry.len() - 8;
    entry[data..][..name.len()].copy_from_slice(name.as_bytes());
    entry
}

/// A table with these rules in its forward chain, that policy, and chains `c0`, `c1` and so on with the rules of
/// `chains`.
fn table(layout: &Layout, forward: &[&str], policy: &str, chains: &[&[&str]]) -> (Vec<u8>, Vec<u8>) {
    let mut begins = vec![0; chains.len()];
    let mut laid_out = (Vec::new(), Vec::new());
    // Where chains begin is known the second time.
    for _ in 0..2 {
        let (mut info, mut entries) = (vec![0; INFO], Vec::new());
        let put = |entries: &mut Vec<u8>, words: &str| {
            entries.extend(entry(layout, entries.len(), words, &begins));
        };
        let mut hooks = Vec::new();
        for (rules, policy) in [(&[][..], "A"), (forward, policy), (&[], "A")] {
            let begin = entries.len();
            rules.iter().for_each(|words| put(&mut entries, words));
            hooks.push((begin, entries.len()));
            put(&mut entries, policy);
        }
        let mut found = Vec::new();
        for (index, rules) in chains.iter().enumerate() {
            entries.extend(header(layout, &format!("c{index}")));
            found.push(entries.len());
            rules.iter().for_each(|words| put(&mut entries, words));
            put(&mut entries, "R");
        }
        entries.extend(header(layout, "ERROR"));
        info[TABLE_NAME..][..4].copy_from_slice(&0b1110_u32.to_ne_bytes());
        for (index, (begin, end)) in hooks.iter().enumerate() {
            let place = TABLE_NAME + 4 + 4 * (index + 1);
            info[place..][..4].copy_from_slice(&(*begin as u32).to_ne_bytes());
            info[place + 20..][..4].copy_from_slice(&(*end as u32).to_ne_bytes());
        }
        begins = found;
        laid_out = (info, entries);
    }
    laid_out
}

#[track_caller]
fn check(forward: &[&str], policy: &str, chains: &[&[&str]], drops: Option<&str>, packet: &Packet<'_>) {
    for family in [Family::V4, Family::V6] {
        let layout = Layout::of(family);
        let (info, entries) = table(&layout, forward, policy, chains);
        let table = Table::parse(&layout, &info, &entries).unwrap();
        assert_eq!(table.drops(packet).as_deref(), drops, "{packet:?} {family:?} {table:?}");
    }
}

#[track_caller]
fn check_rest(forward: &[&str], policy: &str, chains: &[&[&str]], drops: Option<&str>) {
    check(forward, policy, chains, drops, &Packet::default());
}

#[test]
fn the_rest_is_dropped_by_the_policy_or_by_a_rule() {
    check_rest(&[], "A", &[], None);
    check_rest(&[], "D", &[], Some("policy drop"));
    check_rest(&["p D", "i=eth0 D", "m=conntrack D", "s=8 D", "-", "LOG"], "A", &[], None);
    check_rest(&["m=comment D"], "A", &[], Some("a rule of it is drop"));
    check_rest(&["p A", "REJECT"], "A", &[], Some("a rule of it is reject"));
    check_rest(&["R"], "D", &[], Some("policy drop"));
}

#[test]
fn chains_are_followed() {
    check_rest(&[">1"], "A", &[&["D"], &["p A", "REJECT"]], Some("a rule of its chain c1 is reject"));
    check_rest(&[">0", "D"], "A", &[&["p D"]], Some("a rule of it is drop"));
    check_rest(&["=0", "D"], "A", &[&["p D"]], None);
    check_rest(&[">0"], "D", &[&["i=br0 A"]], Some("policy drop"));
}

#[test]
fn a_packet_passes_where_its_interfaces_and_its_state_are_all_that_is_tested() {
    let interface = |name: &str| nft_netlink::Interface { name: name.to_owned(), index: 0 };
    let (link, beyond) = (interface("br0"), interface("eth0"));
    let new = Some(CtState::New);
    let opening = Packet { from: Some(&link), to: Some(&beyond), state: new, ..Packet::default() };
    let state = Some(CtState::Established);
    let reply = Packet { from: Some(&beyond), to: Some(&link), state, ..Packet::default() };
    for (rules, opens, replies) in [
        (&["i=br0 A"][..], true, false),
        (&["o=br0 A"], false, true),
        (&["m=comment i=br0 A"], true, false),
        (&["i=br0 o!br0 A"], true, false),
        (&["i=br+ A"], true, false),
        (&["i=br A"], false, false),
        (&["i=br01 A"], false, false),
        (&["o!br0 A"], true, false),
        (&["i!br0 A"], false, true),
        (&["i=eth0 o!br0 A"], false, false),
        (&["i=br0 o=eth0 A"], true, false),
        (&["i=br0 o=eth1 A"], false, false),
        (&["i=br0 p A"], false, false),
        (&["i=br0 m=conntrack A"], false, false),
        (&["i=br0 -"], false, false),
        (&["i=br0 LOG"], false, false),
        (&["s=6 A"], false, true),
        (&["s=8 A"], true, false),
        (&["s!1 A"], true, true),
        (&["s1=2 A"], false, true),
        (&["s=2 i=br0 A"], false, false),
        (&["s=2 i=br0 m=mark A"], false, false),
        (&["i=br0 D", "i=br0 A"], false, false),
        (&["i=br0 >0"], true, false),
        (&["i=eth1 >0"], false, false),
        (&["p >0"], false, false),
    ] {
        for (packet, passes) in [(opening, opens), (reply, replies)] {
            let drops = match (passes, rules) {
                (true, _) => None,
                (false, ["i=br0 D", ..]) if packet.state == Some(CtState::New) => {
                    Some("a rule of it is drop")
                }
                (false, _) => Some("policy drop"),
            };
            check(rules, "D", &[&["A"]], drops, &packet);
        }
    }
}

#[test]
fn addresses_pick_out_what_is_theirs() {
    let check_with = |family: Family, rule: &str, source: &str, destination: &str, passes: bool| {
        let layout = Layout::of(family);
        let (info, entries) = table(&layout, &[rule], "D", &[]);
        let table = Table::parse(&layout, &info, &entries).unwrap();
        let packet = Packet {
            source: source.parse().ok(),
            destination: destination.parse().ok(),
            ..Packet::default()
        };
        assert_eq!(table.drops(&packet).is_none(), passes, "{rule} {packet:?} {table:?}");
    };
    for (rule, source, destination, passes) in [
        ("f=10.9.0.0/16 A", "10.9.200.2", "", true),
        ("f=10.9.0.2/32 A", "10.9.0.2", "", true),
        ("t=10.9.0.0/20 A", "", "10.9.15.2", true),
        ("f!10.8.0.0/16 A", "10.9.0.2", "", true),
        ("f=10.8.0.0/15 t=0.0.0.0/0 A", "10.9.0.2", "", true),
        ("f=10.8.0.0/16 A", "10.9.0.2", "", false),
        ("f=10.9.0.2/32 A", "10.9.0.3", "", false),
        ("t=10.9.0.0/20 A", "", "10.9.16.2", false),
        ("t=10.9.0.0/16 A", "10.9.0.2", "", false),
        ("t!10.8.0.0/16 A", "10.9.0.2", "", false),
        ("f!10.9.0.0/16 A", "10.9.0.2", "", false),
        ("f!0.0.0.0/0 A", "10.9.0.2", "", false),
        ("f=10.9.0.0/16 p A", "10.9.0.2", "", false),
    ] {
        check_with(Family::V4, rule, source, destination, passes);
    }
    check_with(Family::V6, "f=fd00:9::/64 A", "fd00:9::2", "", true);
    check_with(Family::V6, "t=fd00:9::2/128 A", "", "fd00:9::2", true);
    check_with(Family::V6, "t=fd00:9::/64 A", "", "fd00:9:0:1::2", false);
}

proptest! {
    #[test]
    fn what_is_no_table_makes_nothing_panic(
        info in prop::collection::vec(0_u8..3, 0..INFO + 2),
        entries in prop::collection::vec(any::<u8>(), 0..600),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        for family in [Family::V4, Family::V6] {
            let layout = Layout::of(family);
            drop(Table::parse(&layout, &info, &entries));
            let (info, mut entries) = table(&layout, &["m=comment s=2 >0"], "D", &[&["m=x p D"]]);
            for (place, byte) in &places {
                let place = place.index(entries.len());
                entries[place] = *byte;
            }
            if let Some(table) = Table::parse(&layout, &info, &entries) {
                table.drops(&Packet { state: Some(CtState::New), ..Packet::default() });
            }
        }
    }
}
