//! `host-local-ipam` leases addresses from ranges, in files on this host; a drop-in for the reference plugin
//! `host-local`, whose files it shares.
//!
//! A verb reads the configuration ([`config`]), opens the leases of the network under their lock ([`store`]), and
//! decides by pure rules ([`range`], [`range_set`], [`allocator`]). Nothing here touches the network; which namespaces
//! containers have is only looked at ([`namespaces`]).

mod add;
mod allocator;
mod check;
mod cli;
mod config;
mod del;
mod gc;
mod namespaces;
mod range;
mod range_set;
mod resolv_conf;
mod span;
mod status;
mod store;

use std::process::ExitCode;

use cni_types::{Arena, AttachmentCall, CniResult, DelCall, Error, NetworkCall, Plugin, by_hand};

#[global_allocator]
static ALLOCATOR: Arena = Arena::new();

struct HostLocal;

impl Plugin for HostLocal {
    const NAME: &'static str = "host-local-ipam";

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
    by_hand::main(&HostLocal)
}
