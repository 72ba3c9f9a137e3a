//! firewalld beside our networks: it rejects what is forwarded and, at a reload, forgets what others have added to its
//! rules. The next ADD brings that back, and so does `bridge repair`.

use integration_tests::{Attachment, Container, Network, Output, Outside, Suite, World, wait_until};
use serde_json::{Value, json};

use crate::support::{Backend, Firewalld};

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

const BEHIND: [&str; 2] = [Outside::ADDRESS, Outside::ADDRESS6];

/// A host with firewalld and something behind it.
struct Story<'a> {
    world: &'a World,
    firewalld: Firewalld<'a>,
    _outside: Outside,
    before: Vec<String>,
}

impl<'a> Story<'a> {
    #[track_caller]
    fn new(world: &'a World, backend: Backend) -> Self {
        let outside = world.outside();
        let firewalld = Firewalld::start(world, backend);
        // Some of its rules are there a moment after it says that it runs; after a reload all of them are.
        firewalld.command("--reload").success();
        let before = rules(world);
        Self { world, firewalld, _outside: outside, before }
    }

    /// Asserts that there is no rule but those that firewalld has written.
    #[track_caller]
    fn assert_rules_are_as_before(&self, when: &str) {
        let now = rules(self.world);
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|line| !those.contains(line)).cloned().collect()
        };
        let differences = (only(&self.before, &now), only(&now, &self.before));
        assert!(now == self.before, "{when}: missing and left over: {differences:#?}");
    }

    /// The network `net`, also where `bridge repair` looks for it.
    fn network(&self, keys: &Value) -> Network {
        let list = list(keys);
        self.world.write("/run/net.d/net.conflist", list.to_string());
        Network::new(self.world, list)
    }

    fn repair(&self) -> Output {
        let program = Suite::Ours.binary("bridge");
        let plugins = Suite::Ours.dir();
        let words = [program.as_os_str(), "repair".as_ref(), "net".as_ref()];
        self.world.host().command(words).env("NETCONFPATH", "/run/net.d").env("CNI_PATH", plugins).run()
    }
}

fn list(keys: &Value) -> Value {
    let mut bridge = json!({
        "type": "bridge", "bridge": "br-1", "isDefaultGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local-ipam", "ranges": [
            [{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }],
        ] },
    });
    bridge.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [bridge] })
}

/// Every rule of the host, whoever wrote it. Tables of iptables that are empty are there once somebody has asked.
fn rules(world: &World) -> Vec<String> {
    let tables = world.host().run("nft list tables").success().to_owned();
    let others = tables.lines().filter(|table| !["filter", "nat"].iter().any(|name| table.ends_with(name)));
    let of_iptables = ["iptables", "ip6tables"]
        .into_iter()
        .flat_map(|program| ["filter", "nat"].map(|table| format!("{program} -t {table} -S")));
    let listings = others.map(|table| format!("nft --stateless list {table}")).chain(of_iptables);
    let listed: Vec<String> = listings.map(|line| world.host().run(&line).success().to_owned()).collect();
    listed.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

#[track_caller]
fn reach(containers: &[&Container], expected: bool, when: &str) {
    for container in containers {
        for target in BEHIND {
            container.assert_reach(target, expected, when);
        }
    }
}

#[test]
fn what_it_rejects_is_named_and_let_through_where_asked() {
    for backend in BACKENDS {
        let world = World::new();
        let story = Story::new(&world, backend);
        let one = world.container("one");
        let network = story.network(&json!({}));
        let add = network.plugin_call("ADD", 0, Some(&Attachment::of(&one)), None).run();
        add.success();
        assert!(add.stderr.contains("forwarded packets of br-1 are dropped by"), "{backend:?}: {add}");
        reach(&[&one], false, "without the key");
        network.del(&Attachment::of(&one)).unwrap();
        story.assert_rules_are_as_before(&format!("{backend:?}"));

        let network = story.network(&json!({ "acceptForward": true }));
        network.attach(&one);
        reach(&[&one], true, "with the key");
        network.detach(&one);
        story.assert_rules_are_as_before(&format!("{backend:?}"));
    }
}

#[test]
fn what_a_reload_forgets_is_back_with_the_next_add_and_with_repair() {
    for backend in BACKENDS {
        for masquerade in ["nftables", "iptables"] {
            let world = World::new();
            let story = Story::new(&world, backend);
            let network = story.network(&json!({ "acceptForward": true, "ipMasqBackend": masquerade }));
            let (one, two) = (world.container("one"), world.container("two"));
            network.attach(&one);
            let when = |restored: &str| format!("{backend:?}, masquerade by {masquerade}, {restored}");

            story.firewalld.command("--reload").success();
            let missed = network.check(&Attachment::of(&one)).unwrap_err();
            assert_eq!(missed.code, 100, "{}: {missed}", when("reloaded"));
            reach(&[&one], false, &when("reloaded"));
            network.attach(&two);
            reach(&[&one, &two], true, &when("next ADD"));
            for container in [&one, &two] {
                network.check(&Attachment::of(container)).unwrap();
            }

            for reload in ["--reload", "--complete-reload"] {
                story.firewalld.command(reload).success();
                reach(&[&one, &two], false, &when(reload));
                assert_ne!(story.repair().success(), "", "{}", when(reload));
                assert_eq!(story.repair().success(), "", "{}", when(reload));
                reach(&[&one, &two], true, &when("repair"));
                for container in [&one, &two] {
                    network.check(&Attachment::of(container)).unwrap();
                }
            }

            network.detach(&one);
            network.detach(&two);
            story.assert_rules_are_as_before(&when("all detached"));
        }
    }
}

#[test]
fn names_are_answered_although_it_rejects_what_comes_in() {
    for backend in BACKENDS {
        let world = World::new();
        let story = Story::new(&world, backend);
        let network = Network::example(&world, "testnet");
        let (one, two) = (world.container("one"), world.container("two"));
        network.attach_as(&one, &Attachment::of(&one).capability("aliases", json!({ "testnet": ["web"] })));
        network.attach(&two);
        let answers = wait_until("the name is answered", || {
            Some(two.resolve("web")).filter(|answers| !answers.is_empty())
        });
        assert_eq!(answers, ["172.20.0.2"], "{backend:?}");
        let answered = |container: &Container| {
            let asked = container.run("dig +short +time=60 +tries=1 web.testnet");
            assert_eq!(asked.success(), "172.20.0.2\n", "{backend:?}");
        };
        let reload = || {
            story.firewalld.command("--reload").success();
            two.run("dig +time=1 +tries=1 web.testnet").failure();
        };
        reload();
        let three = world.container("three");
        network.attach(&three);
        answered(&three);
        answered(&two);
        reload();
        network.check(&Attachment::of(&two)).unwrap();
        answered(&two);
        // What else comes in is none of ours.
        let _server = world.host().serve("172.20.0.1:8080");
        two.run("curl --silent --max-time 60 http://172.20.0.1:8080/").failure();
        drop(story);
    }
}
