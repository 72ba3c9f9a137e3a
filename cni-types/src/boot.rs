//! Which run of the kernel this is.

use std::fs::File;
use std::io::Read as _;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`): 36 characters, drawn anew at every start.
///
/// Whatever carries another one is of a container that is dead: no process outlives the kernel that it runs on, and one
/// that wakes from hibernation has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId([u8; Self::LEN]);

impl BootId {
    /// Octets of an id.
    pub const LEN: usize = 36;

    /// `None` where the kernel does not tell. It is asked once.
    pub fn current() -> Option<Self> {
        static CURRENT: LazyLock<Option<BootId>> = LazyLock::new(|| {
            let mut id = [0; BootId::LEN];
            File::open("/proc/sys/kernel/random/boot_id")
                .and_then(|mut file| file.read_exact(&mut id))
                .ok()?;
            Some(BootId(id))
        });
        *CURRENT
    }

    /// The id with these octets.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Its octets.
    pub fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Whether this is provably not the boot that runs now.
    pub fn is_over(self) -> bool {
        Self::current().is_some_and(|current| current != self)
    }
}

impl TryFrom<String> for BootId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.as_bytes().try_into().map(Self).map_err(|_| format!("\"{text}\" is not the id of a boot"))
    }
}

impl From<BootId> for String {
    fn from(BootId(bytes): BootId) -> Self {
        Self::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_the_kernel_writes_it_and_another_one_is_of_an_earlier_boot() {
        let current = BootId::current().unwrap();
        let kernels = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let written = serde_json::to_string(&current).unwrap();
        assert_eq!(written, format!("\"{}\"", kernels.trim_end()));
        assert_eq!(serde_json::from_str::<BootId>(&written).unwrap(), current);
        assert!(!current.is_over() && BootId::from_bytes([b'0'; BootId::LEN]).is_over());
        assert!(serde_json::from_str::<BootId>("\"7\"").is_err());
    }
}
