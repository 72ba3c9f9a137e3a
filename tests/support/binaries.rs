//! Where the programs and files that the stories use are found.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Whose plugins a chain is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// This workspace's, as built beside the tests, or in the directory that `CNI_TEST_PLUGINS` names.
    Ours,
    /// The reference plugins and cnitool: `target/peers`, or the directory that `CNI_TEST_PEERS` names.
    Reference,
}

impl Suite {
    /// The directory that holds the suite's binaries.
    ///
    /// # Panics
    /// When they are not there, saying what to run.
    pub fn dir(self) -> PathBuf {
        let (variable, usual, probe, remedy) = match self {
            Self::Ours => ("CNI_TEST_PLUGINS", built_programs(), "alias-dns", "cargo build"),
            Self::Reference => ("CNI_TEST_PEERS", root().join("target/peers"), "cnitool", "scripts/setup"),
        };
        let dir = std::env::var_os(variable).map_or(usual, PathBuf::from);
        let there = dir.join(probe).is_file();
        assert!(there, "no {probe} in {}: run `{remedy}`, or set {variable}", dir.display());
        dir
    }

    /// The directory of the example networks.
    pub fn examples() -> PathBuf {
        root().join("conf-examples")
    }

    /// The path of the suite's binary `name`.
    pub fn binary(self, name: &str) -> PathBuf {
        let path = self.dir().join(name);
        assert!(path.is_file(), "no {}", path.display());
        path
    }
}

/// The top of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The JSON document `name` of `tests/fixtures` or, with a path, of the workspace.
///
/// # Panics
/// When it cannot be read.
pub fn fixture(name: &str) -> Value {
    let path = root().join(name);
    let text =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("parse {}: {error}", path.display()))
}

/// Cargo puts the package's programs one directory above its test executables.
pub(crate) fn built_programs() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_else(|error| panic!("find this test's executable: {error}"));
    let dir = test.parent().unwrap_or(Path::new("/"));
    if dir.ends_with("deps") { dir.join("..") } else { dir.to_owned() }
}
