//! The calls that a real podman 4.3 made for its own generated networks are made again.
//!
//! It ran two containers on `testnet`, one of them with a fixed address; stopped and started that one, and reloaded
//! its network; then one container on three networks at once: dual stack with two fixed addresses, internal, and
//! `testnet`. In place of podman's dnsname there is alias-dns.

use integration_tests::{Snapshot, World};

use crate::replay::{End, Replay};

const RECORDING: &str = include_str!("../fixtures/podman-4.3.jsonl");

#[test]
fn recorded_calls_of_podman_are_answered_as_they_were() {
    let world = World::new();
    let before = Snapshot::of(&world);
    let mut replay = Replay::new(&world);
    assert_eq!(replay.run(RECORDING, |_| End::AsRecorded), 80);
    replay.detach_the_rest();
    // The reference's tuning forgets what it noted down only in a DEL with a namespace.
    before.assert_nothing_is_left(
        &world,
        &["cni-podman1", "cni-podman2", "cni-podman3"],
        &["files: + /run/cni/tuning/*"],
    );
}
