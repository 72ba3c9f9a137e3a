//! The one way into a verb, and the one place that prints its answer.
//!
//! The order is the reference's: environment, stdin, configuration, version, verb. Unlike the reference, ADD is refused
//! where `CNI_NETNS` is the plugin's own namespace before it has done anything, so that it leaves nothing behind. For the
//! same reason DEL removes what it can first, as if there were no namespace any more, and touches nothing in it.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crate::command::Command;
use crate::conf::{NetConf, VersionAnswer};
use crate::env::{Attachment, Environment, Variables};
use crate::stdio::{Stdin, Stdout};
use crate::{CniResult, Error, ErrorCode, SpecVersion, json, logging, signals};

/// Most bytes of a configuration that are read: room for a hundred times the valid attachments of a full node. A caller
/// whose output never ends costs no more memory than that.
const LONGEST: u64 = 64 << 20;

/// A CNI plugin: one function a verb.
pub trait Plugin {
    /// The name that the plugin goes by in its log and its about line.
    const NAME: &'static str;

    /// Attaches a container. Where the result cannot be handed over, [`Plugin::del`] follows with the same call.
    ///
    /// # Errors
    /// Whatever kept it from that; by then nothing of the attempt is left.
    fn add(&self, call: &AttachmentCall) -> Result<CniResult, Error>;

    /// Compares an attachment with what ADD made.
    ///
    /// # Errors
    /// The first difference, or all of them.
    fn check(&self, call: &AttachmentCall) -> Result<(), Error>;

    /// Detaches a container; what is already gone is no error.
    ///
    /// # Errors
    /// What could not be removed.
    fn del(&self, call: &DelCall) -> Result<(), Error>;

    /// Removes what belongs to no valid attachment.
    ///
    /// # Errors
    /// What could not be removed.
    fn gc(&self, call: &NetworkCall) -> Result<(), Error>;

    /// Tells whether ADD could be served; changes nothing.
    ///
    /// # Errors
    /// Code 50 or 51 with the reason.
    fn status(&self, call: &NetworkCall) -> Result<(), Error>;
}

/// A call about a network as a whole: GC, STATUS. Part of every other call.
#[derive(Debug)]
pub struct NetworkCall {
    conf: NetConf,
    env: Environment,
}

/// A call about one attachment; `N` is what the verb knows of the container's namespace.
#[derive(Debug)]
pub struct ContainerCall<N> {
    network: NetworkCall,
    attachment: Attachment,
    netns: N,
}

/// ADD or CHECK of one attachment.
pub type AttachmentCall = ContainerCall<PathBuf>;

/// DEL of one attachment, whose namespace may be gone.
pub type DelCall = ContainerCall<Option<PathBuf>>;

impl NetworkCall {
    /// A call with `conf`, made from `env`.
    pub fn new(conf: NetConf, env: Environment) -> Self {
        Self { conf, env }
    }

    /// The network's configuration.
    pub fn conf(&self) -> &NetConf {
        &self.conf
    }

    /// The environment of the call.
    pub fn env(&self) -> &Environment {
        &self.env
    }
}

impl<N> ContainerCall<N> {
    /// The network that the attachment belongs to.
    pub fn network(&self) -> &NetworkCall {
        &self.network
    }

    /// The network's configuration.
    pub fn conf(&self) -> &NetConf {
        &self.network.conf
    }

    /// The environment of the call.
    pub fn env(&self) -> &Environment {
        &self.network.env
    }

    /// Container id and interface name.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

impl AttachmentCall {
    /// The container's namespace, as the runtime spelled it.
    pub fn netns(&self) -> &Path {
        &self.netns
    }
}

impl DelCall {
    /// The container's namespace, if the runtime still knows one. It may be gone all the same.
    pub fn netns(&self) -> Option<&Path> {
        self.netns.as_deref()
    }
}

/// A call that went well.
struct Served {
    /// The document to print; empty for the verbs that answer nothing.
    answer: String,
    /// What was attached, of which nobody knows before the answer is read.
    attached: Option<AttachmentCall>,
}

/// Runs `plugin` as this process: its environment, its stdin, stdout and stderr.
pub fn main<P: Plugin>(plugin: &P) -> ExitCode {
    logging::init(P::NAME, log::LevelFilter::Warn);
    signals::settle();
    let mut stderr = std::io::stderr();
    ExitCode::from(run(plugin, Environment::of_process(), &mut Stdin, &mut Stdout, &mut stderr))
}

/// Serves one call, and returns the exit status: 0, or 1 with an error document on `stdout`.
///
/// Without `CNI_COMMAND` it says on `stderr` what the plugin is, and that is no failure.
pub fn run<P: Plugin>(
    plugin: &P,
    env: Environment,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    if env.get("CNI_COMMAND").is_none() {
        let versions: Vec<&str> = SpecVersion::ALL.into_iter().map(SpecVersion::as_str).collect();
        let about = format!(
            "CNI {} plugin v{}\nCNI protocol versions supported: {}\n",
            P::NAME,
            env!("CARGO_PKG_VERSION"),
            versions.join(", ")
        );
        return u8::from(stderr.write_all(about.as_bytes()).is_err());
    }
    let start = Instant::now();
    let served = catch_unwind(AssertUnwindSafe(|| serve(plugin, env, stdin)))
        .unwrap_or_else(|panic| Err(internal(panic.as_ref())));
    let taken = start.elapsed().as_secs_f64() * 1e3;
    match &served {
        Ok(_) => log::info!("succeeded after {taken:.3} ms"),
        Err(error) => log::info!("failed after {taken:.3} ms: code {}: {error}", error.code().0),
    }
    let (answer, attached, status) = match served {
        Ok(Served { answer, attached }) => (answer, attached, 0),
        Err(error) => (json::encode(&error).unwrap_or_default(), None, 1),
    };
    match stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(error) => {
            log::error!("write the answer to stdout: {error}");
            if let Some(call) = attached {
                take_back(plugin, call);
            }
            1
        }
    }
}

