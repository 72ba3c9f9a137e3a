//! The calls that real containerds made are made again: 1.6 and 2.4, by `ctr run --cni`, by the CRI, under a kubelet.

use integration_tests::{Snapshot, World};
use serde_json::Value;

use crate::replay::{End, Replay};

#[track_caller]
fn check(recording: &str, calls: usize) {
    check_each(recording, calls, |_| End::AsRecorded);
}

#[track_caller]
fn check_each(recording: &str, calls: usize, end: impl Fn(&Value) -> End) {
    let world = World::new();
    let before = Snapshot::of(&world);
    let mut replay = Replay::new(&world);
    assert_eq!(replay.run(recording, end), calls);
    replay.detach_the_rest();
    before.assert_nothing_is_left(&world, &["cricni0", "ctrcni0"], &[]);
}

#[test]
fn ctr_run_of_1_6() {
    check(include_str!("../fixtures/containerd-1.6-ctr.jsonl"), 9);
}

#[test]
fn pod_of_1_6_with_ports_bandwidth_and_annotations() {
    check(include_str!("../fixtures/containerd-1.6-cri.jsonl"), 16);
}

#[test]
fn pod_of_1_6_in_the_words_of_0_3_1() {
    check(include_str!("../fixtures/containerd-1.6-cri-0.3.1.jsonl"), 12);
}

#[test]
fn result_that_1_6_refused_is_detached_again() {
    check(include_str!("../fixtures/containerd-1.6-cri-result-refused.jsonl"), 6);
}

#[test]
fn pod_of_2_4_with_every_capability() {
    check(include_str!("../fixtures/containerd-2.4-cri.jsonl"), 24);
}

#[test]
fn pod_of_2_4_in_the_words_of_1_0_0() {
    check(include_str!("../fixtures/containerd-2.4-cri-1.0.0.jsonl"), 15);
}

#[test]
fn pod_of_2_4_whose_first_process_died() {
    check(include_str!("../fixtures/containerd-2.4-cri-pause-died.jsonl"), 15);
}

#[test]
fn pod_of_2_4_whose_namespace_is_gone() {
    check(include_str!("../fixtures/containerd-2.4-cri-netns-gone.jsonl"), 15);
}

#[test]
fn ctr_run_of_2_4() {
    check(include_str!("../fixtures/containerd-2.4-ctr.jsonl"), 16);
}

#[test]
fn static_pod_of_a_kubelet() {
    check(include_str!("../fixtures/containerd-2.4-kubelet.jsonl"), 18);
}

#[test]
fn status_of_2_4_is_answered_well_where_the_recording_made_up_a_failure() {
    check_each(include_str!("../fixtures/containerd-2.4-cri-status-fails.jsonl"), 19, |call| {
        if call["rc"] == 1 { End::Well } else { End::AsRecorded }
    });
}

#[test]
fn pod_of_2_4_with_a_subnet_that_is_none_fails_and_its_del_does_not() {
    check_each(include_str!("../fixtures/containerd-2.4-cri-add-fails.jsonl"), 11, |call| {
        match (call["plugin"].as_str(), call["env"]["CNI_COMMAND"].as_str()) {
            (_, Some("DEL")) => End::Well,
            // The reference saw nothing wrong until the first pod came.
            (Some("bridge"), Some("STATUS")) => End::Failed,
            _ => End::AsRecorded,
        }
    });
}
