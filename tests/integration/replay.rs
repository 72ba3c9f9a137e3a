//! Recorded calls of a real runtime, made again on a world.
//!
//! A recording has one call a line: the plugin, its `CNI_*` environment, its stdin, and what the plugin of that day
//! answered. Ours must answer the same, but for what is random (hardware addresses, the host veth's name), which is
//! learnt from each new answer and put in its place in the calls that follow, and but for what ours does more: the
//! `dns` of alias-dns. The runtime's own work is done beside it: namespaces appear with their first ADD and are gone
//! before a DEL that names none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use integration_tests::{Suite, World};
use serde_json::{Map, Value};

/// The recorded text of random values, with what it is this time.
#[derive(Default)]
pub(crate) struct Learnt(BTreeMap<String, String>);

impl Learnt {
    /// Compares an answer with the recorded one, and remembers what stands in it for random values.
    #[track_caller]
    pub(crate) fn compare(&mut self, recorded: &Value, answer: &Value, path: &str) {
        match (recorded, answer) {
            (Value::Object(theirs), Value::Object(ours)) => {
                let keys =
                    |object: &Map<String, Value>| -> BTreeSet<String> { object.keys().cloned().collect() };
                assert_eq!(
                    keys(theirs),
                    keys(ours),
                    "keys at {path}\nrecorded {recorded}\nanswered {answer}"
                );
                for (key, value) in theirs {
                    self.compare(value, &ours[key], &format!("{path}.{key}"));
                }
            }
            (Value::Array(theirs), Value::Array(ours)) => {
                assert_eq!(
                    theirs.len(),
                    ours.len(),
                    "length of {path}\nrecorded {recorded}\nanswered {answer}"
                );
                for (index, (their, our)) in theirs.iter().zip(ours).enumerate() {
                    self.compare(their, our, &format!("{path}[{index}]"));
                }
            }
            (Value::String(theirs), Value::String(ours)) if self.0.get(theirs).unwrap_or(theirs) != ours => {
                let is_random =
                    path.ends_with(".mac") || (path.ends_with(".name") && theirs.starts_with("veth"));
                assert!(is_random, "{path}: recorded {theirs}, answered {ours}");
                self.0.insert(theirs.clone(), ours.clone());
            }
            (Value::String(_), Value::String(_)) => {}
            _ => assert_eq!(recorded, answer, "{path}"),
        }
    }

    /// `document` with what was learnt.
    pub(crate) fn applied_to(&self, document: &Value) -> Value {
        let mut text = document.to_string();
        for (theirs, ours) in &self.0 {
            text = text.replace(&format!("\"{theirs}\""), &format!("\"{ours}\""));
        }
        serde_json::from_str(&text).unwrap()
    }
}

/// How a recorded call must end now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As it did then.
    AsRecorded,
    /// Well, though it failed then: the failure was made up, or a weakness of the reference.
    Well,
    /// With an error, though it went well then.
    Failed,
}

