//! Against a real kernel: each test runs in a network namespace of its own, so it needs root there (or a user
//! namespace entered before).

use std::process::Command;

use nft_netlink::{
    Base, Batch, ChainKind, CtState, Element, Error, Family, Field, Holds, Hook, IptablesState, KeyType,
    MAX_COMMENT, Policy, Rule, Set, Socket, Table, Verdict, address_key, ifname_key,
};
use nix::sched::{CloneFlags, unshare};

const TABLE: Table<'static> = Table { family: Family::Inet, name: "crate-test" };
const ADDRESSES: Set<'static> = Set { name: "addresses", key: &[KeyType::Ipv4Addr], holds: Holds::Verdicts };
const PORTS: Set<'static> =
    Set { name: "ports", key: &[KeyType::Ifname, KeyType::EtherAddr], holds: Holds::Keys };

/// A namespace without rules, for the calling test's thread.
fn namespace() -> Socket {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of the test's own");
    Socket::open().unwrap()
}

/// What `nft` reads back, with `words` after `list`.
fn listed(words: &str) -> String {
    let output = Command::new("nft").arg("list").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "nft list {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> Base {
    Base { kind, hook, priority, policy: Policy::Accept }
}

fn address(text: &str) -> Vec<u8> {
    address_key(text.parse().unwrap())
}

/// One of every kind of object that the crate can write.
fn everything() -> Batch {
    let mut batch = Batch::new();
    batch.create_table(TABLE, "of the test");
    batch.create_set(TABLE, &ADDRESSES, "who is translated");
    batch.create_set(TABLE, &PORTS, "who sends from where");
    batch.create_chain(TABLE, "subnet", "gone to from nat");
    batch.create_chain(TABLE, "other", "gone to from filter");
    batch.create_base_chain(TABLE, "after", &base(ChainKind::Nat, Hook::Postrouting, 100), "translates");
    batch.create_base_chain(TABLE, "through", &base(ChainKind::Filter, Hook::Forward, -5), "filters");
    for rule in rules() {
        batch.add_rule(TABLE, "through", &rule);
    }
    batch.add_rule(TABLE, "subnet", &Rule::new().masquerade().comment("the rest"));
    batch.create_base_chain(TABLE, "before", &base(ChainKind::Nat, Hook::Prerouting, -110), "redirects");
    for to in ["10.1.0.1:5353", "[fd00::1]:5353"] {
        batch.add_rule(TABLE, "before", &Rule::new().destination_port(17, 53).dnat_to(to.parse().unwrap()));
    }
    let own = Rule::new().ipv6().is(Field::Ip6Daddr, &address("fd00::2")).dnat_to_itself(Family::Ipv6);
    batch.add_rule(TABLE, "before", &own);
    batch.add_rule(TABLE, "after", &Rule::new().ipv4().vmap(&[Field::Ip4Saddr], ADDRESSES.name));
    batch.create_elements(TABLE, ADDRESSES.name, &[element("10.1.0.2", "first")]);
    batch
}

fn rules() -> Vec<Rule> {
    vec![
        Rule::new().ct_state(&[CtState::Established, CtState::Related]).accept(),
        Rule::new().ct_dnat().accept(),
        Rule::new().iifname("br0").oifname("br0").drop(),
        Rule::new().ipv4().within(Field::Ip4Daddr, "10.1.0.0/20".parse().unwrap()).goto("other"),
        Rule::new()
            .ipv6()
            .within(Field::Ip6Daddr, "fd00::/64".parse().unwrap())
            .then_verdict(&Verdict::Return),
        Rule::new().not_in_set(&[Field::Iifname, Field::EtherSaddr], PORTS.name).drop(),
        Rule::new().in_set(&[Field::Iifname, Field::EtherSaddr], PORTS.name).accept(),
        Rule::new().destination_port(17, 53).accept().comment("names"),
    ]
}

