//! [`ThisHost`]: the real [`Host`]. Each answer is the cheapest that the kernel gives, for ADD pays for it.

use std::net::IpAddr;

use caps::{CapSet, Capability};
use cni_types::{Environment, Error};

use crate::daemon::{self, Client, ClientError};
use crate::host::{Host, Withdrawn};
use crate::host_address;
use crate::records::{Record, RecordKey, since_boot};
use crate::serve::listen::PORT;
use crate::state_dir::StateDir;
use crate::zone::Listener;

/// The first port that needs no right to listen on (ip-sysctl).
const UNPRIVILEGED_PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// The host that this process runs on, and the server of its network namespace.
#[derive(Debug)]
pub(crate) struct ThisHost;

impl Host for ThisHost {
    fn state(&self, env: &Environment) -> Result<StateDir, Error> {
        StateDir::of_host(env)
    }

    fn device_with(&self, ip: IpAddr, listed: &[&str]) -> Result<Option<String>, Error> {
        let failed = |error| Error::io(format_args!("look for the device that has {ip}"), &error);
        host_address::device_with(ip, listed).map_err(failed)
    }

    fn now(&self) -> u64 {
        since_boot()
    }

    fn can_listen(&self) -> Result<(), String> {
        if caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE).unwrap_or(false) {
            return Ok(());
        }
        let first = std::fs::read_to_string(UNPRIVILEGED_PORT_START)
            .ok()
            .and_then(|port| port.trim().parse::<u16>().ok());
        match first {
            Some(first) if first <= PORT => Ok(()),
            _ => Err(format!("no right to listen on port {PORT} (CAP_NET_BIND_SERVICE)")),
        }
    }

    fn publish(&self, state: &StateDir, record: &Record) -> Result<Vec<RecordKey>, Error> {
        let listeners: Vec<Listener> = listeners_of(record).collect();
        Ok(Client::ensure(state)?.apply(&record.key, &listeners)?)
    }

    fn withdraw(&self, state: &StateDir, keys: &[RecordKey]) -> Result<Withdrawn, Error> {
        let Some(mut server) = Client::connect_existing(state)? else { return Ok(Withdrawn::FromNobody) };
        match server.remove(keys) {
            Ok(()) => Ok(Withdrawn::FromServer),
            // It died on the way.
            Err(ClientError::Lost(_)) => Ok(Withdrawn::FromNobody),
            Err(error) => Err(error.into()),
        }
    }

    fn tend(&self, state: &StateDir) -> Result<(), Error> {
        if state.path().exists() { Ok(daemon::tend(state)?) } else { Ok(()) }
    }

    fn clear(&self, state: &StateDir) -> Result<(), Error> {
        if state.path().exists() {
            daemon::clear(state)?;
        }
        Ok(())
    }

    fn answers(&self, state: &StateDir, record: &Record) -> Result<bool, Error> {
        let mut server = Client::ensure(state)?;
        if !server.contains(&record.key)? {
            return Ok(false);
        }
        let listeners: Vec<Listener> = listeners_of(record).collect();
        Ok(server.listens(&record.key, &listeners)?)
    }
}

/// Where `record` is answered by.
fn listeners_of(record: &Record) -> impl Iterator<Item = Listener> {
    record.gateways.iter().map(|gateway| Listener { bridge: record.bridge.clone(), gateway: gateway.ip() })
}
