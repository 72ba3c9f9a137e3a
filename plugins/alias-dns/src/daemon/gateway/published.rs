//! Queries to port 53 of a gateway, where ports of the host are published: one that is published on every address is
//! published on the gateways as well, and whoever publishes 53 would get the queries.
//!
//! A flow is translated once, by the first chain that does so (`nf_nat_inet_fn` of Linux). So one that comes earlier
//! translates queries to where they go anyway. Where anything is translated, connections are tracked in any case, and
//! then this costs a query nothing that can be measured. Where nothing is, nobody publishes anything, and tracking them for
//! this would cost 1.4 µs a query: nothing is made.

use std::collections::HashSet;
use std::net::IpAddr;

use nft_netlink::{
    Base, Batch, Chain, ChainKind, Element, Error, Family, Field, Holds, Hook, KeyType, Policy, Rule, Set,
    Socket, Table, address_key, ifname_key, is_legacy_table_in_use, join_keys,
};

use super::{BEFORE_PUBLISHED_PORTS, Opened, PORT, PROTOCOLS};
use crate::zone::Listener;

/// In either family, for a table of both would have connections tracked in both.
const TABLE: &str = "cni-names";
const COMMENT: &str = "cni: names before ports that are published";

/// The bridges with their gateways, and the gateways alone, for what the host itself asks.
const BRIDGES: &str = "bridges";
const GATEWAYS: &str = "gateways";

/// Octets of a device name in a key.
const IFNAME_LEN: usize = 16;

/// What takes queries past the published ports in one family.
struct Plan {
    table: Table<'static>,
    address: KeyType,
    destination: Field,
}

/// A chain of it: its name, its place, and the fields that are looked up in a set.
type Way = (&'static str, Base, Vec<Field>, &'static str);

impl Plan {
    const BOTH: [Self; 2] = [
        Self {
            table: Table { family: Family::Ipv4, name: TABLE },
            address: KeyType::Ipv4Addr,
            destination: Field::Ip4Daddr,
        },
        Self {
            table: Table { family: Family::Ipv6, name: TABLE },
            address: KeyType::Ipv6Addr,
            destination: Field::Ip6Daddr,
        },
    ];

    fn ways(&self) -> [Way; 2] {
        let at = |hook| Base {
            kind: ChainKind::Nat,
            hook,
            // After a redirect to another port: a gateway that is redirected may stand here still.
            priority: BEFORE_PUBLISHED_PORTS + 1,
            policy: Policy::Accept,
        };
        [
            ("from-bridges", at(Hook::Prerouting), vec![Field::Iifname, self.destination], BRIDGES),
            ("from-host", at(Hook::Output), vec![self.destination], GATEWAYS),
        ]
    }

    fn rules(&self, fields: &[Field], set: &str) -> [Rule; 2] {
        PROTOCOLS.map(|protocol| {
            let queries = Rule::new().destination_port(protocol, PORT);
            queries.in_set(fields, set).dnat_to_itself(self.table.family)
        })
    }

    /// Whether anything is translated in this family that is not ours.
    fn is_needed(&self, chains: &[Chain]) -> bool {
        let translates = |chain: &Chain| {
            let is_nat = chain.base.as_ref().is_some_and(|base| base.kind == ChainKind::Nat);
            is_nat && [Some(Family::Inet), Some(self.table.family)].contains(&chain.family)
        };
        chains.iter().any(|chain| translates(chain) && !chain.table.starts_with(TABLE))
            || is_legacy_table_in_use(self.table.family, "nat")
    }

    /// Whether its chains are there with all their rules.
    fn is_whole(&self, chains: &[Chain]) -> bool {
        self.ways().iter().all(|(name, base, ..)| {
            chains.iter().any(|chain| {
                chain.family == Some(self.table.family)
                    && (chain.table.as_str(), chain.name.as_str()) == (TABLE, name)
                    && chain.base.as_ref() == Some(base)
                    && chain.uses as usize == PROTOCOLS.len()
            })
        })
    }

