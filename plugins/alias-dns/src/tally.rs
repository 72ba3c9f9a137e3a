//! [`Tally`]: how often each of some things is there. What is there no more takes no room.

use std::hash::Hash;

use hashbrown::HashMap;

#[derive(Debug)]
pub(crate) struct Tally<T>(HashMap<T, usize>);

impl<T> Default for Tally<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Tally<T> {
    /// How often `thing` is there.
    pub(crate) fn of(&self, thing: &T) -> usize {
        self.0.get(thing).copied().unwrap_or(0)
    }

    /// Counts `thing` once more.
    pub(crate) fn add(&mut self, thing: T) {
        *self.0.entry(thing).or_default() += 1;
    }

    /// Counts `thing` once less.
    pub(crate) fn remove(&mut self, thing: &T) {
        match self.0.get_mut(thing) {
            Some(count @ 2..) => *count -= 1,
            _ => drop(self.0.remove(thing)),
        }
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is there, each once, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_until_it_was_removed_as_often() {
        let mut tally = Tally::default();
        ["a", "b", "a"].into_iter().for_each(|thing| tally.add(thing));
        assert_eq!([tally.of(&"a"), tally.of(&"b"), tally.of(&"c")], [2, 1, 0]);
        tally.remove(&"a");
        tally.remove(&"b");
        assert_eq!(tally.iter().collect::<Vec<_>>(), [&"a"]);
        tally.remove(&"a");
        tally.remove(&"a");
        assert!(tally.is_empty());
    }
}
