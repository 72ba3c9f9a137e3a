//! The calls that a real cnitool made are made again: every verb, with aliases, a fixed address and a fixed hardware
//! address, with and without the wishes of ADD in the later calls.
//!
//! They were recorded with the reference bridge, host-local, portmap and firewall, and an alias-dns that only passed
//! its `prevResult` on.

use integration_tests::{Snapshot, World};

use crate::replay::{End, Replay};

const RECORDING: &str = include_str!("../fixtures/cnitool.jsonl");

#[test]
fn recorded_calls_of_cnitool_are_answered_as_they_were() {
    let world = World::new();
    let before = Snapshot::of(&world);
    let mut replay = Replay::new(&world);
    assert_eq!(replay.run(RECORDING, |_| End::AsRecorded), 45);
    before.assert_nothing_is_left(&world, &["tbr0"], &[]);
}
