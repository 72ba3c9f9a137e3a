//! A Kubernetes node: a real kubelet over containerd 2.4 and our chain. Its kubelet takes long to build, so this is
//! run only when named: `scripts/test kubernetes`.

use integration_tests::{fixture, wait_until};
use serde_json::{Value, json};

use crate::support::{Containerd, Kubelet, Release, Site};

/// A pod of one web server, which prints the word `httpd` first.
fn pod(name: &str, host_port: Option<u16>, aliases: &str) -> Value {
    let mut port = json!({ "containerPort": 80 });
    if let Some(number) = host_port {
        port["hostPort"] = json!(number);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "annotations": { "alias-dns.cni/aliases": aliases } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web",
                "image": "localhost/web:1",
                "imagePullPolicy": "Never",
                "ports": [port],
            }],
        },
    })
}

/// The container of a pod, once it runs.
#[track_caller]
fn running_container(containerd: &Containerd<'_>, kubelet: &Kubelet<'_>, pod: &str) -> String {
    wait_until(&format!("pod {pod} runs"), || {
        let listed = containerd
            .crictl(&format!("ps --quiet --state running --label io.kubernetes.pod.name={pod}-node1"))
            .run();
        let id = listed.stdout.split_whitespace().next().map(str::to_owned);
        assert!(!kubelet.log().contains("panic:"), "{}", kubelet.log());
        id
    })
}

#[test]
#[ignore = "needs the kubelet: scripts/test kubernetes"]
fn node_serves_pods_holds_them_back_while_status_fails_and_lets_go_of_all() {
    let site = Site::new();
    let example = fixture("conf-examples/kubernetes.conflist");
    site.write("/etc/cni/net.d/10-kubernetes.conflist", example.to_string());
    let containerd = Containerd::start(&site, Release::V2_4);
    let kubelet = Kubelet::start(&site);
    kubelet.apply("web", &pod("web", Some(8080), "shop"));
    kubelet.apply("client", &pod("client", None, ""));
    let (web, client) =
        (running_container(&containerd, &kubelet, "web"), running_container(&containerd, &kubelet, "client"));

    // By address, by the pod's name in the cluster's domain, by alias; from the host by its port.
    let own = containerd.exec(&web, "ip -4 -o address show eth0");
    let words = own.success().split_once("inet ").and_then(|(_, rest)| rest.split('/').next());
    let address = words.unwrap_or_else(|| panic!("no address: {own}")).to_owned();
    let by = |target: &str| containerd.exec(&client, &format!("ping -c 1 -W 30 {target}"));
    by(&address).has_line("64 bytes from");
    for name in ["web-node1", "web-node1.pods.local", "shop"] {
        by(name).has_line(&format!("64 bytes from web-node1.pods.local ({address})"));
    }
    wait_until("the host's port answers", || {
        let page = site.host().run("curl --silent --max-time 5 http://127.0.0.1:8080/");
        (page.stdout.trim() == "It works!").then_some(())
    });

    // While STATUS fails, the kubelet starts no pod, and says why in our words.
    site.host().run("mv /opt/cni/bin/host-local-ipam /run/aside").success();
    wait_until("the kubelet has seen it", || {
        let info = containerd.crictl("info").run();
        info.stdout.contains("NetworkPluginNotReady").then_some(())
    });
    kubelet.apply("late", &pod("late", None, ""));
    wait_until("the kubelet holds the pod back, and says why", || {
        let held = kubelet.log().lines().any(|line| {
            line.contains("late-node1")
                && line.contains("network is not ready")
                && line.contains("host-local-ipam")
        });
        held.then_some(())
    });
    let held = containerd.crictl("pods --quiet --label io.kubernetes.pod.name=late-node1").run();
    assert_eq!(held.success().trim(), "", "a sandbox was made");
    site.host().run("mv /run/aside /opt/cni/bin/host-local-ipam").success();
    let late = running_container(&containerd, &kubelet, "late");
    containerd.exec(&late, "ping -c 1 -W 30 shop").has_line("64 bytes from web-node1.pods.local");

    for name in ["web", "client", "late"] {
        kubelet.delete(name);
    }
    wait_until("no pod is left", || {
        containerd.crictl("pods --quiet --state ready").run().success().trim().is_empty().then_some(())
    });
    kubelet.stop();
    for left in containerd.crictl("pods --quiet").run().success().split_whitespace() {
        containerd.remove_pod(left);
    }
    containerd.stop();
    site.assert_nothing_is_left(&["cbr0"]);
}
