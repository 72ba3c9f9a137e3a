//! Real container runtimes drive the plugins, under the names and with the configurations that they use.
//!
//! Each test has a [world](integration_tests::World) of its own, in which the runtime has its own root, state, socket
//! and configuration, and each ends by looking at what is left on the host once the last container is gone. The
//! runtimes come from `scripts/setup-runtimes`; `scripts/test runtimes` runs these tests and no others. Where a runtime
//! cannot be had it leaves out the module that drives it, by the module's path.

mod support;

mod containerd;
mod critest;
mod docker;
mod firewalld;
mod kubernetes;
mod machine;
mod migration;
mod others;
mod podman;
mod rootless;
