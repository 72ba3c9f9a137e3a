//! Log lines on stderr: `plugin: message`. stdout belongs to the protocol.

use std::io::Write as _;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr {
    plugin: &'static str,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write for the whole line, so that lines of parallel plugins do not mix. A closed stderr is no
            // reason to fail a call.
            let line = format!("{}: {}\n", self.plugin, record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sends the log to stderr from `level` on; `CNI_LOG` (`error`, `warn`, `info`, `debug`, `trace`, `off`) overrides it.
/// Only the first call of a process counts.
pub fn init(plugin: &'static str, level: LevelFilter) {
    let wanted = std::env::var("CNI_LOG").ok().and_then(|level| level.parse().ok());
    if log::set_boxed_logger(Box::new(Stderr { plugin })).is_ok() {
        log::set_max_level(wanted.unwrap_or(level));
    }
}
