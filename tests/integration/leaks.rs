//! However an attachment ends, nothing of it is left, and its neighbours keep theirs.

use std::time::{Duration, Instant};

use integration_tests::{Attachment, Container, Network, Snapshot, World, wait_until};
use serde_json::{Value, json};

/// What libcni would have removed: here the plugins are called one by one.
const KEPT: [&str; 1] = ["files: + /var/lib/cni/results/testnet-guest-eth0"];

/// The testnet example with a resident container, and a guest that is about to go.
struct Story {
    world: World,
    network: Network,
    resident: Container,
    before: Snapshot,
    guest: Container,
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let network = Network::example(&world, "testnet");
        let resident = world.container("resident");
        network.attach_as(&resident, &Attachment::of(&resident).aliases(&["centos-1"]));
        let before = Snapshot::of(&world);
        let guest = world.container("guest");
        Self { world, network, resident, before, guest }
    }

    fn guest(&self) -> Attachment {
        Attachment::of(&self.guest).aliases(&["centos-2"])
    }

    #[track_caller]
    fn attach_guest(&self) -> Value {
        self.network.attach_as(&self.guest, &self.guest())
    }

    /// DEL of the guest by every plugin, with what a runtime may have lost.
    #[track_caller]
    fn delete(&self, attachment: &Attachment, previous: Option<&Value>) {
        for index in [1, 0] {
            self.network.plugin_call("DEL", index, Some(attachment), previous).run().success();
        }
    }

    /// Nothing of the guest is left, and the resident has everything.
    #[track_caller]
    fn assert_clean(&self) {
        self.before.assert_unchanged_but(&self.world, &KEPT);
        self.network.check(&Attachment::of(&self.resident).aliases(&["centos-1"])).unwrap();
        assert_eq!(self.resident.resolve("centos-1"), ["172.20.0.2"]);
        assert!(self.resident.resolve("centos-2").is_empty());
        assert!(self.world.host().reaches("172.20.0.2"));
    }
}

#[test]
fn del_cleans_up_whatever_the_runtime_has_lost() {
    let story = Story::new();
    for netns_is_gone in [false, true] {
        for netns_is_told in [false, true] {
            for with_previous in [false, true] {
                let result = story.attach_guest();
                if netns_is_gone {
                    story.world.remove_netns("guest");
                }
                let attachment = if netns_is_told { story.guest() } else { story.guest().netns("") };
                story.delete(&attachment, with_previous.then_some(&result));
                story.assert_clean();
                // Nothing to do is done again without complaint.
                story.delete(&attachment, with_previous.then_some(&result));
                story.delete(&attachment, None);
                story.assert_clean();
                if netns_is_gone {
                    story.world.container("guest");
                }
            }
        }
    }
}

#[test]
fn del_of_what_never_was_succeeds_and_does_nothing() {
    let story = Story::new();
    for attachment in [
        story.guest(),
        story.guest().netns(""),
        story.guest().netns("/run/netns/never"),
        story.guest().ifname("eth7"),
    ] {
        story.delete(&attachment, None);
        story.assert_clean();
    }
}

#[test]
fn del_of_a_container_whose_address_was_taken_from_it_still_cleans_up() {
    let story = Story::new();
    let result = story.attach_guest();
    story.guest.run("ip link delete eth0").success();
    story.delete(&story.guest(), Some(&result));
    story.assert_clean();
}

#[test]
fn del_works_after_somebody_flushed_the_rules() {
    let story = Story::new();
    let result = story.attach_guest();
    story.world.host().run("nft flush ruleset").success();
    story.delete(&story.guest(), Some(&result));
    story.before.assert_unchanged_but(&story.world, &[&KEPT[..], &["nftables: - *"]].concat());
}

