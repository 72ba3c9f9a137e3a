//! [`Ancestors`]: the names that stand above those of records, such as `default` above `web.default`. Whether such a
//! name has records of its own is none of its business.

use hashbrown::HashMap;

use super::index::Key as _;
use super::key::{Folded, Name, NameRef};

/// Each ancestor with the number of names below it that records have.
#[derive(Debug, Default)]
pub(super) struct Ancestors(HashMap<Name, u32>);

impl Ancestors {
    pub(super) fn contains(&self, name: NameRef<'_>) -> bool {
        self.0.contains_key(&name)
    }

    /// Counts what is above `name`.
    pub(super) fn add_those_of(&mut self, name: NameRef<'_>) {
        for above in above(name) {
            match self.0.get_mut(&above) {
                Some(count) => *count += 1,
                None => {
                    self.0.insert(Name::own(above), 1);
                }
            }
        }
    }

    /// Takes back what [`add_those_of`](Self::add_those_of) the same name has counted.
    pub(super) fn remove_those_of(&mut self, name: NameRef<'_>) {
        for above in above(name) {
            let Some(count) = self.0.get_mut(&above) else { continue };
            *count -= 1;
            if *count == 0 {
                self.0.remove(&above);
            }
        }
    }
}

/// The names above `name`, the nearest first, without the root.
fn above(name: NameRef<'_>) -> impl Iterator<Item = NameRef<'_>> {
    let all = std::iter::successors(parent(name.labels.0), |labels| parent(labels));
    all.map(move |labels| NameRef { network: name.network, labels: Folded(labels) })
}

/// Whether `labels` stand somewhere below `above`.
pub(super) fn stand_below(labels: &[u8], above: &[u8]) -> bool {
    std::iter::successors(parent(labels), |labels| parent(labels))
        .any(|labels| Folded(labels) == Folded(above))
}

fn parent(labels: &[u8]) -> Option<&[u8]> {
    let (length, _) = labels.split_first()?;
    labels.get(usize::from(*length) + 1..).filter(|parent| !parent.is_empty())
}
