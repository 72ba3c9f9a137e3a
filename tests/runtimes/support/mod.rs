//! The runtimes, and the machine that they run on.

mod containerd;
mod podman;
mod site;

pub(crate) use containerd::{Containerd, Release};
pub(crate) use podman::Podman;
pub(crate) use site::{IMAGE, Site};
