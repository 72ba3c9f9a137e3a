//! Whatever happens to an attachment between its ADD and its end, and however it ends: nothing of it is left, and its
//! neighbour keeps everything.

use integration_tests::{Container, PluginCall, Snapshot, World, wait_until};
use serde_json::{Value, json};

/// What happens between ADD and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    NetnsDeleted,
    NetnsNotTold,
    NetnsDeletedAndNotTold,
    NoPrevResult,
    ConfigChanged,
    ConfigInvalid,
    AddKilled,
    DelKilled,
    Rebooted,
    Flushed,
    IpamMissing,
}

/// How the attachment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Del,
    DelThreeTimes,
    Gc,
}

const EVENTS: [Event; 12] = [
    Event::Nothing,
    Event::NetnsDeleted,
    Event::NetnsNotTold,
    Event::NetnsDeletedAndNotTold,
    Event::NoPrevResult,
    Event::ConfigChanged,
    Event::ConfigInvalid,
    Event::AddKilled,
    Event::DelKilled,
    Event::Rebooted,
    Event::Flushed,
    Event::IpamMissing,
];

/// A network with all that leaves traces, a resident, and a guest that comes and goes.
struct Story {
    world: World,
    path: String,
    config: Value,
    guest: Container,
    resident: Container,
    resident_result: Value,
}

impl Story {
    #[track_caller]
    fn new(backend: &str) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        for command in [
            "iptables -P FORWARD DROP",
            "nft add table inet firewall",
            "nft add chain inet firewall through { type filter hook forward priority 10; policy drop; }",
        ] {
            world.host().run(command).success();
        }
        let config = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
            "ipMasq": true, "ipMasqBackend": backend, "ingressPolicy": "isolated", "macspoofchk": true,
            "acceptForward": true,
            "ipam": { "type": "host-local", "ranges": [
                [{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }],
            ] }
        });
        let (resident, guest) = (world.container("resident"), world.container("guest"));
        let add = world.plugin("bridge").verb("ADD").container(&resident).env("CNI_PATH", &path);
        let resident_result = add.config(&config).run().json();
        Self { world, path, config, guest, resident, resident_result }
    }

    fn call(&self, verb: &str) -> PluginCall {
        self.world.plugin("bridge").verb(verb).container(&self.guest).env("CNI_PATH", &self.path)
    }

    /// Ends the attachment as `end` says, with what the runtime still knows after `event`.
    fn end(&self, event: Event, end: End, result: &Value, must_succeed: bool) {
        let mut config = self.config.clone();
        match event {
            Event::ConfigChanged => {
                config["bridge"] = json!("br-other");
                config["ipMasq"] = json!(false);
                config["ipMasqBackend"] = json!("");
                config["ingressPolicy"] = json!("");
                config["macspoofchk"] = json!(false);
                config.as_object_mut().unwrap().remove("acceptForward");
            }
            Event::ConfigInvalid => {
                config["mtu"] = json!("huge");
                config["vlan"] = json!(-3);
                config["ingressPolicy"] = json!(7);
                config["ipam"]["ranges"] = json!("nonsense");
            }
            _ => {}
        }
        if end == End::Gc {
            config["cni.dev/valid-attachments"] = json!([{ "containerID": "resident", "ifname": "eth0" }]);
            let output =
                self.world.plugin("bridge").verb("GC").env("CNI_PATH", &self.path).config(&config).run();
            assert_eq!(output.status == 0, must_succeed, "{event:?} {end:?}: {output}");
            return;
        }
        if event != Event::NoPrevResult && !result.is_null() {
            config["prevResult"] = result.clone();
        }
        for _ in 0..if end == End::DelThreeTimes { 3 } else { 1 } {
            let del = self.call("DEL").config(&config);
            let del = match event {
                Event::NetnsNotTold | Event::NetnsDeletedAndNotTold => del.env("CNI_NETNS", ""),
                _ => del,
            };
            let output = del.run();
            assert_eq!(output.status == 0, must_succeed, "{event:?} {end:?}: {output}");
        }
    }

    fn kill_in_the_middle(&self, verb: &str, micros: u64) {
        let call = self.call(verb).config(&self.config).start();
        call.wait_for_start();
        // The moment is what is tested.
        std::thread::sleep(std::time::Duration::from_micros(micros));
        call.kill();
        call.wait();
        wait_until("a call and an allocator that was left alone have ended", || {
            self.world.host().run("pgrep -x bridge|host-local").stdout.is_empty().then_some(())
        });
    }

    /// All links, namespaces and rules are gone, and the files are not.
    fn reboot(&self) {
        for container in ["resident", "guest"] {
            self.world.remove_netns(container);
        }
        wait_until("the pairs are gone", || {
            self.world.host().run("ip -o link show type veth").stdout.is_empty().then_some(())
        });
        self.world.host().run("ip link delete br0").success();
        self.world.host().run("nft flush ruleset").success();
    }

    /// Lets `event` happen, and says what is left of the runtime's knowledge.
    fn happen(&self, event: Event, round: u64) -> Value {
        if event == Event::AddKilled {
            self.kill_in_the_middle("ADD", round * 700);
            return Value::Null;
        }
        let result = self.call("ADD").config(&self.config).run().json();
        assert!(result["interfaces"].is_array(), "{event:?}: {result}");
        match event {
            Event::NetnsDeleted | Event::NetnsDeletedAndNotTold => self.world.remove_netns("guest"),
            Event::DelKilled => self.kill_in_the_middle("DEL", round * 700),
            Event::Rebooted => self.reboot(),
            Event::Flushed => drop(self.world.host().run("nft flush ruleset").success().to_owned()),
            Event::IpamMissing => {
                std::fs::remove_file(self.world.path(format!("{}/host-local", self.path))).unwrap();
            }
            _ => {}
        }
        result
    }
}

