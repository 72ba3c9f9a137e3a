//! Asks servers from a container: one question at a time by a socket of its own, or many by dnsperf.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// How long an answer is waited for where there should be one.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// How long where the server may have dropped the question, so that it has to be asked again.
pub(super) const IMPATIENCE: Duration = Duration::from_millis(20);

/// What is asked for, as the tables call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The address of a name.
    A,
    /// The name of an address.
    Ptr,
    /// The address of a name that nobody has.
    Unknown,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::A, Self::Ptr, Self::Unknown];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Ptr => "PTR",
            Self::Unknown => "NXDOMAIN",
        }
    }

    fn rtype(self) -> (&'static str, u16) {
        match self {
            Self::A | Self::Unknown => ("A", 1),
            Self::Ptr => ("PTR", 12),
        }
    }

    fn rcode(self) -> (&'static str, u8) {
        match self {
            Self::A | Self::Ptr => ("NOERROR", 0),
            Self::Unknown => ("NXDOMAIN", 3),
        }
    }
}

/// A socket inside a container.
pub(crate) struct Client {
    netns: String,
    socket: UdpSocket,
    id: u16,
}

/// What dnsperf saw.
pub(crate) struct Load {
    pub(crate) queries: u64,
    pub(crate) per_second: f64,
}

impl Client {
    /// A client in the network namespace at `netns`.
    pub(crate) fn inside(netns: &str) -> Result<Self> {
        let file = File::open(netns).with_context(|| format!("open {netns}"))?;
        let opened = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(anyhow::Error::from)
        });
        let socket = opened.join().map_err(|_| anyhow!("the thread in {netns} panicked"))??;
        Ok(Self { netns: netns.to_owned(), socket, id: 0 })
    }

    /// Asks `server`; tells whether what came back within `patience` is what `kind` should get.
    pub(crate) fn ask(
        &mut self,
        server: Ipv4Addr,
        kind: Kind,
        name: &str,
        patience: Duration,
    ) -> Result<bool> {
        self.id = self.id.wrapping_add(1);
        let query = query(self.id, name, kind.rtype().1);
        self.socket.send_to(&query, (server, 53)).context("send a query")?;
        self.socket.set_read_timeout(Some(patience)).context("limit the wait")?;
        let deadline = Instant::now() + patience;
        let mut response = [0; 1500];
        while Instant::now() < deadline {
            match self.socket.recv(&mut response) {
                // An answer that comes too late belongs to an earlier question.
                Ok(12..) if response[..2] == self.id.to_be_bytes() => {
                    let has_answer = response[6..8] != [0, 0];
                    let (_, rcode) = kind.rcode();
                    return Ok(response[3] & 0x0f == rcode && has_answer == (kind != Kind::Unknown));
                }
                Ok(_) => {}
                // By the end of a child.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("receive an answer"),
            }
        }
        Ok(false)
    }

    /// Asks `server` for `names` as fast as it answers, for a second.
    pub(crate) fn load(&self, server: Ipv4Addr, kind: Kind, names: &[String]) -> Result<Load> {
        let path = Path::new("/run/dnsperf.queries");
        let mut file = File::create(path).with_context(|| format!("make {}", path.display()))?;
        let lines: String = names.iter().map(|name| format!("{name} {}\n", kind.rtype().0)).collect();
        file.write_all(lines.as_bytes()).with_context(|| format!("write {}", path.display()))?;
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.netns))
            .args(["dnsperf", "-l", "1", "-c", "4", "-q", "64", "-d"])
            .arg(path)
            .args(["-s", &server.to_string()])
            .stderr(Stdio::null())
            .output()
            .context("run dnsperf")?;
        let report = String::from_utf8_lossy(&output.stdout);
        let number = |label: &str| -> Result<f64> {
            let line = report.lines().find_map(|line| line.trim().strip_prefix(label));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.with_context(|| format!("dnsperf prints no `{label}`: {report}"))?
                .parse()
                .context(report.to_string())
        };
        let (rcode, _) = kind.rcode();
        let codes = report.lines().find(|line| line.contains("Response codes:")).unwrap_or_default();
        ensure!(
            codes.contains(rcode) && codes.contains("(100.00%)"),
            "{server} answers {} wrongly: {codes}",
            kind.title()
        );
        Ok(Load { queries: number("Queries completed:")? as u64, per_second: number("Queries per second:")? })
    }
}

/// A query of class IN with recursion desired (RFC 1035, section 4.1).
fn query(id: u16, name: &str, rtype: u16) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(rtype.to_be_bytes());
    packet.extend([0, 1]);
    packet
}
