//! The rules of bridge networks, in two nf_tables tables of our own: `inet cni-bridge` sees what is routed, `bridge
//! cni-bridge` what enters a port.
//!
//! Owns both tables and nothing else of the host's firewall; it never starts a process and never reads a file. A table
//! is born with the first attachment that needs it and gone with the last one.
//!
//! How a verb uses it: one [`Rules`] (one socket) per call. ADD: [`Rules::install`], and when that says
//! [`Installed::Anew`] and the bridge has other attachments, somebody may have flushed the ruleset: [`Rules::repair`]
//! those. Undo of an ADD: RTM_DELLINK, then [`Rules::remove`]. DEL: `remove`, then RTM_DELLINK, then
//! [`Rules::remove_again`], and only then drop the `Rules`: closing the socket waits until what it removed is destroyed
//! (about 12 ms), and that wait overlaps with the link's own.
//! CHECK: [`Rules::verify`]. STATUS: [`Rules::probe`].
//!
//! A repair of others can meet the DEL of one of them, between its `remove` and its RTM_DELLINK. So that no rule is left
//! over, each side looks again after its own last step: the DEL removes once more when the link is gone (a few reads),
//! the repair removes the rules of those whose link has gone meanwhile.
//!
//! The design, in short. The number of rules does not depend on the number of containers: an attachment is an element
//! of sets. Each table has one map in which its element, keyed by the host veth, is the record: the comment says whose
//! it is and which other elements belong to it, so that DEL reads one element however many there are; the verdict
//! refers to what it uses, so that the kernel counts who still needs what. Parallel ADDs and DELs need no lock.

mod compare;
mod content;
mod foreign;
mod guard;
mod isolation;
mod legacy;
mod masquerade;
mod ports;
mod record;
mod routed;
mod spoofcheck;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_types::Attachment;
use ipnetwork::IpNetwork;
use nft_netlink::{Batch, Socket};

pub(crate) use foreign::ForeignDrop;
pub(crate) use record::Record;

/// nf_tables did not do what it was asked; the text names the object.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Error(#[from] nft_netlink::Error);

/// Whose a set element is. Found again by `host_veth` (derived from the identity); the comment spells it out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) network: &'a str,
    pub(crate) attachment: &'a Attachment,
    pub(crate) host_veth: &'a str,
}

/// An attachment as its rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attached<'a> {
    pub(crate) owner: Owner<'a>,
    /// The link that the network's routed traffic goes by: the bridge, or its VLAN gateway interface.
    pub(crate) gateway_link: &'a str,
    /// Of the container's interface.
    pub(crate) mac: [u8; 6],
    /// The container's addresses, each with its subnet's prefix length.
    pub(crate) addresses: &'a [IpNetwork],
    /// The network's addresses on `gateway_link`; empty when it is no gateway.
    pub(crate) gateways: &'a [IpAddr],
    pub(crate) policy: Policy,
}

/// What the network asks of its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) masquerade: bool,
    pub(crate) ingress: IngressPolicy,
    /// Router advertisements from the container's port are dropped.
    pub(crate) ra_guard: bool,
    /// Frames from the container's port pass only with the container's MAC as source.
    pub(crate) mac_spoof_check: bool,
}

impl Policy {
    /// Whether it takes any rule.
    pub(crate) fn needs_rules(self) -> bool {
        let Self { masquerade, ingress, ra_guard, mac_spoof_check } = self;
        masquerade || ra_guard || mac_spoof_check || ingress != IngressPolicy::Open
    }
}

/// Who may open a connection to a container (`ingressPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IngressPolicy {
    /// Everybody.
    Open,
    /// The containers of this bridge, the host, and whoever comes by a published port.
    SameBridge,
    /// The host, and whoever comes by a published port.
    Isolated,
}

/// What [`Rules::install`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The chains of the bridge's networks were there, or none was needed.
    Joined,
    /// A table or a chain was missing: this is the first attachment of its kind, or somebody flushed the ruleset.
    Anew,
}

/// One conversation with the kernel's nf_tables, in the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Rules {
    socket: Socket,
}

impl Rules {
    /// Opens the socket.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Brings in the rules of `attached` in one transaction; what is there already is kept, and what another owner
    /// left under the same key is replaced.
    pub(crate) fn install(&mut self, attached: &[Attached<'_>]) -> Result<Installed, Error> {
        Ok(content::install(&mut self.socket, &contents(attached))?)
    }

    /// Removes every element of `owner`, with the last one of a network or a table that too, and what the reference
    /// plugins left for the attachment; all in one transaction. What is gone is no error.
    pub(crate) fn remove(&mut self, owner: &Owner<'_>) -> Result<(), Error> {
        Ok(content::remove(&mut self.socket, |socket, batch| {
            remove_elements(socket, owner, batch)?;
            legacy::remove(socket, owner, batch)
        })?)
    }

    /// Removes every element of `owner` that somebody brought back since [`remove`](Self::remove).
    pub(crate) fn remove_again(&mut self, owner: &Owner<'_>) -> Result<(), Error> {
        Ok(content::remove(&mut self.socket, |socket, batch| remove_elements(socket, owner, batch))?)
    }

    /// Each difference between the kernel and the rules of `attached`, in words.
    pub(crate) fn verify(&mut self, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
        let mut words = Vec::new();
        for content in contents(std::slice::from_ref(attached)) {
            words.extend(compare::differences(&mut self.socket, &content)?.iter().map(ToString::to_string));
        }
        Ok(words)
    }

    /// Mends whatever became of the rules of `attached`, in one transaction; returns what was wrong, in words.
    pub(crate) fn repair(&mut self, attached: &[Attached<'_>]) -> Result<Vec<String>, Error> {
        Ok(compare::repair(&mut self.socket, &contents(attached))?)
    }

    /// The attachments that have rules.
    pub(crate) fn records(&mut self) -> Result<Vec<Record>, Error> {
        let mut elements = routed::records(&mut self.socket)?;
        elements.extend(ports::records(&mut self.socket)?);
        let records: BTreeSet<Record> = elements.iter().filter_map(Record::of).collect();
        Ok(records.into_iter().collect())
    }

    /// Whether rules can be written here: permission and kernel support. Changes nothing.
    pub(crate) fn probe(&mut self) -> Result<(), Error> {
        self.socket.generation()?;
        Ok(())
    }

    /// Base chains of others that drop what is forwarded from or to `gateway_link`.
    pub(crate) fn foreign_drops(&mut self, gateway_link: &str) -> Result<Vec<ForeignDrop>, Error> {
        Ok(foreign::drops(&mut self.socket, gateway_link)?)
    }
}

fn remove_elements(
    socket: &mut Socket,
    owner: &Owner<'_>,
    batch: &mut Batch,
) -> Result<(), nft_netlink::Error> {
    for doomed in [routed::doomed(socket, owner)?, ports::doomed(socket, owner)?].iter().flatten() {
        doomed.delete(batch);
    }
    Ok(())
}

fn contents(attached: &[Attached<'_>]) -> Vec<content::Content> {
    [routed::content(attached), ports::content(attached)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
