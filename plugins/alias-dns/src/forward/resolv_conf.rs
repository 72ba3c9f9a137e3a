//! The host's name servers as resolv.conf(5) lists them, followed as the file changes.
//!
//! Whether it changed is asked of the file system each time that the servers are needed. That costs a microsecond
//! beside a question to another host, and sees what no watch sees whole: an edit in place, a rename over it any number
//! of times, a symlink to elsewhere that is switched, a mount on top.
//!
//! A file that names devices, for servers at addresses of a link, is read each time: a device may come after the file
//! was written, or be made anew with another index.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cni_types::regular_file;

use crate::name_server;

/// As many servers as the C libraries ask (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;

/// How long whoever has emptied the file is given the time to write it.
const WRITERS_TIME: Duration = Duration::from_secs(1);

/// resolv.conf and what it said last.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    path: PathBuf,
    /// Of a file that means the same until it changes.
    seen: Option<Version>,
    servers: Box<[SocketAddr]>,
    /// Since when the file names no server, where the former ones are kept still.
    empty_since: Option<Instant>,
}

/// Two reads with the same version saw the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl ResolvConf {
    /// Follows `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), seen: None, servers: Box::default(), empty_since: None }
    }

    /// Looks whether the file has changed, and tells whether its servers have.
    ///
    /// A file that cannot be read keeps the servers that were read last. So does, for a second, one that names no server:
    /// it may just be written. One that does not exist has none.
    pub(crate) fn refresh(&mut self, now: Instant) -> bool {
        let version = match std::fs::metadata(&self.path) {
            Ok(file) => Version {
                device: file.dev(),
                inode: file.ino(),
                size: file.size(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.seen = None;
                return self.take(Box::default());
            }
            Err(_) => return false,
        };
        if self.seen != Some(version) {
            let Ok(text) = regular_file::read(&self.path) else { return false };
            let Listed { servers, by_device } = parse(&String::from_utf8_lossy(&text));
            self.seen = (!by_device).then_some(version);
            if !servers.is_empty() {
                return self.take(servers);
            }
            self.empty_since.get_or_insert(now);
        }
        match self.empty_since {
            Some(since) if now.duration_since(since) >= WRITERS_TIME => self.take(Box::default()),
            _ => false,
        }
    }

    fn take(&mut self, servers: Box<[SocketAddr]>) -> bool {
        self.empty_since = None;
        let changed = servers != self.servers;
        self.servers = servers;
        changed
    }

    /// The servers as of the last [`refresh`](Self::refresh).
    pub(crate) fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }
}

/// What a file lists.
struct Listed {
    servers: Box<[SocketAddr]>,
    /// Whether some line names a device, so that what it means depends on which there are.
    by_device: bool,
}

/// The first servers of `text`. Lines that cannot be read are passed over, as the C libraries do.
fn parse(text: &str) -> Listed {
    let mut servers = Vec::with_capacity(MAX_SERVERS);
    let mut by_device = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(address) = words.next() else { continue };
        by_device |= name_server::names_device(address);
        let Some(server) = name_server::parse(address) else { continue };
        if servers.len() < MAX_SERVERS && !servers.contains(&server) {
            servers.push(server);
        }
    }
    Listed { servers: servers.into(), by_device }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_first_three_servers_count_and_broken_lines_do_not() {
        let text = "# c\nsearch a\nnameserver 10.0.0.1 # x\nnameserver\nnameserver ten\n nameserver 10.0.0.1\n\
                    nameserver fe80::1%1\n;nameserver 9.9.9.9\nnameserver ::1\nnameserver 10.0.0.4\noptions edns0";
        let servers: Vec<String> = parse(text).servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[fe80::1%1]:53", "[::1]:53"]);
    }

    #[test]
    fn every_way_to_change_the_file_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut conf = ResolvConf::at(&path);
        let now = Instant::now();
        let mut expect = |servers: &[&str]| {
            conf.refresh(now);
            assert_eq!(
                conf.servers().iter().map(|server| server.ip().to_string()).collect::<Vec<_>>(),
                servers
            );
        };
        expect(&[]);
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        expect(&["10.0.0.1"]);
        std::fs::write(&path, "nameserver 10.0.0.2\n").unwrap();
        expect(&["10.0.0.2"]);
        for turn in 3..6 {
            let aside = directory.path().join("aside");
            std::fs::write(&aside, format!("nameserver 10.0.0.{turn}\n")).unwrap();
            std::fs::rename(&aside, &path).unwrap();
            expect(&[&format!("10.0.0.{turn}")]);
        }
        for turn in 6..8 {
            let target = directory.path().join(format!("target-{turn}"));
            std::fs::write(&target, format!("nameserver 10.0.0.{turn}\n")).unwrap();
            let aside = directory.path().join("aside");
            symlink(&target, &aside).unwrap();
            std::fs::rename(&aside, &path).unwrap();
            expect(&[&format!("10.0.0.{turn}")]);
            std::fs::write(&target, "nameserver 10.0.0.9\n").unwrap();
            expect(&["10.0.0.9"]);
        }
        std::fs::remove_file(&path).unwrap();
        expect(&[]);
    }

    #[test]
    fn a_file_that_is_being_written_keeps_the_former_servers_for_a_moment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut conf = ResolvConf::at(&path);
        let began = Instant::now();
        let mut expect = |milliseconds, servers: &[&str]| {
            conf.refresh(began + Duration::from_millis(milliseconds));
            let found: Vec<String> = conf.servers().iter().map(|server| server.ip().to_string()).collect();
            assert_eq!(found, servers, "after {milliseconds} ms");
        };
        std::fs::write(&path, "nameserver 10.0.0.1").unwrap();
        expect(0, &["10.0.0.1"]);
        for (milliseconds, unfinished) in [(100, ""), (1099, "search example.org\n")] {
            std::fs::write(&path, unfinished).unwrap();
            expect(milliseconds, &["10.0.0.1"]);
        }
        // Each time anew, and no longer than that.
        std::fs::write(&path, "search example.org\nnameserver 10.0.0.2\n").unwrap();
        expect(1100, &["10.0.0.2"]);
        std::fs::write(&path, "").unwrap();
        expect(2000, &["10.0.0.2"]);
        expect(2999, &["10.0.0.2"]);
        expect(3000, &[]);
        std::fs::write(&path, "nameserver 10.0.0.3\n").unwrap();
        expect(3001, &["10.0.0.3"]);
    }
}
