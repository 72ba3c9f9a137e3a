//! Stories with real packets, told through the built binaries: one module each.

mod aliases;
mod bad_input;
mod bridge_by_hand;
mod bridge_check;
mod bridge_faults;
mod bridge_life;
mod bridge_ports;
mod bridge_rules;
mod dns_names;
mod dual_stack;
mod examples;
mod harness;
mod internal_network;
mod isolation;
mod leaks;
mod links;
mod logging;
mod migration;
mod packaging;
mod protocol;
mod real_cnitool;
mod recorded_cnitool;
mod recorded_containerd;
mod recorded_podman;
mod replay;
mod virtual_ips;
