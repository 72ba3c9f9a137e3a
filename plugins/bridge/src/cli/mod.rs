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
use std::io::Write;

use cni_types::ByHand;
use cni_types::by_hand::write_json;
use lexopt::prelude::*;

use self::view::View;
use crate::Bridge;

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

/// A command line, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommandLine {
    Help,
    Version,
    List(Format),
    Show(Option<String>, Format),
    Repair(Option<String>),
    Prune,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
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

impl ByHand for Bridge {
    type Request = CommandLine;

    fn read(arguments: Vec<OsString>) -> anyhow::Result<CommandLine> {
        // As a text: an error of lexopt's own words tells them once more as its cause.
        parse(lexopt::Parser::from_args(arguments)).map_err(anyhow::Error::msg)
    }

    fn answer(request: CommandLine, out: &mut dyn Write) -> anyhow::Result<()> {
        match request {
            CommandLine::Help => out.write_all(USAGE.as_bytes())?,
            CommandLine::Version => writeln!(out, "bridge {}", env!("CARGO_PKG_VERSION"))?,
            CommandLine::List(Format::Json) => write_json(&View::of_host()?, out)?,
            CommandLine::List(_) => out.write_all(text::list(&View::of_host()?).as_bytes())?,
            CommandLine::Show(Some(network), format) => {
                let network = View::of_host()?.network(&network)?;
                match format {
                    Format::Text => out.write_all(text::show(&network).as_bytes())?,
                    Format::Json => write_json(&network, out)?,
                    Format::Dot => out.write_all(text::dot(std::slice::from_ref(&network)).as_bytes())?,
                }
            }
            CommandLine::Show(None, format) => {
                let view = View::of_host()?;
                match format {
                    Format::Text => {
                        let networks: Vec<String> = view.networks.iter().map(text::show).collect();
                        out.write_all(networks.join("\n").as_bytes())?;
                    }
                    Format::Json => write_json(&view, out)?,
                    Format::Dot => out.write_all(text::dot(&view.networks).as_bytes())?,
                }
            }
            CommandLine::Repair(network) => repair::repair(network.as_deref(), out)?,
            CommandLine::Prune => out.write_all(prune::prune()?.as_bytes())?,
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<CommandLine, String> {
        Bridge::read(words.split_whitespace().map(OsString::from).collect())
            .map_err(|error| format!("{error:#}"))
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
