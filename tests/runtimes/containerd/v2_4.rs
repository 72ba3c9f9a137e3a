//! containerd 2.4, as built from source: it asks STATUS, and its `ctr` forgets nothing.

use serde_json::json;

use super::{example, run_detached_and_remove, site};
use crate::support::{Containerd, Release};

stories_on!(Release::V2_4);

#[test]
fn ctr_lets_go_of_what_it_detached() {
    let site = site();
    let containerd = Containerd::start(&site, Release::V2_4);
    run_detached_and_remove(&containerd, Release::V2_4);
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[test]
fn crictl_shows_what_is_wrong_in_our_words() {
    let site = site();
    let containerd = Containerd::start(&site, Release::V2_4);
    let condition = || {
        let info = containerd.crictl("info").run();
        let conditions = info.json()["status"]["conditions"].clone();
        let network =
            conditions.as_array().into_iter().flatten().find(|one| one["type"] == "NetworkReady").cloned();
        network.unwrap_or_else(|| panic!("no condition of the network: {info}"))
    };
    assert_eq!(condition()["status"], true);

    let mut broken = example();
    broken["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] = json!("10.85.0.0/33");
    containerd.use_network(&broken);
    let mut config = broken["plugins"][0].clone();
    config["name"] = json!("containerd");
    config["cniVersion"] = json!("1.1.0");
    let words =
        site.plugin("bridge").verb("STATUS").env("CNI_PATH", "/opt/cni/bin").config(&config).run().error(50);
    let shown = condition();
    assert_eq!(shown["status"], false);
    assert!(shown["message"].as_str().is_some_and(|message| message.contains(&words)), "{words}: {shown}");

    containerd.use_network(&example());
    assert_eq!(condition()["status"], true);
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}
