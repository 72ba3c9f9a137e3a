//! `alias-dns`: a CNI plugin for the runtime, a DNS server for the containers, a few verbs for a person.

use std::process::ExitCode;

fn main() -> ExitCode {
    alias_dns::main()
}
