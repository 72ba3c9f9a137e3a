//! A container runtime's part: runs a list of plugins as libcni does.
//!
//! The list's `cniVersions` are negotiated; every plugin gets `name`, `cniVersion`, the `prevResult` of the one
//! before and the part of the runtime's wishes that its `capabilities` ask for. The last result of ADD is kept in
//! `/var/lib/cni/results`, in libcni's format, and handed to CHECK and DEL. DEL runs backwards and stops at the
//! first error.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::binaries::{Suite, fixture};
use crate::command::Output;
use crate::plugin::PluginCall;
use crate::world::{Container, World};

const RESULTS: &str = "/var/lib/cni/results";

/// The versions that libcni can negotiate, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network as a runtime knows it: a `.conflist`, and the plugins that it names.
#[derive(Debug, Clone)]
pub struct Network {
    world: World,
    name: String,
    version: &'static str,
    list: Value,
    plugin_path: Vec<PathBuf>,
}

/// One attachment of a container to a network, with what the runtime wants for it.
#[must_use]
#[derive(Debug, Clone)]
pub struct Attachment {
    container_id: String,
    netns: String,
    ifname: String,
    args: Vec<(String, String)>,
    capabilities: Map<String, Value>,
}

/// A plugin of a chain that failed.
#[derive(Debug)]
pub struct Failure {
    /// `type` of the plugin.
    pub plugin: String,
    /// `code` of its error document.
    pub code: u64,
    /// `msg` of its error document.
    pub msg: String,
    /// All it printed.
    pub output: Box<Output>,
}

impl Network {
    /// The example `conf-examples/NAME.conflist`, as it stands; what ours have no answer to is the reference's.
    #[track_caller]
    pub fn example(world: &World, name: &str) -> Self {
        let list = fixture(&format!("conf-examples/{name}.conflist"));
        Self::with_plugins_of(world, list, &[Suite::Ours, Suite::Reference])
    }

    /// A network of our plugins.
    ///
    /// # Panics
    /// When libcni would refuse the list.
    #[track_caller]
    pub fn new(world: &World, list: Value) -> Self {
        Self::with_plugins_of(world, list, &[Suite::Ours])
    }

