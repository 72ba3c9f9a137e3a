//! ADD of the bridge plugin is all or nothing, and whatever kills a call leaves nothing that the next DEL cannot find.

use std::time::Duration;

use integration_tests::{Container, Output, PluginCall, Snapshot, Suite, World, wait_until};
use serde_json::{Value, json};

/// A network with a resident container, and a guest to be attached.
struct Story {
    world: World,
    guest: Container,
    path: String,
    before: Snapshot,
    /// What a traced call is given, unless it is a GC.
    config: Value,
}

fn config() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
        "ipMasq": true, "ingressPolicy": "same-bridge", "macspoofchk": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]] }
    })
}

/// The configuration for a GC that leaves the resident alone.
fn collecting() -> Value {
    let mut config = config();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "resident", "ifname": "eth0" }]);
    config
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let path = world.install_plugins();
        let (resident, guest) = (world.container("resident"), world.container("guest"));
        let add = world.plugin("bridge").verb("ADD").container(&resident).env("CNI_PATH", &path);
        add.config(&config()).run().success();
        let before = Snapshot::of(&world);
        Self { world, guest, path, before, config: config() }
    }

    /// One whose DELs leave to a child what the kernel does when the links are gone.
    fn returning_early() -> Self {
        Self { config: with("/earlyReturn", json!(true)), ..Self::new() }
    }

    fn call(&self, verb: &str, config: &Value) -> PluginCall {
        let call = self.world.plugin("bridge").verb(verb).container(&self.guest);
        call.env("CNI_PATH", &self.path).config(config)
    }

    /// A call with everybody but the guest as a valid attachment where the verb asks for that.
    fn traced(&self, tracer: &[&str], verb: &str) -> PluginCall {
        let call = self.world.traced_plugin(tracer, "bridge").verb(verb).env("CNI_PATH", &self.path);
        match verb {
            "GC" => call.config(&collecting()),
            _ => call.container(&self.guest).config(&self.config),
        }
    }

    /// Attaches the guest where the verb needs somebody to remove.
    #[track_caller]
    fn prepare(&self, verb: &str) {
        if verb != "ADD" {
            self.call("ADD", &config()).run().success();
        }
    }

    /// Does what is to follow a call that did not come to its end, and looks that nothing is left of the guest.
    #[track_caller]
    fn complete(&self, verb: &str) {
        match verb {
            "GC" => self.call("GC", &collecting()).run().success(),
            _ => self.call("DEL", &config()).run().success(),
        };
        self.assert_clean();
    }

    /// An IPAM plugin that is this shell script.
    fn ipam(&self, name: &str, script: &str) -> Value {
        let file = format!("{}/{name}", self.path);
        self.world.write_program(&file, &format!("#!/bin/sh\n{script}\n"));
        let mut config = config();
        config["ipam"]["type"] = json!(name);
        config
    }

    #[track_caller]
    fn assert_clean(&self) {
        self.before.assert_unchanged_but(&self.world, &Snapshot::OF_THE_ALLOCATOR);
        let links = self.guest.run("ip -o link show");
        assert_eq!(links.success().lines().count(), 1, "left in the container: {links}");
    }

    /// ADD with `config` fails with `code`, leaves nothing, and ADD as it should be works afterwards.
    #[track_caller]
    fn fails(&self, config: &Value, code: u32, said: &str) {
        let output = self.call("ADD", config).run();
        let msg = output.error(code);
        assert!(msg.contains(said), "{output}");
        self.assert_clean();
        self.call("ADD", &self::config()).run().success();
        self.call("DEL", &self::config()).run().success();
        self.assert_clean();
    }
}

fn with(pointer: &str, value: Value) -> Value {
    let mut config = config();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
    config
}

#[test]
fn a_failure_at_any_step_takes_back_what_was_done_before_it() {
    let story = Story::new();
    story.fails(&with("/runtimeConfig", json!({ "mac": "01:00:00:00:00:01" })), 7, "01:00:00:00:00:01");
    story.fails(&with("/ipam/type", json!("none-such")), 7, "none-such");
    story.fails(&with("/vlan", json!(100)), 2, "vlan");
    story.fails(&with("/mtu", json!(1000)), 7, "1280");
    let unreachable = json!([{ "dst": "10.7.0.0/16", "gw": "192.0.2.1" }]);
    story.fails(&with("/ipam/routes", unreachable), 7, "10.7.0.0/16");
    let twice = json!([{ "dst": "10.7.0.0/16" }, { "dst": "10.7.0.0/16" }]);
    story.fails(&with("/ipam/routes", twice), 7, "10.7.0.0/16");
    let other_family = json!([{ "dst": "fd07::/64", "gw": "10.8.0.1" }]);
    story.fails(&with("/ipam/routes", other_family), 7, "fd07::/64");
    story.fails(&with("/ipam/ranges/0/0/subnet", json!("10.8.0.0/24")), 7, "already has an IP address");
}