    /// Makes all of it, in place of what is left of it.
    fn make(&self, nft: &mut Socket, batch: &mut Batch) -> Result<(), Error> {
        let sets = [(BRIDGES, &[KeyType::Ifname, self.address][..]), (GATEWAYS, &[self.address][..])];
        let mut kept = Vec::new();
        for (name, _) in sets {
            kept.push((name, nft.elements(self.table, name)?));
        }
        if nft.table(self.table)?.is_some() {
            batch.delete_table(self.table);
        }
        batch.create_table(self.table, COMMENT);
        for (name, key) in sets {
            batch.create_set(self.table, &Set { name, key, holds: Holds::Keys }, COMMENT);
        }
        for (chain, base, fields, set) in self.ways() {
            batch.create_base_chain(self.table, chain, &base, COMMENT);
            self.rules(&fields, set).iter().for_each(|rule| batch.add_rule(self.table, chain, rule));
        }
        for (set, elements) in kept {
            batch.add_elements(self.table, set, &elements);
        }
        Ok(())
    }
}

/// What has to be changed, so that queries to those `opened` at the DNS port pass by the published ports.
pub(super) fn passed_by(nft: &mut Socket, chains: &[Chain], opened: &[Opened]) -> Result<Vec<Batch>, Error> {
    let mut changes = Vec::new();
    for plan in Plan::BOTH {
        // A redirect to another port comes before what is published by itself.
        let concerned = opened.iter().filter(|opened| {
            opened.port == PORT && opened.listener.gateway.is_ipv4() == (plan.table.family == Family::Ipv4)
        });
        let wanted: Vec<_> = concerned.flat_map(|opened| keys_of(&opened.listener)).collect();
        if wanted.is_empty() || !plan.is_needed(chains) {
            continue;
        }
        let mut batch = Batch::new();
        let is_whole = plan.is_whole(chains);
        if !is_whole {
            plan.make(nft, &mut batch)?;
        }
        for (set, key) in wanted {
            if !is_whole || nft.element(plan.table, set, &key)?.is_none() {
                batch.add_elements(plan.table, set, [&Element::new(key)]);
            }
        }
        changes.push(batch);
    }
    Ok(changes)
}

/// Adds to `batch` that those go which are `unneeded`, and all of it with the last one.
pub(super) fn release(
    nft: &mut Socket,
    unneeded: impl Fn(&Opened) -> bool,
    batch: &mut Batch,
) -> Result<(), Error> {
    for Plan { table, .. } in Plan::BOTH {
        let all = nft.elements(table, BRIDGES)?.into_iter().filter_map(|element| opened_by(&element));
        let (gone, left): (Vec<_>, Vec<_>) = all.partition(&unneeded);
        if gone.is_empty() {
            continue;
        }
        if left.is_empty() {
            batch.delete_table(table);
            continue;
        }
        let keys = |all: &[Opened]| -> HashSet<_> {
            all.iter().flat_map(|opened| keys_of(&opened.listener)).collect()
        };
        // Two bridges may have the same gateway.
        let (gone, left) = (keys(&gone), keys(&left));
        for set in [BRIDGES, GATEWAYS] {
            let mut elements = nft.elements(table, set)?;
            elements.retain(|element| {
                let key = (set, element.key.clone());
                gone.contains(&key) && !left.contains(&key)
            });
            batch.delete_elements(table, set, &elements);
        }
    }
    Ok(())
}

/// What stands in which set for a listener.
fn keys_of(Listener { bridge, gateway }: &Listener) -> [(&'static str, Vec<u8>); 2] {
    let address = address_key(*gateway);
    [(BRIDGES, join_keys(&[&ifname_key(bridge), &address])), (GATEWAYS, address)]
}

/// Whose element of [`BRIDGES`] it is.
fn opened_by(Element { key, .. }: &Element) -> Option<Opened> {
    let (bridge, address) = key.split_at_checked(IFNAME_LEN)?;
    let bridge = std::str::from_utf8(bridge).ok()?.trim_end_matches('\0').to_owned();
    let gateway = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(Opened { listener: Listener { bridge, gateway }, port: PORT })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_tells_whose_it_is() {
        for gateway in ["172.20.0.1", "fd00:20::1"] {
            let listener = Listener { bridge: "br-testnet".to_owned(), gateway: gateway.parse().unwrap() };
            let [(_, by_bridge), _] = keys_of(&listener);
            assert_eq!(opened_by(&Element::new(by_bridge)), Some(Opened { listener, port: PORT }));
        }
        assert_eq!(opened_by(&Element::new(vec![0; 3])), None);
    }
}
