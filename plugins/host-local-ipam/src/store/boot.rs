//! Which run of the kernel this is, and when it began.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, SystemTime};

/// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`): 36 characters, drawn anew at every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BootId([u8; Self::LEN]);

impl BootId {
    pub(super) const LEN: usize = 36;

    /// `None` where the kernel does not tell.
    pub(super) fn current() -> Option<Self> {
        let mut id = [0; Self::LEN];
        File::open("/proc/sys/kernel/random/boot_id").and_then(|mut file| file.read_exact(&mut id)).ok()?;
        Some(Self(id))
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// When the kernel started, by today's clock. That clock may be wrong: never rely on this alone.
pub(super) fn started() -> Option<SystemTime> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = text.split(' ').next()?.parse().ok()?;
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(uptime).ok()?)
}
