//! [`Split`]: a name in wire form with the places where it can be cut in two. Copies nothing.

use domain::base::Name;

use super::Apex;

/// A name with the places where it can be split.
pub(super) struct Split<'q> {
    octets: &'q [u8],
    offsets: [u8; Split::MAX_LABELS + 1],
    labels: usize,
}

impl<'q> Split<'q> {
    /// A name has at most 255 octets, and a label at least two.
    const MAX_LABELS: usize = 127;

    pub(super) fn of(name: &'q Name<[u8]>) -> Self {
        let octets = name.as_slice();
        let mut split = Self { octets, offsets: [0; Self::MAX_LABELS + 1], labels: 0 };
        let mut offset = 0;
        while let Some(length @ 1..) = octets.get(offset) {
            offset += usize::from(*length) + 1;
            split.labels += 1;
            // A name's octets are numbered up to 254.
            split.offsets[split.labels] = offset as u8;
        }
        split
    }

    /// The number of labels but for the root's.
    pub(super) fn labels(&self) -> usize {
        self.labels
    }

    /// Where label number `label` begins; the root label has the number of labels.
    pub(super) fn offset(&self, label: usize) -> usize {
        usize::from(self.offsets[label])
    }

    pub(super) fn root(&self) -> Apex {
        Apex(self.offset(self.labels))
    }

    /// The labels in front of number `label`.
    pub(super) fn before(&self, label: usize) -> &'q [u8] {
        &self.octets[..self.offset(label)]
    }

    /// The labels from number `label` on, without the root label.
    pub(super) fn from(&self, label: usize) -> &'q [u8] {
        &self.octets[self.offset(label)..self.offset(self.labels)]
    }

    /// The text of label number `label`.
    pub(super) fn label(&self, label: usize) -> &'q [u8] {
        &self.octets[self.offset(label) + 1..self.offset(label + 1)]
    }
}
