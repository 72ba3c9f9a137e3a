//! containerd 1.6, as Debian 12 has it.

use serde_json::json;

use super::{example, run_detached_and_remove, site};
use crate::support::{Containerd, IMAGE, Release};

stories_on!(Release::V1_6);

#[test]
fn what_ctr_forgets_is_found_by_the_next_container_of_that_id_and_by_gc() {
    let site = site();
    let containerd = Containerd::start(&site, Release::V1_6);
    let id = run_detached_and_remove(&containerd, Release::V1_6);
    // It sends no DEL, so the lease stands; the next container of that id takes its place.
    let again = containerd.ctr(&format!("run --rm --cni {} {id} ip -o address show eth0", IMAGE)).run();
    assert!(again.success().contains("10.85.0."), "{again}");
    run_detached_and_remove(&containerd, Release::V1_6);
    containerd.stop();
    for (index, plugin) in ["bridge", "portmap", "alias-dns"].into_iter().enumerate() {
        if plugin == "portmap" {
            continue;
        }
        let mut config = example()["plugins"][index].clone();
        config["name"] = json!("containerd");
        config["cniVersion"] = json!("1.1.0");
        config["cni.dev/valid-attachments"] = json!([]);
        site.plugin(plugin).verb("GC").env("CNI_PATH", "/opt/cni/bin").config(&config).run().success();
    }
    // What it has cached of an attachment, ctr keeps.
    site.assert_nothing_is_left_but(&["cni0"], &["files: + /var/lib/cni/results/*"]);
}