/// As under a parent that wants to hear of no child, and with a kernel or a filter that lacks pidfd_open(2).
#[test]
fn whatever_the_surroundings_the_allocator_is_waited_for() {
    let story = Story::new();
    let old = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=pidfd_open:error=ENOSYS"];
    for surroundings in [&["env", "--ignore-signal=CHLD"][..], &old] {
        for verb in ["ADD", "DEL"] {
            story.traced(surroundings, verb).run().success();
        }
        story.assert_clean();
    }
}

/// As `dhcp` does, whose questions go out by it. Each message to the kernel is held up, so that the pair takes its time.
#[test]
fn an_ipam_plugin_that_needs_the_containers_interface_finds_it() {
    let mut story = Story::new();
    let script = r#"cat >/dev/null
        [ "$CNI_COMMAND" = ADD ] || exit 0
        nsenter --net="$CNI_NETNS" ip link set "$CNI_IFNAME" up || exit 1
        echo '{ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.2.9/24" }] }'"#;
    story.config = story.ipam("looks", script);
    let slow = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=sendto:delay_enter=30000"];
    story.traced(&slow, "ADD").run().success();
    story.call("DEL", &story.config).run().success();
    story.assert_clean();
}

#[test]
fn status_tells_which_right_an_attachment_lacks() {
    let story = Story::new();
    for (right, said) in [("net_admin", "links cannot be changed"), ("sys_admin", "enter network namespace")]
    {
        let lacking = format!("-{right}");
        let call =
            story.world.traced_plugin(&["setpriv", "--bounding-set", &lacking], "bridge").verb("STATUS");
        let output = call.env("CNI_PATH", &story.path).config(&config()).run();
        let msg = output.error(50);
        assert!(msg.contains(said) && msg.contains("Operation not permitted"), "{right}: {output}");
    }
}

#[test]
fn status_tells_that_the_bridges_name_is_taken() {
    let story = Story::new();
    let status = |config: &Value| {
        story.world.plugin("bridge").verb("STATUS").env("CNI_PATH", &story.path).config(config).run()
    };
    story.world.host().run("ip link add other0 type veth peer name other1").success();
    let msg = status(&with("/bridge", json!("other0"))).error(50);
    assert!(msg.contains("\"other0\" already exists but is not a bridge"), "{msg}");
    status(&with("/bridge", json!("none-yet"))).success();
    status(&config()).success();
}

/// As in a container that runs containers. What has to be set there is set already.
#[test]
fn read_only_parameters_of_the_kernel_keep_nobody_from_ipv4() {
    let story = Story::new();
    let host = story.world.host();
    host.run("mount --bind /proc/sys /proc/sys").success();
    host.run("mount -o remount,bind,ro /proc/sys").success();
    for gateway in [true, false] {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "ro", "type": "bridge", "bridge": "br1", "isGateway": gateway,
            "ipam": { "type": "host-local", "subnet": "10.1.3.0/24" }
        });
        let added = story.call("ADD", &config).run();
        added.success();
        assert!(added.stderr.contains("accept_ra: Read-only file system"), "{added}");
        config["prevResult"] = added.json();
        story.call("CHECK", &config).run().success();
        story.call("DEL", &config).run().success();
    }
}

