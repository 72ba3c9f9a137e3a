//! The validation suite of the CRI passes on our chain: its networking specs, and the basic ones of pods and of
//! containers that share a pod's network.

use std::collections::BTreeSet;
use std::time::Duration;

use integration_tests::{Output, fixture};

use crate::support::{Containerd, Release, Site};

const SPECS: &str =
    "Networking|Multiple Containers|portforward|HostNetwork|PodSandbox runtime should support basic";

/// How many specs these are in the release that `scripts/setup-runtimes` builds.
const NUMBER: usize = 15;

fn critest(site: &Site) -> Output {
    site.write(
        "/run/ctd/images.yaml",
        "defaultTestContainerImage: localhost/box:1\nwebServerTestImage: localhost/web:1\n",
    );
    let program = Site::installed("critest");
    let program = program.to_str().expect("the cache has a plain path");
    site.host()
        .command([
            program,
            "-config=/run/ctd/crictl.yaml",
            "-runtime-endpoint=unix:///run/ctd/sock",
            "-test-images-file=/run/ctd/images.yaml",
            "-ginkgo.no-color",
            "-ginkgo.focus",
            SPECS,
            "-ginkgo.skip=metrics",
            // On a loaded machine containerd may end a container that is over at once before it has opened its log;
            // the spec of host networks, for which no plugin is called, then waits in vain for a line of it.
            "-ginkgo.flake-attempts=3",
        ])
        // It removes no log of its containers.
        .env("TMPDIR", "/run/ctd")
        .bound(Duration::from_secs(600))
        .run()
}

/// The images that a run could not pull, as it names them.
fn missing_images(run: &Output) -> BTreeSet<&str> {
    let beginnings = run.stdout.split("failed to pull and unpack image \"").skip(1);
    beginnings.filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn networking_specs_pass() {
    let site = Site::new();
    let example = fixture("conf-examples/containerd.conflist");
    site.write("/etc/cni/net.d/10-containerd.conflist", example.to_string());
    let containerd = Containerd::start(&site, Release::V2_4);
    // Some specs insist on images of their own, which are web servers: ours takes their names.
    let first = critest(&site);
    for image in missing_images(&first) {
        containerd.ctr(&format!("--namespace k8s.io images tag localhost/web:1 {image}")).run().success();
    }
    let run = critest(&site);
    assert!(run.success().contains(&format!("{NUMBER} Passed | 0 Failed")), "{run}");
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}