/// A world in which recorded calls are made again.
pub(crate) struct Replay<'a> {
    world: &'a World,
    plugins: String,
    learnt: Learnt,
    /// The `dns` that alias-dns gave to each container, which a runtime would hand to CHECK.
    dns: BTreeMap<String, Value>,
    /// Namespace of each container that lives.
    netns: BTreeMap<String, String>,
    /// The last ADD of each plugin of an attachment that was not followed by a DEL, in the order of the calls.
    attached: Vec<(String, Value)>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let plugins = world.install_plugins();
        Self {
            world,
            plugins,
            learnt: Learnt::default(),
            dns: BTreeMap::new(),
            netns: BTreeMap::new(),
            attached: Vec::new(),
        }
    }

    /// Makes every call of a recording but those of plugins that are not installed here and those that the bridge
    /// made, which are its own business. `end` says how each must end. The number of calls made.
    pub(crate) fn run(&mut self, recording: &str, end: impl Fn(&Value) -> End) -> usize {
        let mut made = 0;
        for line in recording.lines() {
            let call: Value = serde_json::from_str(line).unwrap();
            if call["caller"] == "bridge" || call["plugin"] == "bandwidth" {
                continue;
            }
            self.call(&call, end(&call));
            made += 1;
        }
        made
    }

    /// Detaches what the recording left attached: ours as after a reboot, without namespace and `prevResult`.
    pub(crate) fn detach_the_rest(&mut self) {
        for (_, mut call) in std::mem::take(&mut self.attached).into_iter().rev() {
            call["env"]["CNI_COMMAND"] = "DEL".into();
            call["env"]["CNI_NETNS"] = "".into();
            if is_ours(call["plugin"].as_str().unwrap()) {
                call["stdin"].as_object_mut().unwrap().remove("prevResult");
            }
            self.call(&call, End::Well);
        }
    }

    fn call(&mut self, call: &Value, end: End) {
        let plugin = call["plugin"].as_str().unwrap();
        let env = |name: &str| call["env"][name].as_str().unwrap_or_default().to_owned();
        let verb = env("CNI_COMMAND");
        let shown = format!("call {}, {plugin} {verb}", call["seq"]);
        self.keep_namespaces(&env("CNI_CONTAINERID"), &env("CNI_NETNS"), &verb);
        if verb == "ADD" && plugin == "bridge" {
            self.continue_after_earlier_leases(call);
        }

        let ours = is_ours(plugin);
        let mut prepared = if plugin == "dnsname" {
            self.world.plugin("alias-dns")
        } else {
            self.world.plugin_of(if ours { Suite::Ours } else { Suite::Reference }, plugin)
        };
        for (name, value) in self.learnt.applied_to(&call["env"]).as_object().unwrap() {
            prepared = prepared.env(name, value.as_str().unwrap());
        }
        if verb != "VERSION" {
            prepared = prepared.env("CNI_PATH", &self.plugins);
        }
        let mut stdin = self.learnt.applied_to(&call["stdin"]);
        if let ("CHECK", "alias-dns", Some(dns)) =
            (verb.as_str(), plugin, self.dns.get(&env("CNI_CONTAINERID")))
        {
            stdin["prevResult"]["dns"] = dns.clone();
        }
        let output = prepared.config(&stdin).run();

        if end == End::Failed || (end == End::AsRecorded && call["rc"] == 1) {
            let msg = output.failure().json()["msg"].to_string();
            assert!(!msg.is_empty(), "{shown}: {output}");
            return;
        }
        assert_eq!(output.status, 0, "{shown}: {output}");
        let attachment =
            format!("{plugin} {} {} {}", call["stdin"]["name"], env("CNI_CONTAINERID"), env("CNI_IFNAME"));
        match verb.as_str() {
            "ADD" => {
                if plugin == "alias-dns" {
                    self.dns.insert(env("CNI_CONTAINERID"), output.json()["dns"].clone());
                }
                if ours {
                    self.compare_result(plugin, &call["stdout"], output.json(), &shown);
                }
                self.attached.push((attachment, call.clone()));
            }
            "VERSION" => {
                let versions = |document: &Value| -> BTreeSet<String> {
                    serde_json::from_value(document["supportedVersions"].clone()).unwrap()
                };
                let (theirs, ours) = (versions(&call["stdout"]), versions(&output.json()));
                assert!(theirs.is_subset(&ours), "{shown}: recorded {theirs:?}, answered {ours:?}");
            }
            _ => {
                assert_eq!(output.stdout, "", "{shown}");
                if verb == "DEL" {
                    self.attached.retain(|(attached, _)| *attached != attachment);
                }
            }
        }
    }

    /// What alias-dns answers is what it was given, with the servers and the domain that names are asked with.
    fn compare_result(&mut self, plugin: &str, recorded: &Value, mut answer: Value, shown: &str) {
        let mut recorded = recorded.clone();
        if plugin != "bridge" {
            let dns = answer.as_object_mut().unwrap().remove("dns").unwrap_or_default();
            let known = recorded.as_object_mut().unwrap().remove("dns").unwrap_or_default();
            let gateways: Vec<&Value> =
                answer["ips"].as_array().unwrap().iter().map(|ip| &ip["gateway"]).collect();
            let servers =
                dns["nameservers"].as_array().unwrap_or_else(|| panic!("{shown}: no servers: {dns}"));
            assert_eq!(servers.iter().take(gateways.len()).collect::<Vec<_>>(), gateways, "{shown}: {dns}");
            // The dnsname of the recording was the real one.
            if plugin == "dnsname" {
                assert_eq!(dns["search"], known["search"], "{shown}: {dns}");
                assert_eq!(dns["nameservers"], known["nameservers"], "{shown}: {dns}");
            }
        }
        self.learnt.compare(&recorded, &answer, shown);
    }

    fn keep_namespaces(&mut self, container_id: &str, netns: &str, verb: &str) {
        if verb == "DEL" && netns.is_empty() {
            if let Some(name) = self.netns.remove(container_id) {
                self.world.remove_netns(&name);
            }
        } else if verb == "ADD" {
            let name = match netns.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/ns/net")) {
                Some(pid) => format!("of-{pid}"),
                None => netns.rsplit('/').next().unwrap_or_default().to_owned(),
            };
            if self.netns.get(container_id) == Some(&name) {
                return;
            }
            if let Some(stopped) = self.netns.remove(container_id) {
                self.world.remove_netns(&stopped);
            }
            self.world.netns(&name);
            if netns.starts_with("/proc/") {
                self.learnt.0.insert(netns.to_owned(), format!("/run/netns/{name}"));
            }
            self.netns.insert(container_id.to_owned(), name);
        }
    }

    /// Leases before the recording began have moved the allocator on: it goes on from the address before the one
    /// that was given then. (Where the runtime asked for an address, nothing hangs on it.)
    fn continue_after_earlier_leases(&self, call: &Value) {
        let network = call["stdin"]["name"].as_str().unwrap();
        for (set, ip) in call["stdout"]["ips"].as_array().into_iter().flatten().enumerate() {
            let address = ip["address"].as_str().and_then(|address| address.split('/').next());
            let Some(Ok(IpAddr::V4(address))) = address.map(str::parse) else { continue };
            let before = Ipv4Addr::from_bits(address.to_bits() - 1);
            let file = format!("/var/lib/cni/networks/{network}/last_reserved_ip.{set}");
            self.world.write(file, before.to_string());
        }
    }
}

fn is_ours(plugin: &str) -> bool {
    matches!(plugin, "bridge" | "alias-dns" | "dnsname")
}