#[test]
fn del_works_with_a_configuration_that_add_would_refuse() {
    let story = Story::new();
    let result = story.attach_guest();
    for (index, broken) in [
        (1, json!({ "ttl": "soon" })),
        (
            0,
            json!({ "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "nonsense" }]] }, "mtu": "big" }),
        ),
    ] {
        let mut config = story.network.plugin_config(index);
        for (key, value) in broken.as_object().unwrap() {
            config[key] = value.clone();
        }
        config["prevResult"] = result.clone();
        let call = story.network.plugin_call("DEL", index, Some(&story.guest()), None);
        call.config(&config).run().success();
    }
    story.assert_clean();
}

#[test]
fn gc_removes_what_is_no_longer_valid_and_nothing_else() {
    let story = Story::new();
    story.attach_guest();
    story.world.remove_netns("guest");
    // The runtime has lost its own notes, so no DEL comes before: the plugins have to find it themselves.
    std::fs::remove_file(story.world.path("/var/lib/cni/results/testnet-guest-eth0")).unwrap();
    story.network.gc(&[&Attachment::of(&story.resident)]).unwrap();
    story.assert_clean();
}

#[test]
fn gc_without_a_list_keeps_whoever_is_alive() {
    let story = Story::new();
    story.attach_guest();
    for index in [0, 1] {
        story.network.plugin_call("GC", index, None, None).run().success();
    }
    story.network.check(&story.guest()).unwrap();
    assert_eq!(story.resident.resolve("centos-2"), ["172.20.0.3"]);
    story.delete(&story.guest(), None);
    story.assert_clean();
}

#[test]
fn an_add_that_was_killed_can_be_deleted_collected_and_repeated() {
    let story = Story::new();
    for round in 0..40_u32 {
        let plugin = story.network.plugin_call("ADD", 0, Some(&story.guest()), None).start();
        plugin.wait_for_start();
        // A moment that differs from round to round; how far the plugin came in it is left to chance.
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 150));
        plugin.kill();
        let output = plugin.wait();
        match round % 3 {
            0 => story.delete(&story.guest(), None),
            1 => {
                for index in [0, 1] {
                    let mut config = story.network.plugin_config(index);
                    config["cni.dev/valid-attachments"] =
                        json!([{ "containerID": "resident", "ifname": "eth0" }]);
                    story.network.plugin_call("GC", index, None, None).config(&config).run().success();
                }
            }
            _ if output.status == 0 => story.delete(&story.guest(), None),
            _ => {
                // The runtime gives up on the container, and tries again with a new one of the same id.
                story.world.remove_netns("guest");
                story.world.container("guest");
                story.attach_guest();
                story.delete(&story.guest(), None);
            }
        }
        story.assert_clean();
    }
}

#[test]
fn a_second_add_of_a_live_attachment_is_refused_and_takes_nothing_from_it() {
    let story = Story::new();
    story.attach_guest();
    let before = Snapshot::of(&story.world);
    let elsewhere = story.world.container("elsewhere");
    for attachment in [story.guest(), story.guest().netns(&elsewhere.netns_path())] {
        // It is known to live, so there is nothing to wait for. A busy machine may take longer, but not each time.
        let refusal = wait_until("it is refused at once", || {
            let begun = Instant::now();
            let refusal = story.network.add(&attachment).unwrap_err();
            (begun.elapsed() < Duration::from_millis(1500)).then_some(refusal)
        });
        assert_eq!(refusal.plugin, "bridge");
        assert!(refusal.msg.contains("guest") || refusal.msg.contains("eth0"), "{refusal}");
        before.assert_unchanged(&story.world);
    }
    story.network.check(&story.guest()).unwrap();
    assert!(story.resident.reaches("172.20.0.3"));
}

#[test]
fn a_del_that_was_killed_can_be_repeated() {
    let story = Story::new();
    for round in 0..20_u32 {
        let result = story.attach_guest();
        for index in [1, 0] {
            let plugin = story.network.plugin_call("DEL", index, Some(&story.guest()), Some(&result)).start();
            plugin.wait_for_start();
            std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 150));
            plugin.kill();
            plugin.wait();
        }
        story.delete(&story.guest(), Some(&result));
        story.assert_clean();
    }
}

#[test]
fn the_name_server_leaves_some_time_after_the_last_record_and_comes_back() {
    let world = World::new();
    let network = Network::example(&world, "testnet");
    let container = world.container("one");
    let servers = || world.host().run("pgrep --full alias-dns").stdout.lines().count();
    assert_eq!(servers(), 0);
    for _ in 0..2 {
        let attachment = Attachment::of(&container).aliases(&["centos-1"]);
        network.attach_as(&container, &attachment);
        assert_ne!(servers(), 0);
        assert_eq!(container.resolve("centos-1").len(), 1);
        network.detach_as(&container, &attachment);
        wait_until("the name server is gone", || (servers() == 0).then_some(()));
    }
}
