//! [`Zones`]: every record in memory, found by name, by address and by container in the same time however many there
//! are. It owns the index and what of a record counts; it knows no question, no packet and no file.
//!
//! An update touches the entries of one record, so its cost does not grow with the number of records either. Text is
//! stored once: records refer to their names, addresses and container by number.

mod ancestors;
mod index;
mod key;
mod subnets;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use cni_types::Attachment;
use domain::base::RelativeName;
use hashbrown::HashMap;
use ipnetwork::IpNetwork;
use slab::Slab;

use self::ancestors::{Ancestors, stand_below};
pub(crate) use self::index::RecordIx;
use self::index::{Index, Key as _, SlotIx};
pub(crate) use self::key::Folded;
use self::key::{Address, ContainerId, Domain, Name, NameRef};
use self::subnets::Subnets;
use crate::domain_name::DomainName;
use crate::records::{Record, RecordKey};
use crate::tally::Tally;

/// Holders of its names that a new record is compared with.
const MAX_NAMESAKES: usize = 4;

/// Octets of the container id of such a holder: a few longer ones would not fit into the message that tells of them.
const LONGEST_TOLD: usize = 4096;

/// Number of a network.
pub(crate) type NetworkIx = u32;

/// Labels without the root label, as they stand in a message.
pub(crate) type Labels = RelativeName<Box<[u8]>>;

/// All records, indexed.
#[derive(Debug, Default)]
pub struct Zones {
    records: Slab<Entry>,
    containers: Index<ContainerId>,
    names: Index<Name>,
    ancestors: Ancestors,
    addresses: Index<Address>,
    networks: Slab<Network>,
    network_names: HashMap<Box<str>, NetworkIx>,
    surroundings: Surroundings,
}

/// One record, with numbers for what others may hold as well.
#[derive(Debug)]
struct Entry {
    network: NetworkIx,
    container: SlotIx,
    ifname: Box<str>,
    joined: u64,
    addresses: Box<[SlotIx]>,
    names: Box<[SlotIx]>,
    links: Box<[Link]>,
    terms: Rc<Terms>,
}

/// A private name.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) alias: Labels,
    pub(crate) target: Labels,
}

/// What the attachments of a network have in common, unless its configuration changes under them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Terms {
    pub(crate) bridge: Box<str>,
    pub(crate) gateways: Box<[IpNetwork]>,
    /// The first one is what addresses are reversed into.
    pub(crate) domains: Box<[Labels]>,
    pub(crate) ttl: u32,
    pub(crate) forward: bool,
    pub(crate) upstreams: Box<[SocketAddr]>,
}

#[derive(Debug)]
struct Network {
    name: Box<str>,
    records: usize,
    /// All terms that records of the network have, each once, in order.
    terms: Vec<Rc<Terms>>,
}

/// What follows from the terms of all networks.
#[derive(Debug, Default)]
struct Surroundings {
    /// The networks of a bridge, by name.
    bridges: HashMap<Box<str>, Vec<NetworkIx>>,
    domains: Index<Domain>,
    subnets: Subnets,
    /// Where the server has to listen.
    listeners: Tally<Listener>,
}

/// An address that the server listens on, and the device that queries to it come in by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    /// The bridge.
    pub bridge: String,
    /// A gateway address on it.
    pub gateway: IpAddr,
}

/// What [`Zones::apply`] found out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Older records of the same network whose address the new one has now, whose containers are most likely dead; and
    /// records that hold one of its names as well, a few of many: one may be of the container that it takes the place of.
    pub rivals: Vec<RecordKey>,
}

impl Zones {
    /// Zones of `records`; of two for the same attachment the last one counts.
    pub fn load(records: impl IntoIterator<Item = Record>) -> Self {
        let mut zones = Self::default();
        for record in records {
            zones.apply(record);
        }
        zones
    }

