//! CHECK: the attachment's leases are there, and are the addresses that ADD answered with.

use cni_types::{AttachmentCall, CniResult, Error, ErrorCode};

use crate::allocator::RequestableFrom;
use crate::config::Settings;
use crate::span::Point;
use crate::store::DiskStore;

pub(crate) fn check(call: &AttachmentCall) -> Result<(), Error> {
    let settings = Settings::read(call.conf())?;
    // Nothing is asked for here, but what ADD refuses is wrong here too.
    settings.wishes(&call.env().args()?)?;
    let prev_result = call.conf().prev_result()?;
    let leased = match DiskStore::open_existing(&settings.place)? {
        Some(mut store) => {
            log::debug!("locked the leases of the network");
            let leased = store.leases_of(call.attachment());
            store.finish();
            leased?
        }
        None => Vec::new(),
    };
    log::debug!("found {} leases", leased.len());
    if leased.is_empty() {
        return Err(changed(format!(
            "host-local: Failed to find address added by container {}",
            call.attachment().container_id()
        )));
    }
    match prev_result {
        Some(result) => compare(&leased, &result, &settings),
        None => Ok(()),
    }
}

/// Every lease is in the result, and every address of the result that could be one of ours is leased. Addresses
/// elsewhere belong to other plugins of the chain.
fn compare(leased: &[Point], result: &CniResult, settings: &Settings) -> Result<(), Error> {
    let told: Vec<Point> = result.ips.iter().map(|ip| Point::from(ip.address.ip())).collect();
    let ours = |point: &Point| {
        settings.sets.iter().any(|set| match settings.requestable_from {
            RequestableFrom::Range => set.contains(*point),
            RequestableFrom::Subnet => set.subnet_of(*point).is_some(),
        })
    };
    let differences: Vec<String> = leased
        .iter()
        .filter(|lease| !told.contains(lease))
        .map(|lease| format!("{lease} is leased but not in prevResult"))
        .chain(
            told.iter()
                .filter(|address| ours(address) && !leased.contains(address))
                .map(|address| format!("{address} is in prevResult but not leased")),
        )
        .collect();
    if differences.is_empty() { Ok(()) } else { Err(changed(differences.join("; "))) }
}

fn changed(what: String) -> Error {
    Error::new(ErrorCode::CHANGED, what)
}
