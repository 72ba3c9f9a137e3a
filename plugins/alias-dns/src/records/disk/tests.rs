use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use cni_types::BootId;
use proptest::prelude::*;

use super::*;
use crate::records::NetnsRef;

fn key(network: &str, container_id: &str, ifname: &str) -> RecordKey {
    RecordKey::new(network, Attachment::new(container_id, ifname).unwrap()).unwrap()
}

fn record(key: RecordKey) -> Record {
    let text = serde_json::json!({
        "network": key.network(), "containerID": key.container_id(), "ifname": key.ifname(), "joined": 7,
        "bridge": "br0", "gateways": ["172.20.0.1/16"], "addresses": ["172.20.0.2"], "names": ["c1", "web"],
        "domain": "testnet", "ttl": 5, "forward": true,
    });
    serde_json::from_value(text).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(&StateDir::at(directory.path()));
    (directory, store)
}

#[test]
fn a_record_is_read_back_and_its_file_tells_whose_it_is() {
    let (_directory, store) = store();
    for key in [
        key("testnet", "c1", "eth0"),
        key("a.b-c_d", "x.y-z_0", "veth.1@x"),
        key("n", &"a".repeat(245), "eth0"),
        key("n", &"a".repeat(246), "eth0"),
        key("n", &"a".repeat(246), "eth1"),
        key("n", &"a".repeat(100_000), "eth0"),
    ] {
        let record = record(key.clone());
        store.write(&record).unwrap();
        assert_eq!(store.read(&key).unwrap(), Some(record));
        assert_eq!(store.key_of(&store.path(&key)), Some(key));
    }
    assert_eq!(store.load().records.len(), 6);
    assert_eq!(store.load_network("testnet").records.len(), 1);
    assert_eq!(store.keys("n").len(), 4);
}

#[test]
fn a_record_that_outlived_a_boot_is_not_newer_than_those_of_this_one() {
    let (_directory, store) = store();
    let [of_earlier_boot, of_this_one] = ["old", "new"].map(|id| key("testnet", id, "eth0"));
    store.write(&Record { joined: u64::MAX, ..record(of_earlier_boot.clone()) }).unwrap();
    let joined = since_boot();
    store.write(&Record { joined, ..record(of_this_one.clone()) }).unwrap();
    let joined_at = |key| store.read(key).unwrap().unwrap().joined;
    assert_eq!(joined_at(&of_this_one), joined);
    assert_eq!(joined_at(&of_earlier_boot), 0);
    assert!(store.load().records.iter().all(|record| record.joined <= joined));

    // One of a boot that was shorter is told by the boot's id.
    let [earlier, current] = [Some(BootId::from_bytes([b'0'; BootId::LEN])), BootId::current()];
    for (boot, joined, is_dead) in [(earlier, 0, true), (current, 1, false), (None, 1, false)] {
        store.write(&Record { boot, joined: 1, ..record(of_earlier_boot.clone()) }).unwrap();
        let read = store.read(&of_earlier_boot).unwrap().unwrap();
        assert_eq!((read.joined, read.is_dead()), (joined, is_dead), "{boot:?}");
    }
}

#[test]
fn a_file_with_a_hash_is_the_record_that_it_says_or_none() {
    let (_directory, store) = store();
    let [one, other] = ["a", "b"].map(|letter| key("n", &letter.repeat(300), "eth0"));
    store.write(&record(one.clone())).unwrap();
    let path = store.path(&one);
    fs::rename(&path, store.path(&other)).unwrap();
    assert_eq!(store.key_of(&store.path(&other)), None);
    assert_eq!((store.load().records.len(), store.load().unreadable.len()), (0, 1));
    assert!(!store.has_records());
    assert!(store.remove(&other).unwrap());
    assert!(!store.root().join("n").exists());
}

