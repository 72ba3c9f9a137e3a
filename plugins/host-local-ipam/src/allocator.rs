//! Which address an attachment gets. Pure over a [`Store`]: it opens no file and knows no configuration syntax.
//!
//! One address of each range set, or none at all: whatever goes wrong, exactly the leases that this call made are given
//! back. Within a set the order is the reference's: the address asked for; else the next free one after the one leased
//! last, range by range and round again.

use std::net::IpAddr;

use cni_types::Attachment;
use serde::Deserialize;

use crate::range::{Range, Reserved};
use crate::range_set::RangeSet;
use crate::span::{Point, Span};
use crate::store::{Holder, Life, Reservation, Store, StoreError};

/// Where the search for a free address starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// After the address leased last, so that a released address rests as long as possible.
    #[default]
    RoundRobin,
    /// At the lowest address of the set.
    Lowest,
}

/// Where an address that is asked for may come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RequestableFrom {
    /// The ranges only.
    #[default]
    Range,
    /// Anywhere in the ranges' subnets.
    Subnet,
}

/// What an attachment is to be given.
#[derive(Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) attachment: &'a Attachment,
    /// One address is leased from each.
    pub(crate) sets: &'a [RangeSet],
    pub(crate) order: Order,
    pub(crate) requestable_from: RequestableFrom,
    /// Addresses asked for, each once; each has to be had.
    pub(crate) requested: &'a [IpAddr],
    /// Addresses to be had if they are free.
    pub(crate) preferred: &'a [Point],
}

/// An address leased, and the range that it is from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allocation<'a> {
    pub(crate) address: Point,
    pub(crate) range: &'a Range,
}

/// Why nothing was leased; the texts are the reference's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AllocateError {
    #[error(
        "failed to allocate for range {set}: {address} has been allocated to {container_id}, duplicate allocation is not allowed"
    )]
    Duplicate { set: usize, address: Point, container_id: String },
    #[error(
        "failed to allocate for range {set}: requested IP address {address} is not available in range set {ranges}"
    )]
    Unavailable { set: usize, address: Point, ranges: String, holder: Option<Holder> },
    #[error("failed to allocate for range {set}: requested ip {address} is subnet's gateway")]
    Gateway { set: usize, address: Point },
    #[error(
        "failed to allocate for range {set}: requested ip {address} is excluded, or names the network or its broadcast"
    )]
    Excluded { set: usize, address: Point },
    #[error("failed to allocate for range {set}: no IP addresses available in range set: {ranges}")]
    Exhausted { set: usize, ranges: String },
    #[error("failed to allocate all requested IPs: {}", spaced(.0))]
    NotInAnySet(Vec<IpAddr>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn spaced(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Leases one address of each set to the attachment.
pub(crate) fn allocate<'a>(
    store: &mut impl Store,
    demand: &Demand<'a>,
) -> Result<Vec<Allocation<'a>>, AllocateError> {
    let mut made = Vec::with_capacity(demand.sets.len());
    match allocate_into(&mut made, store, demand) {
        Ok(()) => Ok(made),
        Err(error) => {
            give_back(store, &made);
            Err(error)
        }
    }
}

/// Releases what [`allocate`] leased.
pub(crate) fn give_back(store: &mut impl Store, made: &[Allocation<'_>]) {
    for allocation in made {
        if let Err(error) = store.release(allocation.address) {
            log::error!("give {} back: {error}", allocation.address);
        }
    }
}

fn allocate_into<'a>(
    made: &mut Vec<Allocation<'a>>,
    store: &mut impl Store,
    demand: &Demand<'a>,
) -> Result<(), AllocateError> {
    let held = store.held_by(demand.attachment)?;
    let mut requested: Vec<IpAddr> = demand.requested.to_vec();
    for (index, set) in demand.sets.iter().enumerate() {
        for lease in held.iter().filter(|lease| demand.range_in(index, lease.address).is_some()) {
            match lease.life {
                Life::Over => store.release(lease.address)?,
                Life::Possible => {
                    return Err(AllocateError::Duplicate {
                        set: index,
                        address: lease.address,
                        container_id: demand.attachment.container_id().to_owned(),
                    });
                }
            }
        }
        let place =
            requested.iter().position(|address| demand.range_in(index, Point::from(*address)).is_some());
        let address = match place {
            Some(place) => reserve_requested(store, demand, index, Point::from(requested.remove(place)))?,
            None => reserve_free(store, demand, index, set)?,
        };
        // Known to be there: the address was looked for in this set's ranges.
        if let Some(range) = demand.range_in(index, address) {
            made.push(Allocation { address, range });
        }
    }
    if !requested.is_empty() {
        return Err(AllocateError::NotInAnySet(requested));
    }
    for (index, (allocation, set)) in made.iter().zip(demand.sets).enumerate() {
        // One outside of the ranges says nothing of where to go on in them.
        if set.contains(allocation.address) {
            store.set_last_reserved(index, allocation.address)?;
        }
    }
    Ok(())
}