    /// Puts `record` in, in place of an earlier one of the same attachment.
    pub fn apply(&mut self, record: Record) -> Applied {
        self.remove(&record.key);
        let network = self.network_for(record.key.network());
        let terms = self.join(network, Terms::of(&record));
        let entry = self.records.vacant_entry();
        let added = entry.key() as RecordIx;
        entry.insert(Entry {
            network,
            container: SlotIx::MAX,
            ifname: record.key.ifname().into(),
            joined: record.joined,
            addresses: Box::default(),
            names: Box::default(),
            links: record
                .links
                .iter()
                .map(|link| Link { alias: link.alias.to_wire(), target: link.target.to_wire() })
                .collect(),
            terms,
        });
        let age = |record: RecordIx| age_of(&self.records, &self.networks, record);
        let container = self.containers.add(record.key.container_id(), added, |a, b| age(a).cmp(&age(b)));
        self.records[added as usize].container = container;
        let age = |record: RecordIx| {
            let container = self.records[record as usize].container;
            (age_of(&self.records, &self.networks, record), &self.containers.key(container).0)
        };
        let mut names = Vec::with_capacity(record.names.len());
        for name in &record.names {
            let labels = name.to_wire();
            let key = NameRef { network, labels: Folded(labels.as_slice()) };
            // A name written twice is held once.
            if !self.names.holders_of(key).contains(&added) {
                names.push(self.names.add(key, added, |a, b| age(a).cmp(&age(b))));
                self.ancestors.add_those_of(key);
            }
        }
        let mut addresses = Vec::with_capacity(record.addresses.len());
        for ip in &record.addresses {
            let key = Address { network, ip: *ip };
            if !self.addresses.holders_of(key).contains(&added) {
                // The newest first: it is the one that has the address.
                addresses.push(self.addresses.add(key, added, |a, b| age(b).cmp(&age(a))));
            }
        }
        let entry = &mut self.records[added as usize];
        entry.names = names.into();
        entry.addresses = addresses.into();
        Applied { rivals: self.rivals_of(added) }
    }

    /// Takes the record of `key` out. Tells whether there was one.
    pub fn remove(&mut self, key: &RecordKey) -> bool {
        let Some(removed) = self.find(key) else { return false };
        // From the indexes first: their order is that of the records.
        let entry = &self.records[removed as usize];
        for slot in &entry.names {
            self.ancestors.remove_those_of(self.names.key(*slot).borrow());
            self.names.remove(*slot, removed);
        }
        for slot in &entry.addresses {
            self.addresses.remove(*slot, removed);
        }
        self.containers.remove(entry.container, removed);
        let Entry { network, terms, .. } = self.records.remove(removed as usize);
        drop(terms);
        self.leave(network);
        true
    }

    /// Whether the record of `key` is in.
    pub fn contains(&self, key: &RecordKey) -> bool {
        self.find(key).is_some()
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whose records are in.
    pub fn keys(&self) -> impl Iterator<Item = RecordKey> + '_ {
        self.records.iter().filter_map(|(ix, _)| self.key(ix as RecordIx))
    }

    /// Whose records are in on `network`.
    pub(crate) fn keys_on(&self, network: &str) -> Vec<RecordKey> {
        let Some(network) = self.network_names.get(network) else { return Vec::new() };
        let there = self.records.iter().filter(|(_, entry)| entry.network == *network);
        there.filter_map(|(ix, _)| self.key(ix as RecordIx)).collect()
    }

    /// Each network with its number of records.
    pub fn networks(&self) -> impl Iterator<Item = (&str, usize)> {
        self.networks.iter().map(|(_, network)| (network.name.as_ref(), network.records))
    }

