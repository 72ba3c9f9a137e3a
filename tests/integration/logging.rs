//! The log says what was done and how long it took, where it was asked to, and never gets in the way.

use integration_tests::{Attachment, Network, Output, World, wait_until};
use serde_json::{Value, json};

const LOG: &str = "/run/cni.log";

fn config(log: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "testnet",
        "type": "host-local-ipam",
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "172.20.0.0/16" }]] }
    });
    for (key, value) in log.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

#[track_caller]
fn call(world: &World, verb: &str, log: Value, env: &[(&str, &str)]) -> Output {
    let mut call = world.plugin("host-local-ipam").verb(verb).config(&config(log));
    call = call.env("CNI_NETNS", "/run/netns/none");
    for (name, value) in env {
        call = call.env(name, value);
    }
    call.run()
}

/// Whether the line ends with the time that a step took.
fn has_duration(line: &str) -> bool {
    let duration = line.strip_suffix(" ms)").and_then(|rest| rest.rsplit_once(" ("));
    duration.is_some_and(|(_, duration)| duration.parse::<f64>().is_ok_and(|duration| duration >= 0.0))
}

#[test]
fn nothing_is_said_unless_asked_for() {
    let world = World::new();
    let output = call(&world, "ADD", json!({}), &[]);
    output.success();
    assert_eq!(output.stderr, "");
}

#[test]
fn the_environment_turns_on_a_line_a_step_on_stderr() {
    let world = World::new();
    let output = call(&world, "ADD", json!({}), &[("CNI_LOG", "debug")]);
    output.success();
    assert_eq!(output.json()["ips"][0]["address"], "172.20.0.2/16");
    assert!(output.stderr.lines().count() >= 5, "{output}");
    for line in output.stderr.lines() {
        assert!(line.starts_with("host-local-ipam: ") && has_duration(line), "{line}");
    }

    let output = call(&world, "DEL", json!({}), &[("CNI_LOG", "much")]);
    output.success();
    let mistake = "host-local-ipam: CNI_LOG: \"much\" is none of off, error, warn, info, debug, trace\n";
    assert_eq!(output.stderr, mistake);
}

#[test]
fn a_file_gets_every_step_with_its_attachment_and_stderr_stays_quiet() {
    let world = World::new();
    for verb in ["ADD", "DEL"] {
        let output = call(&world, verb, json!({ "LogLevel": "Debug", "logFile": LOG }), &[]);
        output.success();
        assert_eq!(output.stderr, "");
    }
    let log = world.read(LOG);
    for verb in ["ADD", "DEL"] {
        let about = format!("{verb} testnet/c1/eth0 ");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&about)).collect();
        assert!(lines.len() >= 4, "{log}");
        for line in &lines {
            let (time, rest) = line.split_once(' ').unwrap_or_default();
            assert!(
                time.len() == 27 && time.ends_with('Z') && rest.starts_with("host-local-ipam["),
                "{line}"
            );
            assert!(has_duration(line), "{line}");
        }
        assert!(lines.last().is_some_and(|line| line.contains("INFO: succeeded after ")), "{log}");
    }
    let mode = world.host().run(&format!("stat -c %a {LOG}"));
    assert_eq!(mode.success(), "600\n");
}

#[test]
fn a_file_alone_gets_one_line_a_call_with_its_outcome() {
    let world = World::new();
    call(&world, "ADD", json!({ "logFile": LOG }), &[]).success();
    call(&world, "ADD", json!({ "logFile": LOG }), &[]).error(11);
    let log = world.read(LOG);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].contains(" ADD testnet/c1/eth0 INFO: succeeded after "), "{log}");
    assert!(lines[1].contains(": code 11: "), "{log}");
}

#[test]
fn a_file_that_cannot_be_opened_costs_a_line_and_not_the_call() {
    let world = World::new();
    world.host().run("mkfifo /run/pipe").success();
    for (file, reason) in [
        ("/no/such/directory/cni.log", "No such file or directory"),
        ("/run", "Is a directory"),
        ("/run/pipe", "No such device or address"),
        ("cni.log", "not an absolute path"),
    ] {
        for verb in ["ADD", "DEL"] {
            let output = call(&world, verb, json!({ "logFile": file }), &[]);
            output.success();
            let said = output.stderr.starts_with(&format!("host-local-ipam: logFile: open {file}: "));
            assert!(said && output.stderr.contains(reason) && output.stderr.lines().count() == 1, "{output}");
        }
    }
}

#[test]
fn a_wrong_level_is_an_error_of_the_configuration_but_no_reason_to_keep_a_lease() {
    let world = World::new();
    call(&world, "ADD", json!({}), &[]).success();
    let refused = call(&world, "ADD", json!({ "logLevel": "loud" }), &[]).error(7);
    assert_eq!(refused, "logLevel: \"loud\" is none of off, error, warn, info, debug, trace");
    assert_eq!(
        call(&world, "CHECK", json!({ "logFile": 5 }), &[]).error(7),
        "logFile: expected a string, got 5"
    );
    call(&world, "DEL", json!({ "logLevel": "loud" }), &[]).success();
    assert_eq!(world.host().run("find /var/lib/cni/networks/testnet -name 172.20.0.2").success(), "");
}

