//! The verbs through the protocol's own entry, on a host whose server is a set of keys.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_types::{BootId, Environment, Error, ErrorCode, skel};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::AliasDns;
use crate::host::{Host, Withdrawn};
use crate::records::disk::Store;
use crate::records::{NetnsRef, Record, RecordKey};
use crate::state_dir::StateDir;
use crate::zone::Zones;

const ID: &str = "9c0c1adead2aa0463bf097c962cd438705907395a9cbeab2c25c163f0324da2a";

/// A host with a server in it, which can be out of order.
struct FakeHost {
    state: StateDir,
    addresses: Vec<IpAddr>,
    clock: RefCell<u64>,
    served: RefCell<Zones>,
    server: Server,
    tended: RefCell<u32>,
    cleared: RefCell<u32>,
}

#[derive(PartialEq, Eq)]
enum Server {
    Works,
    IsSilent,
    IsGone,
}

impl FakeHost {
    fn at(directory: &tempfile::TempDir) -> Self {
        Self {
            state: StateDir::at(directory.path().join("alias-dns/1")),
            addresses: ["10.82.0.1", "fd82::1", "127.0.0.1"].map(|ip| ip.parse().unwrap()).into(),
            clock: RefCell::new(0),
            served: RefCell::default(),
            server: Server::Works,
            tended: RefCell::default(),
            cleared: RefCell::default(),
        }
    }

    fn answer(&self) -> Result<(), Error> {
        match self.server {
            Server::Works => Ok(()),
            Server::IsGone => Err(Error::new(ErrorCode::TRY_AGAIN_LATER, "no server can be started")),
            Server::IsSilent => Err(Error::new(ErrorCode::TRY_AGAIN_LATER, "the server does not answer")),
        }
    }
}

impl Host for FakeHost {
    fn state(&self, _env: &Environment) -> Result<StateDir, Error> {
        Ok(self.state.clone())
    }

    fn device_with(&self, ip: IpAddr, listed: &[&str]) -> Result<Option<String>, Error> {
        let device = listed.first().map_or("found0", |device| device);
        Ok(self.addresses.contains(&ip).then(|| device.to_owned()))
    }

    fn now(&self) -> u64 {
        *self.clock.borrow_mut() += 1;
        *self.clock.borrow()
    }

    fn can_listen(&self) -> Result<(), String> {
        Ok(())
    }

    fn publish(&self, state: &StateDir, record: &Record) -> Result<Vec<RecordKey>, Error> {
        self.answer()?;
        // The server reads the file, not what the plugin has in mind.
        let on_disk = Store::new(state).read(&record.key).unwrap().unwrap();
        Ok(self.served.borrow_mut().apply(on_disk).rivals)
    }

    fn withdraw(&self, state: &StateDir, keys: &[RecordKey]) -> Result<Withdrawn, Error> {
        if self.server == Server::IsGone {
            return Ok(Withdrawn::FromNobody);
        }
        self.answer()?;
        for key in keys {
            assert_eq!(Store::new(state).read(key).unwrap(), None, "told before the file was gone");
            self.served.borrow_mut().remove(key);
        }
        Ok(Withdrawn::FromServer)
    }

    fn tend(&self, state: &StateDir) -> Result<(), Error> {
        *self.tended.borrow_mut() += 1;
        *self.served.borrow_mut() = Zones::load(Store::new(state).load().records);
        Ok(())
    }

    fn clear(&self, _state: &StateDir) -> Result<(), Error> {
        *self.cleared.borrow_mut() += 1;
        Ok(())
    }

    fn answers(&self, _state: &StateDir, record: &Record) -> Result<bool, Error> {
        self.answer()?;
        Ok(self.served.borrow().contains(&record.key))
    }
}

/// One call; what differs from the usual one is changed by the test.
struct Call {
    command: &'static str,
    container_id: String,
    args: &'static str,
    conf: Value,
}

fn prev_result() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "tbr0", "mac": "16:19:f7:c3:31:a4"},
            {"name": "veth7fcb5c23", "mac": "22:8c:25:4d:a7:5c"},
            {"name": "eth0", "mac": "92:d0:c6:0a:29:33", "sandbox": "/run/netns/rt-c1"}
        ],
        "ips": [{"address": "10.82.0.50/24", "gateway": "10.82.0.1", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0"}]
    })
}

