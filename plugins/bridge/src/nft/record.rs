//! The comment of an attachment's element: whose it is, and which other elements belong to it.
//!
//! `<network>/<container id>/<ifname>`, then one word for each address or MAC, then `on` and a link. A comment of
//! nf_tables is at most 253 bytes long; what does not fit is cut off. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nft_netlink::Element;

use super::Owner;

/// The owner of an element, as its comment says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) network: String,
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    pub(crate) host_veth: String,
}

impl Record {
    /// Reads an element that is keyed by the host veth; `None` when its comment was not written here.
    pub(super) fn of(element: &Element) -> Option<Self> {
        let mut parts = element.comment.as_deref()?.split(' ').next()?.split('/').map(str::to_owned);
        let (network, container_id, ifname) = (parts.next()?, parts.next()?, parts.next()?);
        let host_veth = element.key.iter().copied().take_while(|byte| *byte != 0).collect();
        Some(Self { network, container_id, ifname, host_veth: String::from_utf8(host_veth).ok()? })
    }
}

/// Whose an element is, in the words that links are marked with as well.
pub(super) fn identity(owner: &Owner<'_>) -> String {
    format!("{}/{}/{}", owner.network, owner.attachment.container_id(), owner.attachment.ifname())
}

/// The identity with the addresses, and the MAC and link, that have elements of their own.
pub(super) fn with(
    owner: &Owner<'_>,
    addresses: &[IpNetwork],
    mac: Option<[u8; 6]>,
    link: Option<&str>,
) -> String {
    let mut text = identity(owner);
    // Writing to a String cannot fail.
    for address in addresses {
        let _ = write!(text, " {}", address.ip());
    }
    if let Some([a, b, c, d, e, f]) = mac {
        let _ = write!(text, " {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    }
    if let Some(link) = link {
        let _ = write!(text, " on {link}");
    }
    text
}

/// The addresses that a comment lists.
pub(super) fn addresses(comment: &str) -> impl Iterator<Item = IpAddr> {
    words(comment).filter_map(|word| word.parse().ok())
}

/// The MAC that a comment lists.
pub(super) fn mac(comment: &str) -> Option<[u8; 6]> {
    words(comment).find_map(|word| {
        let mut mac = [0; 6];
        let mut parts = word.split(':');
        for byte in &mut mac {
            *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
        }
        parts.next().is_none().then_some(mac)
    })
}

/// The link that a comment ends with.
pub(super) fn link(comment: &str) -> Option<&str> {
    let mut words = words(comment);
    words.find(|word| *word == "on")?;
    words.next()
}

fn words(comment: &str) -> impl Iterator<Item = &str> {
    comment.split(' ').skip(1)
}
