//! The comment of an attachment's element: whose it is, and which other elements belong to it.
//!
//! `<network>/<container id>/<ifname>`, then one word for each address or MAC, then `on` and a link. When the words do
//! not fit into a comment, the last one is `+`, and the elements have to be searched for. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nft_netlink::{Element, MAX_COMMENT};

use super::Owner;
use crate::names;

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

/// Stands before the link.
const ON: &str = "on";

/// Says that there are more words than fit.
const MORE: &str = "+";

/// Whose an element is, in the words that links are marked with as well.
pub(super) fn identity(owner: &Owner<'_>) -> String {
    let network = names::network(owner.network);
    let container_id = names::container_id(owner.attachment.container_id());
    format!("{network}/{container_id}/{}", owner.attachment.ifname())
}

/// The identity that a comment begins with.
pub(super) fn identity_of(comment: &str) -> &str {
    comment.split(' ').next().unwrap_or_default()
}

/// The identity with the addresses, and the MAC and link, that have elements of their own.
pub(super) fn with(
    owner: &Owner<'_>,
    addresses: &[IpNetwork],
    mac: Option<[u8; 6]>,
    link: Option<&str>,
) -> String {
    let mut words: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    words.extend(mac.map(|[a, b, c, d, e, f]| format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")));
    words.extend(link.map(|link| format!("{ON} {link}")));
    let mut text = identity(owner);
    for word in &words {
        if text.len() + word.len() + " ".len() > MAX_COMMENT - MORE.len() - " ".len() {
            return format!("{text} {MORE}");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, " {word}");
    }
    text
}

/// Whether a comment does not list everything.
pub(super) fn is_cut(comment: &str) -> bool {
    words(comment).last() == Some(MORE)
}

/// The addresses that a comment lists.
pub(super) fn addresses(comment: &str) -> impl Iterator<Item = IpAddr> {
    words(comment).filter_map(|word| word.parse().ok())
}

/// The MAC that a comment lists: no IPv6 address has six parts without an empty one.
pub(super) fn mac(comment: &str) -> Option<[u8; 6]> {
    words(comment).find_map(|word| {
        let mut mac = [0; 6];
        let mut parts = word.split(':');
        for byte in &mut mac {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(mac)
    })
}

/// The link that a comment ends with.
pub(super) fn link(comment: &str) -> Option<&str> {
    let mut words = words(comment);
    words.find(|word| *word == ON)?;
    words.next()
}

fn words(comment: &str) -> impl Iterator<Item = &str> {
    comment.split(' ').skip(1)
}

#[cfg(test)]
mod tests {
    use cni_types::Attachment;
    use proptest::prelude::*;

    use super::*;

    fn check(network: &str, id: &str, addresses: &[IpNetwork], mac: Option<[u8; 6]>, link: Option<&str>) {
        let attachment = Attachment::new(id, "eth0").unwrap();
        let owner = Owner { network, attachment: &attachment, host_veth: "veth0" };
        let comment = with(&owner, addresses, mac, link);
        assert!(comment.len() <= MAX_COMMENT, "{} bytes: {comment}", comment.len());
        assert!(comment.starts_with(&identity(&owner)));
        let key = nft_netlink::ifname_key("veth0");
        let record = Record::of(&Element::new(key).with_comment(&comment)).unwrap();
        assert_eq!(
            [record.network.as_str(), &record.container_id, &record.ifname, &record.host_veth],
            [&names::network(network), &names::container_id(id), "eth0", "veth0"]
        );
        if is_cut(&comment) {
            return;
        }
        assert!(super::addresses(&comment).eq(addresses.iter().map(IpNetwork::ip)), "{comment}");
        assert_eq!((super::mac(&comment), super::link(&comment)), (mac, link), "{comment}");
    }

    #[test]
    fn a_dual_stack_container_of_a_runtime_fits() {
        let addresses = ["172.20.255.254/16", "2001:db8:1234:5678:9abc:def0:1234:5678/64"];
        let addresses = addresses.map(|address| address.parse().unwrap());
        let attachment = Attachment::new(&"f".repeat(64), "eth0").unwrap();
        let owner =
            Owner { network: "a-network-of-thirty-characters", attachment: &attachment, host_veth: "v" };
        assert!(!is_cut(&with(&owner, &addresses, Some([2; 6]), Some("br-0123456789ab"))));
    }

    #[test]
    fn an_address_is_no_mac() {
        let addresses = ["10:11:12:13:14:15:16:17/64", "10:11:12:13:14::/64", "::11:12:13:14:15/64"];
        for address in addresses {
            check("n", "c", &[address.parse().unwrap()], None, Some("br0"));
        }
    }

    proptest! {
        #[test]
        fn what_a_comment_says_is_read_back_or_it_says_that_it_is_cut(
            network in "[a-z][a-z0-9._-]{0,300}",
            id in "[a-f0-9]{1,300}",
            v4 in prop::collection::vec(any::<[u8; 4]>(), 0..3),
            v6 in prop::collection::vec(any::<[u8; 16]>(), 0..3),
            mac in prop::option::of(any::<[u8; 6]>()),
            link in prop::option::of("[a-z0-9]{1,15}"),
        ) {
            let v4 = v4.into_iter().map(|octets| IpNetwork::from(IpAddr::from(octets)));
            let v6 = v6.into_iter().map(|octets| IpNetwork::from(IpAddr::from(octets)));
            let addresses: Vec<IpNetwork> = v4.chain(v6).collect();
            check(&network, &id, &addresses, mac, link.as_deref());
        }
    }
}