fn call(command: &'static str) -> Call {
    Call {
        command,
        container_id: ID.to_owned(),
        args: "IgnoreUnknown=1;K8S_POD_NAME=c1",
        conf: json!({
            "cniVersion": "1.1.0",
            "name": "tnet",
            "type": "alias-dns",
            "prevResult": prev_result(),
            "runtimeConfig": {"aliases": {"tnet": ["centos-1"]}}
        }),
    }
}

impl Call {
    fn with(mut self, key: &str, value: Value) -> Self {
        self.conf[key] = value;
        self
    }

    fn of(mut self, container_id: &str) -> Self {
        self.container_id = container_id.to_owned();
        self
    }

    /// Exit status and answer.
    fn run(&self, host: &AliasDns<FakeHost>) -> (u8, Value) {
        self.run_with(host, "/proc/self/ns/pid")
    }

    fn run_with(&self, host: &AliasDns<FakeHost>, netns: &str) -> (u8, Value) {
        let env: Environment = [
            ("CNI_COMMAND", self.command),
            ("CNI_CONTAINERID", &self.container_id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", self.args),
        ]
        .into_iter()
        .collect();
        let mut answer = Vec::new();
        let status =
            skel::run(host, env, &mut self.conf.to_string().as_bytes(), &mut answer, &mut Vec::new());
        let answer = if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer).unwrap() };
        (status, answer)
    }

    #[track_caller]
    fn succeed(&self, host: &AliasDns<FakeHost>) -> Value {
        let (status, answer) = self.run(host);
        assert_eq!(status, 0, "{answer}");
        answer
    }

    #[track_caller]
    fn fail(&self, host: &AliasDns<FakeHost>, code: ErrorCode, msg: &str) {
        let (status, answer) = self.run(host);
        assert_eq!((status, &answer["code"]), (1, &json!(code.0)), "{answer}");
        assert!(answer["msg"].as_str().unwrap().contains(msg), "{answer}");
    }
}

/// Everything below the state directory, by path.
fn files(host: &AliasDns<FakeHost>) -> BTreeSet<String> {
    fn walk(path: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            found.insert(entry.path().display().to_string());
            walk(&entry.path(), found);
        }
    }
    let mut found = BTreeSet::new();
    walk(&host.0.state.records(), &mut found);
    found
}

fn only_record(host: &AliasDns<FakeHost>) -> Record {
    let mut loaded = Store::new(&host.0.state).load();
    assert_eq!((loaded.records.len(), loaded.unreadable.len()), (1, 0));
    loaded.records.remove(0)
}

#[test]
fn add_puts_the_network_in_front_of_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let mut prev_result = prev_result();
    prev_result["dns"] =
        json!({"nameservers": ["9.9.9.9", "10.82.0.1"], "search": ["example.com"], "options": ["edns0"]});
    let mut expected = prev_result.clone();
    expected["dns"] = json!({
        "nameservers": ["10.82.0.1", "9.9.9.9"],
        "search": ["tnet", "example.com"],
        "options": ["edns0", "ndots:0"]
    });
    assert_eq!(call("ADD").with("prevResult", prev_result).succeed(&host), expected);
}

#[test]
fn add_records_the_attachment_and_has_it_served() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    call("ADD").with("runtimeConfig", json!({"aliases": ["centos-1"], "links": ["n1:lnk"]})).succeed(&host);
    let record = only_record(&host);
    assert!(host.0.served.borrow().contains(&record.key));
    let text = serde_json::to_value(&record).unwrap();
    let expected = json!({
        "network": "tnet", "containerID": ID, "ifname": "eth0", "boot": BootId::current(), "joined": 1,
        "bridge": "tbr0", "gateways": ["10.82.0.1/24"], "addresses": ["10.82.0.50"],
        "names": ["c1", "centos-1", "9c0c1adead2a"], "links": [{"target": "n1", "alias": "lnk"}],
        "domain": "tnet", "ttl": 5, "forward": true,
        "netns": text["netns"],
    });
    assert_eq!(text, expected);
    assert_eq!(text["netns"]["path"], "/proc/self/ns/pid");
}

#[test]
fn podmans_dnsname_entry_is_served_as_podman_expects() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let entry = call("ADD").with("type", json!("dnsname")).with("domainName", json!("dns.podman"));
    let answer = entry.succeed(&host);
    assert_eq!(answer["dns"], json!({"nameservers": ["10.82.0.1"], "search": ["dns.podman"]}));
    let record = only_record(&host);
    assert_eq!(record.domain.as_str(), "dns.podman");
    assert_eq!(record.other_domains[0].as_str(), "tnet");
}

