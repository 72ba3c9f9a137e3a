//! What a worker does after another one has taken over: it sees to the end what it asks elsewhere for clients that wait,
//! and what comes in on connections that it has taken and not answered on yet. Nothing else.
//!
//! Lock, control socket, supervisor and guard are gone by then, and nobody tells it what changes. So it looks at the
//! records before each question that it answers, and holds no port that none is needed at.

use std::time::Instant;

use crate::forward::TOTAL;
use crate::poller::{Kind, Poller, Token};
use crate::records::disk::Store;
use crate::records::watch::{Change, Watch};
use crate::records::{Record, RecordKey};
use crate::serve::Server;
use crate::zone::Zones;

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
        if !self.follow() {
            return Ok(());
        }
        self.server.leave_connections(&self.poller);
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
                if token.kind == Kind::Connection && !self.follow() {
                    return Ok(());
                }
                if matches!(token.kind, Kind::Connection | Kind::Upstream) {
                    self.server.ready(&self.poller, token);
                }
            }
            self.server.expire(&self.poller);
        }
        Ok(())
    }

    /// Answers by what has changed, and lets go of the gateways that no record needs any more. Tells whether the records
    /// are still there.
    fn follow(&mut self) -> bool {
        let changes = self.watch.changes();
        if changes.is_empty() {
            return true;
        }
        let Self { server, store, .. } = self;
        let zones = &mut server.desk().zones;
        for change in changes {
            // Those that nothing is known of come first; what cannot be read stays as it was.
            let known: Vec<RecordKey> = match change {
                Change::Record(key) => vec![key],
                Change::Network(network) => {
                    let known = zones.keys_on(&network);
                    store.read_each_on(&network, &mut |record| apply(zones, record));
                    known
                }
                Change::Everything => {
                    let known = zones.keys().collect();
                    store.read_each(|record| apply(zones, record));
                    known
                }
                Change::Gone => return false,
            };
            for key in known {
                match store.read(&key) {
                    Ok(Some(record)) => apply(zones, record),
                    Ok(None) => {
                        zones.remove(&key);
                    }
                    Err(_) => {}
                }
            }
        }
        self.server.close_unneeded(&self.poller);
        true
    }
}

fn apply(zones: &mut Zones, record: Record) {
    if !record.is_of_earlier_boot() {
        zones.apply(record);
    }
}
