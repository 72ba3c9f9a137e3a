//! The runtimes, and the machine that they run on.

mod containerd;
mod dockerd;
mod firewalld;
mod kubelet;
mod podman;
mod site;
mod transcript;

pub(crate) use containerd::{Containerd, Release};
pub(crate) use dockerd::Dockerd;
pub(crate) use firewalld::{Backend, Firewalld};
pub(crate) use kubelet::Kubelet;
pub(crate) use podman::Podman;
pub(crate) use site::{IMAGE, Site};
pub(crate) use transcript::Transcript;