fn element(text: &str, comment: &str) -> Element {
    Element::new(address(text)).with_verdict(Verdict::Goto("subnet".into())).with_comment(comment)
}

#[test]
fn nft_reads_every_word_back_as_a_person_would_write_it() {
    let mut socket = namespace();
    socket.commit(everything()).unwrap();
    let mut key = ifname_key("veth0");
    key.extend([2, 0, 0, 0, 0, 1, 0, 0]);
    let mut batch = Batch::new();
    batch.create_elements(TABLE, PORTS.name, &[Element::new(key).with_comment("net/c/eth0")]);
    socket.commit(batch).unwrap();
    assert_eq!(listed("ruleset"), include_str!("everything.nft"));
}

#[test]
fn the_longest_comment_comes_back_whole() {
    let mut socket = namespace();
    socket.commit(everything()).unwrap();
    let key = address("10.1.0.3");
    let text = "x".repeat(300);
    let element = Element { key: key.clone(), ..element("10.1.0.3", &text) };
    let mut batch = Batch::new();
    batch.create_elements(TABLE, ADDRESSES.name, &[element]);
    batch.add_rule(TABLE, "other", &Rule::new().accept().comment(&text));
    socket.commit(batch).unwrap();
    let found = socket.element(TABLE, ADDRESSES.name, &key).unwrap().unwrap();
    assert_eq!(found.comment.as_deref(), Some(&text[..MAX_COMMENT]));
    assert_eq!(socket.rules(TABLE, "other").unwrap()[0].comment(), Some(&text[..MAX_COMMENT]));
}

#[test]
fn iptables_reads_its_own_words_and_we_read_those_that_it_writes() {
    const FORWARD: Table<'static> = Table { family: Family::Ipv4, name: "filter" };
    let iptables = |words: &str| {
        let output = Command::new("iptables-nft").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let states = [IptablesState::Related, IptablesState::Established, IptablesState::Dnat];
    let rules = [
        Rule::new().is(Field::Iifname, b"br0\0").is_not(Field::Oifname, b"br0\0"),
        Rule::new().is(Field::Oifname, b"br0\0").iptables_state(&states),
    ]
    .map(|rule| rule.iptables_comment("of the test").counter().accept());
    let mut socket = namespace();
    iptables("-A FORWARD -j DROP");
    let drop = socket.rules(FORWARD, "FORWARD").unwrap()[0].handle;
    let mut batch = Batch::new();
    for rule in &rules {
        batch.insert_rule_before(FORWARD, "FORWARD", drop, rule);
    }
    socket.commit(batch).unwrap();
    assert_eq!(
        iptables("-S FORWARD"),
        "-P FORWARD ACCEPT\n\
         -A FORWARD -i br0 ! -o br0 -m comment --comment \"of the test\" -j ACCEPT\n\
         -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -m comment --comment \"of the test\" -j ACCEPT\n\
         -A FORWARD -j DROP\n"
    );
    iptables("-F FORWARD");
    iptables("-A FORWARD -i br0 ! -o br0 -m comment --comment us -j ACCEPT");
    let found = &socket.rules(FORWARD, "FORWARD").unwrap()[0];
    let same = Rule::new().is(Field::Iifname, b"br0\0").is_not(Field::Oifname, b"br0\0");
    assert!(found.does(&same.iptables_comment("us").counter().accept()), "{found:?}");
    assert_eq!(found.comment(), Some("us"));
}

/// Rules that tell themselves apart by their comments.
fn numbered(numbers: std::ops::Range<usize>) -> impl Iterator<Item = Rule> {
    numbers.map(|number| Rule::new().destination_port(17, 53).accept().comment(&number.to_string()))
}

#[test]
fn a_chain_is_read_as_it_is_while_changes_of_it_are_tried() {
    const ROUNDS: usize = 60;
    // More than the kernel dumps in one pass.
    const AT_REST: usize = 200;
    let mut reader = namespace();
    let mut batch = Batch::new();
    batch.create_table(TABLE, "of the test");
    batch.create_chain(TABLE, "rules", "stay");
    numbered(0..AT_REST).for_each(|rule| batch.add_rule(TABLE, "rules", &rule));
    reader.commit(batch).unwrap();
    assert_eq!(reader.rules_at_once(TABLE).unwrap(), None, "too little for a second pass");
    let wished: Vec<String> = (0..AT_REST).map(|number| number.to_string()).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut socket = Socket::open().unwrap();
            for _ in 0..ROUNDS {
                let mut batch = Batch::new();
                numbered(0..50).for_each(|rule| batch.insert_rule(TABLE, "rules", &rule));
                batch.delete_chain(TABLE, "absent");
                assert!(socket.commit(batch).unwrap_err().is_absent());
            }
        });
        let mut last = false;
        while !last {
            last = writer.is_finished();
            let rules = match reader.rules(TABLE, "rules") {
                Err(Error::Restless) => continue,
                rules => rules.unwrap(),
            };
            let found: Vec<&str> = rules.iter().filter_map(|rule| rule.comment()).collect();
            assert_eq!(found, wished);
        }
    });
}

