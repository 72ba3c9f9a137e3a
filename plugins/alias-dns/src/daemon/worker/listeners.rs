//! The gateway addresses: what the records need is opened, where that is still possible, and what none needs is closed.

use std::io::Result;
use std::os::fd::AsFd as _;
use std::time::Instant;

use super::Worker;
use super::possession::label_of;
use crate::daemon::control::{Open, Wanted};
use crate::daemon::gateway::{self, Opened, Opening};
use crate::serve::listen::Sockets;
use crate::zone::Listener;

/// Where a listener is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The index that the bridge had then.
    pub(super) ifindex: u32,
    pub(super) port: u16,
}

/// `listener` with the index that its bridge has now.
pub(crate) fn wanted(listener: &Listener) -> Result<Wanted> {
    let ifindex = nix::net::if_::if_nametoindex(listener.bridge.as_str())?;
    Ok(Wanted::new(listener, ifindex))
}

impl Worker {
    pub(super) fn open(&mut self, open: Open, sockets: Sockets) -> Result<()> {
        let Open { wanted, port } = open;
        let listener = wanted.listener();
        self.forget(&listener);
        // First of all: what the keepers have stays open, and bound to its place, also where this fails.
        self.server.open(&self.poller, listener.clone(), port, sockets)?;
        if let Some(sockets) = self.server.sockets(&listener) {
            for keeper in self.keepers() {
                // One that is gone is missed in a moment, and the next one gets everything.
                let _ = keeper.keep(&label_of(&wanted, port), &[sockets.udp.as_fd(), sockets.tcp.as_fd()]);
            }
        }
        self.closed.retain(|closed| closed.listener() != listener);
        self.open.insert(listener, Place { ifindex: wanted.ifindex, port });
        Ok(())
    }

    /// Takes back rules of an earlier server that no record needs any more.
    pub(super) fn sweep_rules(&mut self) {
        let needed = self.server.desk().zones.listeners().into_iter().collect();
        if let Err(error) = gateway::sweep(&needed) {
            log::debug!("sweep the host's rules: {error}");
        }
    }

    /// Opens what the records need and nobody has opened. The bridge may be gone: whoever attaches the next container to
    /// it opens it then, and is told what is wrong.
    pub(super) fn open_missing(&mut self) {
        let mut all = Vec::new();
        for listener in self.server.desk().zones.listeners() {
            if self.open.contains_key(&listener) {
                continue;
            }
            let opened = wanted(&listener).and_then(|wanted| {
                let Opening { sockets, port } = gateway::open(&listener)?;
                self.open(Open { wanted, port }, sockets)?;
                Ok(port)
            });
            match opened {
                Ok(port) => all.push(Opened { listener, port }),
                Err(error) => log::debug!("open {} on {}: {error}", listener.gateway, listener.bridge),
            }
        }
        if let Err(error) = gateway::let_in(&all) {
            log::warn!("let queries through the host's firewall: {error}");
        }
    }

    /// Closes `listener`; tells what it was, if it was open.
    fn forget(&mut self, listener: &Listener) -> Option<Wanted> {
        self.server.close(&self.poller, listener);
        let Place { ifindex, port, .. } = self.open.remove(listener)?;
        let wanted = Wanted::new(listener, ifindex);
        for keeper in self.keepers() {
            // One that is gone has dropped it already.
            let _ = keeper.drop(&label_of(&wanted, port));
        }
        Some(wanted)
    }

    /// Closes what no record needs any more, and notes when the last record went.
    pub(super) fn note_records(&mut self) {
        let zones = &self.server.desk().zones;
        let unneeded: Vec<Listener> =
            self.open.keys().filter(|listener| !zones.needs(listener)).cloned().collect();
        for listener in unneeded {
            let closed = self.forget(&listener);
            self.closed.extend(closed);
        }
        if !self.server.desk().zones.is_empty() {
            self.empty_since = None;
        } else if self.empty_since.is_none() {
            self.empty_since = Some(Instant::now());
        }
    }
}
