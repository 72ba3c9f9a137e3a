//! Which run of the kernel this is, and when it began.

use std::time::{Duration, SystemTime};

/// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`): 36 characters, drawn anew at every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BootId([u8; Self::LEN]);

impl BootId {
    pub(super) const LEN: usize = 36;

    /// `None` where the kernel does not tell.
    pub(super) fn current() -> Option<Self> {
        let text = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        text.get(..Self::LEN)?.try_into().ok().map(Self)
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
