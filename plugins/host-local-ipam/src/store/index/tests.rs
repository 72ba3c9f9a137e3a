//! The index against a model, and under damage.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_types::NetnsCookie;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::stamp::Changed;

const STAMP: Stamp = Stamp { seconds: 17, nanoseconds: 4, changed: 0 };

fn entry(holder: u64, address: u128) -> Entry {
    Entry {
        holder,
        address: Some(Point::from_bits(address)),
        changed: Changed { at: 7, inode: 0xffff_0000_0001 },
        era: Era::ThisBoot,
        netns: NetnsCookie::from_number(u64::MAX - u64::from(holder as u8)),
        location: Location::ByAddress,
    }
}

fn save(index: &mut Index, directory: &TempDir) {
    index.save(&directory.path().join("index"), &directory.path().join("aside"), STAMP).unwrap();
}

fn load(directory: &TempDir) -> Option<Index> {
    Index::load(&directory.path().join("index"))
}

fn v4(text: &str) -> Point {
    Point::from(text.parse::<IpAddr>().unwrap())
}

#[test]
fn what_is_saved_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let boot = Some(BootId::from_bytes(*b"0123456789abcdef0123456789abcdef0123"));
    let mut index = Index::empty(boot, Room::default());
    let odd = Entry { address: None, location: Location::Elsewhere, era: Era::EarlierBoot, ..entry(9, 0) };
    index.insert(entry(5, v4("10.0.0.2").bits())).unwrap();
    index.insert(odd).unwrap();
    save(&mut index, &directory);
    let loaded = load(&directory).unwrap();
    assert_eq!((loaded.boot(), loaded.stamp(), loaded.len()), (boot, Some(STAMP), 2));
    assert!(loaded.has_dead());
    assert_eq!(loaded.find(5).unwrap(), [entry(5, v4("10.0.0.2").bits())]);
    assert_eq!(loaded.find(9).unwrap(), [odd]);
    assert_eq!(loaded.find(6).unwrap(), []);
}

#[test]
fn a_header_with_any_other_byte_is_no_index() {
    let directory = tempfile::tempdir().unwrap();
    let mut index = Index::empty(Some(BootId::from_bytes([b'0'; BootId::LEN])), Room::default());
    save(&mut index, &directory);
    let path = directory.path().join("index");
    let whole = std::fs::read(&path).unwrap();
    for place in 0..BLOCK {
        let mut damaged = whole.clone();
        damaged[place] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        assert!(load(&directory).is_none(), "byte {place}");
    }
}

#[test]
fn an_index_grows_and_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut index = Index::empty(None, Room::default());
    save(&mut index, &directory);
    let mut index = load(&directory).unwrap();
    let address = |number: u64| u128::from(number) * 1000 + 1;
    for number in 0..5000 {
        index.insert(entry(mix(number), address(number))).unwrap();
    }
    save(&mut index, &directory);
    let index = load(&directory).unwrap();
    assert_eq!(index.len(), 5000);
    for number in 0..5000 {
        assert_eq!(index.find(mix(number)).unwrap(), [entry(mix(number), address(number))]);
        let alone = Span::of_one(Point::from_bits(address(number)));
        assert_eq!(index.first_free(alone).unwrap(), None, "{number}");
    }
}

#[test]
fn the_next_free_address_behind_a_full_block_is_found_by_few_reads() {
    let mut index = Index::empty(None, Room { entries: 65_535, chunks: 128 });
    let first = v4("10.1.0.0").bits();
    for low in 0..65_536 {
        if low != 60_123 {
            index.insert(entry(low as u64, first + low)).unwrap();
        }
    }
    let span = Span::new(v4("10.1.0.0"), v4("10.1.255.255")).unwrap();
    assert_eq!(index.first_free(span).unwrap(), Some(Point::from_bits(first + 60_123)));
    assert_eq!(index.first_free(span.after(v4("10.1.234.219")).unwrap()).unwrap(), None);
    let directory = tempfile::tempdir().unwrap();
    save(&mut index, &directory);
    let bytes = std::fs::metadata(directory.path().join("index")).unwrap().len();
    assert!(bytes < 5 << 20, "{bytes} bytes for 65 535 leases");
}