/// As with a kernel that was built without them: it does not know the protocol of the socket.
#[test]
fn without_nf_tables_there_are_no_rules_to_miss() {
    const TRACE: &str = "/run/trace";
    let story = Story::new();
    let run = |verb: &str, config: &Value, what: &str| {
        let tracer = ["strace", "-qq", "-o", TRACE, "-e", "trace=socket", "-e", what];
        let call = story.world.traced_plugin(&tracer, "bridge").verb(verb).container(&story.guest);
        call.env("CNI_PATH", &story.path).config(config).run()
    };
    // Each of these calls opens one socket for the rules: which of its sockets is that?
    let traced = |verb: &str, config: &Value| {
        let output = run(verb, config, "signal=none");
        output.success();
        let trace = story.world.host().run(&format!("cat {TRACE}"));
        let mut sockets = trace.success().lines().filter(|line| line.starts_with("socket("));
        let of_rules = |line: &str| line.contains("NETLINK_NETFILTER");
        let before = sockets.position(of_rules).unwrap_or_else(|| panic!("{verb}: {trace}"));
        (before + 1, output)
    };
    let without = |verb: &str, config: &Value, number: usize| {
        // musl asks once more, without flags.
        let both = format!("{number}..{}", number + 1);
        run(verb, config, &format!("inject=socket:error=EPROTONOSUPPORT:when={both}"))
    };

    let plain = json!({
        "cniVersion": "1.1.0", "name": "plain", "type": "bridge", "bridge": "br1", "isDefaultGateway": true,
        "ipam": { "type": "host-local", "subnet": "10.1.3.0/24" }
    });
    let with_result = |result: &Output| {
        let mut config = plain.clone();
        config["prevResult"] = result.json();
        config
    };
    let (add, added) = traced("ADD", &plain);
    let (check, _) = traced("CHECK", &with_result(&added));
    let (del, _) = traced("DEL", &plain);
    let before = Snapshot::of(&story.world);

    let added = without("ADD", &plain, add);
    added.success();
    assert!(added.stderr.contains("Protocol not supported"), "what is done without is told: {added}");
    without("CHECK", &with_result(&added), check).success();
    without("DEL", &with_result(&added), del).success();
    before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
    let mut masquerading = plain.clone();
    masquerading["ipMasq"] = json!(true);
    let refused = without("ADD", &masquerading, add);
    assert!(refused.error(2).contains("Protocol not supported"), "{refused}");
    before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
}

