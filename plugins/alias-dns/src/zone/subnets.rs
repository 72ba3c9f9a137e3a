//! [`Subnets`]: the subnets of gateway addresses, found by an address in the same time however many there are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::tally::Tally;

/// The first address of each, by the length of its prefix: of these there are few, however many subnets there are.
#[derive(Debug, Default)]
pub(super) struct Subnets(BTreeMap<u8, Tally<IpAddr>>);

impl Subnets {
    /// Adds the subnet of `gateway`; it is there until it is removed as often.
    pub(super) fn add(&mut self, gateway: IpNetwork) {
        self.0.entry(gateway.prefix()).or_default().add(gateway.network());
    }

    /// Removes the subnet of `gateway`.
    pub(super) fn remove(&mut self, gateway: IpNetwork) {
        if let Some(alike) = self.0.get_mut(&gateway.prefix()) {
            alike.remove(&gateway.network());
            if alike.is_empty() {
                self.0.remove(&gateway.prefix());
            }
        }
    }

    /// The innermost subnet that every address with the first `bits` bits of `ip` is in.
    pub(super) fn around(&self, ip: IpAddr, bits: u8) -> Option<IpNetwork> {
        self.0.range(..=bits).rev().find_map(|(length, alike)| {
            // None where an IPv4 address has not so many bits.
            let within = IpNetwork::new(ip, *length).ok()?;
            (alike.of(&within.network()) > 0).then_some(within)
        })
    }
}
