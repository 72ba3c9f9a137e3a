//! What a person types: `bridge list`, `show`, `repair`, `prune`.
//!
//! All that is shown comes from the kernel. `repair` alone reads the network's configuration, for what its rules are
//! meant to be. Only this folder prints for a person.

mod names;
mod prune;
mod repair;
mod text;
mod view;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use lexopt::prelude::*;

use view::View;

/// What `--help` prints.
const USAGE: &str = "\
bridge: networks of containers on Linux bridges.

bridge list                 the networks of this host and their attachments
bridge show [NETWORK]       a network, or all: bridge, addresses, attachments, and what keeps them from working
bridge repair [NETWORK]     gives the attachments their rules back, after somebody flushed them
bridge prune                removes bridges that nobody is attached to, and rules of attachments that are gone

--json      list, show: prints JSON
--dot       show: prints a graph for Graphviz
--help      prints this
--version   prints the version

repair reads the configuration of the network in /etc/cni/net.d, or the directory that NETCONFPATH names.
Called by a container runtime, which sets CNI_COMMAND, it is the CNI plugin.
";

/// The exit status for a command line that cannot be read.
const WRONG_USAGE: u8 = 2;

/// A command line, checked.
#[derive(Debug, PartialEq, Eq)]
enum CommandLine {
    Help,
    Version,
    List(Format),
    Show(Option<String>, Format),
    Repair(Option<String>),
    Prune,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    Dot,
}

impl Format {
    /// The option that asks for it.
    fn option(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Json => "--json",
            Self::Dot => "--dot",
        }
    }
}

/// Does what the command line says.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match parse(lexopt::Parser::from_args(arguments)) {
        Ok(command) => command,
        Err(error) => {
            say(&format!("bridge: {error}\n{USAGE}"));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let printed = answer(command).and_then(|text| match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to stdout"),
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bridge: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Says something on stderr; when that is closed, nobody listens.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn parse(mut parser: lexopt::Parser) -> Result<CommandLine, lexopt::Error> {
    let mut words: Vec<String> = Vec::new();
    let mut format = Format::Text;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(CommandLine::Help),
            Long("version") | Short('V') => return Ok(CommandLine::Version),
            Long(option @ ("json" | "dot")) => {
                let asked = if option == "json" { Format::Json } else { Format::Dot };
                if format != Format::Text && format != asked {
                    return Err("--json and --dot exclude each other".into());
                }
                format = asked;
            }
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (words.as_slice(), format) {
        (["list"], Format::Text | Format::Json) => Ok(CommandLine::List(format)),
        (["show"], _) => Ok(CommandLine::Show(None, format)),
        (["show", network], _) => Ok(CommandLine::Show(Some((*network).to_owned()), format)),
        (["repair"], Format::Text) => Ok(CommandLine::Repair(None)),
        (["repair", network], Format::Text) => Ok(CommandLine::Repair(Some((*network).to_owned()))),
        (["prune"], Format::Text) => Ok(CommandLine::Prune),
        (["help"], Format::Text) => Ok(CommandLine::Help),
        ([], _) => Err("what is to be done?".into()),
        (words, _) => {
            Err(format!("not understood: {} {}", words.join(" "), format.option()).trim_end().into())
        }
    }
}

fn answer(command: CommandLine) -> anyhow::Result<String> {
    Ok(match command {
        CommandLine::Help => USAGE.to_owned(),
        CommandLine::Version => format!("bridge {}\n", env!("CARGO_PKG_VERSION")),
        CommandLine::List(Format::Json) => json(&View::of_host()?)?,
        CommandLine::List(_) => text::list(&View::of_host()?),
        CommandLine::Show(Some(network), format) => {
            let network = View::of_host()?.network(&network)?;
            match format {
                Format::Text => text::show(&network),
                Format::Json => json(&network)?,
                Format::Dot => text::dot(std::slice::from_ref(&network)),
            }
        }
        CommandLine::Show(None, format) => {
            let view = View::of_host()?;
            match format {
                Format::Text => view.networks.iter().map(text::show).collect::<Vec<_>>().join("\n"),
                Format::Json => json(&view)?,
                Format::Dot => text::dot(&view.networks),
            }
        }
        CommandLine::Repair(network) => repair::repair(network.as_deref())?,
        CommandLine::Prune => prune::prune()?,
    })
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<CommandLine, String> {
        parse(lexopt::Parser::from_args(words.split_whitespace())).map_err(|error| error.to_string())
    }

    #[test]
    fn command_lines_are_read() {
        for (words, command) in [
            ("list", CommandLine::List(Format::Text)),
            ("list --json", CommandLine::List(Format::Json)),
            ("--json show net", CommandLine::Show(Some("net".into()), Format::Json)),
            ("show net --dot", CommandLine::Show(Some("net".into()), Format::Dot)),
            ("show --dot", CommandLine::Show(None, Format::Dot)),
            ("repair", CommandLine::Repair(None)),
            ("repair net", CommandLine::Repair(Some("net".into()))),
            ("prune", CommandLine::Prune),
            ("show --help", CommandLine::Help),
            ("--version", CommandLine::Version),
            ("-V", CommandLine::Version),
            ("show --json --json", CommandLine::Show(None, Format::Json)),
        ] {
            assert_eq!(parsed(words), Ok(command), "{words}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (words, named) in [
            ("", "what is to be done?"),
            ("shwo net", "not understood: shwo net"),
            ("list --xml", "invalid option '--xml'"),
            ("--json prune", "not understood: prune --json"),
            ("list --dot", "not understood: list --dot"),
            ("show --json --dot", "--json and --dot exclude each other"),
            ("show --dot --json", "--json and --dot exclude each other"),
        ] {
            assert_eq!(parsed(words), Err(named.to_owned()), "{words}");
        }
    }
}