#[test]
fn an_allocator_that_fails_in_any_way_leaves_no_lease_and_no_link() {
    let story = Story::new();
    let lease = r#"[ "$CNI_COMMAND" = ADD ] || exec "$(dirname "$0")/host-local"
        "$(dirname "$0")/host-local" > /run/answer"#;
    let junk = story.ipam("junk", &format!("{lease}; echo junk"));
    story.fails(&junk, 6, "junk");
    let killed = story.ipam("killed", &format!("{lease}; kill -9 $$"));
    story.fails(&killed, 0, "SIGKILL");
    let nothing = story.ipam("nothing", r#"[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion": "1.1.0"}'"#);
    story.fails(&nothing, 7, "missing IP config");
    let later = story
        .ipam("later", r#"[ "$CNI_COMMAND" != ADD ] || { echo '{"code": 11, "msg": "soon"}'; exit 1; }"#);
    story.fails(&later, 11, "soon");
}

#[test]
fn a_bridge_and_its_address_are_taken_back_with_the_first_attachment() {
    let world = World::new();
    let path = world.install_plugins();
    let container = world.container("c1");
    let before = Snapshot::of(&world);
    let mut config = config();
    config["ipam"]["routes"] = json!([{ "dst": "10.7.0.0/16", "gw": "192.0.2.1" }]);
    let add = world.plugin("bridge").verb("ADD").container(&container).env("CNI_PATH", &path);
    add.config(&config).run().error(7);
    before.assert_unchanged_but(&world, &Snapshot::OF_THE_ALLOCATOR);

    // One that was there before is left as it was: down, without an address, and not promiscuous.
    world.host().run("ip link add br0 type bridge").success();
    let before = Snapshot::of(&world);
    config["promiscMode"] = json!(true);
    let add = world.plugin("bridge").verb("ADD").container(&container).env("CNI_PATH", &path);
    add.config(&config).run().error(7);
    // Bringing it up once gave it a queue discipline, which means nothing while it is down.
    before.assert_unchanged_but(
        &world,
        &[Snapshot::OF_THE_ALLOCATOR.as_slice(), &["links: * br0: <BROADCAST,MULTICAST> *"]].concat(),
    );
}

#[test]
fn addresses_that_made_room_for_a_gateway_come_back_as_they_were() {
    let world = World::new();
    let path = world.install_plugins();
    let container = world.container("c1");
    for line in [
        "ip link add br0 type bridge",
        "ip link set br0 up",
        "ip address add 10.9.0.5/24 broadcast 10.9.0.255 label br0:old noprefixroute metric 7 dev br0",
        // It depends on the one before: without that it goes.
        "ip address add 10.9.0.6/24 broadcast 10.9.0.99 dev br0",
        "ip address add fd00:1::5/64 nodad noprefixroute dev br0",
    ] {
        world.host().run(line).success();
    }
    let addresses = || world.host().run("ip -o address show dev br0 scope global").success().to_owned();
    let before = addresses();
    let mut config = config();
    config["forceAddress"] = json!(true);
    let call = |verb: &str, config: &Value| {
        let call = world.plugin("bridge").verb(verb).container(&container).env("CNI_PATH", &path);
        call.config(config).run()
    };
    let mut faulty = config.clone();
    faulty["ipam"]["routes"] = json!([{ "dst": "10.7.0.0/16", "gw": "192.0.2.1" }]);
    call("ADD", &faulty).error(7);
    assert_eq!(addresses(), before);

    call("ADD", &config).success();
    let after = addresses();
    let tells = |address: &str| after.contains(address);
    assert!(tells("10.1.2.1/24") && tells("fd00:1::1/64"), "{after}");
    assert!(!tells("10.9.0.") && !tells("fd00:1::5"), "{after}");
}

/// What the network has made on the bridge goes, as nobody of the others has come to rely on it.
#[test]
fn an_add_that_fails_beside_another_network_leaves_the_bridge_as_it_was() {
    let world = World::new();
    let path = world.install_plugins();
    let add = |name: &str, config: &Value| {
        let container = world.container(name);
        world.plugin("bridge").verb("ADD").container(&container).env("CNI_PATH", &path).config(config).run()
    };
    let network = |name: &str, subnet: &str| {
        json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": "br0", "isGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": subnet }]] },
        })
    };
    add("first", &network("first", "10.7.1.0/24")).success();
    let state = || {
        let addresses = world.host().run("ip -o address show dev br0 scope global").success().to_owned();
        let link = world.host().run("ip -json -d link show dev br0").json();
        let learns = link[0]["linkinfo"]["info_data"]["no_linklocal_learn"].clone();
        (addresses, link[0]["flags"].clone(), learns)
    };
    for (number, (subnet, keys)) in [
        ("fd00:2::/64", json!({ "promiscMode": true })),
        ("fd00:2::/64", json!({ "macspoofchk": true })),
        ("10.7.2.0/24", json!({ "forceAddress": true })),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = network("second", subnet);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let (dst, via) =
            if subnet.contains(':') { ("fd00:9::/64", "fd77::1") } else { ("10.9.0.0/16", "192.0.2.1") };
        config["ipam"]["routes"] = json!([{ "dst": dst, "gw": via }]);
        let before = state();
        add(&format!("c{number}"), &config).error(7);
        assert_eq!(state(), before, "{keys}");
    }
}

#[test]
fn a_signal_ends_the_wait_for_an_allocator_that_never_answers() {
    let story = Story::new();
    let script = r#"[ "$CNI_COMMAND" = ADD ] || exec "$(dirname "$0")/host-local"
        "$(dirname "$0")/host-local" > /run/answer; exec sleep 1000"#;
    let hung = story.call("ADD", &story.ipam("hung", script)).start();
    wait_until("the lease is there", || {
        story.world.host().run("pgrep -x sleep").stdout.lines().next().map(drop)
    });
    story.world.host().run("pkill -TERM -x bridge").success();
    let output = hung.wait();
    assert!(output.error(11).contains("ended by SIGTERM"), "{output}");
    assert_eq!(story.world.host().run("pgrep -x sleep").stdout, "", "the allocator outlived the call");
    story.assert_clean();
}

#[test]
fn an_add_that_is_asked_to_end_twice_still_takes_everything_back() {
    let story = Story::new();
    let script = r#"case "$CNI_COMMAND" in
        ADD) "$(dirname "$0")/host-local" > /run/answer; : > /run/leased; exec sleep 1000 ;;
        DEL) : > /run/asked; for i in $(seq 1000); do [ -e /run/go ] && break; sleep 0.02; done
             exec "$(dirname "$0")/host-local" ;;
        esac"#;
    let slow = story.call("ADD", &story.ipam("slow", script)).start();
    let comes = |file: &str| {
        wait_until(file, || story.world.host().run(&format!("ls {file}")).stdout.lines().next().map(drop));
    };
    comes("/run/leased");
    story.world.host().run("pkill -TERM -x bridge").success();
    comes("/run/asked");
    story.world.host().run("pkill -HUP -x bridge").success();
    story.world.host().run("pkill -INT -x bridge").success();
    story.world.write("/run/go", "");
    let output = slow.wait();
    assert!(output.error(11).contains("ended by SIGTERM"), "{output}");
    story.world.host().run("rm /run/answer /run/leased /run/asked /run/go").success();
    story.assert_clean();
}

