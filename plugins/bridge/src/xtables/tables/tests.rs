use proptest::prelude::*;

use super::*;

/// A rule as words: `i=NAME`, `o=NAME`, `o!NAME` test interfaces, `NAME+` their start; `p` a protocol, `m=NAME` is a
/// match; the last word is the target: `A`, `D`, `R` for verdicts, `-` for none, `>N` and `=N` to chain N, else its name.
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
fn check(forward: &[&str], policy: &str, chains: &[&[&str]], drops: Option<&str>, accepts: bool) {
    for family in [Family::V4, Family::V6] {
        let layout = Layout::of(family);
        let (info, entries) = table(&layout, forward, policy, chains);
        let table = Table::parse(&layout, &info, &entries).unwrap();
        assert_eq!(table.drops().as_deref(), drops, "{family:?} {table:?}");
        assert_eq!(table.accepts("br0"), accepts, "{family:?} {table:?}");
    }
}

#[test]
fn the_rest_is_dropped_by_the_policy_or_by_a_rule() {
    check(&[], "A", &[], None, false);
    check(&[], "D", &[], Some("policy drop"), false);
    check(&["p D", "i=eth0 D", "m=conntrack D", "-", "LOG"], "A", &[], None, false);
    check(&["m=comment D"], "A", &[], Some("its last rule is drop"), false);
    check(&["p A", "REJECT"], "A", &[], Some("its last rule is reject"), false);
    check(&["R"], "D", &[], Some("policy drop"), false);
}

#[test]
fn chains_are_followed() {
    check(
        &[">1"],
        "A",
        &[&["D"], &["p A", "REJECT"]],
        Some("the last rule of its chain c1 is reject"),
        false,
    );
    check(&[">0", "D"], "A", &[&["p D"]], Some("its last rule is drop"), false);
    check(&["=0", "D"], "A", &[&["p D"]], None, false);
    check(&[">0"], "D", &[&["i=br0 A"]], Some("policy drop"), true);
}

#[test]
fn a_rule_accepts_a_link_for_no_other_reason() {
    for (rule, accepts) in [
        ("i=br0 A", true),
        ("o=br0 A", true),
        ("m=comment i=br0 A", true),
        ("i=br0 o!br0 A", true),
        ("i=br+ A", true),
        ("i=br A", false),
        ("i=br01 A", false),
        ("o!br0 A", false),
        ("i!br0 A", false),
        ("i=eth0 o!br0 A", false),
        ("i=br0 o=eth0 A", false),
        ("i=br0 p A", false),
        ("i=br0 m=conntrack A", false),
        ("i=br0 -", false),
        ("i=br0 LOG", false),
    ] {
        check(&[rule], "D", &[], Some("policy drop"), accepts);
    }
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
            let (info, mut entries) = table(&layout, &["m=comment i=br0 >0"], "D", &[&["m=x p D"]]);
            for (place, byte) in &places {
                let place = place.index(entries.len());
                entries[place] = *byte;
            }
            if let Some(table) = Table::parse(&layout, &info, &entries) {
                table.drops();
                table.accepts("br0");
            }
        }
    }
}
