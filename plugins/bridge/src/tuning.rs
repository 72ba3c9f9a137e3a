//! What the reference's `tuning` found on the container's interface, where it changed that later in the chain.
//!
//! A later plugin may change what ADD made, and CHECK has to allow for it (SPEC.md of CNI, section CHECK). Of what
//! `tuning` changes, the result has the hardware address alone. It notes down what was there before, to put it back at
//! DEL; that the value of today is the one wished for is looked at by its own CHECK.

use std::io::ErrorKind;
use std::path::Path;

use cni_types::Attachment;
use serde::Deserialize;

use crate::mac::Mac;

/// Where `tuning` keeps its notes, unless its configuration has a `dataDir`.
const NOTES: &str = "/run/cni/tuning";

/// What the interface had before `tuning`; nothing for what that left alone.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Before {
    mtu: Option<u32>,
    mac: Option<String>,
}

impl Before {
    /// What is noted of an attachment. A note that cannot be read is none: what it would explain is a difference then.
    pub(crate) fn noted(attachment: &Attachment) -> Self {
        let name = format!("{}_{}.json", attachment.container_id(), attachment.ifname());
        let path = Path::new(NOTES).join(name);
        let note = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::default(),
            read => read.map_err(anyhow::Error::from),
        };
        note.and_then(|note| Ok(serde_json::from_slice(&note)?)).unwrap_or_else(|error| {
            log::warn!("read what tuning noted in {}: {error:#}", path.display());
            Self::default()
        })
    }

    /// The MTU in bytes.
    pub(crate) fn mtu(&self) -> Option<u32> {
        self.mtu
    }

    /// The hardware address.
    pub(crate) fn mac(&self) -> Option<Mac> {
        self.mac.as_deref()?.parse().ok()
    }
}