#[test]
fn the_last_record_takes_its_networks_directory_along() {
    let (_directory, store) = store();
    let (one, other) = (key("testnet", "c1", "eth0"), key("testnet", "c2", "eth0"));
    store.write(&record(one.clone())).unwrap();
    store.write(&record(other.clone())).unwrap();
    assert!(store.remove(&one).unwrap());
    assert!(store.root().join("testnet").exists());
    assert!(store.remove(&other).unwrap());
    assert!(!store.root().join("testnet").exists());
    assert!(!store.remove(&other).unwrap());
}

#[test]
fn a_record_that_cannot_be_written_leaves_nothing() {
    let (_directory, store) = store();
    let long = key(&"n".repeat(300), "c1", "eth0");
    assert!(store.write(&record(long.clone())).is_err());
    assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
    assert_eq!(store.read(&long).unwrap(), None);
    assert!(!store.remove(&long).unwrap());
}

#[test]
fn what_else_stands_in_the_place_of_a_record_is_none() {
    let (_directory, store) = store();
    let key = key("testnet", "c1", "eth0");
    for place in [store.path(&key), aside(&store.path(&key))] {
        fs::create_dir_all(&place).unwrap();
        store.remove(&key).unwrap();
        assert!(!place.exists(), "{}", place.display());
        fs::create_dir_all(place.join("of somebody")).unwrap();
        assert_eq!(store.remove(&key).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        fs::remove_dir_all(&place).unwrap();
    }
    let network = store.root().join("testnet");
    fs::remove_dir(&network).unwrap();
    fs::write(&network, "").unwrap();
    assert_eq!(store.read(&key).unwrap(), None);
    assert!(!store.remove(&key).unwrap());
}

#[test]
fn a_record_that_is_made_anew_is_not_swept_with_the_dead_one() {
    let (_directory, store) = store();
    let key = key("testnet", "again", "eth0");
    let dead = Record { netns: Some(NetnsRef::of_nobody()), ..record(key.clone()) };
    let alive = record(key.clone());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                store.remove_dead(vec![key.clone()], &mut Failures::default());
            }
        });
        let lost = (0..1000).find(|_| {
            store.write(&dead).unwrap();
            store.write(&alive).unwrap();
            let first = store.read(&key).unwrap();
            // Neither by one who looked before it was removed and made anew.
            store.write(&dead).unwrap();
            store.remove(&key).unwrap();
            store.write(&alive).unwrap();
            [first, store.read(&key).unwrap()] != [Some(alive.clone()), Some(alive.clone())]
        });
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(lost, None);
    });
}

#[test]
fn only_the_dead_are_swept_and_what_somebody_holds_is_left_to_him() {
    let (_directory, store) = store();
    let [alive, dead, held] = ["alive", "dead", "held"].map(|id| key("testnet", id, "eth0"));
    let gone = Some(NetnsRef::of_nobody());
    store.write(&record(alive.clone())).unwrap();
    for key in [&dead, &held] {
        store.write(&Record { netns: gone.clone(), ..record(key.clone()) }).unwrap();
    }
    let holder = Held::at_once(&store.path(&held)).unwrap();
    let missing = key("testnet", "missing", "eth0");
    let all = vec![alive.clone(), dead.clone(), held.clone(), missing];
    let mut failures = Failures::default();
    assert_eq!(store.remove_dead(all.clone(), &mut failures), [dead]);
    drop(holder);
    assert_eq!(store.remove_dead(all, &mut failures), [held]);
    assert_eq!(store.keys("testnet"), [alive]);
    failures.into_result().unwrap();
}

