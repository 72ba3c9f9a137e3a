//! Names for containers: a CNI plugin, and the small DNS server that answers for it.
//!
//! The plugin turns a call into a [`records::Record`] on disk and asks the server to look at it. The server keeps all
//! records in a [`zone::Zones`] and answers with [`answer::answer`], a pure function of zones, asker and question.

pub mod answer;
pub mod domain_name;
pub mod records;
pub mod state_dir;
pub mod zone;
