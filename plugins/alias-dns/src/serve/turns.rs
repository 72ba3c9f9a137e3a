//! Whose turn it is among the addresses behind a name.
//!
//! Counted for each name and type by themselves: with one count for all, whoever asks for A and AAAA each time, as stub
//! resolvers do, would always be told the same of two addresses first.

use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;

use crate::answer::Question;
use crate::zone::Folded;

/// Counts that are kept. Names that share one take turns all the same, unless they are asked for in step.
const COUNTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Turns {
    counts: Box<[u32]>,
    hasher: DefaultHashBuilder,
}

impl Default for Turns {
    fn default() -> Self {
        Self { counts: vec![0; COUNTS].into(), hasher: DefaultHashBuilder::default() }
    }
}

impl Turns {
    /// A number that grows by one each time that `question` is asked.
    pub(super) fn next(&mut self, question: Question<'_>) -> u32 {
        let of_name = self.hasher.hash_one(Folded(question.name.as_slice())) as usize;
        // Added, so that the types of one name never share a count.
        let count = &mut self.counts[of_name.wrapping_add(question.rtype.to_int().into()) % COUNTS];
        *count = count.wrapping_add(1);
        *count
    }
}
