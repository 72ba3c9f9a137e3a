//! CNI plugin `bridge`: a Linux bridge, a veth pair for each container, addresses, routes, masquerade, isolation.

use std::process::ExitCode;

use cni_types::{Arena, AttachmentCall, CniResult, DelCall, Error, NetworkCall, Plugin, by_hand};

mod add;
mod attachment;
mod bridge;
mod check;
mod cli;
mod config;
mod container;
mod del;
mod family;
mod flows;
mod gateway;
mod gc;
mod iptables;
mod mac;
mod maker;
mod names;
mod netlink;
mod netns;
mod nft;
mod plan;
mod predecessor;
mod reverse_path;
mod rules;
mod settled;
mod signals;
mod status;
mod survey;
mod sysctl;
mod tuning;
mod undo;
mod veth;
mod vlans;
mod xtables;

#[global_allocator]
static ALLOCATOR: Arena = Arena::new();

struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";

    fn add(&self, call: &AttachmentCall) -> Result<CniResult, Error> {
        add::add(call)
    }

    fn check(&self, call: &AttachmentCall) -> Result<(), Error> {
        check::check(call)
    }

    fn del(&self, call: &DelCall) -> Result<(), Error> {
        del::del(call)
    }

    fn gc(&self, call: &NetworkCall) -> Result<(), Error> {
        gc::gc(call)
    }

    fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        status::status(call)
    }
}

fn main() -> ExitCode {
    by_hand::main(&Bridge)
}
