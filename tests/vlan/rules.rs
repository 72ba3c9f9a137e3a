//! The rules on this kernel: they can be installed, do their work, can be listed and removed.

use integration_tests::Outside;
use serde_json::json;

use crate::{Story, address, host_veth, routed};

#[test]
fn masquerade_and_isolation_work_and_go() {
    let story = Story::new();
    let config = |number: u8| {
        let mut config = routed(&json!({
            "name": format!("n{number}"), "bridge": format!("br{number}"), "isDefaultGateway": true, "ipMasq": true,
            "ingressPolicy": "same-bridge", "macspoofchk": true,
        }));
        config["ipam"]["ranges"] = json!([
            [{ "subnet": format!("10.2.{number}.0/24") }], [{ "subnet": format!("fd00:{number}::/64") }],
        ]);
        config
    };
    let before = story.host("nft list ruleset");
    let _outside = story.world.outside();
    let (first, result) = story.attach("c1", &config(1));
    let (_second, same) = story.attach("c2", &config(1));
    let (third, other) = story.attach("c3", &config(2));
    let listed = story.host("nft list ruleset");
    assert!(listed.contains("masquerade") && listed.contains(host_veth(&result)), "{listed}");
    assert!(first.reaches(address(&same)));
    assert!(!first.reaches(address(&other)) && !third.reaches(address(&result)));
    // The outside knows no way back to the containers' addresses.
    for target in [Outside::ADDRESS, Outside::ADDRESS6] {
        assert!(first.reaches(target), "{target}");
    }
    assert_eq!(story.found(&first, &config(1), &result), "");

    for (name, number) in [("c1", 1), ("c2", 1), ("c3", 2)] {
        let del = story.world.plugin("bridge").verb("DEL").env("CNI_CONTAINERID", name).env("CNI_NETNS", "");
        del.env("CNI_PATH", &story.path).config(&config(number)).run().success();
    }
    assert_eq!(story.host("nft list ruleset"), before);
}
