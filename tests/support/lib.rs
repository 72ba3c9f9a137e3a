//! What the stories are told with.
//!
//! A [`World`] is a machine of the test's own: a host, containers ([`World::container`]) and, when asked for, the
//! outside ([`World::outside`]), each a network namespace, with directories of their own. [`Network`] does to the
//! plugins what a container runtime does; [`PluginCall`] calls one plugin with any environment and any bytes.
//! [`Snapshot`] tells what changed on the host in between.
//!
//! Worlds do not see each other, so tests run in parallel. Whatever a test leaves running dies with its world.

mod binaries;
mod chain;
mod command;
mod outside;
mod plugin;
mod snapshot;
mod wait;
mod world;

pub use binaries::{Suite, fixture};
pub use chain::{Attachment, Failure, Network};
pub use command::{Cmd, Output, Running};
pub use outside::Outside;
pub use plugin::PluginCall;
pub use snapshot::Snapshot;
pub use wait::wait_until;
pub use world::{Container, Space, World};
