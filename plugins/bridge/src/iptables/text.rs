//! What the rules say: their words, as iptables lists them, and whose they are. Pure.

use std::fmt::Write as _;

use cni_types::{Attachment, MAX_IFNAME_LEN};
use ipnetwork::IpNetwork;
use sha2::{Digest as _, Sha512};

use crate::family::Family;
use crate::names;

/// Longest name of a chain in bytes that every iptables takes.
const CHAIN_LEN: usize = 28;

/// Longest comment in bytes (`XT_MAX_COMMENT_LEN` less the NUL).
const COMMENT_LEN: usize = 255;

/// Whose jumps are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jumps<'a> {
    /// The network.
    pub(crate) network: &'a str,
    /// Container id and interface name.
    pub(crate) attachment: &'a Attachment,
}

/// The comments that jumps of an attachment may have: ours, and the reference's.
pub(crate) fn comments(jumps: Jumps<'_>) -> [String; 2] {
    [comment(jumps), reference_comment(jumps.network, jumps.attachment.container_id())]
}

/// Whether a comment is that of a jump of ours for `network`.
pub(crate) fn is_of_network(comment: &str, network: &str) -> bool {
    Told::by(comment).is_some_and(|told| names::network(told.network) == names::network(network))
}

/// Whether a comment is that of a rule in the chain of a container, of this plugin or the reference.
pub(super) fn is_of_container(comment: &str) -> bool {
    comment.strip_prefix("name: \"").is_some_and(|names| names.contains("\" id: \""))
}

/// The rules for the addresses of each family, as iptables lists them.
pub(super) fn by_family(jumps: Jumps<'_>, addresses: &[IpNetwork]) -> Vec<(Family, Vec<String>)> {
    let families = [(Family::V4, "224.0.0.0/4"), (Family::V6, "ff00::/8")].into_iter();
    families
        .map(|(family, multicast)| {
            let of_family = addresses.iter().filter(|address| Family::of(address.ip()) == family);
            (family, of_family.flat_map(|address| rules(jumps, *address, multicast)).collect::<Vec<_>>())
        })
        .filter(|(_, rules)| !rules.is_empty())
        .collect()
}

/// Traffic within the subnet keeps its source, and so does multicast; the rest gets the host's.
fn rules(jumps: Jumps<'_>, address: IpNetwork, multicast: &str) -> [String; 3] {
    let chain = chain(jumps);
    let container = quoted(&reference_comment(jumps.network, jumps.attachment.container_id()));
    let interface = quoted(&comment(jumps));
    let (subnet, prefix) = (address.network(), address.prefix());
    let source = IpNetwork::from(address.ip());
    [
        format!("-A {chain} -d {subnet}/{prefix} -m comment --comment {container} -j ACCEPT"),
        format!("-A {chain} ! -d {multicast} -m comment --comment {container} -j MASQUERADE"),
        format!("-A POSTROUTING -s {source} -m comment --comment {interface} -j {chain}"),
    ]
}

/// The reference's chain for a container on a network.
pub(crate) fn chain(jumps: Jumps<'_>) -> String {
    let mut hash = Sha512::new();
    hash.update(jumps.network);
    hash.update(jumps.attachment.container_id());
    let mut name = String::from("CNI-");
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(CHAIN_LEN);
    name
}

/// The reference's comment on the rules of a container. One that iptables would refuse for its length, as it does the
/// reference's, has its names cut.
fn reference_comment(network: &str, container_id: &str) -> String {
    let with = |network: &str, id: &str| format!("name: \"{network}\" id: \"{id}\"");
    let full = with(network, container_id);
    match full.len() <= COMMENT_LEN - " if: \"\"".len() - MAX_IFNAME_LEN {
        true => full,
        false => with(&names::network(network), &names::container_id(container_id)),
    }
}

pub(super) fn comment(jumps: Jumps<'_>) -> String {
    let container = reference_comment(jumps.network, jumps.attachment.container_id());
    format!("{container} if: \"{}\"", jumps.attachment.ifname())
}

/// Whose a jump of ours is, as its comment tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told<'a> {
    pub(crate) network: &'a str,
    pub(crate) container_id: &'a str,
    pub(crate) ifname: &'a str,
}

impl<'a> Told<'a> {
    /// `None` when it is no comment of ours.
    pub(crate) fn by(comment: &'a str) -> Option<Self> {
        let (network, rest) = comment.strip_prefix("name: \"")?.split_once("\" id: \"")?;
        let (container_id, ifname) = rest.split_once("\" if: \"")?;
        Some(Self { network, container_id, ifname: ifname.strip_suffix('"')? })
    }