    /// Where the server has to listen, each once, in order.
    pub fn listeners(&self) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = self.surroundings.listeners.iter().cloned().collect();
        listeners.sort_unstable();
        listeners
    }

    /// Whether the server has to listen on `listener`.
    pub(crate) fn needs(&self, listener: &Listener) -> bool {
        self.surroundings.listeners.of(listener) > 0
    }

    fn find(&self, key: &RecordKey) -> Option<RecordIx> {
        let network = *self.network_names.get(key.network())?;
        let is_it = |record: &&RecordIx| {
            let entry = &self.records[**record as usize];
            entry.network == network && *entry.ifname == *key.ifname()
        };
        self.containers.holders_of(key.container_id()).iter().find(is_it).copied()
    }

    fn key(&self, record: RecordIx) -> Option<RecordKey> {
        let entry = &self.records[record as usize];
        let attachment = Attachment::new(&self.containers.key(entry.container).0, &entry.ifname).ok()?;
        RecordKey::new(&self.networks[entry.network as usize].name, attachment).ok()
    }

    /// Those whose address `record` has taken over, and some that share a name with it.
    fn rivals_of(&self, record: RecordIx) -> Vec<RecordKey> {
        let entry = &self.records[record as usize];
        let older = |slot: &SlotIx| {
            self.addresses.holders(*slot).iter().skip_while(|holder| **holder != record).skip(1)
        };
        let mut rivals: Vec<RecordIx> = entry.addresses.iter().flat_map(older).copied().collect();
        // Each costs the plugin a look at a file. Of an alias that thousands hold, others come each time: when the record
        // was made is as good as a random number.
        let namesakes = entry.names.iter().flat_map(|slot| {
            let holders = self.names.holders(*slot);
            let (before, from) = holders.split_at(entry.joined as usize % holders.len());
            from.iter().chain(before)
        });
        let is_told =
            |holder: &&RecordIx| **holder != record && self.container_id(**holder).len() <= LONGEST_TOLD;
        rivals.extend(namesakes.filter(is_told).take(MAX_NAMESAKES));
        rivals.sort_unstable();
        rivals.dedup();
        rivals.into_iter().filter_map(|rival| self.key(rival)).collect()
    }

    fn network_for(&mut self, name: &str) -> NetworkIx {
        if let Some(known) = self.network_names.get(name) {
            return *known;
        }
        let network = Network { name: name.into(), records: 0, terms: Vec::new() };
        let added = self.networks.insert(network) as NetworkIx;
        self.network_names.insert(name.into(), added);
        added
    }

    /// Counts one record more on `network`, and shares `terms` with those that have the same.
    fn join(&mut self, network: NetworkIx, terms: Terms) -> Rc<Terms> {
        let joined = &mut self.networks[network as usize];
        joined.records += 1;
        let place = match joined.terms.binary_search_by(|known| (**known).cmp(&terms)) {
            Ok(known) => return Rc::clone(&joined.terms[known]),
            Err(place) => place,
        };
        let shared = Rc::new(terms);
        joined.terms.insert(place, Rc::clone(&shared));
        self.surroundings.add(network, &shared, &self.networks);
        shared
    }

    /// Counts one record less on `network`, and forgets terms that nobody has any more.
    fn leave(&mut self, network: NetworkIx) {
        let left = &mut self.networks[network as usize];
        left.records -= 1;
        if let Some(gone) = left.terms.iter().position(|terms| Rc::strong_count(terms) == 1) {
            let gone = left.terms.remove(gone);
            self.surroundings.remove(network, &gone, &left.terms);
        }
        if left.records == 0 {
            let Network { name, .. } = self.networks.remove(network as usize);
            self.network_names.remove(&name);
        }
    }
}

/// The order in which attachments were made. Two made in the same nanosecond keep an order, whatever it is.
fn age_of<'z>(
    records: &'z Slab<Entry>,
    networks: &'z Slab<Network>,
    record: RecordIx,
) -> (u64, &'z str, &'z str) {
    let entry = &records[record as usize];
    (entry.joined, &networks[entry.network as usize].name, &entry.ifname)
}

