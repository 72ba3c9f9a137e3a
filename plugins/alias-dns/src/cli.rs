//! What a person types: `alias-dns list`, `query`, `hosts`, `status`, and `serve` for the server itself.
//!
//! What can be told from the records needs no server, and none is started for a question. Nothing is changed here.

mod hosts;
mod list;
mod query;
mod status;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;

use cni_types::{ByHand, Environment};
use lexopt::prelude::*;

use crate::daemon;
use crate::plugin::AliasDns;
use crate::records::Record;
use crate::records::disk::{Loaded, Store};
use crate::state_dir::StateDir;
use crate::this_host::ThisHost;

/// What `--help` prints.
const USAGE: &str = "\
alias-dns: names for containers.

alias-dns list [NETWORK]                    the names of containers
alias-dns query NAME [--as IP] [--type T]   what NAME is answered with, and why
alias-dns hosts NETWORK                     the names of a network as a hosts file
alias-dns status                            the state of the server
alias-dns serve                             the server; the plugin starts it by itself

--as IP     asks as the container with this address; without it, as the host
--type T    asks for records of this type (A and AAAA, or PTR where NAME is an address)
--json      prints JSON
--help      prints this
--version   prints the version

Called by a container runtime, which sets CNI_COMMAND, it is the CNI plugin.
";

/// A command line, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommandLine {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// The server.
    Serve,
    /// What the server starts beside itself.
    Supervise,
    /// What outlives it.
    Guard,
    /// A question of a person.
    Ask(Ask, Format),
}

/// What a person wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    List { network: Option<String> },
    Query(query::Wanted),
    Hosts { network: String },
    Status,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl ByHand for AliasDns<ThisHost> {
    type Request = CommandLine;

    fn read(arguments: Vec<OsString>) -> anyhow::Result<CommandLine> {
        // As a text: an error of lexopt's own words tells them once more as its cause.
        CommandLine::parse(arguments).map_err(anyhow::Error::msg)
    }

    fn answer(request: CommandLine, out: &mut dyn Write) -> anyhow::Result<()> {
        let state = || StateDir::of_host(&Environment::of_process());
        match request {
            CommandLine::Help => Ok(out.write_all(USAGE.as_bytes())?),
            CommandLine::Version => Ok(writeln!(out, "alias-dns {}", env!("CARGO_PKG_VERSION"))?),
            CommandLine::Serve => daemon::serve(&state()?),
            CommandLine::Supervise => daemon::supervise(),
            CommandLine::Guard => daemon::guard(),
            CommandLine::Ask(ask, format) => ask.run(&state()?, format, out),
        }
    }
}

impl CommandLine {
    /// Reads arguments, without the program's name.
    ///
    /// # Errors
    /// What is wrong with them.
    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, lexopt::Error> {
        let mut parser = lexopt::Parser::from_args(args);
        let mut words = Vec::new();
        let mut format = Format::Text;
        let mut source = None;
        let mut rtype: Option<String> = None;
        while let Some(arg) = parser.next()? {
            match arg {
                Value(word) => words.push(word.string()?),
                Long("json") => format = Format::Json,
                Long("as") => source = Some(parser.value()?.parse()?),
                Long("type") => rtype = Some(parser.value()?.string()?),
                Short('h') | Long("help") => return Ok(Self::Help),
                Short('V') | Long("version") => return Ok(Self::Version),
                other => return Err(other.unexpected()),
            }
        }
        let mut words = words.into_iter();
        let verb = words.next().ok_or("a command is missing")?;
        let told = |ask| Self::Ask(ask, format);
        let command = match verb.as_str() {
            "help" => Self::Help,
            "serve" => Self::Serve,
            "supervise" => Self::Supervise,
            "guard" => Self::Guard,
            "list" => told(Ask::List { network: words.next() }),
            "query" => {
                let name = words.next().ok_or("query: NAME is missing")?;
                told(Ask::Query(query::Wanted::new(name, rtype.take(), source.take())))
            }
            "hosts" => told(Ask::Hosts { network: words.next().ok_or("hosts: NETWORK is missing")? }),
            "status" => told(Ask::Status),
            other => return Err(format!("unknown command \"{other}\"").into()),
        };
        match words.next() {
            Some(word) => Err(format!("{verb}: unexpected \"{word}\"").into()),
            None if source.is_some() || rtype.is_some() => Err("--as and --type go with query".into()),
            None => Ok(command),
        }
    }
}

impl Ask {
    /// Prints the answer to `out`; files that had to be passed over are named on the log.
    ///
    /// # Errors
    /// Why there is no answer, or not the whole.
    fn run(self, state: &StateDir, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
        let store = Store::new(state);
        match self {
            Self::List { network: None } => {
                with_records(store.load(), |records| list::print(records, format, out))
            }
            Self::List { network: Some(network) } => {
                with_records(of_network(&store, &network), |records| list::print(records, format, out))
            }
            Self::Query(wanted) => query::print(&wanted, state, format, out),
            Self::Hosts { network } => {
                with_records(of_network(&store, &network), |records| hosts::print(records, format, out))
            }
            Self::Status => status::print(state, format, out),
        }
    }
}

/// The records of `network`. It may be that its last container has gone, which is no failure; but whoever has written
/// the name of another one than he meant sees which there are.
fn of_network(store: &Store, network: &str) -> Loaded {
    let loaded = store.load_network(network);
    if let Loaded { records, unreadable } = &loaded
        && records.is_empty()
        && unreadable.is_empty()
    {
        log::warn!("{}", no_names(network, &store.load().records));
    }
    loaded
}

fn no_names(network: &str, others: &[Record]) -> String {
    let known: BTreeSet<&str> = others.iter().map(|record| record.key.network()).collect();
    match known.into_iter().collect::<Vec<_>>().join(", ").as_str() {
        "" => format!("no container has names on network \"{network}\", or on any other one"),
        known => format!("no container has names on network \"{network}\"; there are: {known}"),
    }
}

/// Has `print` print what could be read. That something could not is a failure all the same: a script must not take a
/// part for the whole.
fn with_records(loaded: Loaded, print: impl FnOnce(Vec<Record>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Loaded { mut records, unreadable } = loaded;
    for unreadable in &unreadable {
        log::warn!("passed over {unreadable}");
    }
    records.sort_by(|one, other| {
        (one.key.network(), one.joined, &one.key).cmp(&(other.key.network(), other.joined, &other.key))
    });
    print(records)?;
    anyhow::ensure!(unreadable.is_empty(), "not all records could be read");
    Ok(())
}

#[cfg(test)]
mod tests;