#[test]
fn a_network_without_a_default_route_is_internal_unless_it_says_otherwise() {
    for (routes, key, value, forward) in [
        (json!([{"dst": "0.0.0.0/0"}]), "forward", Value::Null, true),
        (json!([{"dst": "::/0"}]), "forward", Value::Null, true),
        (json!([{"dst": "10.0.0.0/8"}]), "forward", Value::Null, false),
        (json!([]), "forward", json!(true), true),
        (json!([{"dst": "0.0.0.0/0"}]), "forward", json!(false), false),
        (json!([]), "upstreams", json!(["9.9.9.9"]), true),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let host = AliasDns(FakeHost::at(&directory));
        let mut prev_result = prev_result();
        prev_result["routes"] = routes.clone();
        call("ADD").with("prevResult", prev_result).with(key, value.clone()).succeed(&host);
        assert_eq!(only_record(&host).forward, forward, "{routes} {key} {value}");
    }
}

#[test]
fn a_containers_own_name_servers_go_before_the_networks() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let own = json!({"dns": {"Servers": ["8.8.8.8"], "Searches": null, "Options": null}});
    call("ADD").with("upstreams", json!(["9.9.9.9:5353", "[fd00::1]:53"])).succeed(&host);
    assert_eq!(
        only_record(&host).upstreams,
        ["9.9.9.9:5353".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]
    );
    call("ADD").with("upstreams", json!(["9.9.9.9"])).with("runtimeConfig", own).succeed(&host);
    assert_eq!(only_record(&host).upstreams, ["8.8.8.8:53".parse().unwrap()]);
    // As a kubelet takes it from the host's resolv.conf.
    let of_link = json!({"dns": {"servers": ["fe80::1%lo"]}});
    call("ADD").with("runtimeConfig", of_link).succeed(&host);
    assert_eq!(only_record(&host).upstreams, ["[fe80::1%1]:53".parse().unwrap()]);
}

#[test]
fn a_result_without_interfaces_is_answered_on_the_device_of_its_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let prev_result = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.82.0.50/24", "gateway": "10.82.0.1"}});
    call("ADD").with("cniVersion", json!("0.2.0")).with("prevResult", prev_result).succeed(&host);
    assert_eq!(only_record(&host).bridge, "found0");
}

#[test]
fn a_users_mistake_is_named_and_leaves_nothing() {
    let no_gateway = |gateway: Value| {
        let mut prev_result = prev_result();
        prev_result["ips"][0]["gateway"] = gateway;
        prev_result
    };
    for (key, value, msg) in [
        ("prevResult", Value::Null, "prevResult: missing"),
        ("prevResult", no_gateway(Value::Null), "prevResult.ips: no gateway address"),
        (
            "prevResult",
            no_gateway(json!("10.82.0.254")),
            "gateway 10.82.0.254 is not an address of this host",
        ),
        ("prevResult", no_gateway(json!("127.0.0.1")), "prevResult.ips: no gateway address"),
        ("runtimeConfig", json!({"aliases": ["-ok", "not ok"]}), "runtimeConfig.aliases[1]: \"not ok\""),
        ("domainName", json!("a..b"), "domainName: \"a..b\""),
        ("domainName", json!(".."), "domainName: \"..\""),
        ("ttl", json!(-1), "ttl: -1 is not from 0 to 2147483647"),
        ("ttl", json!(5_000_000_000_u64), "ttl: 5000000000 is not from 0 to 2147483647"),
        ("ttl", json!("5"), "ttl: invalid type: string \"5\", expected a whole number"),
        ("upstreams", json!(["9.9.9.9", "dns.example"]), "upstreams[1]: \"dns.example\""),
        (
            "upstreams",
            json!(["fe80::1%nosuchdevice"]),
            "upstreams[0]: \"fe80::1%nosuchdevice\" is reached by \"nosuchdevice\", a device",
        ),
        ("onError", json!("ignore"), "onError: \"ignore\""),
        ("forward", json!("yes"), "forward: invalid type: string \"yes\""),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let host = AliasDns(FakeHost::at(&directory));
        call("ADD").with(key, value).fail(&host, ErrorCode::INVALID_CONFIG, msg);
        assert_eq!(files(&host), BTreeSet::new());
    }
}

