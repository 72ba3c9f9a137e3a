//! Times our plugins against the reference's, and our server of names against others, in one run:
//! `bench bridge|ipam|dns [ROUNDS]`, inside a world.
//!
//! Ours and theirs take turns call by call, so that whatever else the machine does falls on both. What is printed are
//! medians and their ratio; single times mean little on a busy machine.

#![allow(clippy::print_stdout, reason = "the table is what the program is for")]

mod bridge;
mod call;
mod dns;
mod ipam;
mod scale;
mod table;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let subject = args.next().context("what is to be timed? bridge, ipam or dns")?;
    let rounds = args.next().map(|rounds| rounds.parse().context("ROUNDS")).transpose()?;
    match subject.as_str() {
        "bridge" => {
            call::adopt_orphans()?;
            scale::peaks()?;
            bridge::bench(rounds.unwrap_or(100))?;
            scale::bench()
        }
        "ipam" => ipam::bench(rounds.unwrap_or(100)),
        "dns" => dns::bench(rounds.unwrap_or(4)),
        _ => bail!("cannot time {subject}: there are bridge, ipam and dns"),
    }
}