impl<'a> Demand<'a> {
    /// The range of set `index` that answers for `point`. Outside of all ranges it is the first set whose subnet has
    /// it, if such addresses are to be had at all.
    fn range_in(&self, index: usize, point: Point) -> Option<&'a Range> {
        let set = self.sets.get(index)?;
        let outside = |set: &RangeSet| !set.contains(point);
        match self.requestable_from {
            RequestableFrom::Subnet if self.sets.iter().all(outside) => {
                let earlier = self.sets.iter().take(index).any(|set| set.subnet_of(point).is_some());
                if earlier { None } else { set.subnet_of(point) }
            }
            _ => set.range_of(point),
        }
    }
}

fn reserve_requested(
    store: &mut impl Store,
    demand: &Demand<'_>,
    index: usize,
    address: Point,
) -> Result<Point, AllocateError> {
    match demand.range_in(index, address).and_then(|range| range.reserved(address)) {
        Some(Reserved::Gateway) => return Err(AllocateError::Gateway { set: index, address }),
        Some(Reserved::Excluded) => return Err(AllocateError::Excluded { set: index, address }),
        None => {}
    }
    match reserve_exactly(store, address, demand.attachment)? {
        Reservation::Made => Ok(address),
        Reservation::Taken { holder, .. } => {
            let ranges = demand.sets.get(index).map(ToString::to_string).unwrap_or_default();
            Err(AllocateError::Unavailable { set: index, address, ranges, holder })
        }
    }
}

/// Leases `address` and no other, so that a lease of the dead has to make way.
fn reserve_exactly(
    store: &mut impl Store,
    address: Point,
    attachment: &Attachment,
) -> Result<Reservation, StoreError> {
    match store.reserve(address, attachment)? {
        Reservation::Taken { life: Life::Over, .. } => {
            store.release(address)?;
            store.reserve(address, attachment)
        }
        reservation => Ok(reservation),
    }
}

fn reserve_free(
    store: &mut impl Store,
    demand: &Demand<'_>,
    index: usize,
    set: &RangeSet,
) -> Result<Point, AllocateError> {
    for &address in demand.preferred {
        let to_be_had =
            demand.range_in(index, address).is_some_and(|range| range.reserved(address).is_none());
        if to_be_had && reserve_exactly(store, address, demand.attachment)? == Reservation::Made {
            return Ok(address);
        }
    }
    let spans: Vec<Span> = match (demand.order, store.last_reserved(index)) {
        (Order::RoundRobin, Some(last)) => set.leasable_after(last),
        (Order::RoundRobin, None) | (Order::Lowest, _) => set.leasable().collect(),
    };
    if let Some(address) = reserve_first(store, demand.attachment, &spans)? {
        return Ok(address);
    }
    if store.reclaim(&spans)?
        && let Some(address) = reserve_first(store, demand.attachment, &spans)?
    {
        return Ok(address);
    }
    Err(AllocateError::Exhausted { set: index, ranges: set.to_string() })
}

/// Leases the first address of `spans`, in their order, that can be had.
fn reserve_first(
    store: &mut impl Store,
    attachment: &Attachment,
    spans: &[Span],
) -> Result<Option<Point>, StoreError> {
    for &span in spans {
        let mut rest = Some(span);
        while let Some(span) = rest {
            let Some(address) = store.first_free(span)? else { break };
            if store.reserve(address, attachment)? == Reservation::Made {
                return Ok(Some(address));
            }
            rest = span.after(address);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