#[test]
fn a_signal_ends_the_wait_for_iptables() {
    let story = Story::new();
    let programs = "/run/iptables";
    story.world.host().run(&format!("mkdir {programs}")).success();
    for name in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
        // The first that is called hangs.
        let script = format!(
            "#!/bin/sh\nmkdir /run/hung 2>/dev/null && exec sleep 1000\nexec /usr/sbin/{name} \"$@\"\n"
        );
        story.world.write_program(&format!("{programs}/{name}"), &script);
    }
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let hung = story.call("ADD", &with("/ipMasqBackend", json!("iptables"))).env("PATH", &path).start();
    wait_until("iptables hangs", || story.world.host().run("pgrep -x sleep").stdout.lines().next().map(drop));
    story.world.host().run("pkill -TERM -x bridge").success();
    let output = hung.wait();
    assert!(output.error(11).contains("asked to end while"), "{output}");
    assert_eq!(story.world.host().run("pgrep -x sleep").stdout, "", "iptables outlived the call");
}

#[test]
fn an_attachment_that_lives_elsewhere_keeps_its_leases() {
    let story = Story::new();
    let other = story.world.container("other");
    story.call("ADD", &config()).run().success();
    let attached = Snapshot::of(&story.world);
    let mut elsewhere = config();
    elsewhere["ipam"]["ranges"] = json!([[{ "subnet": "10.1.3.0/24" }]]);
    let again = story.call("ADD", &elsewhere).env("CNI_NETNS", &other.netns_path()).run();
    assert!(again.error(4).contains("already exists"), "{again}");
    attached.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
    story.call("DEL", &config()).run().success();
    story.assert_clean();
}

/// Two ADDs of one identity at the same moment, in two namespaces. The slow one asks an `allocator`, and stops before it
/// makes its pair. When the file `has_done` is there, the other one attaches its container. Then the slow one goes on,
/// after a `signal`, and is refused.
#[track_caller]
fn loses_the_race(allocator: &str, has_done: &str, signal: Option<&str>) {
    let story = Story::new();
    let other = story.world.container("other");
    let stopping = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=flock:signal=STOP:when=1"];
    let elsewhere = story.ipam("static", allocator);
    let slow = story.world.traced_plugin(&stopping, "bridge").verb("ADD").container(&story.guest);
    let slow =
        slow.env("CNI_NETNS", &other.netns_path()).env("CNI_PATH", &story.path).config(&elsewhere).start();
    let lines = |line: &str| story.world.host().run(line).stdout.lines().next().map(drop);
    wait_until("the allocator is asked", || lines(&format!("ls {has_done}")));
    wait_until("the slow one stops", || lines("pgrep -x -r t bridge"));
    let mut attached = config();
    attached["prevResult"] = story.call("ADD", &config()).run().json();
    if let Some(signal) = signal {
        story.world.host().run(&format!("pkill -{signal} -x bridge")).success();
    }
    story.world.write("/run/go", "");
    wait_until("the slow one has ended", || {
        story.world.host().run("pkill -CONT -x bridge");
        slow.has_ended().then_some(())
    });
    let output = slow.wait();
    assert_eq!(output.status, 1, "{output}");
    // With the leases, and in the result's addresses.
    story.call("CHECK", &attached).run().success();
    story.call("DEL", &config()).run().success();
    story.world.host().run(&format!("rm -f /run/go {has_done} {}/static", story.path)).success();
    story.assert_clean();
}

#[test]
fn a_signal_to_an_add_that_lost_the_race_leaves_the_other_one_its_leases() {
    let late = r#"[ "$CNI_COMMAND" = ADD ] || exec "$(dirname "$0")/host-local"
        : > /run/asked; while [ ! -e /run/go ]; do sleep 0.02; done; exec "$(dirname "$0")/host-local""#;
    loses_the_race(late, "/run/asked", Some("TERM"));
}

#[test]
fn an_add_that_leased_first_and_lost_the_race_for_the_pair_leaves_the_other_one_its_leases() {
    let early = r#"[ "$CNI_COMMAND" = ADD ] || exec "$(dirname "$0")/host-local"
        "$(dirname "$0")/host-local" > /run/answer && : > /run/leased; cat /run/answer"#;
    loses_the_race(early, "/run/leased", None);
}

