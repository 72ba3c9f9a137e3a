//! What a table is made of before there is any network in it: how it is made, completed and counted. It knows no
//! attachment.

use nft_netlink::{Base, Batch, Element, Error, Family, FoundRule, Rule, Set, Socket, Table};

/// The table that sees what is routed.
pub(super) const ROUTED: Table<'static> = Table { family: Family::Inet, name: "cni-bridge" };

/// A table as it is before the first attachment.
#[derive(Debug)]
pub(super) struct Skeleton {
    pub(super) table: Table<'static>,
    pub(super) comment: &'static str,
    pub(super) sets: &'static [(Set<'static>, &'static str)],
    /// Chains of the table itself, referred ones first.
    pub(super) chains: fn() -> Vec<SkeletonChain>,
    /// The maps whose elements lead to chains of networks.
    pub(super) entry_maps: &'static [&'static str],
    /// The chain whose rules lead to chains of networks.
    pub(super) entry_chain: Option<&'static str>,
    /// The map whose elements are the records of attachments.
    pub(super) records: &'static str,
    /// The other elements that belong to a record, as far as they are there.
    pub(super) members: fn(&mut Socket, &Element) -> Result<Vec<Member>, Error>,
    /// Adds to a batch the removal of what stands in other tables for a chain of a network.
    pub(super) delete_elsewhere: fn(&mut Socket, &str, &mut Batch) -> Result<(), Error>,
}

/// An element and the set that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) set: &'static str,
    pub(super) element: Element,
}

/// A chain of a skeleton.
#[derive(Debug, Hash)]
pub(super) struct SkeletonChain {
    pub(super) name: &'static str,
    pub(super) comment: &'static str,
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// Whether the rules of a chain do what is wished, one after the other.
pub(super) fn do_same(found: &[FoundRule], wished: &[Rule]) -> bool {
    found.len() == wished.len() && found.iter().zip(wished).all(|(found, wished)| found.does(wished))
}

impl Skeleton {
    /// How many objects the kernel counts in a table that has no network left.
    pub(super) fn uses(&self) -> u32 {
        (self.sets.len() + (self.chains)().len()) as u32
    }

    /// How many of them there are. A table that an earlier build has made may lack some.
    pub(super) fn present(&self, socket: &mut Socket) -> Result<u32, Error> {
        let names = socket.set_names(self.table)?;
        let mut present =
            self.sets.iter().filter(|(set, _)| names.iter().any(|name| name == set.name)).count();
        for chain in (self.chains)() {
            present += usize::from(socket.chain(self.table, chain.name)?.is_some());
        }
        Ok(present as u32)
    }

    /// Adds to `batch` what the table lacks of sets and chains since an earlier build has made it, with the rules that
    /// go with them.
    pub(super) fn complete(&self, socket: &mut Socket, batch: &mut Batch) -> Result<(), Error> {
        let names = socket.set_names(self.table)?;
        let mut is_whole = true;
        for (set, comment) in self.sets {
            if !names.iter().any(|name| name == set.name) {
                batch.create_set(self.table, set, comment);
                is_whole = false;
            }
        }
        let chains = (self.chains)();
        let mut kept = Vec::new();
        for chain in &chains {
            if socket.chain(self.table, chain.name)?.is_some() {
                kept.push(chain.name);
            } else {
                chain.create(self.table, batch);
                is_whole = false;
            }
        }
        if is_whole {
            return Ok(());
        }
        // Those of networks stay.
        for chain in chains.iter().filter(|chain| self.entry_chain != Some(chain.name)) {
            if kept.contains(&chain.name) {
                batch.flush_chain(self.table, chain.name);
            }
            chain.fill(self.table, batch);
        }
        Ok(())
    }

    /// Adds to `batch` what brings the table's chains back to their hooks, with their policies, and those of their rules
    /// that somebody has flushed. What he has added stays, as long as nothing else is wrong: that is for a repair.
    pub(super) fn mend_hooks(&self, socket: &mut Socket, batch: &mut Batch) -> Result<(), Error> {
        for chain in (self.chains)().iter().filter(|chain| chain.base.is_some()) {
            match socket.chain(self.table, chain.name)? {
                Some(found) if found.base != chain.base => {
                    batch.delete_chain(self.table, chain.name);
                    chain.create(self.table, batch);
                }
                Some(found) if (found.uses as usize) < chain.rules.len() => {
                    batch.flush_chain(self.table, chain.name);
                }
                Some(_) => continue,
                None => chain.create(self.table, batch),
            }
            chain.fill(self.table, batch);
        }
        Ok(())
    }

    pub(super) fn create(&self, batch: &mut Batch) {
        batch.create_table(self.table, self.comment);
        for (set, comment) in self.sets {
            batch.create_set(self.table, set, comment);
        }
        let chains = (self.chains)();
        for chain in &chains {
            chain.create(self.table, batch);
        }
        for chain in &chains {
            chain.fill(self.table, batch);
        }
    }
}

impl SkeletonChain {
    fn create(&self, table: Table<'_>, batch: &mut Batch) {
        match &self.base {
            Some(base) => batch.create_base_chain(table, self.name, base, self.comment),
            None => batch.create_chain(table, self.name, self.comment),
        }
    }

    fn fill(&self, table: Table<'_>, batch: &mut Batch) {
        for rule in &self.rules {
            batch.add_rule(table, self.name, rule);
        }
    }
}
