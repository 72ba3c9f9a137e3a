//! What a worker does after another one has taken over: it sees to the end what it asks elsewhere for clients that wait,
//! and nothing else.
//!
//! Lock, control socket, supervisor and guard are gone by then. It reads no query any more, for the other worker alone
//! hears what changes; of the records it only follows which gateways are needed, so that it holds no port that none is
//! needed at.

use std::time::Instant;

use crate::forward::TOTAL;
use crate::poller::{Kind, Poller, Token};
use crate::records::RecordKey;
use crate::records::disk::Store;
use crate::records::watch::{Change, Watch};
use crate::serve::Server;

/// A worker that has been retired.
pub(super) struct Retired {
    pub(super) poller: Poller,
    pub(super) server: Server,
    pub(super) store: Store,
    pub(super) watch: Watch,
}

impl Retired {
    /// Returns when nobody waits any more, or nobody would any longer.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        let end = Instant::now() + TOTAL;
        let mut ready = Vec::new();
        self.server.take_no_more(&self.poller);
        // What has changed meanwhile may be known to the other worker alone.
        self.follow();
        while self.server.is_awaited() {
            let now = Instant::now();
            let until = self.server.deadline().map_or(end, |deadline| deadline.min(end));
            if now >= end {
                break;
            }
            self.poller.wait(Some(until.saturating_duration_since(now)), &mut ready)?;
            if ready.contains(&Token::only(Kind::Records)) && !self.follow() {
                break;
            }
            for token in ready.drain(..) {
                if matches!(token.kind, Kind::Connection | Kind::Upstream) {
                    self.server.ready(&self.poller, token);
                }
            }
            self.server.expire(&self.poller);
        }
        Ok(())
    }

    /// Lets go of the gateways that no record needs any more. Tells whether the records are still there.
    fn follow(&mut self) -> bool {
        for change in self.watch.changes() {
            let zones = &self.server.desk().zones;
            let keys: Vec<RecordKey> = match change {
                Change::Record(key) => vec![key],
                Change::Network(network) => zones.keys_on(&network),
                Change::Everything => zones.keys().collect(),
                Change::Gone => return false,
            };
            for key in keys {
                let zones = &mut self.server.desk().zones;
                match self.store.read(&key) {
                    Ok(Some(record)) => {
                        zones.apply(record);
                    }
                    Ok(None) => {
                        zones.remove(&key);
                    }
                    // What was known before stays.
                    Err(_) => {}
                }
            }
        }
        self.server.close_unneeded(&self.poller);
        true
    }
}
