//! The log: one line a step, on stderr and, where a configuration names one, in a file.
//!
//! Warnings are always said. `CNI_LOG` in the environment or `logLevel` in the configuration ask for more; from
//! `debug` on, every line ends with the time since the line before it. stdout belongs to the protocol and is never
//! written here. A log that cannot be written never fails a call.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{LevelFilter, Log, Metadata, Record};
use nix::fcntl::OFlag;

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sends the log to stderr from `level` on, unless `CNI_LOG` (`off`, `error`, `warn`, `info`, `debug`, `trace`) asks
/// for another. Only the first call of a process counts.
pub fn init(plugin: &'static str, level: LevelFilter) {
    let asked = std::env::var("CNI_LOG").ok().filter(|text| !text.is_empty()).map(|text| parse_level(&text));
    let (forced, mistake) = match asked {
        None => (None, None),
        Some(Ok(level)) => (Some(level), None),
        Some(Err(mistake)) => (None, Some(mistake)),
    };
    let stderr = forced.unwrap_or(level);
    let sinks = Sinks { stderr, dated: None, file: None, latest: Instant::now() };
    let logger = LOGGER.get_or_init(|| Logger { plugin, forced, sinks: Mutex::new(sinks) });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(stderr);
    }
    if let Some(mistake) = mistake {
        log::warn!("CNI_LOG: {mistake}");
    }
}

/// What a network configuration says about the log, under `logLevel` and `logFile`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LogKeys {
    pub(crate) level: Option<LevelFilter>,
    pub(crate) file: Option<PathBuf>,
}

impl LogKeys {
    pub(crate) fn are_absent(&self) -> bool {
        *self == Self::default()
    }
}

/// The level written as `text`, in any case. The error says which there are.
pub(crate) fn parse_level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| format!("{text:?} is none of off, error, warn, info, debug, trace"))
}

/// Follows the keys of a configuration for the rest of this process; `call` says in each line of the file what is
/// being done. A file takes the lines from `logLevel`, or else `info`, on, and stderr keeps the warnings. Without a
/// file, `logLevel` is for stderr. `CNI_LOG` goes before both on stderr.
pub(crate) fn follow(keys: LogKeys, call: String) {
    let Some(logger) = LOGGER.get() else { return };
    let file = match keys.file.as_deref().map(|path| open(path).map_err(|error| (path, error))) {
        Some(Ok(file)) => Some(file),
        Some(Err((path, error))) => {
            log::warn!("logFile: open {}: {error}; logging to stderr", path.display());
            None
        }
        None => None,
    };
    let mut sinks = logger.sinks();
    match file {
        Some(file) => {
            sinks.file = Some(FileSink { file, level: keys.level.unwrap_or(LevelFilter::Info), call });
        }
        None => sinks.stderr = logger.forced.or(keys.level).unwrap_or(sinks.stderr),
    }
    log::set_max_level(sinks.level());
}

/// The log file that the configuration names, and from which level on it takes lines: for a process that this one
/// starts, which calls [`date_stderr`] when it has it as its stderr.
pub fn file() -> Option<(File, LevelFilter)> {
    let sinks = LOGGER.get()?.sinks();
    let FileSink { file, level, .. } = sinks.file.as_ref()?;
    Some((file.try_clone().ok()?, *level))
}

/// Treats stderr as the log file of another process: its lines begin as in a file, with `call`, and it takes those from
/// `level` on.
pub fn date_stderr(level: LevelFilter, call: &str) {
    let Some(logger) = LOGGER.get() else { return };
    let mut sinks = logger.sinks();
    sinks.dated = Some(call.to_owned());
    sinks.stderr = level;
    log::set_max_level(sinks.level());
}

/// Never waits for a reader of a pipe, and never makes a terminal the controlling one.
fn open(path: &Path) -> io::Result<File> {
    if path.is_relative() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"));
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(path)
}

struct Logger {
    plugin: &'static str,
    /// What `CNI_LOG` says.
    forced: Option<LevelFilter>,
    sinks: Mutex<Sinks>,
}