#[test]
fn no_damage_goes_unnoticed_where_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    let mut index = Index::empty(None, Room { entries: 100, chunks: 1 });
    for number in 0..100u64 {
        index.insert(entry(mix(number), u128::from(number) + 1)).unwrap();
    }
    save(&mut index, &directory);
    let whole = std::fs::read(&path).unwrap();
    let answers = |index: &Index| -> Option<Vec<Vec<Entry>>> {
        (0..100).map(|number| index.find(mix(number)).ok()).collect()
    };
    let right = answers(&index);
    for at in (0..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let answered = load(&directory).and_then(|index| answers(&index));
        assert!(answered.is_none() || answered == right, "byte {at}");
    }
    for length in [0, 1, 511, 512, 513, whole.len() - 1, whole.len() + 1] {
        let mut cut = whole.clone();
        cut.resize(length, 0);
        std::fs::write(&path, cut).unwrap();
        let answered = load(&directory).and_then(|index| answers(&index));
        assert!(answered.is_none() || answered == right, "{length} bytes");
    }
    // a block of another index, or from another place
    let mut moved = whole.clone();
    moved.copy_within(BLOCK..2 * BLOCK, 2 * BLOCK);
    std::fs::write(&path, moved).unwrap();
    assert!(load(&directory).and_then(|index| answers(&index)).is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, u8),
    Remove(u64, u8),
    Take(u8),
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u64..20, any::<u8>()).prop_map(|(holder, low)| Step::Insert(holder, low)),
        3 => (0u64..20, any::<u8>()).prop_map(|(holder, low)| Step::Remove(holder, low)),
        1 => any::<u8>().prop_map(Step::Take),
        1 => Just(Step::Reload),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Few holders, so that their blocks overflow; addresses on both sides of a chunk's end.
    #[test]
    fn the_index_answers_as_a_map_does(steps in steps()) {
        let base = v4("10.0.1.128").bits();
        let directory = tempfile::tempdir().unwrap();
        let mut index = Index::empty(None, Room::default());
        let mut model: BTreeMap<u8, u64> = BTreeMap::new();
        let mut taken: BTreeSet<u8> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Insert(holder, low) if !model.contains_key(&low) => {
                    index.insert(entry(holder, base + u128::from(low))).unwrap();
                    model.insert(low, holder);
                    taken.insert(low);
                }
                Step::Insert(..) => {}
                Step::Remove(holder, low) => {
                    index.remove(holder, Point::from_bits(base + u128::from(low))).unwrap();
                    if model.get(&low) == Some(&holder) {
                        model.remove(&low);
                    }
                    taken.remove(&low);
                }
                Step::Take(low) => {
                    index.mark_taken(Point::from_bits(base + u128::from(low))).unwrap();
                    taken.insert(low);
                }
                Step::Reload => {
                    save(&mut index, &directory);
                    index = load(&directory).unwrap();
                }
            }
            prop_assert_eq!(index.len(), model.len());
        }
        for holder in 0..20 {
            let mut found: Vec<u128> = index.find(holder).unwrap().iter().map(|entry| entry.address.unwrap().bits() - base).collect();
            found.sort_unstable();
            let wanted: Vec<u128> = model.iter().filter(|(_, theirs)| **theirs == holder).map(|(low, _)| u128::from(*low)).collect();
            prop_assert_eq!(found, wanted);
        }
        for low in 0u8..=255 {
            let span = Span::new(Point::from_bits(base + u128::from(low)), Point::from_bits(base + 255)).unwrap();
            let wanted = (low..=255).find(|low| !taken.contains(low)).map(|low| Point::from_bits(base + u128::from(low)));
            prop_assert_eq!(index.first_free(span).unwrap(), wanted);
        }
    }
}
