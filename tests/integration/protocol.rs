//! The protocol through the built binaries, byte by byte; where the reference has the behaviour, compared with it.

use integration_tests::{Output, PluginCall, Snapshot, Suite, World};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

const VERSION_ANSWER: &str = concat!(
    r#"{"cniVersion":"1.1.0","supportedVersions":"#,
    r#"["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#,
    "\n"
);

/// Our plugins, each with one of the reference that must treat the protocol alike.
const PLUGINS: [(&str, &str); 3] =
    [("bridge", "bridge"), ("host-local-ipam", "host-local"), ("alias-dns", "tuning")];

fn error_document(code: u32, msg: &str) -> String {
    format!("{{\n    \"code\": {code},\n    \"msg\": \"{msg}\"\n}}")
}

/// Calls our plugin and its counterpart alike, and compares what they print.
#[track_caller]
fn same_as_reference(world: &World, prepare: impl Fn(PluginCall) -> PluginCall, expected: impl Fn(&Output)) {
    for (ours, theirs) in PLUGINS {
        let our = prepare(world.plugin(ours)).run();
        let their = prepare(world.plugin_of(Suite::Reference, theirs)).run();
        assert_eq!(
            (our.status, &our.stdout),
            (their.status, &their.stdout),
            "\nours: {our}\ntheirs: {their}"
        );
        expected(&our);
    }
}

#[test]
fn version_answers_without_reading_anything_else() {
    let world = World::new();
    same_as_reference(
        &world,
        |call| {
            ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"]
                .into_iter()
                .fold(call.verb("VERSION").stdin("no JSON"), PluginCall::without)
        },
        |output| assert_eq!(output.success(), VERSION_ANSWER),
    );
}

#[test]
fn without_a_command_the_plugin_says_what_it_is() {
    let world = World::new();
    for (name, _) in PLUGINS {
        for call in [world.plugin(name).without("CNI_COMMAND"), world.plugin(name).verb("")] {
            let output = call.run();
            assert_eq!(output.success(), "");
            let lines: Vec<&str> = output.stderr.lines().collect();
            let about = format!("CNI {name} plugin v{}", env!("CARGO_PKG_VERSION"));
            let versions = format!("CNI protocol versions supported: {}", VERSIONS.join(", "));
            assert_eq!(lines, [about, versions], "{output}");
        }
    }
}

#[test]
fn an_unknown_command_is_refused_by_name() {
    let world = World::new();
    let expected = error_document(4, "unknown CNI_COMMAND: FROBNICATE");
    same_as_reference(
        &world,
        |call| call.verb("FROBNICATE").config(&json!({ "name": "n" })),
        |output| assert_eq!(output.stdout, expected),
    );
}

#[test]
fn missing_variables_are_named_together() {
    let world = World::new();
    let variables = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    for verb in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        // Every set of variables that can be missing, by unsetting them and by setting them to nothing.
        for missing in 1..16_u32 {
            for unset in [true, false] {
                let prepare = |call: PluginCall| {
                    let base = call.verb(verb).env("CNI_NETNS", "/run/netns/none").stdin("{");
                    (0..4).filter(|bit| missing & 1 << bit != 0).fold(base, |call, bit| {
                        let name = variables[bit];
                        if unset { call.without(name) } else { call.env(name, "") }
                    })
                };
                let (our, their) = (
                    prepare(world.plugin("bridge")).run(),
                    prepare(world.plugin_of(Suite::Reference, "bridge")).run(),
                );
                // With nothing missing that this verb needs, both come to the unreadable configuration.
                let needed_are_there = their.json()["code"] == 6;
                if needed_are_there {
                    assert_eq!(our.json()["code"], 6, "{our}");
                } else {
                    assert_eq!((our.status, &our.stdout), (their.status, &their.stdout), "{verb}: {our}");
                }
            }
        }
    }
}

#[test]
fn malformed_variables_are_refused_with_the_same_words() {
    let world = World::new();
    let cases = [
        ("CNI_CONTAINERID", "../c1"),
        ("CNI_CONTAINERID", "-c1"),
        ("CNI_CONTAINERID", "c 1"),
        ("CNI_CONTAINERID", "c1\n"),
        ("CNI_IFNAME", "sixteen-letters!"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "eth/0"),
        ("CNI_IFNAME", "eth:0"),
        ("CNI_IFNAME", "eth 0"),
        ("CNI_IFNAME", "eth\u{a0}0"),
    ];
    for (name, value) in cases {
        for verb in ["ADD", "CHECK", "DEL"] {
            same_as_reference(
                &world,
                |call| {
                    call.verb(verb).env("CNI_NETNS", "/run/netns/none").env(name, value).config(&json!({}))
                },
                |output| {
                    output.error(4);
                },
            );
        }
    }
}

#[test]
fn network_names_and_versions_are_refused_with_the_same_words() {
    let world = World::new();
    let call = |verb: &'static str, config: Value| {
        move |call: PluginCall| call.verb(verb).env("CNI_NETNS", "/run/netns/none").config(&config)
    };
    for verb in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        for (config, code) in [
            (json!({}), 7),
            (json!(null), 7),
            (json!({ "cniVersion": "1.1.0", "name": "" }), 7),
            (json!({ "cniVersion": "1.1.0", "name": "a/b" }), 7),
            (json!({ "cniVersion": "1.1.0", "name": "-net" }), 7),
        ] {
            same_as_reference(&world, call(verb, config), |output| {
                output.error(code);
            });
        }
    }
    for verb in ["ADD", "CHECK", "DEL"] {
        same_as_reference(&world, call(verb, json!({ "cniVersion": "1.1", "name": "n" })), |output| {
            output.error(1);
        });
    }
    for (verb, too_old) in [("CHECK", "0.3.1"), ("CHECK", ""), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let expected = error_document(1, &format!("config version does not allow {verb}"));
        same_as_reference(&world, call(verb, json!({ "cniVersion": too_old, "name": "n" })), |output| {
            assert_eq!(output.stdout, expected);
        });
    }
}