    /// Whether it is of this attachment, however much of the names either of them spells out.
    pub(crate) fn is(&self, jumps: Jumps<'_>) -> bool {
        let Self { network, container_id, ifname } = *self;
        names::network(network) == names::network(jumps.network)
            && names::container_id(container_id) == names::container_id(jumps.attachment.container_id())
            && ifname == jumps.attachment.ifname()
    }
}

/// The comment in a listed rule.
pub(crate) fn comment_of(rule: &str) -> Option<String> {
    let quoted = rule.split_once(" --comment \"")?.1;
    let mut comment = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some(comment),
            '\\' => comment.push(characters.next()?),
            other => comment.push(other),
        }
    }
}

/// A comment as iptables lists it (`xtables_save_string`).
pub(crate) fn quoted(comment: &str) -> String {
    let mut quoted = String::from("\"");
    for character in comment.chars() {
        if matches!(character, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::iptables) fn attachment(ifname: &str) -> Attachment {
        Attachment::new("abc", ifname).unwrap()
    }

    pub(in crate::iptables) fn listed(addresses: &[&str], ifname: &str) -> Vec<String> {
        let attachment = attachment(ifname);
        let addresses: Vec<IpNetwork> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let jumps = Jumps { network: "n1", attachment: &attachment };
        by_family(jumps, &addresses).into_iter().flat_map(|(_, rules)| rules).collect()
    }

    #[test]
    fn rules_are_written_as_iptables_lists_them() {
        let chain = "CNI-0dc0301bc9564ed905ff7609";
        let container = r#"-m comment --comment "name: \"n1\" id: \"abc\"""#;
        let interface = r#"-m comment --comment "name: \"n1\" id: \"abc\" if: \"eth0\"""#;
        assert_eq!(
            listed(&["10.1.2.3/24", "fd00::3/64"], "eth0"),
            [
                format!("-A {chain} -d 10.1.2.0/24 {container} -j ACCEPT"),
                format!("-A {chain} ! -d 224.0.0.0/4 {container} -j MASQUERADE"),
                format!("-A POSTROUTING -s 10.1.2.3/32 {interface} -j {chain}"),
                format!("-A {chain} -d fd00::/64 {container} -j ACCEPT"),
                format!("-A {chain} ! -d ff00::/8 {container} -j MASQUERADE"),
                format!("-A POSTROUTING -s fd00::3/128 {interface} -j {chain}"),
            ]
        );
    }

    #[test]
    fn the_longest_comment_is_one_that_iptables_takes() {
        for (network, id) in [(300, 300), (300, 1), (1, 300), (100, 112), (113, 100)] {
            let attachment = Attachment::new(&"i".repeat(id), "an-ifname-of-15").unwrap();
            let jumps = Jumps { network: &"n".repeat(network), attachment: &attachment };
            assert!(comment(jumps).len() <= COMMENT_LEN, "{network} {id}: {}", comment(jumps).len());
        }
    }

    #[test]
    fn a_comment_is_told_from_others_however_long_the_names_are() {
        for (network, id) in [(3, 3), (300, 3), (3, 300), (100, 112), (130, 80)] {
            let (attachment, network) =
                (Attachment::new(&"i".repeat(id), "eth0").unwrap(), "n".repeat(network));
            let jumps = Jumps { network: &network, attachment: &attachment };
            let comment = comment(jumps);
            let told = Told::by(&comment).unwrap();
            assert!(told.is(jumps), "{comment}");
            // As the mark of the host veth spells it.
            let marked = Attachment::new(&names::container_id(attachment.container_id()), "eth0").unwrap();
            assert!(told.is(Jumps { network: &names::network(&network), attachment: &marked }), "{comment}");
            let other = Attachment::new(attachment.container_id(), "eth1").unwrap();
            assert!(!told.is(Jumps { network: &network, attachment: &other }), "{comment}");
            assert!(!told.is(Jumps { network: "other", attachment: &attachment }), "{comment}");
        }
    }

    #[test]
    fn a_comment_says_whose_it_is() {
        let rules = listed(&["10.1.2.3/24"], "eth0");
        let comment = comment_of(&rules[2]).unwrap();
        assert_eq!(comment, r#"name: "n1" id: "abc" if: "eth0""#);
        assert_eq!(Told::by(&comment), Some(Told { network: "n1", container_id: "abc", ifname: "eth0" }));
        assert_eq!(Told::by(&comment_of(&rules[0]).unwrap()), None);
        assert_eq!(comment_of("-A POSTROUTING -j ACCEPT"), None);
    }
}
