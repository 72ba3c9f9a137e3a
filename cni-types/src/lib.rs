//! The CNI protocol, learnt once and used by every plugin of the suite.
//!
//! [`skel`] takes a call apart (environment, configuration, version), hands it to a [`Plugin`] and prints the answer.
//! [`CniResult`] is the answer to ADD, read and written in the shape of any spec version. [`Delegate`] calls another
//! plugin, such as the one that leases addresses.
//!
//! Nothing here knows a plugin or touches the network. Nothing but [`skel`], and [`by_hand`] for
//! a person, writes to stdout.
//!
//! Sources: the [CNI specification](https://www.cni.dev/docs/spec/) 1.1.0 and its older versions; where the
//! specification is silent, the behaviour of the reference plugins.

mod arena;
mod args;
mod boot;
pub mod by_hand;
mod command;
mod conf;
mod delegate;
mod env;
mod error;
mod failures;
pub mod ip;
pub mod json;
pub mod logging;
mod netns_cookie;
pub mod netns_mounts;
pub mod process;
pub mod regular_file;
mod result;
pub mod signals;
pub mod skel;
mod stdio;
pub mod table;
mod version;

pub use arena::Arena;
pub use args::CniArgs;
pub use boot::BootId;
pub use by_hand::ByHand;
pub use command::Command;
pub use conf::{NetConf, OwnKeys};
pub use delegate::{Delegate, NotAdded, Running};
pub use env::{Attachment, Environment, MAX_IFNAME_LEN, is_identifier};
pub use error::{Error, ErrorCode};
pub use failures::Failures;
pub use netns_cookie::NetnsCookie;
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use skel::{AttachmentCall, DelCall, NetworkCall, Plugin};
pub use version::SpecVersion;
