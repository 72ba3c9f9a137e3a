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
mod route_netlink;
pub mod serve;
pub mod state_dir;
mod status;
mod tally;
mod this_host;
pub mod zone;

use std::process::ExitCode;

use cni_types::by_hand;

use self::plugin::AliasDns;
use self::this_host::ThisHost;

/// Runs as what this process was started for: the plugin when a runtime calls, otherwise what the arguments say.
pub fn main() -> ExitCode {
    by_hand::main(&AliasDns(ThisHost))
}
