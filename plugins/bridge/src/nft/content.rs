//! What attachments need in a table, and how it gets there and goes away again, whoever else is at work.
//!
//! No lock and no file. An ADD creates what it found missing with the kernel's leave to fail (`EXCL`), and starts over
//! when somebody was faster. A DEL removes everything that nobody else needs in one transaction, which the kernel
//! refuses when anything has changed since it was looked at. So both are whole or not at all, wherever they are killed.
//! It knows no rule of any network.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use nft_netlink::{Batch, Element, Error, Rule, Socket, Table, Verdict};

use super::Installed;
use super::skeleton::{Member, Skeleton};

/// Each failed attempt is another call's success, so a storm of any real size ends long before.
const ATTEMPTS: usize = 1000;

/// What some attachments need in one table, which may be nothing.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) skeleton: &'static Skeleton,
    /// Chains of networks, each name once; a chain that another one goes to stands before it.
    pub(super) chains: Vec<NetworkChain>,
    pub(super) elements: Vec<Member>,
}

/// A chain that lives as long as something refers to it, with what sends packets there.
#[derive(Debug)]
pub(super) struct NetworkChain {
    pub(super) name: String,
    pub(super) comment: String,
    pub(super) rules: Vec<Rule>,
    /// Elements that lead here.
    pub(super) entries: Vec<Member>,
    /// The rule of the skeleton's entry chain that leads here.
    pub(super) entry_rule: Option<Rule>,
}

impl Content {
    pub(super) fn new(skeleton: &'static Skeleton) -> Self {
        Self { skeleton, chains: Vec::new(), elements: Vec::new() }
    }

    /// Whether nothing is needed, not even the table.
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// The record of the attachment with this key, if it needs one.
    pub(super) fn record(&self, key: &[u8]) -> Option<&Element> {
        let records = self.elements.iter().filter(|member| member.set == self.skeleton.records);
        records.map(|member| &member.element).find(|element| element.key == key)
    }

    /// Adds a chain, unless another attachment has brought it along; then only the entries that are new.
    pub(super) fn chain(&mut self, chain: NetworkChain) {
        match self.chains.iter_mut().find(|known| known.name == chain.name) {
            Some(known) => {
                for entry in chain.entries {
                    if !known.entries.contains(&entry) {
                        known.entries.push(entry);
                    }
                }
            }
            None => self.chains.push(chain),
        }
    }

    /// Adds an element of an attachment.
    pub(super) fn element(&mut self, set: &'static str, element: Element) {
        self.elements.push(Member { set, element });
    }

    /// Every element: those of networks, then those of attachments.
    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.chains.iter().flat_map(|chain| &chain.entries).chain(&self.elements)
    }

    /// Table and all.
    pub(super) fn create(&self, batch: &mut Batch) {
        self.skeleton.create(batch);
        for chain in &self.chains {
            self.create_chain(chain, batch);
        }
        create_members(self.skeleton.table, self.members(), batch);
    }

    /// A chain with its rules and the one that leads to it, without the elements that do.
    pub(super) fn create_chain(&self, chain: &NetworkChain, batch: &mut Batch) {
        let table = self.skeleton.table;
        batch.create_chain(table, &chain.name, &chain.comment);
        for rule in &chain.rules {
            batch.add_rule(table, &chain.name, rule);
        }
        if let (Some(entry_chain), Some(rule)) = (self.skeleton.entry_chain, &chain.entry_rule) {
            batch.add_rule(table, entry_chain, rule);
        }
    }
}

/// Whether somebody who comes to a table may make what it lacks of chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newcomer {
    Founds,
    OnlyJoins,
}

/// Brings all of `contents` in, in one transaction; nothing where a chain is missing and the newcomer only joins.
pub(super) fn install(
    socket: &mut Socket,
    contents: &[Content],
    newcomer: Newcomer,
) -> Result<Installed, Error> {
    let mut raced = None;
    for attempt in 0..ATTEMPTS {
        let mut batch = Batch::new();
        let mut installed = Installed::Joined;
        for content in contents.iter().filter(|content| !content.is_empty()) {
            let elements = if attempt == 0 { Elements::New } else { Elements::Unknown };
            if complete(socket, content, elements, &mut batch)? == Installed::Anew {
                installed = Installed::Anew;
            }
        }
        if installed == Installed::Anew && newcomer == Newcomer::OnlyJoins {
            return Ok(installed);
        }
        match socket.commit(batch) {
            Ok(()) => return Ok(installed),
            Err(error) if error.exists() || error.is_absent() => raced = Some(error),
            Err(error) => return Err(error),
        }
    }
    // The loop has run, so there is one.
    raced.map_or(Ok(Installed::Joined), Err)
}

