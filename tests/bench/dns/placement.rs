//! On which CPUs the client and a server run.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::server::Server;

/// Where a server runs, seen from its client.
#[derive(Clone, Copy)]
pub(super) enum Placement {
    /// On the client's CPU, which goes from one to the other.
    Together,
    /// On another CPU, which sleeps in between.
    Apart,
}

impl Placement {
    pub(super) const ALL: [Self; 2] = [Self::Together, Self::Apart];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Together => "one CPU",
            Self::Apart => "two CPUs",
        }
    }

    /// Keeps the calling thread and all threads of `server` where they shall be, until the answer is dropped.
    pub(super) fn pin(self, server: &dyn Server) -> Result<Pinned> {
        let all = sched_getaffinity(Pid::from_raw(0)).context("the CPUs of this thread")?;
        let mut cpus = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or_default());
        let first = cpus.next().context("a CPU for this thread")?;
        let second = cpus.next().unwrap_or(first);
        let mut threads = Vec::new();
        for pid in server.pids()? {
            for entry in fs::read_dir(format!("/proc/{pid}/task")).context("the threads of a server")? {
                let name = entry.context("the threads of a server")?.file_name();
                let thread = name.to_str().and_then(|name| name.parse().ok()).context("a thread's number")?;
                threads.push(Pid::from_raw(thread));
            }
        }
        ensure!(!threads.is_empty(), "{} does not run", server.title());
        let pinned = Pinned { threads, all };
        let server_cpu = only(if matches!(self, Self::Together) { first } else { second })?;
        for thread in &pinned.threads {
            sched_setaffinity(*thread, &server_cpu).context("pin a server")?;
        }
        sched_setaffinity(Pid::from_raw(0), &only(first)?).context("pin the client")?;
        Ok(pinned)
    }
}

fn only(cpu: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(cpu).context("name a CPU")?;
    Ok(set)
}

/// Lets go what is pinned.
pub(super) struct Pinned {
    threads: Vec<Pid>,
    all: CpuSet,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A thread that has ended since needs no CPU.
        for thread in self.threads.iter().chain([&Pid::from_raw(0)]) {
            let _ = sched_setaffinity(*thread, &self.all);
        }
    }
}
