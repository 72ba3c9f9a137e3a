//! What attachments need in a table, and how it gets there and goes away again, whoever else is at work.
//!
//! No lock and no file: an ADD creates what it found missing with the kernel's leave to fail (`EXCL`), and starts over
//! when somebody was faster; a DEL deletes a chain only while the kernel counts nobody who refers to it, and a table
//! only if nothing has changed since it was seen to be empty. It knows no rule of any network.

use nft_netlink::{Base, Batch, Element, Error, Rule, Set, Socket, Table, Verdict};

use super::Installed;

/// Each failed attempt is another call's success, so a storm of any real size ends long before.
pub(super) const ATTEMPTS: usize = 1000;

/// Chains with more references than this are in use; fewer are worth a closer look.
const FEW_USES: u32 = 32;

/// A table as it is before the first attachment.
#[derive(Debug)]
pub(super) struct Skeleton {
    pub(super) table: Table<'static>,
    pub(super) comment: &'static str,
    pub(super) sets: &'static [(Set<'static>, &'static str)],
    /// Chains of the table itself, referred ones first.
    pub(super) chains: fn() -> Vec<SkeletonChain>,
}

/// A chain of a skeleton.
#[derive(Debug)]
pub(super) struct SkeletonChain {
    pub(super) name: &'static str,
    pub(super) comment: &'static str,
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// What some attachments need in one table.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) skeleton: &'static Skeleton,
    /// Chains of networks, each name once; a chain that another one goes to stands before it.
    pub(super) chains: Vec<NetworkChain>,
    pub(super) elements: Vec<Member>,
}

/// A chain that lives as long as an attachment refers to it, with the elements that send packets there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NetworkChain {
    pub(super) name: String,
    pub(super) comment: String,
    pub(super) rules: Vec<Rule>,
    pub(super) entries: Vec<Member>,
}

/// An element and the set that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) set: &'static str,
    pub(super) element: Element,
}

impl Content {
    pub(super) fn new(skeleton: &'static Skeleton) -> Self {
        Self { skeleton, chains: Vec::new(), elements: Vec::new() }
    }

    /// Adds a chain of a network, unless another attachment has brought it along; then only the entries that are new.
    pub(super) fn chain(&mut self, chain: NetworkChain) {
        match self.chains.iter_mut().find(|known| known.name == chain.name) {
            Some(known) => {
                let new = chain.entries.into_iter().filter(|entry| !known.entries.contains(entry));
                let new: Vec<_> = new.collect();
                known.entries.extend(new);
            }
            None => self.chains.push(chain),
        }
    }

    /// Every element: those of networks, then those of attachments.
    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.chains.iter().flat_map(|chain| &chain.entries).chain(&self.elements)
    }

    /// Table and all.
    pub(super) fn create(&self, batch: &mut Batch) {
        let table = self.skeleton.table;
        self.skeleton.create(batch);
        for chain in &self.chains {
            chain.create(table, batch);
        }
        for Member { set, element } in self.members() {
            batch.create_elements(table, set, std::slice::from_ref(element));
        }
    }

    /// Adds an element of an attachment.
    pub(super) fn element(&mut self, set: &'static str, element: Element) {
        self.elements.push(Member { set, element });
    }
}

impl NetworkChain {
    /// The chain with its rules.
    fn create(&self, table: Table<'_>, batch: &mut Batch) {
        batch.create_chain(table, &self.name, &self.comment);
        for rule in &self.rules {
            batch.add_rule(table, &self.name, rule);
        }
    }
}

impl Skeleton {
    /// How many objects the kernel counts in a table that has no network left.
    fn uses(&self) -> u32 {
        (self.sets.len() + (self.chains)().len()) as u32
    }

    fn create(&self, batch: &mut Batch) {
        batch.create_table(self.table, self.comment);
        for (set, comment) in self.sets {
            batch.create_set(self.table, set, comment);
        }
        let chains = (self.chains)();
        for chain in &chains {
            match &chain.base {
                Some(base) => batch.create_base_chain(self.table, chain.name, base, chain.comment),
                None => batch.create_chain(self.table, chain.name, chain.comment),
            }
        }
        for chain in &chains {
            for rule in &chain.rules {
                batch.add_rule(self.table, chain.name, rule);
            }
        }
    }
}

