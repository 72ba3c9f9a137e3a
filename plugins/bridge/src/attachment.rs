//! What an attachment is called in the kernel: names and marks that are derived from its identity alone.
//!
//! The kernel is the record of who has what, so DEL and GC find everything by these, without a file and whatever the
//! configuration says by then. Nothing here asks the kernel.

use std::borrow::Cow;

use cni_types::Attachment;
use sha2::{Digest as _, Sha256};

use crate::iptables::Jumps;
use crate::names;
use crate::nft::Owner;

/// Start of every alias of ours.
const MARK: &str = "cni:";

/// Start of the name of every host veth.
const HOST_VETH: &str = "veth";

/// Hex digits in the name of a host veth: with the prefix as many bytes as a link name can have.
const HASH_DIGITS: usize = 11;

/// An attachment to a network, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    network: String,
    attachment: Attachment,
    host_veth: String,
}

impl Identity {
    /// The identity of `attachment` to `network`.
    pub(crate) fn new(network: &str, attachment: &Attachment) -> Self {
        let host_veth = hashed_name(&[network, attachment.container_id(), attachment.ifname()]);
        Self { network: network.to_owned(), attachment: attachment.clone(), host_veth }
    }

    /// The identity that the mark on the link `host_veth` spells, unless that link is somebody else's. The name has to
    /// agree with the mark, so that nobody is taken in by a mark alone; where the mark had to be cut, it has to look
    /// like one of ours.
    pub(crate) fn of_mark(alias: &str, host_veth: &str) -> Option<Self> {
        let identity = Self::claimed_by(alias)?;
        if identity.host_veth == host_veth {
            return Some(identity);
        }
        let is_cut = names::may_be_cut(&identity.network, identity.attachment.container_id())
            && is_hashed_name(host_veth);
        is_cut.then(|| Self { host_veth: host_veth.to_owned(), ..identity })
    }

    /// The identity that the mark on a link spells, whatever the link is called. Enough to leave alone what belongs to
    /// it: somebody may have renamed the link.
    pub(crate) fn claimed_by(alias: &str) -> Option<Self> {
        let mut parts = alias.strip_prefix(MARK)?.splitn(3, '/');
        let (network, container_id, ifname) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self::new(network, &Attachment::new(container_id, ifname).ok()?))
    }

    /// The name of the host end of its veth pair.
    pub(crate) fn host_veth(&self) -> &str {
        &self.host_veth
    }

    /// The name of the network, as marks spell it.
    pub(crate) fn network(&self) -> Cow<'_, str> {
        names::network(&self.network)
    }

    /// Container id and interface name.
    pub(crate) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The text on its host veth, which says whose it is: `cni:<network>/<container id>/<ifname>`.
    pub(crate) fn alias(&self) -> String {
        let container_id = names::container_id(self.attachment.container_id());
        mark(&self.network(), &container_id, self.attachment.ifname())
    }

    /// As the owner of iptables rules.
    pub(crate) fn jumps(&self) -> Jumps<'_> {
        Jumps { network: &self.network, attachment: &self.attachment }
    }

    /// As the owner of rules.
    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner { network: &self.network, attachment: &self.attachment, host_veth: &self.host_veth }
    }
}

/// The text on a host veth, with network and container id as marks spell them.
pub(crate) fn mark(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{MARK}{network}/{container_id}/{ifname}")
}

/// The start of the aliases of every attachment to `network`.
pub(crate) fn network_mark(network: &str) -> String {
    format!("{MARK}{}/", names::network(network))
}

/// The text on a bridge that this plugin made for `network`.
pub(crate) fn bridge_alias(network: &str) -> String {
    format!("{MARK}{}", names::network(network))
}

/// The network for which this plugin made the bridge with this alias.
pub(crate) fn network_of_bridge(alias: &str) -> Option<&str> {
    alias.strip_prefix(MARK).filter(|network| !network.contains('/'))
}

/// Whether a link with this alias is ours.
pub(crate) fn is_marked(alias: &str) -> bool {
    alias.starts_with(MARK)
}

/// Whether a link with this alias is the host veth of an attachment, to whatever network.
pub(crate) fn is_attachment(alias: &str) -> bool {
    is_marked(alias) && alias.contains('/')
}

/// Whether a bridge port with this alias leads to the gateway interface of a VLAN.
pub(crate) fn is_gateway_port(alias: &str) -> bool {
    is_marked(alias) && !is_attachment(alias)
}

/// Whether a link is a host veth of ours that has not got its mark yet: between the two an ADD was killed, or is at it.
pub(crate) fn is_half_made(name: &str, alias: &str) -> bool {
    alias.is_empty() && is_hashed_name(name)
}

/// Whether a link may have got its name from [`hashed_name`].
fn is_hashed_name(name: &str) -> bool {
    name.strip_prefix(HOST_VETH).is_some_and(|hash| {
        hash.len() == HASH_DIGITS && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The port that carries the gateway interface `link` of a VLAN.
pub(crate) fn gateway_port(link: &str) -> String {
    hashed_name(&[link])
}

/// A link name that is derived from `parts`, none of which contains a NUL, so that no two lists are written alike.
fn hashed_name(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    let digits = hash.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]).take(HASH_DIGITS);
    let digits = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16));
    HOST_VETH.chars().chain(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's `IFALIASZ` less the NUL.
    const MAX_ALIAS_LEN: usize = 255;

    fn identity(network: &str, id: &str, ifname: &str) -> Identity {
        Identity::new(network, &Attachment::new(id, ifname).unwrap())
    }

    #[test]
    fn the_host_veth_depends_on_every_part_and_fits() {
        let names = [
            identity("n", "c", "eth0"),
            identity("n", "c", "eth1"),
            identity("n", "d", "eth0"),
            identity("m", "c", "eth0"),
            identity("nc", "x", "eth0"),
            identity("n", "cx", "eth0"),
        ]
        .map(|identity| identity.host_veth().to_owned());
        for (index, name) in names.iter().enumerate() {
            assert_eq!((name.len(), &name[..4]), (15, "veth"));
            assert!(!names[..index].contains(name), "{names:?}");
        }
        assert_eq!(identity("n", "c", "eth0").host_veth(), names[0]);
    }

    #[test]
    fn the_alias_spells_the_identity_out_as_far_as_it_fits() {
        assert_eq!(identity("net", "id", "eth0").alias(), "cni:net/id/eth0");
        assert!(identity("net", "id", "eth0").alias().starts_with(&network_mark("net")));
        let long = identity(&"n".repeat(300), &"i".repeat(300), "an-ifname-of-15");
        assert!(long.alias().len() <= MAX_ALIAS_LEN, "{}", long.alias());
        let found = Identity::of_mark(&long.alias(), long.host_veth()).unwrap();
        assert_eq!((found.alias(), found.host_veth()), (long.alias(), long.host_veth()));
        assert_eq!(Identity::of_mark(&long.alias(), "veth0"), None);
        assert_eq!(Identity::of_mark("cni:net/id/eth0", long.host_veth()), None);
        assert!(is_marked(&bridge_alias("net")) && !is_marked("uplink"));
    }

    #[test]
    fn a_half_made_host_veth_is_told_from_those_of_others() {
        assert!(is_half_made(identity("n", "c", "eth0").host_veth(), ""));
        for (name, alias) in
            [("veth0123456789a", "cni:n/c/eth0"), ("veth01234567", ""), ("vethLocalBridge", "")]
        {
            assert!(!is_half_made(name, alias));
        }
    }
}
