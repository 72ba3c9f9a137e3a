//! ADD: one address of each range set.

use cni_types::{AttachmentCall, CniResult, Dns, Error, ErrorCode, IpConfig, regular_file};

use crate::allocator::{self, AllocateError, Allocation, Demand};
use crate::config::{Settings, Wishes};
use crate::namespaces;
use crate::resolv_conf;
use crate::span::Point;
use crate::store::{DiskStore, StickyName};

pub(crate) fn add(call: &AttachmentCall) -> Result<CniResult, Error> {
    let settings = Settings::read(call.conf())?;
    let Wishes { requested, sticky_name } = settings.wishes(&call.env().args()?)?;
    let dns = read_dns(&settings)?;

    let netns = namespaces::enter(call.netns());
    let mut store = DiskStore::open(&settings.place)?;
    store.lease_for(netns);
    log::debug!("locked the leases of the network");
    let preferred = sticky_name.as_ref().map(|name| store.addresses_of(name)).unwrap_or_default();
    let demand = Demand {
        attachment: call.attachment(),
        sets: &settings.sets,
        order: settings.order,
        requestable_from: settings.requestable_from,
        requested: &requested,
        preferred: &preferred,
    };
    let leased = allocator::allocate(&mut store, &demand);
    for allocation in leased.iter().flatten() {
        log::debug!("leased {}", allocation.address);
    }
    if let (Some(name), Ok(leased)) = (&sticky_name, &leased) {
        remember(&mut store, name, leased);
    }
    store.finish();
    log::debug!("saved the index of the leases");

    let ips = leased?.iter().map(ip_config).collect();
    Ok(CniResult { ips, routes: settings.routes, dns, ..CniResult::default() })
}

fn ip_config(leased: &Allocation<'_>) -> IpConfig {
    IpConfig {
        interface: None,
        address: leased.range.with_prefix(leased.address),
        gateway: Some(leased.range.gateway()),
    }
}

/// The container has its addresses whether or not it will get the same ones next time.
fn remember(store: &mut DiskStore, name: &StickyName, leased: &[Allocation<'_>]) {
    let addresses: Vec<Point> = leased.iter().map(|allocation| allocation.address).collect();
    if let Err(error) = store.record_name(name, &addresses) {
        log::warn!("the address will not stay with the name: {error}");
    }
}

fn read_dns(settings: &Settings) -> Result<Dns, Error> {
    let Some(path) = &settings.resolv_conf else { return Ok(Dns::default()) };
    match regular_file::read(path) {
        Ok(bytes) => Ok(resolv_conf::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) => Err(Error::io(format_args!("ipam.resolvConf: open {}", path.display()), &error)),
    }
}

impl From<AllocateError> for Error {
    fn from(error: AllocateError) -> Self {
        let msg = error.to_string();
        match error {
            AllocateError::Store(error) => error.into(),
            AllocateError::Gateway { .. }
            | AllocateError::Excluded { .. }
            | AllocateError::NotInAnySet(_) => Self::new(ErrorCode::INVALID_CONFIG, msg),
            // Each of them ends when somebody is detached.
            AllocateError::Duplicate { .. } | AllocateError::Exhausted { .. } => {
                Self::new(ErrorCode::TRY_AGAIN_LATER, msg)
            }
            AllocateError::Unavailable { address, holder, .. } => {
                let error = Self::new(ErrorCode::TRY_AGAIN_LATER, msg);
                match holder {
                    Some(holder) => error.with_details(format!("{address} is leased to {holder}")),
                    None => error.with_details(format!("{address} is kept by a file that cannot be read")),
                }
            }
        }
    }
}
