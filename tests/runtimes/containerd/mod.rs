//! containerd 1.6 and 2.4, asked by `crictl` as a kubelet would ask, and by `ctr run --cni`.

use std::collections::BTreeSet;

use integration_tests::{Output, fixture, wait_until};
use serde_json::{Value, json};

use crate::support::{Containerd, Release, Site};

/// The stories that both releases are told, as tests of the module that it stands in.
macro_rules! stories_on {
    ($release:expr) => {
        stories_on! { $release;
            pods_find_each_other
            example_for_kubernetes_serves_pods
            pod_that_cannot_start_leaves_nothing
            network_that_cannot_work_is_told_and_mended
            pod_whose_namespace_is_gone_leaves_nothing
            pod_joins_two_networks_at_once
            twenty_pods_at_once_get_addresses_of_their_own
            network_changed_under_running_pods_lets_go_of_the_old_ones
            pods_outlive_a_killed_containerd
            ctr_runs_on_the_network
        }
    };
    ($release:expr; $($story:ident)*) => {
        $(
            #[test]
            fn $story() {
                super::$story($release);
            }
        )*
    };
}

mod v1_6;
mod v2_4;

/// A site with the example for containerd in place.
#[track_caller]
fn site() -> Site {
    let site = Site::new();
    site.write("/etc/cni/net.d/10-containerd.conflist", example().to_string());
    site
}

fn example() -> Value {
    fixture("conf-examples/containerd.conflist")
}

/// What a pod of these tests asks for its names to be resolved by.
fn resolver() -> Value {
    json!({ "dns_config": { "servers": ["10.85.0.1"], "searches": ["containerd"] } })
}

#[track_caller]
fn ping(containerd: &Containerd<'_>, container: &str, target: &str) -> Output {
    containerd.exec(container, &format!("ping -c 1 -W 30 {target}"))
}

