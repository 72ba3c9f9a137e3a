//! Attachments that come and go side by side, beside a container that keeps talking to the outside.

use integration_tests::{Container, Outside, PluginCall, Running, World, wait_until};
use serde_json::{Value, json};

/// How often all guests come and go.
const ROUNDS: usize = 5;

/// Numbers that the resident sends over its connection, one every 20 ms.
const NUMBERS: usize = 250;

fn network(name: &str, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": format!("br-{name}"),
        "isDefaultGateway": true, "ipMasq": true, "ingressPolicy": "same-bridge", "macspoofchk": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": subnet }]] }
    })
}

#[test]
fn a_connection_to_the_outside_outlives_a_storm_on_two_networks() {
    let world = World::new();
    let path = world.install_plugins();
    let outside = world.outside();
    let networks = [network("one", "10.1.1.0/24"), network("two", "10.1.2.0/24")];
    let call = |verb: &str, container: &Container, network: &Value| -> PluginCall {
        let call = world.plugin("bridge").verb(verb).container(container);
        call.env("CNI_PATH", &path).config(network)
    };
    let resident = world.container("resident");
    let result = call("ADD", &resident, &networks[0]).run().json();

    let server = outside.space().command(["nc", "-l", "7000"]).start();
    wait_until("the outside listens", || {
        outside.space().run("ss -Hltn sport = :7000").stdout.contains("7000").then_some(())
    });
    let talk =
        format!("for i in $(seq {NUMBERS}); do echo $i; sleep 0.02; done | nc -N {} 7000", Outside::ADDRESS);
    let talking = resident.command(["sh", "-c", &talk]).start();
    let pinging = resident.command(["ping", "-i", "0.05", "-c", "80", "-W", "5", Outside::ADDRESS]).start();

    let guests: Vec<(Container, &Value)> = (0..12)
        .map(|number| (world.container(&format!("guest{number}")), &networks[number % networks.len()]))
        .collect();
    for _ in 0..ROUNDS {
        for verb in ["ADD", "DEL"] {
            let storm: Vec<Running> =
                guests.iter().map(|(guest, network)| call(verb, guest, network).start()).collect();
            for call in storm {
                call.wait().success();
            }
        }
    }

    assert!(pinging.wait().success().contains(" 0% packet loss"));
    talking.wait().success();
    let numbers: Vec<String> = (1..=NUMBERS).map(|number| number.to_string()).collect();
    assert_eq!(server.wait().success().lines().collect::<Vec<_>>(), numbers);

    // No rule is missing, and none is left over.
    let mut checked = networks[0].clone();
    checked["prevResult"] = result;
    call("CHECK", &resident, &checked).run().success();
    call("DEL", &resident, &networks[0]).run().success();
    assert_eq!(world.host().run("nft list ruleset").success(), "");
}
