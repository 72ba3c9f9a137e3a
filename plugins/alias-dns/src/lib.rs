//! Names for containers: a CNI plugin, and the small DNS server that answers for it.
//!
//! The plugin turns a call into a [`records::Record`] on disk and asks the server to look at it. The server keeps all
//! records in a [`zone::Zones`] and answers with [`answer::answer`], a pure function of zones, asker and question.

mod add;
pub mod answer;
mod check;
mod cli;
mod config;
pub mod daemon;
mod del;
mod descriptors;
pub mod domain_name;
pub mod forward;
mod gc;
mod host;
mod host_address;
mod name_server;
mod names;
mod netns;
mod plugin;
mod poller;
pub mod records;
mod regular_file;
pub mod serve;
pub mod state_dir;
mod status;
mod tally;
mod this_host;
pub mod zone;

use std::ffi::OsString;
use std::process::ExitCode;

use cni_types::{Environment, skel};

use self::plugin::AliasDns;
use self::this_host::ThisHost;

/// Runs as what this process was started for: the plugin when a runtime calls, otherwise what the arguments say.
pub fn main() -> ExitCode {
    let env = Environment::of_process();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if env.get("CNI_COMMAND").is_some() || args.is_empty() {
        return skel::main(&AliasDns(ThisHost));
    }
    cli::main(args, &env)
}
