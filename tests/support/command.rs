//! Commands in a world: built, run, and what they printed.
//!
//! A command ends when it has exited *and* its output is closed, as a runtime waits for a plugin; one that takes longer
//! than its bound is killed and fails the test.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::{BOUND, wait_until};
use crate::world::Space;

/// The only variables that a command gets besides those it is given.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C"),
];

/// A command to be run in a [`Space`].
#[must_use]
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    stdin: Vec<u8>,
    bound: Duration,
    shown: String,
}

impl Cmd {
    pub(crate) fn new(space: &Space, argv: &[impl AsRef<OsStr>]) -> Self {
        let words: Vec<_> = argv.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        let mut command = space.enter();
        command.args(argv).current_dir("/").env_clear().envs(ENVIRONMENT);
        Self {
            command,
            stdin: Vec::new(),
            bound: BOUND,
            shown: format!("[{}] {}", space.name(), words.join(" ")),
        }
    }

    /// Sets a variable, also to nothing.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable away.
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// What the command reads; nothing when not set.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Lets the command take so long; two minutes when not set.
    pub fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Runs the command to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[track_caller]
    pub fn run(self) -> Output {
        self.start().wait()
    }

    /// Starts the command.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        if let Some(mut pipe) = child.stdin.take() {
            // A command that does not read its input closes the pipe: that is its right, and no failure here.
            std::thread::spawn(move || pipe.write_all(&self.stdin));
        }
        let stdout = Stream::follow(child.stdout.take());
        let stderr = Stream::follow(child.stderr.take());
        Running { child, stdout, stderr, bound: self.bound, shown: self.shown }
    }
}

/// A command that was started. It ends with its world at the latest.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Stream,
    stderr: Stream,
    bound: Duration,
    shown: String,
}

impl Running {
    /// Waits until the command has printed `text`.
    ///
    /// # Panics
    /// When it ends without, or does not within its bound.
    #[track_caller]
    pub fn wait_for(self, text: &str) -> Self {
        let printed = self.stdout.wait(self.bound, |so_far| String::from_utf8_lossy(so_far).contains(text));
        assert!(printed, "{} did not print {text:?}: {}", self.shown, self.stderr.text());
        self
    }

    /// Kills the command itself (not the process that entered the world for it) with SIGKILL, if it still runs.
    pub fn kill(&self) {
        for pid in self.children() {
            // It may have ended between the two: that is what was wanted.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// The command's process id as the machine sees it, once it has been started.
    pub fn pid(&self) -> i32 {
        wait_until(&format!("{} is started", self.shown), || self.children().first().copied())
    }

    /// Waits until the command has been started; it may be over by then.
    pub fn wait_for_start(&self) {
        wait_until(&format!("{} is started", self.shown), || {
            (!self.children().is_empty() || self.stdout.is_closed()).then_some(())
        });
    }

    /// Whether the command has closed its output, which is the last that it does.
    pub fn has_ended(&self) -> bool {
        self.stdout.is_closed()
    }

    /// Waits for the end of the command and of its output.
    ///
    /// # Panics
    /// When that takes longer than its bound.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.wait(self.bound, |_| false) && !stream.is_closed() {
                self.kill();
                panic!("{}: {name} still open after {} s", self.shown, self.bound.as_secs());
            }
        }
        let status = self.child.wait().unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        Output {
            status: status.code().unwrap_or(-1),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            shown: self.shown,
        }
    }

    fn children(&self) -> Vec<i32> {
        let pid = self.child.id();
        let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; 128 + n after signal n.
    pub status: i32,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
    shown: String,
}

impl Output {
    /// What the command printed, which must have succeeded.
    ///
    /// # Panics
    /// When it did not, with all it said.
    #[track_caller]
    pub fn success(&self) -> &str {
        assert_eq!(self.status, 0, "{self}");
        &self.stdout
    }

    /// The output of a command that must have failed.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn failure(&self) -> &Self {
        assert_ne!(self.status, 0, "succeeded, but must fail: {self}");
        self
    }

    /// The JSON document on stdout, whatever the exit status.
    ///
    /// # Panics
    /// When stdout is not exactly one document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON document: {error}: {self}"))
    }

    /// Asserts that stdout has a line that starts with `beginning`.
    ///
    /// # Panics
    /// When there is none, with all that was printed.
    #[track_caller]
    pub fn has_line(&self, beginning: &str) -> &Self {
        let found = self.stdout.lines().any(|line| line.starts_with(beginning));
        assert!(found, "no line starts with {beginning:?}: {self}");
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, stdout, stderr, shown } = self;
        write!(f, "{shown}\nexit status {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// One stream of a command, read as it comes.
#[derive(Debug, Clone)]
struct Stream {
    shared: Arc<(Mutex<Content>, Condvar)>,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    closed: bool,
}

impl Stream {
    fn follow(pipe: Option<impl Read + Send + 'static>) -> Self {
        let stream = Self { shared: Arc::default() };
        let theirs = stream.clone();
        std::thread::spawn(move || {
            if let Some(mut pipe) = pipe {
                let mut chunk = [0; 4096];
                while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                    theirs.lock().bytes.extend_from_slice(&chunk[..length]);
                    theirs.shared.1.notify_all();
                }
            }
            theirs.lock().closed = true;
            theirs.shared.1.notify_all();
        });
        stream
    }

    /// Waits until `enough` is true of what was printed; false when the stream closes or the bound passes before.
    fn wait(&self, bound: Duration, enough: impl Fn(&[u8]) -> bool) -> bool {
        let end = Instant::now() + bound;
        let mut content = self.lock();
        loop {
            if enough(&content.bytes) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if content.closed || left.is_zero() {
                return false;
            }
            content = self.shared.1.wait_timeout(content, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Splits a command as typed: at blanks. There is no quoting; use an array for arguments with blanks.
pub(crate) fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}