    /// A network whose plugins are looked for in these suites, in order.
    ///
    /// # Panics
    /// When libcni would refuse the list.
    #[track_caller]
    pub fn with_plugins_of(world: &World, list: Value, suites: &[Suite]) -> Self {
        let name = list["name"].as_str().expect("a list has a name").to_owned();
        assert!(list["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()), "no plugins: {list}");
        let version = negotiate(&list);
        let plugin_path = suites.iter().map(|suite| suite.dir()).collect();
        Self { world: world.clone(), name, version, list, plugin_path }
    }

    /// The same network, with the attachments that it has, after other plugins were installed in `dirs`.
    pub fn served_from(&self, dirs: &[PathBuf]) -> Self {
        Self { plugin_path: dirs.to_vec(), ..self.clone() }
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The configuration that the plugin at `index` of the list gets, but for what depends on a call.
    #[track_caller]
    pub fn plugin_config(&self, index: usize) -> Value {
        let mut config = self.list["plugins"][index].clone();
        config["name"] = json!(self.name);
        config["cniVersion"] = json!(self.version);
        config
    }

    /// Attaches a container without further wishes, and writes its `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When a plugin fails.
    #[track_caller]
    pub fn attach(&self, container: &Container) -> Value {
        self.attach_as(container, &Attachment::of(container))
    }

    /// Attaches a container, and writes its `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When a plugin fails.
    #[track_caller]
    pub fn attach_as(&self, container: &Container, attachment: &Attachment) -> Value {
        let result = self.add(attachment).unwrap_or_else(|failure| panic!("{failure}"));
        container.add_dns(&result);
        result
    }

    /// Detaches what [`attach_as`](Self::attach_as) attached.
    ///
    /// # Panics
    /// When a plugin fails.
    #[track_caller]
    pub fn detach_as(&self, container: &Container, attachment: &Attachment) {
        let cached = self.cached_result(attachment);
        self.del(attachment).unwrap_or_else(|failure| panic!("{failure}"));
        container.forget_dns(&cached.unwrap_or_default());
    }

    /// Detaches what [`attach`](Self::attach) attached.
    ///
    /// # Panics
    /// When a plugin fails.
    #[track_caller]
    pub fn detach(&self, container: &Container) {
        self.detach_as(container, &Attachment::of(container));
    }

    /// ADD: every plugin in order. The result of the last.
    ///
    /// # Errors
    /// The plugin that failed. As with libcni nothing is undone then: that is for [`del`](Self::del).
    #[track_caller]
    pub fn add(&self, attachment: &Attachment) -> Result<Value, Failure> {
        let mut result = None;
        for index in 0..self.length() {
            let output = self.call("ADD", index, Some(attachment), result.as_ref(), None)?;
            result = Some(output.json());
        }
        let result = result.unwrap_or_default();
        self.cache(attachment, &result);
        Ok(result)
    }

    /// CHECK: every plugin in order, with the kept result.
    ///
    /// # Errors
    /// The plugin that failed.
    #[track_caller]
    pub fn check(&self, attachment: &Attachment) -> Result<(), Failure> {
        assert!(self.speaks("0.4.0"), "libcni does not CHECK networks of {}", self.version);
        if self.list["disableCheck"] == true {
            return Ok(());
        }
        let result = self.cached_result(attachment);
        (0..self.length()).try_for_each(|index| {
            self.call("CHECK", index, Some(attachment), result.as_ref(), None).map(|_| ())
        })
    }

    /// DEL: every plugin, last first, with the kept result.
    ///
    /// # Errors
    /// The plugin that failed; those before it in the list were not called, and the kept result stays.
    #[track_caller]
    pub fn del(&self, attachment: &Attachment) -> Result<(), Failure> {
        let result = if self.speaks("0.4.0") { self.cached_result(attachment) } else { None };
        for index in (0..self.length()).rev() {
            self.call("DEL", index, Some(attachment), result.as_ref(), None)?;
        }
        // DEL of an attachment that was never made, or made long ago, has no file to remove.
        let _absent = std::fs::remove_file(self.world.path(self.cache_file(attachment)));
        Ok(())
    }

    /// GC: DEL for every kept attachment that is not in `valid`, then GC of every plugin.
    ///
    /// # Errors
    /// The first plugin that failed; the others were called all the same.
    #[track_caller]
    pub fn gc(&self, valid: &[&Attachment]) -> Result<(), Failure> {
        let valid_list: Vec<Value> = valid
            .iter()
            .map(|attachment| json!({ "containerID": attachment.container_id, "ifname": attachment.ifname }))
            .collect();
        let mut outcome = Ok(());
        for stale in self.cached_attachments() {
            let is_valid = valid.iter().any(|attachment| {
                attachment.container_id == stale.container_id && attachment.ifname == stale.ifname
            });
            if !is_valid {
                outcome = outcome.and(self.del(&stale));
            }
        }
        if !self.speaks("1.1.0") || self.list["disableGC"] == true {
            return outcome;
        }
        for index in 0..self.length() {
            outcome = outcome.and(self.call("GC", index, None, None, Some(&valid_list)).map(|_| ()));
        }
        outcome
    }

    /// STATUS of every plugin.
    ///
    /// # Errors
    /// The first plugin that failed.
    #[track_caller]
    pub fn status(&self) -> Result<(), Failure> {
        if !self.speaks("1.1.0") {
            return Ok(());
        }
        (0..self.length()).try_for_each(|index| self.call("STATUS", index, None, None, None).map(|_| ()))
    }

    /// The call of one plugin, complete but for being run.
    ///
    /// # Panics
    /// When the plugin is in no directory of the path.
    #[track_caller]
    pub fn plugin_call(
        &self,
        verb: &str,
        index: usize,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
    ) -> PluginCall {
        self.prepare(verb, index, attachment, previous, None)
    }

    /// The result that was kept at ADD.
    pub fn cached_result(&self, attachment: &Attachment) -> Option<Value> {
        let file = std::fs::read(self.world.path(self.cache_file(attachment))).ok()?;
        let mut cached: Value = serde_json::from_slice(&file).ok()?;
        Some(cached["result"].take())
    }

    fn prepare(
        &self,
        verb: &str,
        index: usize,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
        valid: Option<&Vec<Value>>,
    ) -> PluginCall {
        let mut config = self.plugin_config(index);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        if let Some(valid) = valid {
            config["cni.dev/valid-attachments"] = json!(valid);
            config["cni.dev/attachments"] = json!(valid);
        }
        let wishes = attachment.map(|attachment| attachment.wishes_for(&config)).unwrap_or_default();
        if !wishes.is_empty() {
            config["runtimeConfig"] = Value::Object(wishes);
        }
        let kind = config["type"].as_str().expect("a plugin has a type");
        let binary = self.find(kind);
        let path = std::env::join_paths(&self.plugin_path).expect("no directory has a colon in its name");
        let nobody =
            Attachment { container_id: String::new(), netns: String::new(), ..Attachment::default() };
        let attachment = attachment.unwrap_or(&nobody);
        PluginCall::of_binary(&self.world.host(), binary, Path::new(&path))
            .verb(verb)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_ARGS", &attachment.args_text())
            .config(&config)
    }

    #[track_caller]
    fn call(
        &self,
        verb: &str,
        index: usize,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
        valid: Option<&Vec<Value>>,
    ) -> Result<Output, Failure> {
        let output = self.prepare(verb, index, attachment, previous, valid).run();
        if output.status == 0 {
            return Ok(output);
        }
        let document: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        Err(Failure {
            plugin: self.list["plugins"][index]["type"].as_str().unwrap_or_default().to_owned(),
            code: document["code"].as_u64().unwrap_or_default(),
            msg: document["msg"].as_str().unwrap_or_default().to_owned(),
            output: Box::new(output),
        })
    }

    #[track_caller]
    fn find(&self, kind: &str) -> PathBuf {
        let candidates = self.plugin_path.iter().map(|dir| dir.join(kind));
        let found = candidates.into_iter().find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("failed to find plugin {kind:?} in {:?}", self.plugin_path))
    }

    fn cache(&self, attachment: &Attachment, result: &Value) {
        let cached = json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "config": base64(self.list.to_string().as_bytes()),
            "ifName": attachment.ifname,
            "networkName": self.name,
            "netns": attachment.netns,
            "cniArgs": attachment.args,
            "capabilityArgs": attachment.capabilities,
            "result": result,
        });
        self.world.write(self.cache_file(attachment), cached.to_string());
    }

