//! Whether this machine can run any container at all, whatever its network. `scripts/test` asks this first.

use std::fs;

use serde_json::{Value, json};

use crate::support::Site;

const BUNDLE: &str = "/run/bundle";

#[test]
#[ignore = "not about the plugins: scripts/test runs it before all others"]
fn runs_a_container() {
    let site = Site::new();
    let host = site.host();
    let image = Site::installed("image.tar");
    let unpack = format!(
        "mkdir -p {BUNDLE}/rootfs && tar -xOf {} layer.tar | tar -x -C {BUNDLE}/rootfs",
        image.display()
    );
    host.command(["sh", "-c", &unpack]).run().success();
    host.run(&format!("runc spec --bundle {BUNDLE}")).success();
    let file = site.path(format!("{BUNDLE}/config.json"));
    let mut spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["echo", "It works!"]);
    fs::write(&file, spec.to_string()).unwrap();
    let run = host.run(&format!("runc --root /run/runc run --bundle {BUNDLE} machine"));
    assert_eq!(run.success().trim(), "It works!");
}