/// What [`crate::answer`] asks.
impl Zones {
    /// The container that has `ip` on `bridge`, by the newest of its records there, whichever network that is on.
    pub(crate) fn container_at(&self, bridge: &str, ip: IpAddr) -> Option<Attached<'_>> {
        let networks = self.surroundings.bridges.get(bridge)?;
        let holders = networks.iter().filter_map(|network| self.newest_holder(*network, ip));
        let record = holders.max_by_key(|record| self.records[*record as usize].joined)?;
        Some(Attached { zones: self, record })
    }

    /// The networks on `bridge` whose gateway is `ip`, by name. One whose configuration has changed since the first of
    /// its containers joined is there once for each.
    pub(crate) fn networks_of_gateway(&self, bridge: &str, ip: IpAddr) -> impl Iterator<Item = Seat<'_>> {
        let networks = self.surroundings.bridges.get(bridge).map_or(&[][..], Vec::as_slice);
        let seats = networks.iter().flat_map(|network| {
            self.networks[*network as usize].terms.iter().map(|terms| Seat {
                network: *network,
                terms,
                links: &[],
            })
        });
        seats.filter(move |seat| {
            *seat.terms.bridge == *bridge && seat.terms.gateways.iter().any(|gateway| gateway.ip() == ip)
        })
    }

    /// The addresses of the containers on `bridge` and of its gateways. One may be there several times.
    pub(crate) fn addresses_on(&self, bridge: &str) -> impl Iterator<Item = IpAddr> {
        let networks = self.surroundings.bridges.get(bridge).map_or(&[][..], Vec::as_slice);
        let terms = networks.iter().flat_map(|network| &self.networks[*network as usize].terms);
        let gateways = terms.flat_map(|terms| &terms.gateways).map(|gateway| gateway.ip());
        let residents = self.records.iter().filter(|(_, entry)| networks.contains(&entry.network));
        gateways.chain(residents.flat_map(|(ix, _)| self.addresses_of(ix as RecordIx)))
    }

    /// The records with the name `labels` on `network`.
    pub(crate) fn named(&self, network: NetworkIx, labels: &[u8]) -> &[RecordIx] {
        self.names.holders_of(NameRef { network, labels: Folded(labels) })
    }

    /// Whether there are names below `labels` on `network`, whoever has them.
    pub(crate) fn has_below(&self, network: NetworkIx, labels: &[u8]) -> bool {
        self.ancestors.contains(NameRef { network, labels: Folded(labels) })
    }

    /// The addresses of `record` that are its own: none that a newer record of the network has.
    pub(crate) fn addresses_of(&self, record: RecordIx) -> impl Iterator<Item = IpAddr> {
        let own = move |slot: &&SlotIx| self.addresses.holders(**slot).first() == Some(&record);
        self.records[record as usize].addresses.iter().filter(own).map(|slot| self.addresses.key(*slot).ip)
    }

    /// The record that `ip` belongs to on `network`.
    pub(crate) fn newest_holder(&self, network: NetworkIx, ip: IpAddr) -> Option<RecordIx> {
        self.addresses.holders_of(Address { network, ip }).first().copied()
    }

    /// The most important name of `record`.
    pub(crate) fn first_name(&self, record: RecordIx) -> Option<&RelativeName<[u8]>> {
        let slot = self.records[record as usize].names.first()?;
        RelativeName::from_slice(&self.names.key(*slot).labels).ok()
    }

    /// The terms of `record`.
    pub(crate) fn terms(&self, record: RecordIx) -> &Terms {
        &self.records[record as usize].terms
    }

    /// The runtime's name for the container of `record`.
    pub(crate) fn container_id(&self, record: RecordIx) -> &str {
        &self.containers.key(self.records[record as usize].container).0
    }

    /// The name of `network`.
    pub(crate) fn network_name(&self, network: NetworkIx) -> &str {
        &self.networks[network as usize].name
    }

    /// Whether `labels` are the domain of any network here.
    pub(crate) fn is_domain(&self, labels: &[u8]) -> bool {
        self.surroundings.domains.find(Folded(labels)).is_some()
    }

    /// The innermost subnet of any network here that every address with the first `bits` bits of `ip` is in.
    pub(crate) fn subnet_around(&self, ip: IpAddr, bits: u8) -> Option<IpNetwork> {
        self.surroundings.subnets.around(ip, bits)
    }
}

/// One record of a container, seen from the container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attached<'z> {
    zones: &'z Zones,
    record: RecordIx,
}

/// A network as somebody on it sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat<'z> {
    pub(crate) network: NetworkIx,
    pub(crate) terms: &'z Terms,
    pub(crate) links: &'z [Link],
}

impl<'z> Attached<'z> {
    /// The number of the container, which no other one has as long as it has records.
    pub(crate) fn number(self) -> u32 {
        self.zones.records[self.record as usize].container
    }