    fn cache_file(&self, attachment: &Attachment) -> PathBuf {
        let name = format!("{}-{}-{}", self.name, attachment.container_id, attachment.ifname);
        Path::new(RESULTS).join(name)
    }

    fn cached_attachments(&self) -> Vec<Attachment> {
        let Ok(files) = std::fs::read_dir(self.world.path(RESULTS)) else { return Vec::new() };
        files
            .filter_map(|file| serde_json::from_slice::<Value>(&std::fs::read(file.ok()?.path()).ok()?).ok())
            .filter(|cached| cached["networkName"] == *self.name)
            .map(|cached| Attachment::from_cache(&cached))
            .collect()
    }

    fn length(&self) -> usize {
        self.list["plugins"].as_array().map_or(0, Vec::len)
    }

    fn speaks(&self, version: &str) -> bool {
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        place(self.version) >= place(version)
    }
}

impl Attachment {
    /// `container` on its `eth0`, under its own name as id.
    pub fn of(container: &Container) -> Self {
        Self { container_id: container.name().to_owned(), netns: container.netns_path(), ..Self::default() }
    }

    /// Another container id than the container's name.
    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.container_id);
        self
    }

    /// Another interface than `eth0`.
    pub fn ifname(mut self, ifname: &str) -> Self {
        ifname.clone_into(&mut self.ifname);
        self
    }

    /// Another namespace, or with empty text none.
    pub fn netns(mut self, path: &str) -> Self {
        path.clone_into(&mut self.netns);
        self
    }

    /// A pair of `CNI_ARGS`.
    pub fn arg(mut self, key: &str, value: &str) -> Self {
        self.args.push((key.to_owned(), value.to_owned()));
        self
    }

    /// What the runtime wants under a capability.
    pub fn capability(mut self, name: &str, value: Value) -> Self {
        self.capabilities.insert(name.to_owned(), value);
        self
    }

    /// Aliases, as a flat list.
    pub fn aliases(self, aliases: &[&str]) -> Self {
        self.capability("aliases", json!(aliases))
    }

    fn wishes_for(&self, config: &Value) -> Map<String, Value> {
        let wanted = |name: &str| config["capabilities"][name] == true;
        self.capabilities
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn args_text(&self) -> String {
        let pairs: Vec<String> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }

    fn from_cache(cached: &Value) -> Self {
        let text = |key: &str| cached[key].as_str().unwrap_or_default().to_owned();
        Self {
            container_id: text("containerId"),
            netns: text("netns"),
            ifname: text("ifName"),
            args: serde_json::from_value(cached["cniArgs"].clone()).unwrap_or_default(),
            capabilities: cached["capabilityArgs"].as_object().cloned().unwrap_or_default(),
        }
    }
}

impl Default for Attachment {
    fn default() -> Self {
        Self {
            container_id: String::new(),
            netns: String::new(),
            ifname: "eth0".to_owned(),
            args: Vec::new(),
            capabilities: Map::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin {} failed: {}", self.plugin, self.output)
    }
}

/// The newest version that the list offers and libcni knows; `cniVersion` alone when it offers no more.
#[track_caller]
fn negotiate(list: &Value) -> &'static str {
    let single = list["cniVersion"].as_str().filter(|version| !version.is_empty()).unwrap_or("0.1.0");
    let offered = list["cniVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let offered: Vec<&str> = offered.chain([single]).collect();
    let newest = VERSIONS.into_iter().rev().find(|known| offered.contains(known));
    newest.unwrap_or_else(|| panic!("libcni knows none of the versions {offered:?}"))
}

/// RFC 4648, section 4: how libcni's cache spells the configuration.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_newest_version_on_offer_is_taken() {
        let version = |list: Value| negotiate(&list);
        assert_eq!(version(json!({ "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"] })), "1.1.0");
        assert_eq!(version(json!({ "cniVersion": "1.0.0", "cniVersions": ["9.0.0"] })), "1.0.0");
        assert_eq!(version(json!({ "cniVersion": "0.4.0" })), "0.4.0");
        assert_eq!(version(json!({})), "0.1.0");
    }
}