struct Sinks {
    stderr: LevelFilter,
    /// What lines on stderr begin with after the date, where it is a log file.
    dated: Option<String>,
    file: Option<FileSink>,
    /// When the line before was written, or the process started.
    latest: Instant,
}

struct FileSink {
    file: File,
    level: LevelFilter,
    call: String,
}

impl Logger {
    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of a file.
    fn dated(&self, call: &str, level: log::Level, text: impl fmt::Display) -> String {
        let time = Timestamp(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        format!("{time} {}[{}] {call} {level}: {text}\n", self.plugin, std::process::id())
    }
}

impl Sinks {
    /// The level of the sink that takes the most lines.
    fn level(&self) -> LevelFilter {
        self.file.as_ref().map_or(self.stderr, |file| file.level.max(self.stderr))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut sinks = self.sinks();
        let now = Instant::now();
        let step = now - std::mem::replace(&mut sinks.latest, now);
        let text = Text { message: &record.args().to_string(), step };
        // One write for the whole line, so that lines of parallel plugins do not mix.
        if record.level() <= sinks.stderr {
            let line = match &sinks.dated {
                Some(call) => self.dated(call, record.level(), text.at(sinks.stderr)),
                None => format!("{}: {}\n", self.plugin, text.at(sinks.stderr)),
            };
            let _ = io::stderr().write_all(line.as_bytes());
        }
        if let Some(FileSink { file, level, call }) = &mut sinks.file
            && record.level() <= *level
        {
            let line = self.dated(call, record.level(), text.at(*level));
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// A message, and the time since the one before it.
#[derive(Clone, Copy)]
struct Text<'a> {
    message: &'a str,
    step: Duration,
}

impl<'a> Text<'a> {
    /// As a sink of `level` shows it: on one line, and with its duration where every step is logged.
    fn at(self, level: LevelFilter) -> impl fmt::Display + use<'a> {
        fmt::from_fn(move |f| {
            for (index, part) in self.message.split('\n').enumerate() {
                f.write_str(if index == 0 { "" } else { "\\n" })?;
                f.write_str(part)?;
            }
            if level >= LevelFilter::Debug {
                write!(f, " ({:.3} ms)", self.step.as_secs_f64() * 1e3)?;
            }
            Ok(())
        })
    }
}

/// A moment, as the time since 1970, shown in UTC as in RFC 3339.
struct Timestamp(Duration);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        // Years are counted from March, so that a leap day is the last day of its year; 719468 days lie between
        // 0000-03-01 and 1970-01-01, and 146097 days make 400 years.
        let days = seconds / 86400 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = era * 400 + year + next_year;
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let micros = self.0.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000007Z"),
            (951_868_800, "2000-03-01T00:00:00.000007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000007Z"),
        ] {
            assert_eq!(Timestamp(Duration::new(seconds, 7_000)).to_string(), text);
        }
    }

    #[test]
    fn a_message_stays_on_its_line_and_shows_its_duration_only_among_steps() {
        let text = Text { message: "one\ntwo", step: Duration::from_micros(1234) };
        assert_eq!(text.at(LevelFilter::Info).to_string(), "one\\ntwo");
        assert_eq!(text.at(LevelFilter::Debug).to_string(), "one\\ntwo (1.234 ms)");
    }

    #[test]
    fn the_most_talkative_sink_decides_what_is_formatted() {
        let sinks = |stderr, file: Option<LevelFilter>| {
            let file = file.map(|level| FileSink {
                file: File::open("/dev/null").unwrap(),
                level,
                call: String::new(),
            });
            Sinks { stderr, dated: None, file, latest: Instant::now() }.level()
        };
        assert_eq!(sinks(LevelFilter::Warn, None), LevelFilter::Warn);
        assert_eq!(sinks(LevelFilter::Warn, Some(LevelFilter::Debug)), LevelFilter::Debug);
        assert_eq!(sinks(LevelFilter::Trace, Some(LevelFilter::Off)), LevelFilter::Trace);
    }

    #[test]
    fn a_log_file_is_appended_to_and_a_pipe_without_reader_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cni.log");
        for line in ["one\n", "two\n"] {
            open(&path).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(open(Path::new("cni.log")).unwrap_err().to_string(), "not an absolute path");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(&pipe).is_err());
    }
}
