//! The server with real sockets and real processes: what it answers, that it is never lost, and what it may do.
//!
//! Each test has a private network, mount and process namespace, so that they run side by side and whatever is left of
//! one dies with it. The binary starts itself: inside the namespaces as one test, and as the server that the client
//! starts from its own image.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a test runner is for")]

mod dns;
mod forwarding;
mod lifetime;
mod published;
mod serving;
mod world;

use std::process::{Command, ExitCode, Stdio};

use alias_dns::daemon;
use alias_dns::state_dir::StateDir;

type Test = (&'static str, fn());

const TESTS: &[&[Test]] = &[serving::TESTS, lifetime::TESTS, forwarding::TESTS, published::TESTS];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve"] => finish(daemon::serve(&StateDir::at(world::STATE))),
        ["supervise"] => finish(daemon::supervise()),
        ["guard"] => finish(daemon::guard()),
        ["--inside", name] => {
            let (_, test) = tests().find(|(other, _)| other == name).expect("a test of this name");
            test();
            ExitCode::SUCCESS
        }
        ["--put", container, address, name] => {
            world::put(container, address, name);
            ExitCode::SUCCESS
        }
        ["--list", ..] => ExitCode::SUCCESS,
        _ => run_all(words.iter().find(|word| !word.starts_with('-')).copied().unwrap_or_default()),
    }
}

fn tests() -> impl Iterator<Item = Test> {
    TESTS.iter().flat_map(|topic| topic.iter().copied())
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the tests whose name contains `filter`, all at once.
fn run_all(filter: &str) -> ExitCode {
    let image = std::env::current_exe().expect("own path");
    let running: Vec<_> = tests()
        .filter(|(name, _)| name.contains(filter))
        .map(|(name, _)| {
            let mut command = Command::new("unshare");
            if !nix::unistd::geteuid().is_root() {
                command.args(["--user", "--map-root-user"]);
            }
            command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
            command.arg(&image).args(["--inside", name]).stdout(Stdio::piped()).stderr(Stdio::piped());
            (name, command.spawn().expect("unshare"))
        })
        .collect();
    let mut failed = 0;
    for (name, child) in running {
        let output = child.wait_with_output().expect("output of a test");
        println!("test {name} ... {}", if output.status.success() { "ok" } else { "FAILED" });
        if !output.status.success() {
            failed += 1;
            println!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