/// Detaches what was just attached: a runtime that is gone has taken no note of it, and nobody would ask for its DEL.
fn take_back<P: Plugin>(plugin: &P, attached: AttachmentCall) {
    let ContainerCall { network, attachment, netns } = attached;
    let call = DelCall { network, attachment, netns: Some(netns) };
    let detached = catch_unwind(AssertUnwindSafe(|| plugin.del(&call)));
    match detached.unwrap_or_else(|panic| Err(internal(panic.as_ref()))) {
        Ok(()) => log::warn!("detached the container again"),
        Err(error) => log::error!("detach the container again: {error}"),
    }
}

fn serve<P: Plugin>(plugin: &P, env: Environment, stdin: &mut dyn Read) -> Result<Served, Error> {
    let nothing = |()| Served { answer: String::new(), attached: None };
    let Variables { command, attachment, netns } = Variables::read(&env)?;
    if command == Command::Version {
        let answer = VersionAnswer { cni_version: SpecVersion::LATEST, supported_versions: SpecVersion::ALL };
        let answer = serde_json::to_string(&answer).map_err(Error::internal)? + "\n";
        return Ok(Served { answer, attached: None });
    }
    // Room for any usual configuration, so that it is read at once.
    let mut bytes = Vec::with_capacity(8192);
    let length = stdin
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new(ErrorCode::IO_FAILURE, format!("error reading from stdin: {error}")))?;
    if length as u64 > LONGEST {
        let text = format!("the network configuration is longer than {LONGEST} bytes");
        return Err(Error::new(ErrorCode::DECODING_FAILURE, text));
    }
    let overrides = env.overrides_netns_check();
    let network = NetworkCall::new(NetConf::parse(command, bytes)?, env);
    follow_log_keys(command, network.conf(), attachment.as_ref())?;
    log::debug!("read the configuration");

    let Some(attachment) = attachment else {
        return match command {
            Command::Gc => plugin.gc(&network),
            _ => plugin.status(&network),
        }
        .map(nothing);
    };
    let is_allowed = match (command, &netns) {
        (Command::Add | Command::Del, Some(netns)) if !overrides => refuse_own_netns(netns),
        _ => Ok(()),
    };
    if command == Command::Del {
        // The path may have come to name it only since: that of a process does when its number is given out anew.
        let netns = netns.filter(|_| is_allowed.is_ok());
        plugin.del(&DelCall { network, attachment, netns })?;
        return is_allowed.map(nothing);
    }
    is_allowed?;
    let netns = netns.unwrap_or_default();
    let call = AttachmentCall { network, attachment, netns };
    if command == Command::Check {
        return plugin.check(&call).map(nothing);
    }
    match plugin.add(&call)?.encode(call.conf().version()) {
        Ok(answer) => Ok(Served { answer, attached: Some(call) }),
        Err(error) => {
            take_back(plugin, call);
            Err(error)
        }
    }
}

/// A mistake there must not keep what is to be removed.
fn follow_log_keys(command: Command, conf: &NetConf, attachment: Option<&Attachment>) -> Result<(), Error> {
    match conf.log_keys() {
        Ok(keys) if keys.are_absent() => {}
        Ok(keys) => {
            let (verb, network) = (command.as_str(), conf.name());
            let call = match attachment {
                Some(attachment) => {
                    format!("{verb} {network}/{}/{}", attachment.container_id(), attachment.ifname())
                }
                None => format!("{verb} {network}"),
            };
            logging::follow(keys, call);
        }
        Err(mistake) if matches!(command, Command::Del | Command::Gc) => log::warn!("{mistake}"),
        Err(mistake) => return Err(mistake),
    }
    Ok(())
}

/// A namespace that cannot be looked at is left to the verb: DEL has to succeed when it is gone.
fn refuse_own_netns(netns: &Path) -> Result<(), Error> {
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let Some(theirs) = identity(netns) else { return Ok(()) };
    if identity(Path::new("/proc/thread-self/ns/net")) == Some(theirs) {
        return Err(Error::new(
            ErrorCode::INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        ));
    }
    Ok(())
}

fn internal(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::internal(format_args!("internal error, please report it: {text}"))
}

#[cfg(test)]
mod tests;