/// Kills calls after a while that grows from call to call over the whole of a call.
#[track_caller]
fn survives(verb: &str, signal: &str) {
    let story = Story::new();
    let longest = Duration::from_millis(if verb == "ADD" { 24 } else { 40 });
    const KILLS: u32 = 24;
    for number in 0..KILLS {
        if verb == "DEL" {
            story.call("ADD", &config()).run().success();
        }
        let running = story.call(verb, &config()).start();
        // The moment is what is tested, so this is the one place that waits for a time.
        std::thread::sleep(longest * number / KILLS);
        story.world.host().run(&format!("pkill -{signal} -x bridge"));
        let output = running.wait();
        if signal == "TERM" && verb == "ADD" && output.status == 1 {
            story.assert_clean();
        }
        wait_until("a call and an allocator that was left alone have ended", || {
            story.world.host().run("pgrep -x bridge|host-local").stdout.is_empty().then_some(())
        });
        story.call("DEL", &config()).run().success();
        story.assert_clean();
    }
}

#[test]
fn add_killed_at_any_moment_leaves_nothing_after_del() {
    survives("ADD", "KILL");
}

#[test]
fn del_killed_at_any_moment_is_completed_by_the_next() {
    survives("DEL", "KILL");
}

/// The system calls by which a call of the plugin changes anything, or learns that it did.
const STEPS: [&str; 8] = ["sendto", "recvfrom", "socket", "close", "setns", "write", "clone", "exit_group"];

/// Kills `verb` as it enters each of its system calls of one name, one after the other, until it gets through.
#[track_caller]
fn survives_each(verb: &str) {
    survives_each_of(&Story::new(), verb);
}

#[track_caller]
fn survives_each_of(story: &Story, verb: &str) {
    const MOST: u32 = 100;
    for step in STEPS {
        let gets_through = |count: u32| {
            story.prepare(verb);
            let inject = format!("inject={step}:signal=KILL:when={count}");
            let output = story.traced(&["strace", "-qq", "-o", "/dev/null", "-e", &inject], verb).run();
            wait_until("a call and an allocator that was left alone have ended", || {
                story.world.host().run("pgrep -x bridge|host-local").stdout.is_empty().then_some(())
            });
            story.complete(verb);
            output.status == 0
        };
        assert!((1..MOST).any(gets_through), "{verb} makes {MOST} calls of {step}");
    }
}

#[test]
fn add_killed_at_each_system_call_leaves_nothing_after_del() {
    survives_each("ADD");
}

/// The runtime that saw it die asks once more, for the same container, and sends no DEL in between.
#[test]
fn add_killed_at_each_system_call_can_be_repeated_as_it_stands() {
    const MOST: u32 = 100;
    let story = Story::new();
    let is_finished = || story.guest.run("ip link show dev eth0").stdout.contains(" group default ");
    let show = format!("{} show n", Suite::Ours.binary("bridge").display());
    let mut seen = false;
    for step in ["sendto", "clone", "write", "exit_group"] {
        let gets_through = |count: u32| {
            let inject = format!("inject={step}:signal=KILL:when={count}");
            let output = story.traced(&["strace", "-qq", "-o", "/dev/null", "-e", &inject], "ADD").run();
            wait_until("a call and an allocator that was left alone have ended", || {
                story.world.host().run("pgrep -x bridge|host-local").stdout.is_empty().then_some(())
            });
            let finished = is_finished();
            if output.status != 0 && !finished && story.guest.run("ip link show dev eth0").status == 0 {
                // One without a mark is shown to nobody.
                let shown = story.world.host().run(&show);
                let guest = shown.success().lines().find(|line| line.contains("guest eth0"));
                assert!(
                    guest.is_none_or(|line| line.contains("its ADD was killed")),
                    "{step} {count}: {shown}"
                );
                seen |= guest.is_some();
            }
            let repeated = story.call("ADD", &config()).run();
            if finished {
                // All was done but the answer; a second ADD of what may live takes nothing from it.
                repeated.error(4);
            } else {
                let mut config = config();
                config["prevResult"] = repeated.json();
                story.call("CHECK", &config).run().success();
                assert!(is_finished(), "{step} {count}");
                assert!(
                    story.guest.reaches("10.1.2.1") && story.guest.reaches("fd00:1::1"),
                    "{step} {count}"
                );
            }
            story.complete("ADD");
            output.status == 0
        };
        assert!((1..MOST).any(gets_through), "ADD makes {MOST} calls of {step}");
    }
    assert!(seen, "no attempt was shown as killed");
}

