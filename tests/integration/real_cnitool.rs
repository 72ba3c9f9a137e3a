//! The real cnitool drives the testnet chain: every verb.

use integration_tests::{Cmd, Snapshot, Space, Suite, World};
use serde_json::json;

/// cnitool on the host, with our plugins and the examples.
fn cnitool(world: &World, verb: &str, network: &str, container: &Space) -> Cmd {
    let program = Suite::Reference.binary("cnitool");
    let (verb, netns) = (verb.to_owned(), container.netns_path());
    world
        .host()
        .command([program.to_str().unwrap(), &verb, network, &netns])
        .env("CNI_PATH", Suite::Ours.dir())
        .env("NETCONFPATH", Suite::examples())
}

fn with_alias(command: Cmd, alias: &str) -> Cmd {
    command.env("CAP_ARGS", json!({ "aliases": [alias] }).to_string())
}

#[test]
fn every_verb_works_on_the_testnet_chain() {
    let world = World::new();
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    cnitool(&world, "status", "testnet", &c1).run().success();
    let first = with_alias(cnitool(&world, "add", "testnet", &c1), "centos-1").run();
    first.success();
    assert_eq!(first.json()["ips"][0]["address"], "172.20.0.2/16", "{first}");
    assert_eq!(first.json()["dns"]["nameservers"], json!(["172.20.0.1"]), "{first}");
    with_alias(cnitool(&world, "add", "testnet", &c2), "centos-2").run().success();
    world.write("/etc/netns/c2/resolv.conf", "nameserver 172.20.0.1\nsearch testnet\noptions ndots:0\n");

    c2.run("ping -c 1 -W 30 centos-1")
        .has_line("PING centos-1 (172.20.0.2) 56(84) bytes of data.")
        .has_line("64 bytes from centos-1.testnet (172.20.0.2): icmp_seq=1");
    cnitool(&world, "check", "testnet", &c1).run().success();
    cnitool(&world, "status", "testnet", &c1).run().success();

    // A plain del brings no aliases along: the record goes by the attachment's identity.
    cnitool(&world, "del", "testnet", &c1).run().success();
    assert!(c2.resolve("centos-1").is_empty());
    assert_eq!(c2.resolve("centos-2"), ["172.20.0.3"]);
    cnitool(&world, "check", "testnet", &c2).run().success();
    cnitool(&world, "del", "testnet", &c1).run().success();
}

#[test]
fn gc_of_cnitool_detaches_what_it_knows_and_leaves_nothing() {
    let world = World::new();
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    cnitool(&world, "add", "testnet", &c1).run().success();
    cnitool(&world, "del", "testnet", &c1).run().success();
    let before = Snapshot::of(&world);
    for container in [&c1, &c2] {
        cnitool(&world, "add", "testnet", container).run().success();
    }
    // It tells libcni of no valid attachment at all, so every one that it has kept is deleted.
    cnitool(&world, "gc", "testnet", &c1).run().success();
    before.assert_unchanged_but(&world, &Snapshot::OF_THE_ALLOCATOR);
    cnitool(&world, "add", "testnet", &c1).run().success();
}

#[test]
fn a_failure_reaches_the_user_of_cnitool_in_our_words() {
    let world = World::new();
    let c1 = world.container("c1");
    cnitool(&world, "add", "testnet", &c1).run().success();
    let again = cnitool(&world, "add", "testnet", &c1).run();
    assert!(again.failure().stderr.contains("eth0") || again.stderr.contains("172.20.0.2"), "{again}");
    cnitool(&world, "check", "testnet", &c1).run().success();
}

#[test]
fn the_example_for_cnitool_publishes_ports_and_names() {
    let world = World::new();
    let plugins = world.install_plugins();
    let (web, client) = (world.container("web"), world.container("client"));
    let wishes = json!({
        "aliases": ["shop"],
        "ips": ["172.24.0.80/16"],
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
    });
    let call = |verb: &str, container: &Space| {
        cnitool(&world, verb, "cnitool", container)
            .env("CNI_PATH", &plugins)
            .env("CAP_ARGS", wishes.to_string())
    };
    call("status", &web).run().success();
    call("add", &web).run().success();
    cnitool(&world, "add", "cnitool", &client).env("CNI_PATH", &plugins).run().success();
    world.write("/etc/netns/client/resolv.conf", "nameserver 172.24.0.1\nsearch cnitool\noptions ndots:0\n");
    let _server = web.serve("0.0.0.0:80");
    assert_eq!(client.fetch("http://shop/"), "shop called by 172.24.0.81");
    assert!(world.host().fetch("http://127.0.0.1:8080/").starts_with("127.0.0.1:8080 called by 172.24.0.1"));
    call("check", &web).run().success();
    call("del", &web).run().success();
    assert!(client.resolve("shop").is_empty());
}
