//! CNI plugin `bridge`: a Linux bridge, a veth pair for each container, addresses, routes, masquerade, isolation.

use std::process::ExitCode;

use cni_types::{AttachmentCall, CniResult, DelCall, Error, NetworkCall, Plugin, skel};

mod add;
mod attachment;
mod bridge;
mod config;
mod container;
mod del;
mod gateway;
mod mac;
mod netlink;
mod netns;
mod nft;
mod plan;
mod rules;
mod signals;
mod sysctl;
mod undo;
mod veth;

struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";

    fn add(&self, call: &AttachmentCall) -> Result<CniResult, Error> {
        add::add(call)
    }

    fn check(&self, _call: &AttachmentCall) -> Result<(), Error> {
        Ok(())
    }

    fn del(&self, call: &DelCall) -> Result<(), Error> {
        del::del(call)
    }

    fn gc(&self, _call: &NetworkCall) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _call: &NetworkCall) -> Result<(), Error> {
        Ok(())
    }
}

fn main() -> ExitCode {
    skel::main(&Bridge)
}
