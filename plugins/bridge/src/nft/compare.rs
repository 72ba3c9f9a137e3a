//! The wished content against the kernel's: for CHECK in words, for a repair as changes.

use std::collections::BTreeMap;
use std::fmt;

use nft_netlink::{Base, Batch, Element, Error, FoundRule, FoundTable, Rule, Set, Socket, Table, Verdict};

use super::content::{self, Content, Doomed, NetworkChain};
use super::skeleton::{Member, do_same};

/// Something of a table that is not as it should be.
#[derive(Debug)]
pub(super) struct Difference<'a> {
    table: Table<'static>,
    what: What<'a>,
}

#[derive(Debug)]
enum What<'a> {
    NoTable(&'a Content),
    /// None of its chains sees a packet.
    DormantTable,
    NoSet(&'a Set<'static>, &'static str),
    NoChain(Wish<'a>),
    /// Its hook, priority or policy; such a chain is replaced.
    OtherHook(Wish<'a>),
    OtherRules(Wish<'a>),
    NoEntryRule(&'static str, &'a NetworkChain, &'a Rule),
    /// A rule that leads to no network, by its number.
    StrayRule(&'static str, u64),
    NoElement(&'a Member),
    OtherElement(&'a Member),
}

/// A chain as it should be.
#[derive(Debug)]
struct Wish<'a> {
    name: &'a str,
    comment: &'a str,
    base: Option<Base>,
    rules: Vec<Rule>,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("{} {}", self.table.family.name(), self.table.name);
        match &self.what {
            What::NoTable(_) => write!(f, "nf_tables table {table} is missing"),
            What::DormantTable => write!(f, "nf_tables table {table} is dormant"),
            What::NoSet(set, _) => write!(f, "nf_tables set {table} {} is missing", set.name),
            What::NoChain(wish) => write!(f, "nf_tables chain {table} {} is missing", wish.name),
            What::OtherHook(wish) => {
                write!(f, "nf_tables chain {table} {} has another hook or policy", wish.name)
            }
            What::OtherRules(wish) => write!(f, "nf_tables chain {table} {} has other rules", wish.name),
            What::NoEntryRule(entry_chain, chain, _) => {
                write!(f, "nf_tables chain {table} {entry_chain} lacks the rule that leads to {}", chain.name)
            }
            What::StrayRule(entry_chain, _) => {
                write!(f, "nf_tables chain {table} {entry_chain} has a rule that leads to no network")
            }
            What::NoElement(member) => write!(f, "nf_tables set {table} {} lacks {}", member.set, of(member)),
            What::OtherElement(member) => {
                write!(f, "nf_tables set {table} {} has another element than {}", member.set, of(member))
            }
        }
    }
}

/// An element in words: whose it is or, for one of a network, where it leads.
fn of(member: &Member) -> String {
    match (&member.element.comment, &member.element.verdict) {
        (Some(comment), _) => format!("the element of {comment}"),
        (None, Some(Verdict::Goto(chain))) => format!("the element that leads to {chain}"),
        (None, _) => "an element".to_owned(),
    }
}

/// The rules of a table, read together where the kernel can tell them at once.
struct Rules<'a> {
    table: Table<'a>,
    by_chain: BTreeMap<String, Vec<FoundRule>>,
    /// Whether a chain that is not in `by_chain` has none.
    complete: bool,
}

impl<'a> Rules<'a> {
    fn read(socket: &mut Socket, table: Table<'a>) -> Result<Self, Error> {
        let at_once = socket.rules_at_once(table)?;
        Ok(Self { table, complete: at_once.is_some(), by_chain: at_once.unwrap_or_default() })
    }

    fn of(&mut self, socket: &mut Socket, chain: &str) -> Result<&[FoundRule], Error> {
        if !self.complete && !self.by_chain.contains_key(chain) {
            self.by_chain.insert(chain.to_owned(), socket.rules(self.table, chain)?);
        }
        Ok(self.by_chain.get(chain).map(Vec::as_slice).unwrap_or_default())
    }
}

/// What of `content` is missing or otherwise in the kernel.
pub(super) fn differences<'a>(
    socket: &mut Socket,
    content: &'a Content,
) -> Result<Vec<Difference<'a>>, Error> {
    let skeleton = content.skeleton;
    let table = skeleton.table;
    if content.is_empty() {
        return Ok(Vec::new());
    }
    let Some(FoundTable { dormant, .. }) = socket.table(table)? else {
        return Ok(vec![Difference { table, what: What::NoTable(content) }]);
    };
    let mut found = Vec::new();
    if dormant {
        found.push(What::DormantTable);
    }
    let sets = socket.set_names(table)?;
    for (set, comment) in skeleton.sets {
        if !sets.iter().any(|name| name == set.name) {
            found.push(What::NoSet(set, comment));
        }
    }
    let of_network = content.chains.iter().map(|chain| Wish {
        name: &chain.name,
        comment: &chain.comment,
        base: None,
        rules: chain.rules.clone(),
    });
    let of_table = (skeleton.chains)().into_iter().map(|chain| Wish {
        name: chain.name,
        comment: chain.comment,
        base: chain.base,
        rules: chain.rules,
    });
    let mut rules = Rules::read(socket, table)?;
    for wish in of_network.chain(of_table) {
        match socket.chain(table, wish.name)? {
            None => found.push(What::NoChain(wish)),
            Some(chain) if chain.base != wish.base => found.push(What::OtherHook(wish)),
            Some(_) => {
                let rules = rules.of(socket, wish.name)?;
                if skeleton.entry_chain != Some(wish.name) && !do_same(rules, &wish.rules) {
                    found.push(What::OtherRules(wish));
                }
            }
        }
    }
    if let Some(entry_chain) = skeleton.entry_chain {
        let rules = rules.of(socket, entry_chain)?;
        for chain in &content.chains {
            let Some(wished) = &chain.entry_rule else { continue };
            if !rules.iter().any(|rule| rule.does(wished)) {
                found.push(What::NoEntryRule(entry_chain, chain, wished));
            }
        }
        let stray = rules.iter().filter(|rule| rule.targets().next().is_none());
        found.extend(stray.map(|rule| What::StrayRule(entry_chain, rule.handle)));
    }
    for member in content.members() {
        match socket.element(table, member.set, &member.element.key)? {
            None => found.push(What::NoElement(member)),
            Some(element) if element != member.element => found.push(What::OtherElement(member)),
            Some(_) => {}
        }
    }
    Ok(found.into_iter().map(|what| Difference { table, what }).collect())
}

/// Makes the kernel's content as wished, for the attachments whose records have these keys; returns what was different.
pub(super) fn repair(
    socket: &mut Socket,
    contents: &[Content],
    keys: &[Vec<u8>],
) -> Result<Vec<String>, Error> {
    content::change(socket, |socket, batch| {
        let mut words = Vec::new();
        for content in contents {
            let mut superseded = Vec::new();
            for key in keys {
                let found = socket.element(content.skeleton.table, content.skeleton.records, key)?;
                superseded.extend(found.filter(|found| content.record(key) != Some(found)));
            }
            let differences = differences(socket, content)?;
            words.extend(differences.iter().map(ToString::to_string));
            let unneeded = superseded.iter().filter(|found| content.record(&found.key).is_none());
            words.extend(unneeded.map(|found| not_needed(content, found)));
            let doomed = Doomed::with_records(socket, content, superseded)?;
            doomed.delete(socket, batch)?;
            mend(&differences, &doomed, batch);
        }
        Ok(words)
    })
}

/// A record of an attachment that should have none, in words.
pub(super) fn not_needed(content: &Content, record: &Element) -> String {
    let Table { family, name } = content.skeleton.table;
    let of = record.comment.as_deref().unwrap_or_default();
    format!(
        "nf_tables set {} {name} {} has an element of {of} that is not wished",
        family.name(),
        content.skeleton.records
    )
}

/// Objects first, then the rules and elements that refer to them, when what is doomed is gone.
fn mend(differences: &[Difference<'_>], doomed: &Doomed, batch: &mut Batch) {
    for Difference { table, what } in differences {
        match what {
            What::NoTable(content) => content.create(batch),
            What::DormantTable => batch.wake_table(*table),
            What::NoSet(set, comment) => batch.create_set(*table, set, comment),
            What::NoChain(wish) => create(batch, *table, wish),
            What::OtherHook(wish) => {
                batch.delete_chain(*table, wish.name);
                create(batch, *table, wish);
            }
            What::OtherRules(wish) => batch.flush_chain(*table, wish.name),
            What::StrayRule(entry_chain, number) => batch.delete_rule(*table, entry_chain, *number),
            What::NoEntryRule(..) | What::NoElement(_) | What::OtherElement(_) => {}
        }
    }
    for Difference { table, what } in differences {
        match what {
            What::NoChain(wish) | What::OtherHook(wish) | What::OtherRules(wish) => {
                for rule in &wish.rules {
                    batch.add_rule(*table, wish.name, rule);
                }
            }
            What::NoEntryRule(entry_chain, _, rule) => batch.add_rule(*table, entry_chain, rule),
            What::OtherElement(member) => {
                if !doomed.has(member) {
                    batch.delete_elements(*table, member.set, [&member.element]);
                }
                batch.create_elements(*table, member.set, [&member.element]);
            }
            What::NoElement(member) => {
                batch.create_elements(*table, member.set, [&member.element]);
            }
            What::NoTable(_) | What::DormantTable | What::NoSet(..) | What::StrayRule(..) => {}
        }
    }
}

fn create(batch: &mut Batch, table: Table<'_>, wish: &Wish<'_>) {
    match &wish.base {
        Some(base) => batch.create_base_chain(table, wish.name, base, wish.comment),
        None => batch.create_chain(table, wish.name, wish.comment),
    }
}
