//! Hosts whose containers had their names and addresses from somebody else.
//! (From the reference plugins, and back: `integration/migration.rs`.)

mod dnsname;
mod docker;