/// As a container that was attached by other means for as long as nobody knows of it.
#[test]
fn an_add_whose_process_lives_is_not_taken_over() {
    let story = Story::new();
    let waiting = r#"[ "$CNI_COMMAND" = ADD ] || exec "$(dirname "$0")/host-local"
        until [ -e /run/go ]; do sleep 0.01; done; exec "$(dirname "$0")/host-local""#;
    let first = story.call("ADD", &story.ipam("waiting", waiting)).start();
    wait_until("the pair is there", || (story.guest.run("ip link show dev eth0").status == 0).then_some(()));
    story.call("ADD", &config()).run().error(4);
    story.world.write("/run/go", "");
    let mut config = config();
    config["prevResult"] = first.wait().json();
    story.call("CHECK", &config).run().success();
    story.complete("ADD");
}

#[test]
fn del_killed_at_each_system_call_is_completed_by_the_next() {
    survives_each("DEL");
}

/// Has the kernel refuse each system call of one name, one after the other, until `verb` makes no more of them. What it
/// leaves then, `left` looks at; the next DEL, or GC, removes it.
#[track_caller]
fn is_refused_each(verb: &str, left: impl Fn(&Story, &Output)) {
    is_refused_each_of(&Story::new(), verb, left);
}

#[track_caller]
fn is_refused_each_of(story: &Story, verb: &str, left: impl Fn(&Story, &Output)) {
    const MOST: u32 = 100;
    const TRACE: &str = "/run/trace";
    for (step, errno) in [
        ("sendto", "EPERM"),
        // The answer is lost: it says nothing of what has become of the request.
        ("recvfrom", "ENOBUFS"),
        ("socket", "EACCES"),
        ("setns", "EPERM"),
        ("open", "EACCES"),
        ("memfd_create", "ENOMEM"),
        ("clone", "EAGAIN"),
        ("fork", "EAGAIN"),
    ] {
        let gets_through = |count: u32| {
            story.prepare(verb);
            let inject = format!("inject={step}:error={errno}:when={count}");
            let tracer = ["strace", "-qq", "-o", TRACE, "-e", &format!("trace={step}"), "-e", &inject];
            let output = story.traced(&tracer, verb).run();
            assert!(output.status == 0 || !output.stdout.is_empty(), "{step} {count}: {output}");
            left(story, &output);
            story.complete(verb);
            !story.world.host().run(&format!("cat {TRACE}")).success().contains("(INJECTED)")
        };
        assert!((1..MOST).any(gets_through), "{verb} makes {MOST} calls of {step}");
    }
}

#[test]
fn add_refused_any_system_call_is_whole_or_nothing() {
    is_refused_each("ADD", |story, output| {
        if output.status != 0 {
            story.assert_clean();
        } else {
            // Else a repetition would take it for what a killed ADD has left.
            let link = story.guest.run("ip link show dev eth0");
            assert!(link.success().contains(" group default "), "{output}\n{link}");
        }
    });
}

#[test]
fn del_refused_any_system_call_says_so_and_is_completed_by_the_next() {
    is_refused_each("DEL", |story, output| {
        if output.status == 0 {
            story.assert_clean();
        }
    });
}

#[test]
fn del_that_returns_early_killed_at_each_system_call_is_completed_by_the_next() {
    survives_each_of(&Story::returning_early(), "DEL");
}

#[test]
fn del_that_returns_early_refused_any_system_call_says_so_and_is_completed_by_the_next() {
    is_refused_each_of(&Story::returning_early(), "DEL", |story, output| {
        if output.status == 0 {
            story.assert_clean();
        }
    });
}