#[test]
fn what_cannot_be_removed_keeps_nothing_else() {
    let (_directory, store) = store();
    let keys = ["a", "b", "c"].map(|network| ["1", "2", "3"].map(|id| key(network, id, "eth0"))).concat();
    for key in &keys {
        store.write(&record(key.clone())).unwrap();
    }
    for stuck in [store.root().join("a/0:eth0"), store.root().join("b/4:eth0")] {
        fs::create_dir_all(stuck.join("somebody's")).unwrap();
    }
    let told = store.remove_all().unwrap_err().to_string();
    assert!(told.contains("a/0:eth0") && told.contains("b/4:eth0"), "{told}");
    assert!(keys.iter().all(|key| !store.path(key).exists()));
    for network in ["a", "b"] {
        fs::remove_dir_all(store.root().join(network)).unwrap();
    }
    store.remove_all().unwrap();
    assert!(!store.root().exists());
    store.remove_all().unwrap();
}

#[test]
fn a_file_of_somebody_else_is_passed_over_and_named() {
    let (_directory, store) = store();
    let (own, other) = (key("testnet", "c1", "eth0"), key("testnet", "c2", "eth0"));
    store.write(&record(own.clone())).unwrap();
    fs::copy(store.path(&own), store.path(&other)).unwrap();
    fs::write(store.root().join("testnet/notes"), "").unwrap();
    fs::write(store.root().join("notes"), "").unwrap();
    fs::write(store.root().join("testnet/.new-c3:eth0"), "{").unwrap();
    let loaded = store.load();
    assert_eq!(loaded.records, [record(own)]);
    let mut passed_over: Vec<String> = loaded.unreadable.iter().map(|file| file.to_string()).collect();
    passed_over.sort();
    let root = store.root().display();
    assert_eq!(passed_over.len(), 3);
    assert!(passed_over[0].starts_with(&format!("{root}/notes: ")), "{passed_over:?}");
    assert_eq!(passed_over[1], format!("{root}/testnet/c2:eth0: it is the record of testnet/c1/eth0"));
    assert_eq!(passed_over[2], format!("{root}/testnet/notes: not the name of a record"));
}

/// A record's text with some of its octets changed, or none of a record at all.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let text = serde_json::to_vec(&record(key("testnet", "torn", "eth0"))).unwrap();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed = (changes, any::<prop::sample::Index>()).prop_map(move |(changes, end)| {
        let mut text = text.clone();
        for (place, octet) in changes {
            let place = place.index(text.len());
            text[place] = octet;
        }
        text.truncate(end.index(text.len() + 1));
        text
    });
    prop_oneof![changed, prop::collection::vec(any::<u8>(), 0..64)]
}

proptest! {
    #[test]
    fn a_damaged_file_costs_its_own_names_alone(text in damaged()) {
        let (_directory, store) = store();
        let whole = record(key("testnet", "whole", "eth0"));
        store.write(&whole).unwrap();
        let torn = key("testnet", "torn", "eth0");
        fs::write(store.path(&torn), text).unwrap();
        let loaded = store.load();
        prop_assert_eq!(loaded.records.len() + loaded.unreadable.len(), 2);
        prop_assert!(loaded.records.contains(&whole));
        // What can be read can be answered by.
        let zones = crate::zone::Zones::load(loaded.records);
        prop_assert!(zones.contains(&whole.key));
        prop_assert!(store.remove(&torn).unwrap());
    }

    #[test]
    fn writes_and_removals_end_in_what_was_written_last(
        steps in prop::collection::vec(("[a-c]", "[xy]", any::<u32>(), any::<bool>()), 0..16),
    ) {
        let (_directory, store) = store();
        let mut left = BTreeMap::new();
        for (network, container_id, ttl, stays) in steps {
            let key = key(&network, &container_id, "eth0");
            if stays {
                let record = Record { ttl, ..record(key.clone()) };
                store.write(&record).unwrap();
                left.insert(key, record);
            } else {
                prop_assert_eq!(store.remove(&key).unwrap(), left.remove(&key).is_some());
            }
        }
        let loaded: BTreeMap<RecordKey, Record> =
            store.load().records.into_iter().map(|record| (record.key.clone(), record)).collect();
        prop_assert_eq!(loaded, left);
    }
}