#[test]
fn a_network_name_that_is_no_domain_needs_one() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let named = || call("ADD").with("name", json!("a..b"));
    named().fail(&host, ErrorCode::INVALID_CONFIG, "name: \"a..b\" is not a DNS name");
    named().with("domainName", json!("ab")).succeed(&host);
    assert_eq!(only_record(&host).other_domains, []);
}

#[test]
fn a_silent_server_fails_add_and_the_record_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost { server: Server::IsSilent, ..FakeHost::at(&directory) });
    call("ADD").fail(&host, ErrorCode::TRY_AGAIN_LATER, "the server does not answer");
    assert_eq!(files(&host), BTreeSet::new());
}

#[test]
fn on_error_warn_attaches_without_names() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost { server: Server::IsSilent, ..FakeHost::at(&directory) });
    let warned = |command| call(command).with("onError", json!("warn"));
    assert_eq!(warned("ADD").succeed(&host), prev_result());
    assert_eq!(files(&host), BTreeSet::new());
    warned("CHECK").succeed(&host);
    warned("DEL").succeed(&host);
    // A user's mistake is no accident of the host.
    warned("ADD").with("ttl", json!(-1)).fail(&host, ErrorCode::INVALID_CONFIG, "ttl");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_an_io_failure() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("alias-dns"), "a file").unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    call("ADD").fail(&host, ErrorCode::IO_FAILURE, "records/tnet/");
    call("STATUS").fail(&host, ErrorCode::NOT_AVAILABLE, "cannot be written");
}

#[test]
fn del_goes_by_identity_alone() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    call("ADD").succeed(&host);
    call("ADD").of("other").succeed(&host);
    let del = Call {
        args: "=broken",
        conf: json!({"cniVersion": "1.1.0", "name": "tnet", "ttl": "wrong", "runtimeConfig": {"aliases": 1}}),
        ..call("DEL")
    };
    assert_eq!(del.run_with(&host, ""), (0, Value::Null));
    assert_eq!(only_record(&host).key.container_id(), "other");
    assert_eq!(host.0.served.borrow().len(), 1);
    // Twice, thrice, and for what never was.
    assert_eq!(del.run_with(&host, ""), (0, Value::Null));
    assert_eq!(del.of("never").run_with(&host, "/run/netns/gone"), (0, Value::Null));
    call("DEL").of(&"long".repeat(100)).succeed(&host);
    call("DEL").of("other").succeed(&host);
    assert_eq!(files(&host), BTreeSet::from([]));
}

#[test]
fn del_does_not_wait_for_a_silent_server() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = AliasDns(FakeHost::at(&directory));
    call("ADD").succeed(&host);
    host.0.server = Server::IsSilent;
    call("DEL").succeed(&host);
    assert_eq!(files(&host), BTreeSet::new());
}

#[test]
fn del_gc_and_status_tend_to_names_that_nobody_serves() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = AliasDns(FakeHost::at(&directory));
    for id in ["one", "two"] {
        call("ADD").of(id).succeed(&host);
    }
    host.0.server = Server::IsGone;
    for (times, tending) in
        [call("STATUS"), call("GC").with("cni.dev/valid-attachments", json!([])), call("DEL").of("one")]
            .into_iter()
            .enumerate()
    {
        assert_eq!(*host.0.tended.borrow() as usize, times);
        tending.succeed(&host);
    }
    assert_eq!((*host.0.tended.borrow(), *host.0.cleared.borrow()), (3, 0));
    host.0.server = Server::Works;
    call("DEL").of("two").succeed(&host);
    assert_eq!(*host.0.tended.borrow(), 3, "a server tends to itself");
}

#[test]
fn a_failed_add_clears_away_what_was_made_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost { server: Server::IsGone, ..FakeHost::at(&directory) });
    call("ADD").fail(&host, ErrorCode::TRY_AGAIN_LATER, "no server can be started");
    assert_eq!((*host.0.tended.borrow(), *host.0.cleared.borrow()), (0, 1));
}

