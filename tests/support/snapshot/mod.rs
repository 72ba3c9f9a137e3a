//! What the host has, to be compared: links, addresses, routes, rules, leases, names, kept results, processes.
//!
//! Each is a list of lines, each with the table and chain that it stands in and as often as it stands there; numbers
//! that the kernel counts up by itself (interface indices, packet counters, lifetimes) are left out.

mod kept;
mod listings;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::world::World;

/// The lines of a section, and how often each stands there.
pub(crate) type Lines = BTreeMap<String, usize>;

/// What a host has at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<&'static str, Lines>,
}

impl Snapshot {
    /// What an allocator of the layout of host-local keeps besides leases: its place in each range, its lock and its
    /// index, as patterns for [`assert_unchanged_but`](Self::assert_unchanged_but).
    pub const OF_THE_ALLOCATOR: [&str; 3] = kept::OF_THE_ALLOCATOR;

    /// What the reference's firewall keeps of a bridge that it isolated, as such patterns too.
    pub const OF_THE_REFERENCES_ISOLATION: [&str; 7] = kept::OF_THE_REFERENCES_ISOLATION;

    /// Looks at the host of `world`.
    #[track_caller]
    pub fn of(world: &World) -> Self {
        Self { sections: listings::of(world) }
    }

    /// Every difference, as `section: - line` (only before) and `section: + line` (only after), as often as it is one.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (section, before) in &self.sections {
            let now = &after.sections[section];
            let mut only_in = |these: &Lines, those: &Lines, sign| {
                for (line, &count) in these {
                    let more = count.saturating_sub(those.get(line).copied().unwrap_or_default());
                    let difference = format!("{section}: {sign} {line}");
                    differences.extend(std::iter::repeat_n(difference, more));
                }
            };
            only_in(before, now, '-');
            only_in(now, before, '+');
        }
        differences
    }

    /// The same without those that are one of `expected`: whole ones, in which a `*` stands for any text.
    fn differences_but(&self, after: &Self, expected: &[&str]) -> Vec<String> {
        let mut differences = self.differences(after);
        differences.retain(|line| !expected.iter().any(|pattern| kept::matches(pattern, line)));
        differences
    }

    /// What is left of any container `after`, where there was none before. Forwarding, the allocator's place and
    /// index, empty chains of the reference, and these bridges themselves, not their ports and rules, stay by intent.
    pub fn left(&self, after: &Self, bridges: &[&str]) -> Vec<String> {
        let kept = kept::after_the_last(bridges);
        self.differences_but(after, &kept.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Asserts that the host of `world` is as it was, once everything on its way out is gone.
    ///
    /// # Panics
    /// With every difference.
    #[track_caller]
    pub fn assert_unchanged(&self, world: &World) {
        self.assert_unchanged_but(world, &[]);
    }

    /// The same, where differences that are one of `expected` do not count: whole ones, as
    /// [`differences`](Self::differences) tells them, in which a `*` stands for any text.
    ///
    /// # Panics
    /// With every other difference.
    #[track_caller]
    pub fn assert_unchanged_but(&self, world: &World, expected: &[&str]) {
        let unexpected = || self.differences_but(&Self::of(world), expected);
        // The kernel and detached processes take a moment to go: look again, for half a minute at most.
        let end = Instant::now() + Duration::from_secs(30);
        let mut left = unexpected();
        while !left.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            left = unexpected();
        }
        if left.is_empty() {
            return;
        }
        let mut text = String::from("the host is not as it was:");
        for line in left {
            let _infallible = write!(text, "\n  {line}");
        }
        panic!("{text}");
    }

    /// Asserts that nothing of any container is [`left`](Self::left) on the host of `world`, once everything on its
    /// way out is gone, but `expected`, told as those of [`assert_unchanged_but`](Self::assert_unchanged_but).
    ///
    /// # Panics
    /// With everything else.
    #[track_caller]
    pub fn assert_nothing_is_left(&self, world: &World, bridges: &[&str], expected: &[&str]) {
        let kept = kept::after_the_last(bridges);
        let kept = kept.iter().map(String::as_str).chain(expected.iter().copied());
        self.assert_unchanged_but(world, &kept.collect::<Vec<_>>());
    }

    /// The lines of one section.
    pub fn section(&self, name: &str) -> &Lines {
        &self.sections[name]
    }
}
