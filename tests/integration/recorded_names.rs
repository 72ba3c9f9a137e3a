//! What the table "Beside others" in `plugins/alias-dns/README.md` says of others is what they were seen to do.
//!
//! Each of them was told the same story, by `scripts/test others`, and what it answered is kept among the fixtures, in
//! sections that are headed as the table's rows are. Here every cell of theirs is held against its section; those of
//! ours have tests, which the table's last column names and which have to exist.

use std::fs;
use std::path::Path;

/// The table's columns that were recorded, in its order, and the recordings.
const RECORDINGS: [(&str, &str); 3] = [
    ("Docker", include_str!("../fixtures/docker-20.10-names.txt")),
    ("aardvark-dns", include_str!("../fixtures/aardvark-dns-2.1-names.txt")),
    ("dnsname", include_str!("../fixtures/dnsname-1.3-names.txt")),
];

const README: &str = include_str!("../../plugins/alias-dns/README.md");

/// A command of a section, and what of its output a cell rests on.
struct Seen {
    /// How the line with the command begins.
    step: &'static str,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
}

/// A cell, and what shows it, in the order of the section.
type Claim = (&'static str, &'static [Seen]);

/// A row, and what is said of each that was recorded.
type Row = (&'static str, [Claim; 3]);

const fn seen(step: &'static str, has: &'static [&'static str]) -> Seen {
    Seen { step, has, lacks: &[] }
}

/// As [`seen`], and the server outside was not asked.
const fn kept(step: &'static str, has: &'static [&'static str]) -> Seen {
    Seen { step, has, lacks: &["upstream:"] }
}

const NO_LINKS: Claim = ("no", &[seen("host$ podman run --detach --name l1 ", &["unknown flag: --link"])]);
const REFUSED: &[&str] = &["connection refused"];
const N1: &[&str] = &["ANSWER: 1,", "A\t172.20.0.2"];
const NODATA: &[&str] = &["NOERROR", "ANSWER: 0, AUTHORITY: 0"];
const NXDOMAIN: &[&str] = &["NXDOMAIN", "ANSWER: 0, AUTHORITY: 0"];

const NAMES: Claim = (
    "yes",
    &[kept("n2$ dig n1 @", N1), kept("n2$ dig centos-1 @", N1), kept("n2$ dig SHORT-ID-OF-n1 @", N1)],
);
const NO_NETWORK: Claim = ("no", &[seen("n2$ dig n1.testnet @", &["NXDOMAIN", "upstream: A n1.testnet"])]);
const BARE_ONES_ELSEWHERE: Claim = (
    "NXDOMAIN without SOA; bare ones asked for elsewhere",
    &[seen("n2$ dig nosuch @", &["upstream: A nosuch"]), kept("n2$ dig nosuch.dns.podman @", NXDOMAIN)],
);
const EVERY_NAME: Claim = ("gets every name", &[kept("stranger$ dig n1 @172.20.0.1", N1)]);
const TRUNCATED: Claim = (
    "TC, then TCP",
    &[
        seen("n2$ dig +noedns +ignore many @", &[" tc ", "MSG SIZE  rcvd: 502"]),
        seen("n2$ dig +noedns many @", &["Truncated, retrying in TCP mode", "ANSWER: 35,"]),
    ],
);

const ROWS: [Row; 12] = [
    ("name, alias, short id", [NAMES, NAMES, NAMES]),
    ("`name.network`", [("yes", &[kept("n2$ dig n1.testnet @", N1)]), NO_NETWORK, NO_NETWORK]),
    (
        "private links, by name at query time",
        [
            (
                "yes",
                &[
                    kept("l1$ dig lnk @", &["A\t172.20.1.1"]),
                    seen("n2$ dig lnk @", &["NXDOMAIN"]),
                    kept("l1$ dig lnk @", &["A\t172.20.1.2"]),
                ],
            ),
            NO_LINKS,
            NO_LINKS,
        ],
    ),
    // The order of nine answers says more than what one of them has: see below.
    ("shared alias", [("shuffled", &[]), ("fixed order", &[]), ("rotated", &[])]),
    (
        "reverse",
        [
            ("`name.network.`, one", &[kept("n2$ dig -x ", &["ANSWER: 1,", "PTR\tn1.testnet."])]),
            (
                "all names, bare",
                &[Seen {
                    step: "n2$ dig -x ",
                    has: &[
                        "ANSWER: 4,",
                        "PTR\tn1.",
                        "PTR\tcentos-1.",
                        "PTR\tshared.",
                        "PTR\tSHORT-ID-OF-n1.",
                    ],
                    lacks: &["podman.", "upstream:"],
                }],
            ),
            ("`name.domain.`, one", &[kept("n2$ dig -x ", &["ANSWER: 1,", "PTR\tn1.dns.podman."])]),
        ],
    ),
    (
        "other types of a known name",
        [
            (
                "AAAA and MX: NODATA without SOA; others asked for elsewhere",
                &[
                    kept("n2$ dig n1 AAAA @", NODATA),
                    kept("n2$ dig n1 MX @", NODATA),
                    seen("n2$ dig n1 TXT @", &["upstream: TXT n1"]),
                    seen("n2$ dig n1 SRV @", &["upstream: SRV n1"]),
                    seen("n2$ dig n1.testnet SRV @", &["upstream: SRV n1.testnet"]),
                    seen("n2$ dig n1 HTTPS @", &["upstream: HTTPS n1"]),
                ],
            ),
            (
                "AAAA: NODATA without SOA; others asked for elsewhere, below the domain NXDOMAIN",
                &[
                    kept("n2$ dig n1 AAAA @", NODATA),
                    seen("n2$ dig n1 MX @", &["upstream: MX n1"]),
                    kept("n2$ dig n1.dns.podman MX @", NXDOMAIN),
                    seen("n2$ dig n1 TXT @", &["upstream: TXT n1"]),
                    kept("n2$ dig n1.dns.podman TXT @", NXDOMAIN),
                    seen("n2$ dig n1 HTTPS @", &["upstream: HTTPS n1"]),
                    kept("n2$ dig n1.dns.podman HTTPS @", NXDOMAIN),
                ],
            ),
            (
                "asked for elsewhere, below the domain NODATA without SOA",
                &[
                    seen("n2$ dig n1 AAAA @", &["upstream: AAAA n1"]),
                    kept("n2$ dig n1.dns.podman AAAA @", NODATA),
                    seen("n2$ dig n1 TXT @", &["upstream: TXT n1"]),
                    kept("n2$ dig n1.dns.podman TXT @", NODATA),
                    seen("n2$ dig n1 HTTPS @", &["upstream: HTTPS n1"]),
                    kept("n2$ dig n1.dns.podman HTTPS @", NODATA),
                ],
            ),
        ],
    ),
    (
        "unknown name of a network",
        [
            (
                "asked for elsewhere",
                &[
                    seen("n2$ dig nosuch @", &["upstream: A nosuch"]),
                    seen("n2$ dig nosuch.testnet @", &["upstream: A nosuch.testnet"]),
                ],
            ),
            BARE_ONES_ELSEWHERE,
            BARE_ONES_ELSEWHERE,
        ],
    ),
    (
        "name that only stands above others",
        [
            (
                "asked for elsewhere",
                &[
                    kept("n2$ dig a.b @", &["ANSWER: 1,"]),
                    seen("n2$ dig b @", &["NXDOMAIN", "upstream: A b"]),
                    kept("n2$ dig a.b.testnet @", &["ANSWER: 1,"]),
                    seen("n2$ dig b.testnet @", &["NXDOMAIN", "upstream: A b.testnet"]),
                ],
            ),
            (
                "asked for elsewhere, below the domain NXDOMAIN",
                &[
                    kept("n2$ dig a.b @", &["ANSWER: 1,"]),
                    seen("n2$ dig b @", &["NXDOMAIN", "upstream: A b"]),
                    kept("n2$ dig a.b.dns.podman @", &["ANSWER: 1,"]),
                    kept("n2$ dig b.dns.podman @", NXDOMAIN),
                ],
            ),
            (
                "asked for elsewhere, then NODATA without SOA",
                &[
                    kept("n2$ dig a.b @", &["ANSWER: 1,"]),
                    seen("n2$ dig b @", &["NOERROR", "ANSWER: 0, AUTHORITY: 0", "upstream: A b"]),
                ],
            ),
        ],
    ),
    (
        "names of several networks",
        [
            (
                "yes",
                &[
                    seen("both$ getent hosts n1", &["172.20.0.2"]),
                    seen("both$ getent hosts x1", &["172.21.0.2"]),
                ],
            ),
            (
                "yes",
                &[
                    seen("both$ getent hosts n1", &["172.20.0.2"]),
                    seen("both$ getent hosts x1", &["172.21.0.2"]),
                ],
            ),
            (
                "first name server only",
                &[
                    seen("both$ cat /etc/resolv.conf", &["nameserver 172.20.0.1", "nameserver 172.21.0.1"]),
                    seen("both$ getent hosts n1", &["172.20.0.2"]),
                    seen("both$ getent hosts x1", &["exit status 2"]),
                ],
            ),
        ],
    ),
    (
        "unknown source on the bridge",
        [
            (
                "cannot ask",
                &[
                    seen("stranger$ dig n1 @172.20.0.1", REFUSED),
                    seen("stranger$ dig n1 @172.20.0.2", REFUSED),
                ],
            ),
            EVERY_NAME,
            EVERY_NAME,
        ],
    ),
    (
        "more addresses than fit",
        [
            TRUNCATED,
            (
                "no TC, over the limit",
                &[Seen {
                    step: "n2$ dig +noedns +ignore many @",
                    has: &["ANSWER: 35,", "MSG SIZE  rcvd: 582"],
                    lacks: &[" tc "],
                }],
            ),
            TRUNCATED,
        ],
    ),
    (
        "after a kill of the server",
        [
            (
                "with the next dockerd, which ends the containers unless `--live-restore`",
                &[
                    seen("n2$ dig n1 @", REFUSED),
                    seen("host$ docker ps ", &["n2:exited", "n1:exited"]),
                    seen("n2$ dig n1 @", N1),
                    seen("n2$ dig n1 @", REFUSED),
                    seen("host$ dockerd --live-restore", &[]),
                    seen("host$ docker ps ", &["n2:running", "n1:running"]),
                    seen("n2$ dig n1 @", N1),
                ],
            ),
            (
                "next setup",
                &[
                    seen("n2$ dig n1 @", REFUSED),
                    seen("host$ podman run --detach --name x2 --network testnet2 ", &[]),
                    seen("n2$ dig n1 @", N1),
                ],
            ),
            (
                "next ADD on the network",
                &[
                    seen("n2$ dig n1 @", REFUSED),
                    seen("host$ podman run --detach --name x2 --network testnet2 ", &[]),
                    seen("n2$ dig n1 @", REFUSED),
                    seen("host$ podman run --detach --name n4 --network testnet ", &[]),
                    seen("n2$ dig n1 @", N1),
                ],
            ),
        ],
    ),
];

/// The table's rows, each with its cells.
fn table() -> Vec<Vec<&'static str>> {
    let section = README.split("\n## Beside others\n").nth(1).expect("the README has the section");
    let lines =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// A command as it was typed, and the lines that it printed.
type Step = (&'static str, Vec<&'static str>);

/// The sections of a recording: the heading, and the steps.
fn sections(recording: &'static str) -> Vec<(&'static str, Vec<Step>)> {
    let section = |text: &'static str| {
        let mut lines = text.lines();
        let title = lines.next().unwrap_or_default();
        let mut steps: Vec<Step> = Vec::new();
        for line in lines {
            let who = line.split_once("$ ").map_or("", |(who, _)| who);
            if !who.is_empty() && who.chars().all(|letter| letter.is_ascii_alphanumeric()) {
                steps.push((line, Vec::new()));
            } else if let Some((_, output)) = steps.last_mut() {
                output.push(line);
            }
        }
        (title, steps)
    };
    recording.split("\n== ").skip(1).map(section).collect()
}

/// In which order the answers have the addresses that they share.
fn order(answers: &[&[&str]]) -> &'static str {
    let follows = |pair: &[&[&str]]| {
        pair[0][1..] == pair[1][..pair[1].len() - 1] && pair[0][0] == pair[1][pair[1].len() - 1]
    };
    if answers.windows(2).all(|pair| pair[0] == pair[1]) {
        "fixed order"
    } else if answers.windows(2).all(follows) {
        "rotated"
    } else {
        "shuffled"
    }
}

/// Asserts that the steps of a section show what is `seen`, in its order.
#[track_caller]
fn assert_shows(place: &str, steps: &[Step], seen: &[Seen]) {
    let mut rest = steps.iter();
    for Seen { step, has, lacks } in seen {
        let (_, output) = rest
            .find(|(typed, _)| typed.starts_with(step))
            .unwrap_or_else(|| panic!("{place}: nobody ran {step:?} then"));
        let printed = |text: &str| output.iter().any(|line| line.contains(text));
        for text in *has {
            assert!(printed(text), "{place}: {step:?} has no {text:?}: {output:#?}");
        }
        for text in *lacks {
            assert!(!printed(text), "{place}: {step:?} has {text:?}: {output:#?}");
        }
    }
}

/// The Rust sources below a directory of the workspace.
fn sources(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display()));
    let mut sources = Vec::new();
    for path in entries.map(|entry| entry.expect("an entry of the workspace").path()) {
        if path.is_dir() {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            );
        }
    }
    sources
}