#[test]
fn del_removes_what_a_killed_add_has_left() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let network = host.0.state.records().join("tnet");
    std::fs::create_dir_all(&network).unwrap();
    std::fs::write(network.join(format!(".new-{ID}:eth0")), "{\"half").unwrap();
    call("ADD").succeed(&host);
    std::fs::write(network.join(format!(".new-{ID}:eth0")), "{\"half").unwrap();
    assert_eq!(only_record(&host).key.container_id(), ID);
    call("DEL").succeed(&host);
    assert_eq!(files(&host), BTreeSet::new());
}

#[test]
fn add_sweeps_the_dead_holder_of_its_address() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    call("ADD").of("alive").succeed(&host);
    call("ADD").of("dead").succeed(&host);
    let store = Store::new(&host.0.state);
    let mut dead = store
        .load_network("tnet")
        .records
        .into_iter()
        .find(|record| record.key.container_id() == "dead")
        .unwrap();
    dead.netns = Some(NetnsRef::of_nobody());
    store.write(&dead).unwrap();
    call("ADD").succeed(&host);
    let keys: Vec<RecordKey> = store.keys("tnet");
    let ids: Vec<&str> = keys.iter().map(RecordKey::container_id).collect();
    assert_eq!(ids, [ID, "alive"]);
    assert!(!host.0.served.borrow().contains(&dead.key));
}

#[test]
fn add_sweeps_the_dead_holder_of_its_name_and_no_living_one() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let store = Store::new(&host.0.state);
    let at = |id, network: &str, address: &str| {
        let mut result = prev_result();
        result["ips"][0]["address"] = json!(format!("{address}/24"));
        call("ADD").of(id).with("name", json!(network)).with("prevResult", result)
    };
    at("alive", "tnet", "10.82.0.51").succeed(&host);
    assert_eq!(at("unseen", "tnet", "10.82.0.52").run_with(&host, "/proc/self/exe").0, 0);
    for (network, address) in [("tnet", "10.82.0.53"), ("elsewhere", "10.82.0.54")] {
        at("dead", network, address).with("runtimeConfig", json!({"aliases": ["centos-1"]})).succeed(&host);
        let mut dead = store.load_network(network).records;
        dead.retain(|record| record.key.container_id() == "dead");
        dead[0].netns = Some(NetnsRef::of_nobody());
        store.write(&dead[0]).unwrap();
    }
    at(ID, "tnet", "10.82.0.50").succeed(&host);
    let ids =
        |network| store.keys(network).iter().map(|key| key.container_id().to_owned()).collect::<Vec<_>>();
    assert_eq!(ids("tnet"), [ID, "alive", "unseen"]);
    assert_eq!(ids("elsewhere"), ["dead"]);
    assert_eq!(host.0.served.borrow().len(), 4);
}

#[test]
fn a_dead_holder_that_cannot_be_removed_leaves_the_others_to_be_swept() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let store = Store::new(&host.0.state);
    let addresses = ["10.82.0.51", "10.82.0.52", "10.82.0.53"];
    let prev_result = |addresses: &[&str]| {
        let mut result = prev_result();
        let of = |ip: &&str| json!({"address": format!("{ip}/24"), "gateway": "10.82.0.1", "interface": 2});
        result["ips"] = addresses.iter().map(of).collect();
        result
    };
    for (id, address) in ["dead-1", "dead-2", "dead-3"].into_iter().zip(addresses) {
        call("ADD").of(id).with("prevResult", prev_result(&[address])).succeed(&host);
    }
    for mut record in store.load_network("tnet").records {
        record.netns = Some(NetnsRef::of_nobody());
        store.write(&record).unwrap();
    }
    for stuck in ["dead-1", "dead-3"] {
        let aside = host.0.state.records().join(format!("tnet/.new-{stuck}:eth0"));
        std::fs::create_dir_all(aside.join("somebody's")).unwrap();
    }
    call("ADD").with("prevResult", prev_result(&addresses)).succeed(&host);
    let mut ids: Vec<String> = store
        .load_network("tnet")
        .records
        .iter()
        .map(|record| record.key.container_id().to_owned())
        .collect();
    ids.sort();
    assert_eq!(ids, [ID, "dead-1", "dead-3"]);
    assert_eq!(host.0.served.borrow().len(), 3);
}

