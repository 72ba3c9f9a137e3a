//! What the host tracks of a container's flows, when the address changes hands.

use integration_tests::{Attachment, Container, Network, Outside, Running, Space, Suite, World, wait_until};
use serde_json::{Value, json};

/// The first kernel that searches its flows by address when it is to forget some.
const SINCE: (u32, u32) = (6, 11);

/// Prints what comes to a UDP port first.
const HEAR: &str = r#"
    use Socket;
    socket(my $s, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
    bind($s, pack_sockaddr_in($ARGV[0], INADDR_ANY)) or die "bind: $!";
    $| = 1;
    print "listening\n";
    recv($s, my $text, 99, 0) // die "recv: $!";
    print "$text\n";
"#;

/// Sends a text to an address and port, from a port.
const SAY: &str = r#"
    use Socket;
    my ($to, $port, $from, $text) = @ARGV;
    socket(my $s, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
    bind($s, pack_sockaddr_in($from, INADDR_ANY)) or die "bind: $!";
    send($s, $text, 0, pack_sockaddr_in($port, inet_aton($to))) or die "send: $!";
"#;

/// The address that changes hands.
const ADDRESS: &str = "10.1.0.77";

fn hear(space: &Space, port: &str) -> Running {
    space.command(["perl", "-e", HEAR, port]).start().wait_for("listening")
}

#[track_caller]
fn assert_hears(listener: Running, text: &str) {
    let heard = listener.wait();
    assert_eq!(heard.success().lines().last(), Some(text));
}

#[track_caller]
fn say(space: &Space, to: (&str, &str), from: &str, text: &str) {
    space.command(["perl", "-e", SAY, to.0, to.1, from, text]).run().success();
}

/// Publishes UDP port 80 of the address as port 8080 of the host.
fn publish(world: &World) {
    for line in [
        "nft add table ip published",
        "nft add chain ip published before { type nat hook prerouting priority dstnat; }",
        "nft add rule ip published before udp dport 8080 fib daddr type local dnat to 10.1.0.77:80",
    ] {
        world.host().run(line).success();
    }
}

fn attached(world: &World, network: &Network, name: &str) -> (Container, Attachment) {
    let container = world.container(name);
    let attachment = Attachment::of(&container).arg("IgnoreUnknown", "1").arg("IP", ADDRESS);
    network.attach_as(&container, &attachment);
    (container, attachment)
}

fn kernel_can(world: &World) -> bool {
    let release = world.host().run("uname -r").success().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version: (u32, u32)| version >= SINCE)
}

#[test]
fn whoever_gets_an_address_next_does_not_get_what_is_sent_to_its_last_holder() {
    changes_hands("1.0.0", |world, network, first, of_first| {
        world.host().run("nft delete table ip published").success();
        network.detach_as(first, of_first);
    });
}

#[test]
fn nor_when_the_rules_were_flushed_before() {
    changes_hands("1.0.0", |world, network, first, of_first| {
        world.host().run("nft flush ruleset").success();
        network.detach_as(first, of_first);
    });
}

/// Such a runtime hands on no result.
#[test]
fn nor_where_the_runtime_speaks_an_old_version() {
    changes_hands("0.3.1", |world, network, first, of_first| {
        world.host().run("nft delete table ip published").success();
        network.detach_as(first, of_first);
    });
}

/// Only the rules tell then which addresses they were.
#[test]
fn nor_where_moreover_the_namespace_is_gone() {
    changes_hands("0.3.1", |world, network, first, of_first| {
        world.host().run("nft delete table ip published").success();
        world.remove_netns("first");
        wait_until("the pair is gone", || {
            world.host().run("ip -br link show master br-1").success().is_empty().then_some(())
        });
        network.detach_as(first, of_first);
    });
}

#[test]
fn nor_where_only_gc_comes() {
    changes_hands("1.1.0", |world, network, _, _| {
        world.host().run("nft delete table ip published").success();
        network.plugin_call("GC", 0, None, None).config(&collecting(network)).run().success();
    });
}

#[test]
fn nor_where_only_gc_comes_and_the_namespace_is_gone() {
    changes_hands("1.1.0", |world, network, _, _| {
        world.host().run("nft delete table ip published").success();
        world.remove_netns("first");
        wait_until("the pair is gone", || {
            world.host().run("ip -br link show master br-1").success().is_empty().then_some(())
        });
        network.plugin_call("GC", 0, None, None).config(&collecting(network)).run().success();
    });
}

#[test]
fn nor_where_prune_came_before_its_del_and_the_namespace_is_gone() {
    changes_hands("1.1.0", |world, network, first, of_first| {
        world.host().run("nft delete table ip published").success();
        world.remove_netns("first");
        wait_until("the pair is gone", || {
            world.host().run("ip -br link show master br-1").success().is_empty().then_some(())
        });
        let program = Suite::Ours.binary("bridge").display().to_string();
        world.host().run(&format!("{program} prune")).success();
        network.detach_as(first, of_first);
    });
}

/// The configuration for a GC of a network that nobody is attached to any more.
fn collecting(network: &Network) -> Value {
    let mut config = network.plugin_config(0);
    config["cni.dev/valid-attachments"] = json!([]);
    config
}

fn masqueraded(world: &World, version: &str) -> Network {
    Network::new(
        world,
        json!({ "cniVersion": version, "name": "net", "plugins": [{
            "type": "bridge", "bridge": "br-1", "isDefaultGateway": true, "ipMasq": true,
            "ingressPolicy": "same-bridge",
            "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }]] },
        }] }),
    )
}

fn changes_hands(version: &str, leave: impl Fn(&World, &Network, &Container, &Attachment)) {
    let world = World::new();
    let outside = world.outside();
    let network = masqueraded(&world, version);
    let published = (Outside::HOST, "8080");
    let (first, of_first) = attached(&world, &network, "first");
    publish(&world);
    let inside = hear(&first, "80");
    say(outside.space(), published, "5555", "opens a flow");
    assert_hears(inside, "opens a flow");
    let result = network.cached_result(&of_first);
    leave(&world, &network, &first, &of_first);

    let (second, of_second) = attached(&world, &network, "second");
    let inside = hear(&second, "80");
    say(outside.space(), published, "5555", "of the last holder");
    say(&world.host(), (ADDRESS, "80"), "5556", "of the new one");
    assert_hears(inside, if kernel_can(&world) { "of the new one" } else { "of the last holder" });

    // A DEL that comes once more does not take the flows of the one who has the address by now.
    publish(&world);
    say(outside.space(), published, "5557", "opens a flow");
    world.host().run("nft delete table ip published").success();
    network.plugin_call("DEL", 0, Some(&of_first), result.as_ref()).run().success();
    let inside = hear(&second, "80");
    say(outside.space(), published, "5557", "goes on");
    assert_hears(inside, "goes on");
    network.detach_as(&second, &of_second);
}

#[test]
fn nor_what_answers_to_its_last_holder() {
    let world = World::new();
    let outside = world.outside();
    let network = masqueraded(&world, "1.0.0");
    let (first, of_first) = attached(&world, &network, "first");
    let asked = hear(outside.space(), "7000");
    say(&first, (Outside::ADDRESS, "7000"), "6000", "opens a flow");
    assert_hears(asked, "opens a flow");
    network.detach_as(&first, &of_first);

    let (second, of_second) = attached(&world, &network, "second");
    let inside = hear(&second, "6000");
    say(outside.space(), (Outside::HOST, "6000"), "7000", "to the last holder");
    say(&world.host(), (ADDRESS, "6000"), "5556", "to the new one");
    assert_hears(inside, if kernel_can(&world) { "to the new one" } else { "to the last holder" });
    network.detach_as(&second, &of_second);
}

/// The kernel answers for each, and all answers wait in one buffer.
#[test]
fn hundreds_of_addresses_are_forgotten_at_once() {
    let world = World::new();
    let network = masqueraded(&world, "1.1.0");
    let (container, _) = attached(&world, &network, "first");
    let add: String =
        (0..400).map(|n| format!("address add 10.2.{}.{}/32 dev eth0\n", n / 200, n % 200)).collect();
    container.command(["ip", "-batch", "-"]).stdin(add).run().success();
    network.plugin_call("GC", 0, None, None).config(&collecting(&network)).run().success();
    assert!(world.host().run("ip -br link show master br-1").success().is_empty());
}