/// Brings all of `contents` in, in one transaction.
pub(super) fn install(socket: &mut Socket, contents: &[Content]) -> Result<Installed, Error> {
    let mut raced = None;
    for attempt in 0..ATTEMPTS {
        let mut batch = Batch::new();
        let mut installed = Installed::Joined;
        for content in contents {
            let existing = Existing { elements_are_new: attempt == 0 };
            if existing.complete(socket, content, &mut batch)? == Installed::Anew {
                installed = Installed::Anew;
            }
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

/// What is taken for granted about the kernel's state, and what is read.
#[derive(Debug, Clone, Copy)]
struct Existing {
    /// A first attempt does not look for elements: an ADD's own are new, and when they are not, the kernel says so.
    elements_are_new: bool,
}

impl Existing {
    fn complete(self, socket: &mut Socket, content: &Content, batch: &mut Batch) -> Result<Installed, Error> {
        let table = content.skeleton.table;
        let mut installed = Installed::Joined;
        let mut members: Vec<(&Member, Conflict)> = Vec::new();
        let table_exists = socket.table_uses(table)?.is_some();
        if !table_exists {
            content.skeleton.create(batch);
            installed = Installed::Anew;
        }
        for chain in &content.chains {
            if table_exists && socket.chain(table, &chain.name)?.is_some() {
                continue;
            }
            installed = Installed::Anew;
            chain.create(table, batch);
            members.extend(chain.entries.iter().map(|entry| (entry, Conflict::TheirsStays)));
        }
        members.extend(content.elements.iter().map(|member| (member, Conflict::OursReplaces)));
        for (member, conflict) in members {
            let Member { set, element } = member;
            if table_exists && !self.elements_are_new {
                match socket.element(table, set, &element.key)? {
                    None => {}
                    Some(found) if found.verdict == element.verdict && found.comment == element.comment => {
                        continue;
                    }
                    Some(_) if conflict == Conflict::TheirsStays => continue,
                    Some(found) => batch.delete_elements(table, set, &[found]),
                }
            }
            batch.create_elements(table, set, std::slice::from_ref(element));
        }
        Ok(installed)
    }
}

/// What becomes of an element that has the key of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conflict {
    TheirsStays,
    OursReplaces,
}

/// Deletes `members`, which must all be there.
pub(super) fn delete(socket: &mut Socket, table: Table<'_>, members: &[Member]) -> Result<(), Error> {
    let mut batch = Batch::new();
    for Member { set, element } in members {
        batch.delete_elements(table, set, std::slice::from_ref(element));
    }
    socket.commit(batch)
}

/// Deletes a chain, with the elements of `entry_sets` that lead to it, unless an attachment still refers to it.
pub(super) fn sweep_chain(
    socket: &mut Socket,
    table: Table<'_>,
    name: &str,
    entry_sets: &[&'static str],
) -> Result<(), Error> {
    let Some(chain) = socket.chain(table, name)? else { return Ok(()) };
    if chain.uses > FEW_USES {
        return Ok(());
    }
    let leads_here = |element: &Element| element.verdict == Some(Verdict::Goto(name.to_owned()));
    let mut batch = Batch::new();
    let mut own_uses = socket.rules(table, name)?.len();
    for set in entry_sets {
        let entries: Vec<Element> = socket.elements(table, set)?.into_iter().filter(leads_here).collect();
        own_uses += entries.len();
        batch.delete_elements(table, set, &entries);
    }
    if chain.uses as usize > own_uses {
        return Ok(());
    }
    batch.delete_chain(table, name);
    match socket.commit(batch) {
        // Another attachment came, or another DEL was faster.
        Err(error) if error.is_busy() || error.is_absent() => Ok(()),
        done => done,
    }
}

/// Deletes a table that has nothing left but its skeleton.
pub(super) fn sweep_table(
    socket: &mut Socket,
    skeleton: &Skeleton,
    is_empty: impl Fn(&mut Socket) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut raced = None;
    for _ in 0..ATTEMPTS {
        let generation = socket.generation()?;
        if socket.table_uses(skeleton.table)? != Some(skeleton.uses()) || !is_empty(socket)? {
            return Ok(());
        }
        let mut batch = Batch::since(generation);
        batch.delete_table(skeleton.table);
        match socket.commit(batch) {
            Ok(()) => return Ok(()),
            Err(error) if error.is_stale() || error.is_absent() => raced = Some(error),
            Err(error) => return Err(error),
        }
    }
    raced.map_or(Ok(()), Err)
}

/// Repeats `step` while another call gets in between and takes away what `step` was about to delete.
pub(super) fn unless_raced<T>(mut step: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..ATTEMPTS {
        match step() {
            Err(error) if error.is_absent() => {}
            done => return done,
        }
    }
    step()
}

/// A chain's name from what it does and what it is for. Letters, digits, `_`, `.` and `-` stand for themselves; since
/// neither names of networks nor of links contain a slash, one marks what is written as a number, and no two names are
/// written alike.
pub(super) fn chain_name(what: &str, parts: &[&str]) -> String {
    let mut name = what.to_owned();
    for part in parts {
        name.push('-');
        name.push_str(part);
    }
    name
}