/// What is taken for granted about elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elements {
    /// An ADD's own are new, and when they are not, the kernel says so.
    New,
    /// Each is looked up.
    Unknown,
}

/// Adds to `batch` what the kernel lacks of `content`.
fn complete(
    socket: &mut Socket,
    content: &Content,
    elements: Elements,
    batch: &mut Batch,
) -> Result<Installed, Error> {
    let table = content.skeleton.table;
    let Some(found) = socket.table(table)? else {
        content.create(batch);
        return Ok(Installed::Anew);
    };
    if found.uses < content.skeleton.uses() || elements == Elements::Unknown {
        content.skeleton.complete(socket, batch)?;
    } else {
        content.skeleton.mend_hooks(socket, batch)?;
    }
    let mut installed = Installed::Joined;
    if found.dormant {
        batch.wake_table(table);
        installed = Installed::Anew;
    }
    if elements == Elements::Unknown || !has_lists(socket, content)? {
        for chain in &content.chains {
            if socket.chain(table, &chain.name)?.is_none() {
                installed = Installed::Anew;
                content.create_chain(chain, batch);
            }
        }
    }
    let mut missing = Vec::new();
    let mut superseded = Vec::new();
    for member in &content.elements {
        let Member { set, element } = member;
        let found = match elements {
            Elements::New => None,
            Elements::Unknown => socket.element(table, set, &element.key)?,
        };
        match found {
            None => {}
            Some(found) if found == *element => continue,
            Some(found) if *set == content.skeleton.records => superseded.push(found),
            Some(found) => batch.delete_elements(table, set, [&found]),
        }
        missing.push(member);
    }
    let doomed = Doomed::with_records(socket, content, superseded)?;
    doomed.delete(socket, batch)?;
    // Also those of a chain that is there: another network on the link, or another subnet, has other gateways. Whoever
    // has the key keeps it.
    let mut entries = Vec::new();
    for entry in content.chains.iter().flat_map(|chain| &chain.entries) {
        let is_free = elements == Elements::New
            || doomed.has(entry)
            || socket.element(table, entry.set, &entry.element.key)?.is_none();
        entries.extend(is_free.then_some(entry));
    }
    for (set, elements) in by_set(entries) {
        batch.add_elements(table, set, elements.into_values());
    }
    create_members(table, missing, batch);
    Ok(installed)
}

/// Whether the chains are there that the records lead to: with them is every chain that they lead to.
fn has_lists(socket: &mut Socket, content: &Content) -> Result<bool, Error> {
    let records = content.elements.iter().filter(|member| member.set == content.skeleton.records);
    let lists: BTreeSet<String> = records.filter_map(|member| target(&member.element)).collect();
    for list in lists {
        if socket.chain(content.skeleton.table, &list)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create_members<'a>(table: Table<'_>, members: impl IntoIterator<Item = &'a Member>, batch: &mut Batch) {
    for (set, elements) in by_set(members) {
        batch.create_elements(table, set, elements.into_values());
    }
}

/// Elements, those of one set together: a message of its own for each costs more than the element. Of two with one key
/// the later one counts.
fn by_set<'a>(
    members: impl IntoIterator<Item = &'a Member>,
) -> Vec<(&'static str, BTreeMap<&'a [u8], &'a Element>)> {
    let mut sets: Vec<(&str, BTreeMap<&[u8], &Element>)> = Vec::new();
    for Member { set, element } in members {
        match sets.iter_mut().find(|(name, _)| name == set) {
            Some((_, elements)) => {
                elements.insert(&element.key, element);
            }
            None => sets.push((set, BTreeMap::from([(element.key.as_slice(), element)]))),
        }
    }
    sets
}

/// What a DEL removes from one table.
#[derive(Debug)]
pub(super) struct Doomed {
    skeleton: &'static Skeleton,
    members: Vec<Member>,
    /// Chains that nothing else refers to, each before those that it refers to.
    chains: Vec<String>,
    entry_rules: Vec<u64>,
    table: bool,
}