#[test]
fn unreadable_stdin_is_an_error_of_its_own() {
    let world = World::new();
    for (name, _) in PLUGINS {
        for bytes in ["", "{", "[]", "{} {}", "\"text\"", "\u{0}"] {
            let output =
                world.plugin(name).verb("ADD").env("CNI_NETNS", "/run/netns/none").stdin(bytes).run();
            let msg = output.error(6);
            assert!(msg.starts_with("error unmarshall network config: "), "{output}");
        }
        let plugin = Suite::Ours.binary(name);
        let line = "exec \"$0\" <&-";
        let closed = world
            .host()
            .command(["sh", "-c", line, plugin.to_str().unwrap()])
            .env("CNI_COMMAND", "STATUS")
            .env("CNI_PATH", "/nowhere")
            .run();
        assert!(closed.json()["code"] == 5 || closed.json()["code"] == 6, "{closed}");
    }
}

#[test]
fn add_answers_in_the_shape_of_every_version() {
    let world = World::new();
    for version in VERSIONS {
        let container = world.container(&format!("c-{}", version.replace('.', "-")));
        let config = json!({
            "cniVersion": version, "name": "n", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
            "ipam": { "type": "host-local-ipam", "subnet": "10.1.2.0/24" }
        });
        let output = world.plugin("bridge").verb("ADD").container(&container).config(&config).run();
        output.success();
        let result = output.json();
        assert_eq!(result["cniVersion"], version, "{output}");
        assert!(!output.stdout.ends_with('\n') && output.stdout.starts_with("{\n    \""), "{output}");
        match version {
            "0.1.0" | "0.2.0" => {
                assert!(result["ip4"]["ip"].as_str().unwrap().starts_with("10.1.2."), "{output}");
                assert_eq!(result["ip4"]["gateway"], "10.1.2.1", "{output}");
                assert_eq!(result["dns"], json!({}), "{output}");
                assert_eq!(result["interfaces"], Value::Null, "{output}");
            }
            "0.3.0" | "0.3.1" | "0.4.0" => {
                assert_eq!(result["ips"][0]["version"], "4", "{output}");
                assert_eq!(result["ips"][0]["interface"], 2, "{output}");
                assert_eq!(result["dns"], json!({}), "{output}");
            }
            _ => {
                assert_eq!(result["ips"][0]["version"], Value::Null, "{output}");
                assert_eq!(result["ips"][0]["interface"], 2, "{output}");
                assert_eq!(result["dns"], Value::Null, "{output}");
            }
        }
        world.plugin("bridge").verb("DEL").container(&container).config(&config).run().success();
    }
}

#[test]
fn keys_match_in_any_case_null_is_absent_and_unknown_keys_are_named_on_stderr() {
    let world = World::new();
    let container = world.container("c1");
    let config = json!({
        "CNIVERSION": "1.0.0", "Name": "n", "type": "bridge", "BRIDGE": "br0", "isgateway": true, "mtu": null,
        "colour": "green", "IPAM": { "Type": "host-local-ipam", "SUBNET": "10.1.2.0/24" }
    });
    let output = world.plugin("bridge").verb("ADD").container(&container).config(&config).run();
    assert_eq!(serde_json::from_str::<Value>(output.success()).unwrap()["ips"][0]["address"], "10.1.2.2/24");
    assert!(output.stderr.contains("colour"), "{output}");
    assert!(!output.stderr.contains("isgateway"), "{output}");
}

/// A runtime that has been killed meanwhile has taken no note of the attachment, and nobody would ask for its DEL.
#[test]
fn an_attachment_that_nobody_hears_of_is_taken_back() {
    let world = World::new();
    let path = world.install_plugins();
    let [resident, container] = ["resident", "c1"].map(|name| world.container(name));
    let ipam = json!({ "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.2.0/24" }]] });
    let bridge = json!({
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true,
        "ipam": ipam
    });
    let add = |call: PluginCall, config: &Value| {
        call.verb("ADD").container(&container).env("CNI_PATH", &path).config(config).run()
    };
    let unheard = |name: &str, config: &Value| {
        let deaf = ["sh", "-c", "exec \"$0\" > /dev/full"];
        let output = add(world.traced_plugin(&deaf, name), config);
        assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{output}");
        for said in ["write the answer to stdout", "detached the container again"] {
            assert!(output.stderr.contains(said), "{output}");
        }
    };
    world.plugin("bridge").verb("ADD").container(&resident).config(&bridge).run().success();
    let allocator = json!({ "cniVersion": "1.1.0", "name": "n", "type": "host-local-ipam", "ipam": ipam });
    for (name, config) in [("host-local-ipam", &allocator), ("bridge", &bridge)] {
        let before = Snapshot::of(&world);
        unheard(name, config);
        before.assert_unchanged_but(&world, &Snapshot::OF_THE_ALLOCATOR);
        assert_eq!(container.run("ip -o link show").success().lines().count(), 1);
    }
    let result = add(world.plugin("bridge"), &bridge).json();
    let names = json!({ "cniVersion": "1.1.0", "name": "n", "type": "alias-dns", "prevResult": result });
    unheard("alias-dns", &names);
    let listed =
        || world.host().command([Suite::Ours.binary("alias-dns").as_os_str(), "list".as_ref()]).run();
    assert_eq!(listed().success().lines().count(), 1, "{}", listed());
    add(world.plugin("alias-dns"), &names).success();
    assert!(listed().success().contains("10.1.2."), "{}", listed());
}