#[test]
fn one_file_tells_what_every_plugin_of_the_chain_did() {
    let world = World::new();
    let entry = |kind: &str| json!({ "type": kind, "logLevel": "debug", "logFile": LOG });
    let mut bridge = entry("bridge");
    bridge["bridge"] = json!("br-testnet");
    bridge["isGateway"] = json!(true);
    bridge["ipam"] = json!({ "type": "host-local-ipam", "ranges": [[{ "subnet": "172.20.0.0/16" }]] });
    let list = json!({
        "cniVersion": "1.1.0", "name": "testnet", "plugins": [bridge, entry("alias-dns")]
    });
    let network = Network::new(&world, list);
    let container = world.container("c1");
    network.attach(&container);
    network.status().unwrap_or_else(|failure| panic!("{failure}"));
    network.check(&Attachment::of(&container)).unwrap_or_else(|failure| panic!("{failure}"));
    network.gc(&[&Attachment::of(&container)]).unwrap_or_else(|failure| panic!("{failure}"));
    network.detach(&container);
    let log = world.read(LOG);
    for plugin in ["bridge", "host-local-ipam", "alias-dns"] {
        for verb in ["STATUS", "GC"] {
            let done = |line: &&str| {
                line.contains(&format!(" {plugin}["))
                    && line.contains(&format!("] {verb} testnet INFO: succeeded"))
            };
            assert_eq!(log.lines().filter(done).count(), 1, "{plugin} {verb}: {log}");
        }
        for verb in ["ADD", "CHECK", "DEL"] {
            let done = |line: &&str| {
                line.contains(&format!(" {plugin}["))
                    && line.contains(&format!("] {verb} testnet/c1/eth0 INFO: succeeded"))
            };
            assert_eq!(log.lines().filter(done).count(), 1, "{plugin} {verb}: {log}");
        }
    }
    for step in [
        "made the veth pair veth",
        "installed the rules",
        "gave eth0 its addresses and routes",
        "done with the veth pair",
        "compared the bridge",
        "compared the container's interface and addresses",
        "compared the container's routes",
        "compared the bridge port",
        "compared the gateway and forwarding",
        "compared the rules",
        "found 1 leases",
        "read the record",
        "links can be changed",
        "rules can be installed",
        "range set 0 has room",
        "a server can listen",
        "done with veth pairs",
        "done with the rules",
        "released what no valid attachment holds",
        "0 records belong to no valid attachment",
    ] {
        assert!(log.lines().any(|line| line.contains(step) && has_duration(line)), "{step}: {log}");
    }
    assert!(!log.contains("unknown keys"), "{log}");
}

#[test]
fn the_server_of_names_goes_on_in_the_file_of_the_call_that_started_it() {
    let world = World::new();
    let example = Network::example(&world, "testnet");
    let plugins: Vec<Value> = [0, 1]
        .map(|index| {
            let mut plugin = example.plugin_config(index);
            plugin["logFile"] = json!(LOG);
            plugin["logLevel"] = json!("debug");
            plugin
        })
        .into();
    let network =
        Network::new(&world, json!({ "cniVersion": "1.0.0", "name": "testnet", "plugins": plugins }));
    let container = world.container("one");
    network.attach(&container);
    let said = |words: &str| world.read(LOG).lines().filter(|line| line.contains(words)).count();
    assert_eq!(said(" serve INFO: serves 1 records"), 1, "{}", world.read(LOG));
    assert_eq!(said(" serve DEBUG: answers by the record of testnet/one/eth0"), 1, "{}", world.read(LOG));
    // A part that was just started goes by the name of the one that started it, and would be killed with it.
    let host = world.host();
    let is_whole = || {
        ["alias-dns serve", "alias-dns supervise", "cni-names guard"].iter().all(|part| {
            let found = host.command(["pgrep", "--full", "--exact", part]).run();
            found.stdout.lines().count() == 1
        })
    };
    // By the next worker, without rights, then by a whole server that the guard has started.
    wait_until("there is one of each part", || is_whole().then_some(()));
    host.run("pkill -KILL --full ^alias-dns.serve").success();
    wait_until("another worker says that it serves", || (said(" serves 1 records") >= 2).then_some(()));
    wait_until("there is one of each part", || is_whole().then_some(()));
    // Stopped first: neither shall see the other's end, and start it again.
    host.run("pkill -STOP --full ^alias-dns").success();
    host.run("pkill -KILL --full ^alias-dns").success();
    let after_the_guard = || {
        let log = world.read(LOG);
        let (_, after) = log.split_once(" guard INFO: the server is gone, and there are records")?;
        after.contains(" serves 1 records").then_some(())
    };
    wait_until("another server says that it serves", after_the_guard);
    network.detach(&container);
    wait_until("the guard says that it has ended", || {
        (said(" guard INFO: the server has ended") > 0).then_some(())
    });
    for line in world.read(LOG).lines() {
        assert!(line.len() > 28 && line.as_bytes()[26] == b'Z', "{line}");
    }
}
