//! What records are found by: the keys of the indexes, each with the borrowed form that it is looked up by.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use hashbrown::Equivalent;

use super::NetworkIx;
use super::index::Key;

/// Octets that are equal whatever the case of letters (RFC 4343). Length octets are below 64, so below the letters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folded<'b>(pub(crate) &'b [u8]);

#[derive(Debug)]
pub(super) struct ContainerId(pub(super) Box<str>);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    network: NetworkIx,
    pub(super) labels: Box<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NameRef<'b> {
    pub(super) network: NetworkIx,
    pub(super) labels: Folded<'b>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) network: NetworkIx,
    pub(super) ip: IpAddr,
}

#[derive(Debug)]
pub(super) struct Domain(Box<[u8]>);

impl PartialEq for Folded<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(other.0)
    }
}

impl Eq for Folded<'_> {}

impl Hash for Folded<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        const CHUNK: usize = 64;
        for chunk in self.0.chunks(CHUNK) {
            let mut folded = [0; CHUNK];
            let folded = &mut folded[..chunk.len()];
            folded.copy_from_slice(chunk);
            folded.make_ascii_lowercase();
            state.write(folded);
        }
        state.write_usize(self.0.len());
    }
}

impl Key for ContainerId {
    type Borrowed<'b> = &'b str;

    fn is(&self, borrowed: &str) -> bool {
        *self.0 == *borrowed
    }

    fn borrow(&self) -> &str {
        &self.0
    }

    fn own(borrowed: &str) -> Self {
        Self(borrowed.into())
    }
}

impl Key for Name {
    type Borrowed<'b> = NameRef<'b>;

    fn is(&self, borrowed: NameRef<'_>) -> bool {
        self.network == borrowed.network && Folded(&self.labels) == borrowed.labels
    }

    fn borrow(&self) -> NameRef<'_> {
        NameRef { network: self.network, labels: Folded(&self.labels) }
    }

    fn own(borrowed: NameRef<'_>) -> Self {
        // In lower case, so that it does not depend on which of two records came first.
        Self { network: borrowed.network, labels: borrowed.labels.0.to_ascii_lowercase().into() }
    }
}

/// As its borrowed form, which it is looked up by.
impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrow().hash(state);
    }
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        name.is(*self)
    }
}

impl Key for Address {
    type Borrowed<'b> = Self;

    fn is(&self, borrowed: Self) -> bool {
        *self == borrowed
    }

    fn borrow(&self) -> Self {
        *self
    }

    fn own(borrowed: Self) -> Self {
        borrowed
    }
}

impl Key for Domain {
    type Borrowed<'b> = Folded<'b>;

    fn is(&self, borrowed: Folded<'_>) -> bool {
        Folded(&self.0) == borrowed
    }

    fn borrow(&self) -> Folded<'_> {
        Folded(&self.0)
    }

    fn own(borrowed: Folded<'_>) -> Self {
        Self(borrowed.0.into())
    }
}
