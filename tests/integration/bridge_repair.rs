//! Rules that somebody flushes while the plugin is at work, and a plugin that is killed while it brings them back.

use std::time::Duration;

use integration_tests::{Attachment, Container, Network, Suite, World, wait_until};
use serde_json::{Value, json};

struct Story {
    world: World,
    network: Network,
    path: String,
}

fn list(keys: &Value) -> Value {
    let mut bridge = json!({
        "type": "bridge", "bridge": "br-1", "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true,
        "ingressPolicy": "same-bridge",
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }]] },
    });
    bridge.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [bridge] })
}

impl Story {
    #[track_caller]
    fn new(keys: &Value) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        let list = list(keys);
        world.write("/run/net.d/net.conflist", list.to_string());
        let network = Network::new(&world, list);
        Self { world, network, path }
    }

    #[track_caller]
    fn attached(&self, name: &str) -> Container {
        let container = self.world.container(name);
        self.network.attach(&container);
        container
    }

    fn flush(&self) {
        self.world.host().run("nft flush ruleset").success();
    }

    fn ruleset(&self) -> String {
        self.world.host().run("nft list ruleset").success().to_owned()
    }

    #[track_caller]
    fn assert_whole(&self, containers: &[&Container], when: &str) {
        for container in containers {
            if let Err(failure) = self.network.check(&Attachment::of(container)) {
                panic!("{when}: {}: {failure}", container.name());
            }
        }
    }
}

/// Duplicate address detection keeps ADD at it for a second or two, after its rules and before its end.
#[test]
fn rules_that_are_flushed_during_an_add_are_back_at_its_end() {
    for another in [false, true] {
        // On a busy machine the flush may come too late, and then it says nothing.
        wait_until("the rules are flushed during an ADD", || flushed_during_an_add(another).then_some(()));
    }
}

/// Whether the flush came before the end of the ADD.
fn flushed_during_an_add(another: bool) -> bool {
    let story = Story::new(&json!({ "enabledad": true }));
    let resident = story.attached("resident");
    let (guest, other) = (story.world.container("guest"), story.world.container("other"));
    let attachment = Attachment::of(&guest);
    let add = story.network.plugin_call("ADD", 0, Some(&attachment), None).start();
    wait_until("the guest has its addresses", || {
        guest.run("ip -6 address show dev eth0 scope global").stdout.contains("fd00:1::3").then_some(())
    });
    story.flush();
    if add.has_ended() {
        return false;
    }
    if another {
        // Sees the guest before that has ended, and must not take it for less than it is.
        story.network.attach(&other);
    }
    let result = add.wait().json();
    story.network.plugin_call("CHECK", 0, Some(&attachment), Some(&result)).run().success();
    story.assert_whole(&[&resident], "the resident after a flush during another's ADD");
    story.network.plugin_call("DEL", 0, Some(&attachment), Some(&result)).run().success();
    story.network.detach(&resident);
    if another {
        story.network.detach(&other);
    }
    assert_eq!(story.ruleset(), "");
    true
}

#[test]
fn an_add_that_is_killed_while_it_restores_leaves_the_rest_to_the_next() {
    let story = Story::new(&json!({}));
    let residents: Vec<Container> = (0..6).map(|index| story.attached(&format!("r{index}"))).collect();
    let residents: Vec<&Container> = residents.iter().collect();
    let (guest, last) = (story.world.container("guest"), story.world.container("last"));
    for round in 0..32_u32 {
        story.flush();
        let add = story.network.plugin_call("ADD", 0, Some(&Attachment::of(&guest)), None).start();
        add.wait_for_start();
        // The moment is what is tested.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 200));
        add.kill();
        add.wait();
        story.network.attach(&last);
        story.assert_whole(&residents, &format!("round {round}"));
        story.network.detach(&last);
        story.network.del(&Attachment::of(&guest)).unwrap();
        assert!(!story.ruleset().contains("net/guest"), "{}", story.ruleset());
    }
}

#[test]
fn a_repair_that_is_killed_leaves_the_rest_to_the_next() {
    let story = Story::new(&json!({}));
    let residents: Vec<Container> = (0..6).map(|index| story.attached(&format!("r{index}"))).collect();
    let residents: Vec<&Container> = residents.iter().collect();
    let program = Suite::Ours.binary("bridge").display().to_string();
    let repair = || {
        let command = story.world.host().command([program.as_str(), "repair", "net"]);
        command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &story.path)
    };
    let last = story.world.container("last");
    for round in 0..32_u32 {
        story.flush();
        let killed = repair().start();
        killed.wait_for_start();
        std::thread::sleep(Duration::from_micros(u64::from(round) * 200));
        killed.kill();
        killed.wait();
        match round % 2 {
            0 => drop(repair().run().success().to_owned()),
            _ => {
                story.network.attach(&last);
                story.network.detach(&last);
            }
        }
        story.assert_whole(&residents, &format!("round {round}"));
    }
}

/// The allocator of a bridge plugin that was killed lives on, and leases when nobody waits for it any more.
#[test]
fn what_an_orphaned_allocator_leases_is_recovered() {
    for recovery in ["DEL", "GC", "ADD", "ADD of another"] {
        let story = Story::new(&json!({}));
        let slow = format!("{}/slow", story.path);
        story.world.write_program(
            &slow,
            "#!/bin/sh\n[ \"$CNI_COMMAND\" != ADD ] || [ -e /run/begun ] && exec \"$(dirname \"$0\")/host-local\"\n\
             cat > /run/stdin; echo > /run/begun; until [ -e /run/go ]; do sleep 0.01; done\n\
             \"$(dirname \"$0\")/host-local\" < /run/stdin; echo > /run/leased\n",
        );
        let guest = story.world.container("guest");
        let mut config = story.network.plugin_config(0);
        config["ipam"]["type"] = json!("slow");
        let call = |verb: &str| {
            let call = story.world.plugin("bridge").verb(verb).container(&guest);
            call.env("CNI_PATH", &story.path)
        };
        let add = call("ADD").config(&config).start();
        let exists = |file: &str| story.world.path(file).exists().then_some(());
        wait_until("the allocator has begun", || exists("/run/begun"));
        story.world.host().run("pkill -KILL -x bridge").success();
        add.wait();
        story.world.write("/run/go", "");
        wait_until("the allocator has leased", || exists("/run/leased"));
        let leases = || {
            let files = std::fs::read_dir(story.world.path("/var/lib/cni/networks/net")).unwrap();
            files
                .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().contains("10.1."))
                .count()
        };
        assert_eq!(leases(), 1);
        match recovery {
            "DEL" => drop(call("DEL").config(&config).run().success().to_owned()),
            "GC" => {
                config["cni.dev/valid-attachments"] = json!([]);
                call("GC").config(&config).run().success();
            }
            _ => {
                if recovery == "ADD of another" {
                    // The runtime gives up on the container, and tries again with a new one of the same id.
                    story.world.remove_netns("guest");
                    story.world.container("guest");
                }
                let result = call("ADD").config(&config).run().json();
                assert_eq!(result["ips"][0]["address"], "10.1.0.3/16", "{result}");
                assert_eq!(leases(), 1, "one container, one lease");
                call("DEL").config(&config).run().success();
            }
        }
        assert_eq!(leases(), 0, "{recovery}");
    }
}