fn survives(backend: &str, event: Event, end: End) {
    let story = Story::new(backend);
    let before = Snapshot::of(&story.world);
    let rounds = if matches!(event, Event::AddKilled | Event::DelKilled) { 8 } else { 1 };
    for round in 0..rounds {
        let result = story.happen(event, round);
        story.end(event, end, &result, event != Event::IpamMissing);
        if event == Event::IpamMissing {
            // Only the lease is left, and goes when the allocator is back.
            let path = story.path.clone();
            let back = format!("{path}/host-local-ipam");
            story.world.host().run(&format!("cp -d {back} {path}/host-local")).success();
            assert!(story.guest.run("ip link show dev eth0").status != 0, "{event:?} {end:?}");
            story.end(Event::Nothing, end, &result, true);
        }
        match event {
            Event::Rebooted => {
                let leases = story.world.host().run("ls /var/lib/cni/networks/n").stdout;
                assert!(!leases.contains("10.1.2.3") && leases.contains("10.1.2.2"), "{end:?}: {leases}");
                let rules = story.world.host().run("nft list ruleset").success().to_owned();
                assert_eq!(rules, "", "{end:?}");
            }
            Event::Flushed => {
                let kept =
                    [Snapshot::OF_THE_ALLOCATOR.as_slice(), &["nftables: - *", "iptables: - *"]].concat();
                before.assert_unchanged_but(&story.world, &kept);
            }
            _ => {
                before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
                let mut config = story.config.clone();
                config["prevResult"] = story.resident_result.clone();
                let check = story.world.plugin("bridge").verb("CHECK").container(&story.resident);
                let output = check.env("CNI_PATH", &story.path).config(&config).run();
                assert_eq!(output.status, 0, "the resident after {event:?} {end:?}: {output}");
                assert!(story.world.host().reaches("10.1.2.2"), "{event:?} {end:?}");
            }
        }
    }
}

#[test]
fn del_leaves_nothing_whatever_happened() {
    for event in EVENTS {
        survives("nftables", event, End::Del);
    }
}

#[test]
fn del_three_times_leaves_nothing_whatever_happened() {
    for event in EVENTS {
        survives("nftables", event, End::DelThreeTimes);
    }
}

#[test]
fn gc_leaves_nothing_whatever_happened() {
    for event in EVENTS {
        survives("nftables", event, End::Gc);
    }
}

#[test]
fn nothing_is_left_in_iptables_whatever_happened() {
    for event in EVENTS {
        survives("iptables", event, End::Del);
        survives("iptables", event, End::Gc);
    }
}