    /// The networks of the container, the one that it joined first at the front.
    pub(crate) fn seats(self) -> impl Iterator<Item = Seat<'z>> {
        let Self { zones, record } = self;
        zones.containers.holders(zones.records[record as usize].container).iter().map(|record| {
            let entry = &zones.records[*record as usize];
            Seat { network: entry.network, terms: &entry.terms, links: &entry.links }
        })
    }
}

impl<'z> Seat<'z> {
    /// The link called `alias`, for somebody who sits here.
    pub(crate) fn link(self, alias: &[u8]) -> Option<&'z Link> {
        self.links.iter().find(|link| Folded(link.alias.as_slice()) == Folded(alias))
    }

    /// Whether somebody who sits here has a link whose alias stands below `labels`.
    pub(crate) fn has_link_below(self, labels: &[u8]) -> bool {
        self.links.iter().any(|link| stand_below(link.alias.as_slice(), labels))
    }
}

impl Terms {
    fn of(record: &Record) -> Self {
        Self {
            bridge: record.bridge.as_str().into(),
            gateways: record.gateways.as_slice().into(),
            domains: std::iter::once(&record.domain)
                .chain(&record.other_domains)
                .map(DomainName::to_wire)
                .collect(),
            ttl: record.ttl,
            forward: record.forward,
            upstreams: record.upstreams.as_slice().into(),
        }
    }

    fn listeners(&self) -> impl Iterator<Item = Listener> {
        let of = |gateway: &IpNetwork| Listener { bridge: self.bridge.to_string(), gateway: gateway.ip() };
        self.gateways.iter().map(of)
    }

    /// What addresses are reversed into.
    pub(crate) fn domain(&self) -> Option<&Labels> {
        self.domains.first()
    }

    /// Whether `labels` are one of the domains.
    pub(crate) fn is_domain(&self, labels: &[u8]) -> bool {
        self.domains.iter().any(|domain| Folded(domain.as_slice()) == Folded(labels))
    }

    /// Whether one of the domains stands below `labels`.
    pub(crate) fn has_domain_below(&self, labels: &[u8]) -> bool {
        self.domains.iter().any(|domain| stand_below(domain.as_slice(), labels))
    }
}

impl Surroundings {
    /// Puts in what `terms`, which `network` has not had so far, say.
    fn add(&mut self, network: NetworkIx, terms: &Terms, networks: &Slab<Network>) {
        let on_bridge = self.bridges.entry(terms.bridge.clone()).or_default();
        if !on_bridge.contains(&network) {
            let name = |network: &NetworkIx| &networks[*network as usize].name;
            on_bridge.insert(on_bridge.partition_point(|other| name(other) < name(&network)), network);
        }
        for domain in &terms.domains {
            let key = Folded(domain.as_slice());
            if !self.domains.holders_of(key).contains(&network) {
                self.domains.add(key, network, |a, b| a.cmp(&b));
            }
        }
        terms.gateways.iter().for_each(|gateway| self.subnets.add(*gateway));
        terms.listeners().for_each(|listener| self.listeners.add(listener));
    }

    /// Takes out what only `terms` have said, which `network` has no more; `left` are those that it has still.
    fn remove(&mut self, network: NetworkIx, terms: &Terms, left: &[Rc<Terms>]) {
        if !left.iter().any(|other| other.bridge == terms.bridge)
            && let Some(on_bridge) = self.bridges.get_mut(&terms.bridge)
        {
            on_bridge.retain(|other| *other != network);
            if on_bridge.is_empty() {
                self.bridges.remove(&terms.bridge);
            }
        }
        for domain in &terms.domains {
            let key = Folded(domain.as_slice());
            if !left.iter().any(|other| other.is_domain(domain.as_slice()))
                && let Some(slot) = self.domains.find(key)
            {
                self.domains.remove(slot, network);
            }
        }
        terms.gateways.iter().for_each(|gateway| self.subnets.remove(*gateway));
        terms.listeners().for_each(|listener| self.listeners.remove(&listener));
    }
}
