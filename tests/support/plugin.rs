//! One call of one plugin, with any environment and any bytes on stdin.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;

use crate::binaries::Suite;
use crate::command::{Cmd, Output, Running};
use crate::world::{Space, World};

/// A call of a plugin on the host. Starts with a complete environment of an attachment `c1`, `eth0` without a
/// namespace; each part can be set or taken away.
#[must_use]
#[derive(Debug)]
pub struct PluginCall {
    command: Cmd,
}

impl PluginCall {
    pub(crate) fn new(world: &World, suite: Suite, name: &str) -> Self {
        Self::of_binary(&world.host(), suite.binary(name), &suite.dir())
    }

    /// The plugin is started by `tracer`, a command and its arguments.
    pub(crate) fn traced(world: &World, tracer: &[&str], name: &str) -> Self {
        let binary = Suite::Ours.binary(name).into_os_string();
        let argv = tracer.iter().map(OsString::from).chain([binary]);
        Self::of_command(world.host().command(argv), &Suite::Ours.dir())
    }

    pub(crate) fn of_binary(host: &Space, binary: PathBuf, cni_path: &std::path::Path) -> Self {
        Self::of_command(host.command([binary]), cni_path)
    }

    fn of_command(command: Cmd, cni_path: &std::path::Path) -> Self {
        let command = command
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "")
            .env("CNI_ARGS", "")
            .env("CNI_PATH", cni_path);
        Self { command }
    }

    /// The verb.
    pub fn verb(self, verb: &str) -> Self {
        self.env("CNI_COMMAND", verb)
    }

    /// The attachment's container: its id and its namespace.
    pub fn container(self, container: &Space) -> Self {
        self.env("CNI_CONTAINERID", container.name()).env("CNI_NETNS", &container.netns_path())
    }

    /// Sets a variable, also to nothing.
    pub fn env(self, name: &str, value: &str) -> Self {
        Self { command: self.command.env(name, value) }
    }

    /// Takes a variable away.
    pub fn without(self, name: &str) -> Self {
        Self { command: self.command.without_env(name) }
    }

    /// The configuration.
    pub fn config(self, config: &Value) -> Self {
        self.stdin(config.to_string())
    }

    /// Any bytes in place of a configuration.
    pub fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { command: self.command.stdin(bytes) }
    }

    /// Calls the plugin.
    #[track_caller]
    pub fn run(self) -> Output {
        self.command.run()
    }

    /// Starts the plugin, to be killed or waited for.
    #[track_caller]
    pub fn start(self) -> Running {
        self.command.start()
    }
}

impl Output {
    /// The error document of a plugin that must have failed: exit status 1 and one document with `code` and `msg`
    /// on stdout.
    ///
    /// # Panics
    /// When it did not fail that way, or not with `code`, with all it said.
    #[track_caller]
    pub fn error(&self, code: u32) -> String {
        assert_eq!(self.status, 1, "must fail with code {code}: {self}");
        let document = self.json();
        assert_eq!(document["code"], code, "another code than {code}: {self}");
        let msg = document["msg"].as_str().unwrap_or_default();
        assert!(!msg.is_empty(), "an error without msg: {self}");
        msg.to_owned()
    }
}