#[test]
fn what_the_readme_says_of_ours_names_tests() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dirs = ["tests/integration", "plugins/alias-dns/src", "plugins/alias-dns/tests"];
    let sources: Vec<_> = dirs.iter().flat_map(|dir| sources(&workspace.join(dir))).collect();
    let mut above = None;
    for row in &table()[2..] {
        let cell = *row.last().expect("a row has cells");
        let names: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        above = if cell == "the same" { above } else { names.first().copied() };
        assert!(above.is_some(), "{}: {cell:?} names no test", row[0]);
        for name in names {
            // As a function or, where a program runs its tests itself, in its list of them.
            let forms = [format!("fn {name}() {{"), format!("(\"{name}\", ")];
            let found = sources.iter().any(|source| forms.iter().any(|form| source.contains(form)));
            assert!(found, "{}: there is no test {name}", row[0]);
        }
    }
}

#[test]
fn what_the_readme_says_of_others_was_seen() {
    let table = table();
    assert_eq!(table[0][1..4], RECORDINGS.map(|(system, _)| system), "the recorded columns come first");
    let titles = ROWS.map(|(title, _)| title);
    assert_eq!(table[2..].iter().map(|row| row[0]).collect::<Vec<_>>(), titles, "the rows of the README");
    for (column, (system, recording)) in RECORDINGS.into_iter().enumerate() {
        let sections = sections(recording);
        assert_eq!(
            sections.iter().map(|(title, _)| *title).collect::<Vec<_>>(),
            titles,
            "the sections of {system}"
        );
        for (((title, claims), row), (_, steps)) in ROWS.into_iter().zip(&table[2..]).zip(&sections) {
            let place = format!("{system}, {title}");
            let (cell, seen) = claims[column];
            assert_eq!(row[column + 1], cell, "{place}: the README's cell");
            if title == "shared alias" {
                let answers: Vec<&[&str]> = steps.iter().map(|(_, addresses)| &addresses[..]).collect();
                assert!(answers.iter().all(|addresses| addresses.len() == 3), "{place}: {answers:?}");
                assert_eq!((answers.len(), order(&answers)), (9, cell), "{place}: {answers:?}");
            }
            assert_shows(&place, steps, seen);
        }
    }
}
