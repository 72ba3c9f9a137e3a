//! What the store believes of an index that it finds.

use super::*;

fn attachment(id: &str) -> Attachment {
    Attachment::new(id, "eth0").unwrap()
}

#[test]
fn an_index_that_could_not_follow_is_not_saved() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path(), "net");
    let address = Point::from("10.0.0.2".parse::<IpAddr>().unwrap());
    for (changes, saved) in [(Changes::Lost, false), (Changes::Kept, true)] {
        let mut store = DiskStore::open(&place).unwrap();
        store.reserve(address, &attachment("c1")).unwrap();
        store.changes = changes;
        store.finish();
        assert_eq!(place.own_file("index").exists(), saved);
    }
}

/// As where times are whole seconds and numbers of inodes come back at once: within a second, the lease of the first
/// holder is released and its address is leased to the second, who gets a file of the same number and time.
#[test]
fn a_file_as_young_as_the_index_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path(), "net");
    let address = Point::from("10.0.0.2".parse::<IpAddr>().unwrap());
    let (first, second) = (attachment("first"), attachment("second"));
    let mut store = DiskStore::open(&place).unwrap();
    assert_eq!(store.reserve(address, &second).unwrap(), Reservation::Made);
    let file = store.path_of(address);
    let changed = Changed::of(&rustix::fs::stat(&file).unwrap());
    let as_young = Stamp::of(&file).unwrap();
    assert_ne!(as_young, Stamp::of(&store.directory).unwrap(), "the index is behind");
    store.finish();

    let mut behind = Index::empty(BootId::current(), Room::default());
    let holder = hash(content_of(&first).as_bytes());
    let location = Location::ByAddress;
    let known = Entry { holder, address: Some(address), changed, era: Era::ThisBoot, netns: None, location };
    behind.insert(known).unwrap();
    behind.save(&place.own_file("index"), &place.own_file(NEW_INDEX), as_young).unwrap();

    let mut store = DiskStore::open(&place).unwrap();
    assert_eq!(store.leases_of(&second).unwrap(), [address]);
    assert_eq!(store.leases_of(&first).unwrap(), []);
}