#[test]
fn check_compares_record_prev_result_and_server() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = AliasDns(FakeHost::at(&directory));
    let result = call("ADD").succeed(&host);
    // As cnitool does: neither arguments nor runtimeConfig.
    let check = |result: &Value| Call {
        args: "",
        ..call("CHECK").with("prevResult", result.clone()).with("runtimeConfig", json!({}))
    };
    check(&result).succeed(&host);
    call("CHECK").with("prevResult", Value::Null).fail(
        &host,
        ErrorCode::INVALID_CONFIG,
        "prevResult: missing",
    );
    // A plugin later in the list may have said another dns.
    check(&prev_result()).succeed(&host);
    let mut moved = result.clone();
    moved["ips"][0]["address"] = json!("10.82.0.51/24");
    check(&moved).fail(&host, ErrorCode::CHANGED, "10.82.0.51");
    host.0.served.borrow_mut().remove(&only_record(&host).key);
    check(&result).fail(&host, ErrorCode::CHANGED, "the server does not answer by its record");
    host.0.server = Server::IsSilent;
    check(&result).fail(&host, ErrorCode::TRY_AGAIN_LATER, "the server does not answer");
    call("DEL").succeed(&host);
    check(&result).fail(&host, ErrorCode::CHANGED, "no record");
}

#[test]
fn check_names_each_difference_between_record_configuration_and_prev_result() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    let conf = |command| {
        call(command)
            .with("runtimeConfig", json!({"aliases": {"tnet": ["centos-1", "WEB"]}, "links": ["n2:db"]}))
            .with("domainName", json!("cni.local"))
            .with("ttl", json!(7))
            .with("forward", json!(false))
            .with("upstreams", json!(["9.9.9.9", "fd00::9"]))
    };
    let result = conf("ADD").succeed(&host);
    let check = || conf("CHECK").with("prevResult", result.clone());
    check().succeed(&host);
    let added = only_record(&host);
    let tamper = |change: &dyn Fn(&mut Record)| {
        let mut record = added.clone();
        change(&mut record);
        Store::new(&host.0.state).write(&record).unwrap();
    };
    type Change<'a> = (&'a dyn Fn(&mut Record), &'a str);
    let changes: [Change<'_>; 13] = [
        (&|record| drop(record.names.remove(2)), "the record lacks the name WEB"),
        (&|record| record.links.clear(), "the record lacks the link n2:db"),
        (&|record| record.links[0].target = record.domain.clone(), "the record lacks the link n2:db"),
        (&|record| record.links[0].alias = record.domain.clone(), "the record lacks the link n2:db"),
        (
            &|record| record.other_domains.clear(),
            "domains: the record has cni.local, the configuration has cni.local, tnet",
        ),
        (&|record| record.ttl = 600, "ttl: the record has 600, the configuration has 7"),
        (&|record| record.forward = true, "forward: the record has true, the configuration has false"),
        (
            &|record| record.upstreams.truncate(1),
            "upstreams: the record has 9.9.9.9:53, the configuration has 9.9.9.9:53, [fd00::9]:53",
        ),
        (
            &|record| record.upstreams.clear(),
            "upstreams: the record has none, the configuration has 9.9.9.9:53",
        ),
        (
            &|record| record.netns = Some(NetnsRef::of_nobody()),
            "namespace: /run/netns/of nobody, which the record names, is gone",
        ),
        (&|record| record.bridge = "br9".to_owned(), "bridge: the record has br9, this host has tbr0"),
        (
            &|record| record.gateways.push("fd82::1/64".parse().unwrap()),
            "gateways: the record has 10.82.0.1/24, fd82::1/64, prevResult and this host have 10.82.0.1/24",
        ),
        (&|record| record.addresses.clear(), "addresses: the record has none, prevResult has 10.82.0.50"),
    ];
    for (change, told) in changes {
        tamper(change);
        check().fail(&host, ErrorCode::CHANGED, told);
    }
    tamper(&|record| (record.ttl, record.names) = (600, Vec::new()));
    for told in ["lacks the name c1; the record lacks the name centos-1;", "; ttl: the record has 600"] {
        check().fail(&host, ErrorCode::CHANGED, told);
    }
    // In another case, or with a name more, of which this call does not know where it came from.
    tamper(&|record| {
        let name = |text: &str| crate::domain_name::DomainName::new(text).unwrap();
        record.names[2] = name("web");
        record.names.push(name("more"));
    });
    check().succeed(&host);
}

