//! One call of one plugin, timed from before the process is made until it has been waited for.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::Suite;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::sys::wait::wait;
use serde_json::Value;

/// Ours and theirs, in the order of the columns.
pub(crate) const SUITES: [Suite; 2] = [Suite::Ours, Suite::Reference];

/// A plugin of one suite, and where its delegates are found.
pub(crate) struct Plugin {
    binary: PathBuf,
    path: PathBuf,
}

/// The container that a call is about.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) netns: &'a str,
}

/// What a call cost, and what it answered.
pub(crate) struct Timed {
    /// From before the process is made until it has been waited for.
    pub(crate) wall: Duration,
    /// User and system time of the process and of those it waited for.
    pub(crate) cpu: Duration,
    /// The document on stdout.
    pub(crate) answer: Value,
}

impl Plugin {
    pub(crate) fn of(suite: Suite, name: &str) -> Self {
        Self { binary: suite.binary(name), path: suite.dir() }
    }

    /// Calls the plugin, which has to succeed.
    pub(crate) fn call(&self, verb: &str, target: Target, config: &Value) -> Result<Timed> {
        let stdin = config.to_string();
        let mut command = Command::new(&self.binary);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", target.container_id)
            .env("CNI_NETNS", target.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let cpu_before = children_cpu()?;
        let begin = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {}", self.binary.display()))?;
        child
            .stdin
            .take()
            .context("stdin is piped")?
            .write_all(stdin.as_bytes())
            .context("write the configuration")?;
        let mut output = String::new();
        child
            .stdout
            .take()
            .context("stdout is piped")?
            .read_to_string(&mut output)
            .context("read the answer")?;
        let status = child.wait().context("wait for the plugin")?;
        let wall = begin.elapsed();
        let cpu = children_cpu()?.saturating_sub(cpu_before);
        ensure!(status.success(), "{} {verb} failed: {output}", self.binary.display());
        let answer = if output.is_empty() { Value::Null } else { serde_json::from_str(&output)? };
        Ok(Timed { wall, cpu, answer })
    }
}

/// Has this process be the parent of those that a call leaves behind, so that it can [`settle`].
pub(crate) fn adopt_orphans() -> Result<()> {
    prctl::set_child_subreaper(true).context("become the parent of orphans")
}

/// Waits until every process that calls have left behind has ended; their user and system time.
pub(crate) fn settle() -> Result<Duration> {
    let before = children_cpu()?;
    loop {
        match wait() {
            Ok(_) => {}
            Err(Errno::ECHILD) => return Ok(children_cpu()?.saturating_sub(before)),
            Err(errno) => return Err(errno).context("wait for orphans"),
        }
    }
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
}