impl Doomed {
    /// Records with what belongs to them, and what nothing else needs once they are gone; but nothing of `content`,
    /// which comes in at the same time.
    pub(super) fn with_records(
        socket: &mut Socket,
        content: &Content,
        records: Vec<Element>,
    ) -> Result<Self, Error> {
        let skeleton = content.skeleton;
        let mut members = Vec::new();
        for record in records {
            members.extend((skeleton.members)(socket, &record)?);
            members.push(Member { set: skeleton.records, element: record });
        }
        // The records themselves make way for those of the same attachments.
        members.retain(|member| {
            member.set == skeleton.records
                || !content
                    .elements
                    .iter()
                    .any(|kept| (kept.set, &kept.element.key) == (member.set, &member.element.key))
        });
        let mut doomed =
            Self { skeleton, members, chains: Vec::new(), entry_rules: Vec::new(), table: false };
        if doomed.members.is_empty() {
            return Ok(doomed);
        }
        let is_kept = |name: &String| content.chains.iter().any(|chain| chain.name == *name);
        let mut lost: HashMap<String, u32> = HashMap::new();
        let mut ways = None;
        let mut open: Vec<String> =
            doomed.members.iter().filter_map(|member| target(&member.element)).collect();
        while let Some(name) = open.pop() {
            if is_kept(&name) {
                continue;
            }
            let lost = lost.entry(name.clone()).or_default();
            *lost += 1;
            open.extend(doomed.chain_without(socket, &mut ways, name, *lost)?);
        }
        let left =
            socket.table(skeleton.table)?.map(|found| found.uses.saturating_sub(doomed.chains.len() as u32));
        doomed.table = match left {
            Some(left) if content.is_empty() && left <= skeleton.uses() => {
                left == skeleton.present(socket)?
            }
            _ => false,
        };
        // A chain of the skeleton that is still referred to counts those who need it.
        for (name, lost) in lost.iter().filter(|(name, _)| !doomed.chains.contains(name)) {
            if !doomed.table {
                break;
            }
            let uses = socket.chain(skeleton.table, name)?.map_or(0, |chain| chain.uses);
            doomed.table &= uses <= *lost;
        }
        doomed.table = doomed.table && doomed.has_every_record(socket)?;
        Ok(doomed)
    }

    /// Whether no record stays. Where each leads to a chain, that chain has counted them.
    fn has_every_record(&self, socket: &mut Socket) -> Result<bool, Error> {
        if self.records().all(|record| target(record).is_some()) {
            return Ok(true);
        }
        let found = socket.elements(self.skeleton.table, self.skeleton.records)?;
        Ok(found.iter().all(|found| self.records().any(|record| record.key == found.key)))
    }

    /// The elements that go.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    fn records(&self) -> impl Iterator<Item = &Element> {
        let of_records = |member: &&Member| member.set == self.skeleton.records;
        self.members.iter().filter(of_records).map(|member| &member.element)
    }

    /// Whether the element with the key of `member` goes.
    pub(super) fn has(&self, member: &Member) -> bool {
        let Member { set, element } = member;
        self.members.iter().any(|doomed| doomed.set == *set && doomed.element.key == element.key)
    }

    /// The chains of networks that go.
    pub(super) fn chains(&self) -> &[String] {
        &self.chains
    }

    /// Dooms a chain of a network that has lost `lost` references, when it has no others; returns the chains that it
    /// refers to. A chain of the skeleton is never doomed.
    fn chain_without(
        &mut self,
        socket: &mut Socket,
        ways: &mut Option<HashMap<String, Ways>>,
        name: String,
        lost: u32,
    ) -> Result<Vec<String>, Error> {
        let table = self.skeleton.table;
        if (self.skeleton.chains)().iter().any(|chain| chain.name == name) {
            return Ok(Vec::new());
        }
        let Some(chain) = socket.chain(table, &name)? else { return Ok(Vec::new()) };
        let rules = socket.rules(table, &name)?;
        // The kernel counts a chain's own rules, too.
        let others = (chain.uses as usize).saturating_sub(rules.len() + lost as usize);
        if others > 0 {
            // All who use what it lists; nothing else leads there, and there may be thousands of ways.
            if self.records().any(|record| target(record).as_deref() == Some(&name)) {
                return Ok(Vec::new());
            }
            let ways = match ways {
                Some(ways) => ways,
                None => ways.insert(find_ways(socket, self.skeleton)?),
            };
            let Ways { entries, rules } = ways.entry(name.clone()).or_default();
            if others > entries.len() + rules.len() {
                return Ok(Vec::new());
            }
            self.members.append(entries);
            self.entry_rules.append(rules);
        }
        self.chains.push(name);
        Ok(rules.iter().flat_map(|rule| rule.targets()).collect())
    }

    pub(super) fn delete(&self, socket: &mut Socket, batch: &mut Batch) -> Result<(), Error> {
        let table = self.skeleton.table;
        for chain in &self.chains {
            (self.skeleton.delete_elsewhere)(socket, chain, batch)?;
        }
        if self.table {
            batch.delete_table(table);
            return Ok(());
        }
        for Member { set, element } in &self.members {
            batch.delete_elements(table, set, [element]);
        }
        for handle in &self.entry_rules {
            batch.delete_rule(table, self.skeleton.entry_chain.unwrap_or_default(), *handle);
        }
        for chain in &self.chains {
            batch.delete_chain(table, chain);
        }
        Ok(())
    }
}