#[test]
fn gc_keeps_the_listed_attachments_of_its_network() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    for id in ["one", "two"] {
        call("ADD").of(id).succeed(&host);
        call("ADD").of(id).with("name", json!("other")).succeed(&host);
    }
    let torn = host.0.state.records().join("tnet/torn:eth0");
    std::fs::write(&torn, "{").unwrap();
    let unfinished = torn.with_file_name(".new-killed:eth0");
    std::fs::write(&unfinished, "{").unwrap();
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        call("GC").with(key, json!([{"containerID": "two", "ifname": "eth0"}])).succeed(&host);
        let ids = |network: &str| -> Vec<String> {
            Store::new(&host.0.state).keys(network).iter().map(|key| key.container_id().to_owned()).collect()
        };
        assert_eq!((ids("tnet"), ids("other")), (vec!["two".into()], vec!["one".into(), "two".into()]));
        assert!(!unfinished.exists());
        call("ADD").of("one").succeed(&host);
    }
    call("GC").with("cni.dev/valid-attachments", json!([])).succeed(&host);
    assert_eq!(Store::new(&host.0.state).keys("tnet"), []);
    assert_eq!(host.0.served.borrow().len(), 2);

    call("ADD").of("one").succeed(&host);
    for stuck in ["a:eth0", "z:eth0"] {
        std::fs::create_dir_all(torn.with_file_name(stuck).join("somebody's")).unwrap();
    }
    for stuck in ["a:eth0", "z:eth0"] {
        call("GC").with("cni.dev/valid-attachments", json!([])).fail(&host, ErrorCode::IO_FAILURE, stuck);
    }
    assert_eq!(Store::new(&host.0.state).load_network("tnet").records, []);
}

#[test]
fn gc_without_a_list_removes_only_the_dead() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    call("ADD").of("alive").succeed(&host);
    assert_eq!(call("ADD").of("unseen").run_with(&host, "/proc/self/exe").0, 0);
    call("ADD").of("dead").succeed(&host);
    let store = Store::new(&host.0.state);
    let mut dead =
        store.load().records.into_iter().find(|record| record.key.container_id() == "dead").unwrap();
    dead.netns = Some(NetnsRef::of_nobody());
    store.write(&dead).unwrap();
    call("GC").succeed(&host);
    let keys = store.keys("tnet");
    assert_eq!(keys.iter().map(RecordKey::container_id).collect::<Vec<_>>(), ["alive", "unseen"]);
    assert_eq!(host.0.served.borrow().len(), 2);
}

#[test]
fn status_looks_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let host = AliasDns(FakeHost::at(&directory));
    call("STATUS").succeed(&host);
    assert!(!host.0.state.path().exists());
    call("STATUS").with("onError", json!("no")).fail(&host, ErrorCode::INVALID_CONFIG, "onError");
}

/// Any JSON, as often as not with the keys and texts that mean something here.
fn arbitrary_json() -> impl Strategy<Value = Value> {
    let text = || {
        let known = prop::sample::select(vec![
            "web",
            "n1:lnk",
            "a b",
            "",
            "9.9.9.9",
            "10.82.0.1",
            "10.82.0.50/24",
            "tnet",
            "warn",
        ]);
        prop_oneof![known.prop_map(str::to_owned), any::<String>()]
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        let known = prop::sample::select(vec![
            "aliases",
            "links",
            "containerName",
            "dns",
            "Servers",
            "cni",
            "tnet",
            "ips",
            "interfaces",
            "routes",
            "address",
            "gateway",
            "interface",
            "io.kubernetes.cri.pod-annotations",
            "alias-dns.cni/aliases",
        ]);
        let key = prop_oneof![known.prop_map(str::to_owned), any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_a_configuration_says_add_serves_it_or_names_the_mistake(
        key in prop::sample::select(vec!["runtimeConfig", "args", "prevResult", "domainName", "ttl", "upstreams", "forward", "onError"]),
        value in arbitrary_json(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let host = AliasDns(FakeHost::at(&directory));
        let (status, answer) = call("ADD").with(key, value).run(&host);
        if status == 0 {
            let record = only_record(&host);
            prop_assert!(host.0.served.borrow().contains(&record.key));
        } else {
            prop_assert_eq!(&answer["code"], &json!(7), "{}", answer);
            prop_assert_eq!(files(&host), BTreeSet::new());
        }
        prop_assert_eq!(call("DEL").run(&host).0, 0);
        prop_assert_eq!(files(&host), BTreeSet::new());
    }
}
