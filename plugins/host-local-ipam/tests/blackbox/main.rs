//! The built plugin as a runtime calls it, beside the reference plugin where that has the behaviour.
//!
//! Needs the reference `host-local` in `target/peers` (or in the directory that `CNI_TEST_PEERS` names) and `strace`;
//! what changes mounts runs in a mount namespace of its own, which takes root or user namespaces.

mod between;
mod calls;
mod crash;
mod differences;
mod errors;
mod flat;
mod full_disk;
mod gc_and_status;
mod hands;
mod layout;
mod namespaces;
mod reboot;
mod storms;
mod swap;
mod tampering;
mod wishes;
