//! The flows of a network through the host: what another firewall has to let through.

use nft_netlink::{CtState, Interface, Packet};

use crate::netlink::{Failure, Netlink};

/// The flows that the containers behind a link begin, to what is beyond the host.
pub(crate) struct Flows<'a> {
    host: &'a mut Netlink,
    link: &'a str,
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
    /// Those by way of `link`. Nothing is asked of the kernel yet: most hosts have no firewall that it would be for.
    pub(crate) fn new(host: &'a mut Netlink, link: &'a str) -> Self {
        Self { host, link, known: None }
    }

    /// Whether `passes` lets through what the containers begin, and the replies to it.
    pub(crate) fn pass<E>(
        &mut self,
        passes: &mut impl FnMut(&Packet<'_>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let Ends { link, beyond } = self.ends();
        let opening = Packet { from: Some(link), to: Some(beyond), state: Some(CtState::New) };
        let reply = Packet { from: Some(beyond), to: Some(link), state: Some(CtState::Established) };
        Ok(passes(&opening)? && passes(&reply)?)
    }

    fn ends(&mut self) -> &Ends {
        let Self { host, link, known } = self;
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
