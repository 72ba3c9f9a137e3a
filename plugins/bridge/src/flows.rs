//! The flows of a network through the host: what another firewall has to let through.

use std::net::IpAddr;

use nft_netlink::{CtState, Interface, Packet};

use crate::netlink::{Failure, Netlink};

/// The flows that the containers behind a link begin, to what is beyond the host.
pub(crate) struct Flows<'a> {
    host: &'a mut Netlink,
    link: &'a str,
    addresses: &'a [IpAddr],
    known: Option<Ends>,
}

/// What they go between.
#[derive(Debug)]
struct Ends {
    link: Interface,
    /// The interface that the host's default route leaves by, or one that no rule names.
    beyond: Interface,
}

impl<'a> Flows<'a> {
    /// Those by way of `link` from `addresses`; none stands for any. Nothing is asked of the kernel yet: most hosts have no
    /// firewall that it would be for.
    pub(crate) fn new(host: &'a mut Netlink, link: &'a str, addresses: &'a [IpAddr]) -> Self {
        Self { host, link, addresses, known: None }
    }

    /// The packets that open them, and the replies.
    pub(crate) fn packets(&mut self) -> Vec<Packet<'_>> {
        let addresses = match self.addresses {
            [] => vec![None],
            addresses => addresses.iter().copied().map(Some).collect(),
        };
        let Ends { link, beyond } = self.ends();
        let both_ways = |address| {
            let opening = Packet {
                from: Some(link),
                to: Some(beyond),
                state: Some(CtState::New),
                source: address,
                destination: None,
            };
            let reply = Packet {
                from: Some(beyond),
                to: Some(link),
                state: Some(CtState::Established),
                source: None,
                destination: address,
            };
            [opening, reply]
        };
        addresses.into_iter().flat_map(both_ways).collect()
    }

    fn ends(&mut self) -> &Ends {
        let Self { host, link, known, .. } = self;
        known.get_or_insert_with(|| {
            let found = find(host, link).inspect_err(|failure| {
                log::warn!("look for the interfaces that packets of {link} are forwarded by: {failure}");
            });
            let nameless = || Interface { name: String::new(), index: 0 };
            let (number, beyond) = found.unwrap_or_default();
            Ends {
                link: Interface { name: (*link).to_owned(), index: number },
                beyond: beyond.unwrap_or_else(nameless),
            }
        })
    }
}

/// The number of `link`, and where the default route leaves.
fn find(host: &mut Netlink, link: &str) -> Result<(u32, Option<Interface>), Failure> {
    let number = host.link_by_name(link)?.map(|link| link.index).unwrap_or_default();
    let beyond = match host.default_route_link()? {
        Some(index) => host.link_by_index(index)?.filter(|beyond| beyond.index != number),
        None => None,
    };
    Ok((number, beyond.map(|link| Interface { name: link.name, index: link.index })))
}
