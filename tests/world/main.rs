//! The process that a test's private world lives in, and the ways into it.
//!
//! `world init` makes the namespaces and stays as process 1 of their PID namespace until its stdin closes, so the
//! kernel ends everything inside as soon as the test is gone, however it went. `world enter` runs one command inside.
//! The other verbs are run inside: `netns` makes a container's namespace, `serve` is a small web server that tells
//! its callers which address it saw them under, `resolve` asks musl's resolver for a name.
//!
//! Nothing here knows a plugin.

mod enter;
mod init;
mod private_dirs;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    match run(&verb.to_string_lossy(), args.collect()) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("world {}: {error:#}", verb.display()));
            ExitCode::from(125)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one place that tells the test what went wrong")]
fn complain(message: &str) {
    eprintln!("{message}");
}

fn run(verb: &str, args: Vec<OsString>) -> Result<ExitCode> {
    match verb {
        "init" => init::make_namespaces(),
        "first" => init::be_first_process(),
        "enter" => enter::run(args),
        "netns" => {
            let [name] = one_argument(args)?;
            netns_rs::NetNs::new(&name).with_context(|| format!("make network namespace {name}"))?;
            Ok(ExitCode::SUCCESS)
        }
        "serve" => {
            let [address] = one_argument(args)?;
            serve::forever(&address)
        }
        "resolve" => {
            let [name] = one_argument(args)?;
            resolve(&name)
        }
        _ => bail!("unknown verb; there are init, enter, netns, serve, resolve"),
    }
}

/// Prints the addresses that the C library of this program finds for `name`: musl, other than that of the host's tools.
#[expect(clippy::print_stdout, reason = "what the test has asked for")]
fn resolve(name: &str) -> Result<ExitCode> {
    use std::net::ToSocketAddrs as _;
    for address in (name, 0).to_socket_addrs().with_context(|| format!("resolve {name}"))? {
        println!("{}", address.ip());
    }
    Ok(ExitCode::SUCCESS)
}

fn one_argument(args: Vec<OsString>) -> Result<[String; 1]> {
    let [arg] = <[OsString; 1]>::try_from(args)
        .map_err(|args| anyhow::anyhow!("takes one argument, got {}", args.len()))?;
    arg.into_string().map(|arg| [arg]).map_err(|arg| anyhow::anyhow!("not UTF-8: {}", arg.display()))
}