/// What sends packets to a chain of a network.
#[derive(Debug, Default)]
struct Ways {
    /// Elements of the skeleton's maps.
    entries: Vec<Member>,
    /// Rules of its entry chain.
    rules: Vec<u64>,
}

/// The ways to each chain of a network.
fn find_ways(socket: &mut Socket, skeleton: &Skeleton) -> Result<HashMap<String, Ways>, Error> {
    let mut ways: HashMap<String, Ways> = HashMap::new();
    for set in skeleton.entry_maps {
        for element in socket.elements(skeleton.table, set)? {
            if let Some(chain) = target(&element) {
                ways.entry(chain).or_default().entries.push(Member { set, element });
            }
        }
    }
    if let Some(entry_chain) = skeleton.entry_chain {
        for rule in socket.rules(skeleton.table, entry_chain)? {
            for chain in rule.targets() {
                ways.entry(chain).or_default().rules.push(rule.handle);
            }
        }
    }
    Ok(ways)
}

/// Makes, in one transaction, the changes that `look` puts into the batch; looks again when the ruleset has changed
/// meanwhile. Returns what `look` found in the end.
pub(super) fn change<T>(
    socket: &mut Socket,
    look: impl Fn(&mut Socket, &mut Batch) -> Result<T, Error>,
) -> Result<T, Error> {
    for _ in 1..ATTEMPTS {
        match try_change(socket, &look) {
            Err(error) if error.is_stale() => {}
            changed => return changed,
        }
    }
    try_change(socket, &look)
}

fn try_change<T>(
    socket: &mut Socket,
    look: &impl Fn(&mut Socket, &mut Batch) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut batch = Batch::since(socket.settled_generation()?);
    let found = look(socket, &mut batch)?;
    socket.commit(batch)?;
    Ok(found)
}

fn target(element: &Element) -> Option<String> {
    element.verdict.as_ref().and_then(chain_of).map(str::to_owned)
}

fn chain_of(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Goto(chain) | Verdict::Jump(chain) => Some(chain),
        _ => None,
    }
}

/// A chain's name from what it does and what it is for, no two alike, and readable by `nft`: letters, digits, `_`, `.`
/// and `-` stand for themselves, any other byte is written as a slash and its number. (Neither names of networks nor of
/// links have slashes; the one of a subnet is at the end.) The kernel takes 255 bytes: what is too long is cut and ends
/// with a hash.
pub(super) fn chain_name(what: &str, of: &str) -> String {
    /// Leaves room for a subnet.
    const MAX_LEN: usize = 180;
    let mut name = format!("{what}-");
    for byte in of.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-') {
            name.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(name, "/{byte:02x}");
        }
    }
    if name.len() > MAX_LEN {
        // Only ASCII, so it can be cut anywhere.
        name.truncate(MAX_LEN);
        let _ = write!(name, "/-{:016x}", stable_hash(of));
    }
    name
}

/// The same number in every call of every build of a release. After a change of it, chains under older names live on
/// until their attachments go: what refers to a chain says its name.
pub(super) fn stable_hash(of: impl Hash) -> u64 {
    let mut hash = DefaultHasher::new();
    of.hash(&mut hash);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_readable_where_it_can_be() {
        assert_eq!(chain_name("isolated", "br-0.1_x"), "isolated-br-0.1_x");
        assert_eq!(chain_name("isolated", "a b"), "isolated-a/20b");
    }

    proptest! {
        #[test]
        fn no_two_names_are_alike_and_the_kernel_takes_each(one in "\\PC{0,300}", other in "\\PC{0,300}") {
            let names = [chain_name("x", &one), chain_name("x", &other)];
            prop_assert!(names.iter().all(|name| name.len() <= 200 && name.is_ascii()));
            prop_assert_eq!(names[0] == names[1], one == other);
        }
    }
}