#[test]
fn a_del_whose_child_is_killed_removes_the_links_itself() {
    const TRACE: &str = "/run/trace";
    let story = Story::returning_early();
    story.prepare("DEL");
    let inject = "inject=chdir:signal=KILL";
    let tracer = ["strace", "-f", "-o", TRACE, "-e", "trace=close,chdir", "-e", inject];
    story.traced(&tracer, "DEL").run().success();
    story.assert_clean();
    let trace = story.world.host().run(&format!("cat {TRACE}"));
    let killed = trace.success().lines().find_map(|line| line.strip_suffix(" +++ killed by SIGKILL +++"));
    let child = killed.unwrap_or_else(|| panic!("no child was killed: {trace}"));
    for standard in ["close(0)", "close(1)", "close(2)"] {
        let closes = |line: &str| line.starts_with(child) && line.contains(standard);
        assert!(trace.stdout.lines().any(closes), "the child kept a descriptor of the runtime's: {trace}");
    }
}

#[test]
fn a_del_whose_child_is_stopped_removes_the_links_itself() {
    let story = Story::returning_early();
    story.prepare("DEL");
    // Strace does not end before the child, which is to go on when the link is gone, or after a minute in any case. The
    // kernel may have had it go on when its parent ended.
    let script =
        "exec 3<&0; strace -f -o /run/trace -e trace=chdir -e inject=chdir:signal=STOP \"$@\" <&3 & tracer=$!
        for second in $(seq 60); do
            sleep 1
            ip -o link show | grep -q cni:n/guest/eth0 || { gone=yes; break; }
        done
        kill -CONT $(sed -n 's/ .*SIGSTOP.*//p' /run/trace) 2> /dev/null; wait $tracer && [ \"$gone\" ]";
    story.traced(&["sh", "-c", script, "sh"], "DEL").run().success();
    story.assert_clean();
    let trace = story.world.host().run("cat /run/trace");
    assert!(trace.success().contains("stopped by SIGSTOP"), "no child was stopped: {trace}");
}

#[test]
fn gc_killed_at_each_system_call_is_completed_by_the_next() {
    survives_each("GC");
}

#[test]
fn gc_refused_any_system_call_says_so_and_is_completed_by_the_next() {
    is_refused_each("GC", |story, output| {
        if output.status == 0 {
            story.assert_clean();
        }
    });
}

#[test]
fn add_asked_to_end_at_any_moment_is_whole_or_nothing() {
    survives("ADD", "TERM");
}

#[test]
fn sixty_four_first_attachments_at_once_all_succeed() {
    let world = World::new();
    let path = world.install_plugins();
    let containers: Vec<_> = (0..64).map(|number| world.container(&format!("c{number}"))).collect();
    let running: Vec<_> = containers
        .iter()
        .map(|container| {
            let add = world.plugin("bridge").verb("ADD").container(container).env("CNI_PATH", &path);
            add.config(&config()).start()
        })
        .collect();
    let mut addresses = std::collections::BTreeSet::new();
    for add in running {
        let result = add.wait().json();
        assert!(addresses.insert(result["ips"][0]["address"].to_string()), "{result}");
    }
    assert_eq!(world.host().run("ip -o link show master br0").success().lines().count(), 64);
    containers[0].run("ping -c 1 -W 30 10.1.2.1").success();
    assert!(containers[63].reaches("fd00:1::1"));
}

#[test]
fn del_asked_to_end_at_any_moment_is_completed_by_the_next() {
    survives("DEL", "TERM");
}

#[test]
fn a_bridge_without_room_for_a_port_is_said_and_left_as_it_was() {
    let story = Story::new();
    let ports: String = (1..1023)
        .map(|number| format!("link add p{number} master br0 type veth peer name q{number}\n"))
        .collect();
    story.world.host().command(["ip", "-batch", "-"]).stdin(ports).run().success();
    let full = Snapshot::of(&story.world);
    let message = story.call("ADD", &config()).run().error(11);
    assert!(
        message.contains("bridge \"br0\" has as many ports as the kernel lets a bridge have"),
        "{message}"
    );
    full.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
    story.world.host().run("ip link delete p1").success();
    story.call("ADD", &config()).run().success();
}

#[test]
fn a_full_pool_and_a_taken_name_leave_everything_as_it_was() {
    let story = Story::new();
    let mut full = config();
    full["ipam"]["ranges"][0][0]["rangeStart"] = json!("10.1.2.2");
    full["ipam"]["ranges"][0][0]["rangeEnd"] = json!("10.1.2.2");
    story.fails(&full, 11, "10.1.2.2");

    story.guest.run("ip link add eth0 type veth peer name other").success();
    story.call("ADD", &config()).run().error(4);
    story.before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
    story.guest.run("ip link delete eth0").success();
    story.call("ADD", &config()).run().success();
    story.call("DEL", &config()).run().success();
    story.assert_clean();
}