#[test]
fn nobody_changes_what_he_has_not_seen() {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 25;
    let mut reader = namespace();
    let mut batch = Batch::new();
    batch.create_table(TABLE, "of the test");
    batch.create_chain(TABLE, "count", "a rule for each number");
    reader.commit(batch).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let mut socket = Socket::open().unwrap();
                let mut done = 0;
                while done < ROUNDS {
                    let mut batch = Batch::since(socket.settled_generation().unwrap());
                    let next = socket.rules(TABLE, "count").unwrap().len();
                    numbered(next..next + 1).for_each(|rule| batch.add_rule(TABLE, "count", &rule));
                    match socket.commit(batch) {
                        Err(error) if error.is_stale() => {}
                        committed => {
                            committed.unwrap();
                            done += 1;
                        }
                    }
                }
            });
        }
    });
    let rules = reader.rules(TABLE, "count").unwrap();
    let found: Vec<&str> = rules.iter().filter_map(|rule| rule.comment()).collect();
    let wished: Vec<String> = (0..WRITERS * ROUNDS).map(|number| number.to_string()).collect();
    assert_eq!(found, wished);
}

#[test]
fn a_refusal_is_told_however_long_the_message_that_it_refuses() {
    let mut socket = namespace();
    socket.commit(everything()).unwrap();
    let chain = "c".repeat(200);
    let mut batch = Batch::new();
    batch.create_chain(TABLE, &chain, "gone to");
    socket.commit(batch).unwrap();
    let elements: Vec<Element> = (0..100)
        .map(|last| Element::new(address(&format!("10.1.1.{last}"))))
        .map(|element| {
            element.with_verdict(Verdict::Goto(chain.clone())).with_comment(&"x".repeat(MAX_COMMENT))
        })
        .collect();
    let all = || {
        let mut batch = Batch::new();
        batch.create_elements(TABLE, ADDRESSES.name, &elements);
        batch
    };
    socket.commit(all()).unwrap();
    let refusal = socket.commit(all()).unwrap_err();
    assert!(refusal.exists(), "{refusal}");
}

#[test]
fn a_refusal_is_told_however_many_there_are_and_none_is_left_for_the_next_batch() {
    let mut socket = namespace();
    socket.commit(everything()).unwrap();
    let mut batch = Batch::new();
    for number in 0..5000 {
        batch.delete_chain(TABLE, &format!("absent-{number}"));
    }
    let refusal = socket.commit(batch).unwrap_err();
    assert!(refusal.is_absent(), "{refusal}");
    let mut batch = Batch::new();
    batch.create_chain(TABLE, "next", "is wanted");
    socket.commit(batch).unwrap();
}
