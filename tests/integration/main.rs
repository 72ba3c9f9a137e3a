//! Stories with real packets, told through the built binaries: one module each.

mod harness;
