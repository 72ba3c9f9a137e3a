//! A plugin as a person's command: arguments in, a text or JSON out.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use log::LevelFilter;
use serde::Serialize;

use crate::{Plugin, logging, signals, skel};

/// The exit status for a command line that cannot be read.
const WRONG_USAGE: u8 = 2;

/// A plugin that a person can ask, too.
pub trait ByHand: Plugin {
    /// A command line, checked.
    type Request;

    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    /// What is wrong with them.
    fn read(arguments: Vec<OsString>) -> anyhow::Result<Self::Request>;

    /// Does what is asked for, and writes to `out` what there is to read, as far as it comes where it fails.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn answer(request: Self::Request, out: &mut dyn Write) -> anyhow::Result<()>;
}

/// Runs this process as what it was started for: as `plugin` where a runtime calls, otherwise as what its arguments say.
///
/// A runtime passes none. A person who passes some is answered, whatever is in the environment but a verb: with exit
/// status 0, 1 where it could not be done, 2 where the arguments are wrong.
pub fn main<P: ByHand>(plugin: &P) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.is_empty() || std::env::var_os("CNI_COMMAND").is_some() {
        return skel::main(plugin);
    }
    logging::init(P::NAME, LevelFilter::Warn);
    signals::settle();
    let request = match P::read(arguments) {
        Ok(request) => request,
        Err(error) => {
            say(format_args!("{name}: {error:#}; see {name} --help", name = P::NAME));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let mut printed = Vec::new();
    let answered = P::answer(request, &mut printed);
    match print(&printed).context("write to stdout").and(answered) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{}: {error:#}", P::NAME));
            ExitCode::FAILURE
        }
    }
}

/// Prints `value` as JSON to be read by a person, with a line's end.
///
/// # Errors
/// What `out` refuses.
pub fn write_json(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

fn print(octets: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(octets).and_then(|()| stdout.flush()) {
        // Who reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Says something on stderr; where that is closed, nobody listens.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}