#[track_caller]
fn pods_find_each_other(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let mut wishes = resolver();
    wishes["annotations"] = json!({ "alias-dns.cni/aliases": "centos-1,web" });
    wishes["port_mappings"] = json!([{ "protocol": 0, "container_port": 80, "host_port": 8080 }]);
    let first = containerd.run_pod("pod1", &wishes);
    let second = containerd.run_pod("pod2", &resolver());
    let (web, client) = (containerd.run_container("pod1", &first), containerd.run_container("pod2", &second));
    let address = containerd.address(&first);
    for name in ["pod1", "centos-1", "web.containerd"] {
        ping(&containerd, &client, name).has_line(&format!("64 bytes from pod1.containerd ({address})"));
    }
    ping(&containerd, &web, "pod2").has_line("64 bytes from pod2.containerd");
    let page = site.host().run("curl --silent --max-time 5 http://127.0.0.1:8080/");
    assert_eq!(page.success().trim(), "It works!");

    // A kubelet stops a pod more than once, and removes it then.
    for _ in 0..2 {
        containerd.crictl(&format!("stopp {first}")).run().success();
    }
    ping(&containerd, &client, "centos-1").failure();
    containerd.crictl(&format!("rmp {first}")).run().success();
    ping(&containerd, &client, "pod2").has_line("64 bytes from");
    containerd.remove_pod(&second);
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[track_caller]
fn example_for_kubernetes_serves_pods(release: Release) {
    let site = Site::new();
    let example = fixture("conf-examples/kubernetes.conflist");
    site.write("/etc/cni/net.d/10-kubernetes.conflist", example.to_string());
    let containerd = Containerd::start(&site, release);
    let mut wishes = json!({ "dns_config": { "servers": ["10.244.0.1"], "searches": ["pods.local"] } });
    let client = containerd.run_pod("client", &wishes);
    wishes["port_mappings"] = json!([{ "protocol": 0, "container_port": 80, "host_port": 8080 }]);
    wishes["annotations"] = json!({ "alias-dns.cni/aliases": "shop" });
    let web = containerd.run_pod("web-7f9c", &wishes);
    let (inside, _web) =
        (containerd.run_container("client", &client), containerd.run_container("web-7f9c", &web));
    let answer = containerd.exec(&inside, "fetch shop");
    assert!(
        answer.success().contains(&format!("web-7f9c called by [::ffff:{}]", containerd.address(&client))),
        "{answer}"
    );
    ping(&containerd, &inside, "web-7f9c.pods.local")
        .has_line("64 bytes from web-7f9c.pods.local (10.244.0.3)");
    let page = site.host().run("curl --silent --max-time 5 http://127.0.0.1:8080/");
    assert_eq!(page.success().trim(), "It works!");
    containerd.remove_pod(&web);
    containerd.remove_pod(&client);
    containerd.stop();
    site.assert_nothing_is_left(&["cbr0"]);
}

#[track_caller]
fn pod_that_cannot_start_leaves_nothing(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    // The network is made before the first process, and no kernel has this switch.
    let refused =
        containerd.pod("pod1", &json!({ "linux": { "sysctls": { "net.no_such_switch": "1" } } })).run();
    assert!(refused.failure().stderr.contains("no_such_switch"), "{refused}");
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[track_caller]
fn network_that_cannot_work_is_told_and_mended(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let mut broken = example();
    broken["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] = json!("10.85.0.0/33");
    containerd.use_network(&broken);
    let refused = containerd.pod("pod1", &resolver()).run();
    assert!(refused.failure().stderr.contains("ipam.ranges[0][0].subnet"), "{refused}");

    containerd.use_network(&example());
    let pod = containerd.run_pod("pod2", &resolver());
    assert_eq!(containerd.address(&pod), "10.85.0.2");
    containerd.remove_pod(&pod);
    for left in containerd.crictl("pods --quiet").run().success().split_whitespace() {
        containerd.remove_pod(left);
    }
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[track_caller]
fn pod_whose_namespace_is_gone_leaves_nothing(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let pod = containerd.run_pod("pod1", &resolver());
    let bound = site.host().run("ls /run/netns").success().trim().to_owned();
    site.host().run(&format!("umount /run/netns/{bound}")).success();
    site.host().run(&format!("rm /run/netns/{bound}")).success();
    containerd.remove_pod(&pod);
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[track_caller]
fn pod_joins_two_networks_at_once(release: Release) {
    let site = Site::new();
    for name in ["testnet", "testnet2"] {
        let list = fixture(&format!("conf-examples/{name}.conflist"));
        site.write(format!("/etc/cni/net.d/10-{name}.conflist"), list.to_string());
    }
    let containerd = Containerd::start_with_networks(&site, release, 2);
    let servers = json!({ "dns_config": { "servers": ["172.20.0.1", "172.21.0.1"], "searches": ["testnet", "testnet2"] } });
    let pods = ["pod1", "pod2"].map(|name| (name, containerd.run_pod(name, &servers)));
    let containers = pods.each_ref().map(|(name, pod)| containerd.run_container(name, pod));
    let addresses = containerd.exec(&containers[0], "ip -4 -o address").success().to_owned();
    assert!(addresses.contains("172.20.0.2/16") && addresses.contains("172.21.0.2/16"), "{addresses}");
    ping(&containerd, &containers[0], "pod2.testnet").has_line("64 bytes from pod2.testnet (172.20.0.3)");
    ping(&containerd, &containers[0], "pod2.testnet2").has_line("64 bytes from pod2.testnet2 (172.21.0.3)");
    for (_, pod) in &pods {
        containerd.remove_pod(pod);
    }
    containerd.stop();
    site.assert_nothing_is_left(&["br-testnet", "br-testnet2"]);
}

#[track_caller]
fn twenty_pods_at_once_get_addresses_of_their_own(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let names: Vec<String> = (1..=20).map(|number| format!("pod{number}")).collect();
    let starting: Vec<_> = names.iter().map(|name| containerd.pod(name, &resolver()).start()).collect();
    let pods: Vec<String> = starting.into_iter().map(|pod| pod.wait().success().trim().to_owned()).collect();
    let addresses: BTreeSet<String> = pods.iter().map(|pod| containerd.address(pod)).collect();
    assert_eq!(addresses.len(), 20, "{addresses:?}");
    let client = containerd.run_container("pod1", &pods[0]);
    for name in &names[1..] {
        ping(&containerd, &client, name).has_line(&format!("64 bytes from {name}.containerd"));
    }
    let stopping: Vec<_> =
        pods.iter().map(|pod| containerd.crictl(&format!("stopp {pod}")).start()).collect();
    for pod in stopping {
        pod.wait().success();
    }
    for pod in &pods {
        containerd.crictl(&format!("rmp {pod}")).run().success();
    }
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[track_caller]
fn network_changed_under_running_pods_lets_go_of_the_old_ones(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let old = containerd.run_pod("old", &resolver());
    let mut changed = example();
    changed["plugins"][0]["bridge"] = json!("cni1");
    changed["plugins"][0]["ipMasq"] = json!(false);
    changed["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] = json!("10.86.0.0/16");
    containerd.use_network(&changed);
    let new = containerd.run_pod("new", &resolver());
    assert_eq!(containerd.address(&new), "10.86.0.2");
    containerd.remove_pod(&old);
    containerd.remove_pod(&new);
    containerd.stop();
    site.assert_nothing_is_left(&["cni0", "cni1"]);
}

#[track_caller]
fn pods_outlive_a_killed_containerd(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let pod = containerd.run_pod("pod1", &resolver());
    let container = containerd.run_container("pod1", &pod);
    let containerd = containerd.kill_and_restart();
    ping(&containerd, &container, "pod1").has_line("64 bytes from pod1.containerd");
    let another = containerd.run_pod("pod2", &resolver());
    ping(&containerd, &container, "pod2").has_line("64 bytes from pod2.containerd");
    containerd.remove_pod(&pod);
    containerd.remove_pod(&another);
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

#[track_caller]
fn ctr_runs_on_the_network(release: Release) {
    let site = site();
    let containerd = Containerd::start(&site, release);
    let id = format!("once-{}", std::process::id());
    let run = containerd
        .ctr(&format!("run --rm --cni {} {id} ip -o address show eth0", crate::support::IMAGE))
        .run();
    assert!(run.success().contains("10.85.0.2/16"), "{run}");
    containerd.stop();
    site.assert_nothing_is_left(&["cni0"]);
}

/// `ctr run --detach`, then the end of the task and of the container. The id it had.
#[track_caller]
fn run_detached_and_remove(containerd: &Containerd<'_>, release: Release) -> String {
    let id = format!("detached-{}-{release:?}", std::process::id());
    containerd.ctr(&format!("run --detach --cni {} {id}", crate::support::IMAGE)).run().success();
    containerd.ctr(&format!("task kill --signal SIGKILL {id}")).run().success();
    wait_until("the task has ended", || {
        containerd.ctr("task list").run().stdout.contains("STOPPED").then_some(())
    });
    containerd.ctr(&format!("task rm {id}")).run().success();
    containerd.ctr(&format!("container rm {id}")).run().success();
    id
}
