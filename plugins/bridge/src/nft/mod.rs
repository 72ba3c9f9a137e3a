//! The rules of a bridge network, in nf_tables tables of our own: `inet cni-bridge` and `bridge cni-bridge`.
//!
//! Owns both tables and nothing else of the host's firewall; it never starts a process and never reads a file. A table
//! is born with the first attachment that needs a rule and gone with the last one.
//!
//! How a verb uses it: one [`Rules`] (one socket) per call. ADD: `Rules::open()?.install(&[attached])?`, and when that
//! says [`Installed::Anew`], install the other attachments of the bridge as well (after `nft flush ruleset` they have
//! lost theirs). Undo of an ADD: `remove`. DEL: `remove`, then RTM_DELLINK, and only then drop the `Rules`: closing the
//! socket waits until what it removed is destroyed (about 12 ms), and that wait overlaps with the link's own.
//! CHECK: `verify`. STATUS: `probe`.

use std::net::IpAddr;

use cni_types::Attachment;
use ipnetwork::IpNetwork;

/// Whose a rule or set element is. Found again by `host_veth` (derived from the identity); the comment spells it out.
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
    /// No rule was asked for.
    Nothing,
    /// The bridge's rules were there; the attachment joined them.
    Joined,
    /// The bridge had no rules: this is its first attachment, or somebody flushed the ruleset.
    Anew,
}

/// The owner of a set element, as its comment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) network: String,
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    pub(crate) host_veth: String,
}

/// A foreign base chain that drops what our containers forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignDrop {
    /// As `nft` writes it: `chain ip filter FORWARD`.
    pub(crate) chain: String,
    /// Why: `policy drop`, or whose it is.
    pub(crate) reason: String,
}

/// nf_tables could not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel's answer, with what was being done.
    #[error("nf_tables: {operation}: {source}")]
    Kernel { operation: &'static str, source: std::io::Error },
}

/// One conversation with the kernel's nf_tables in the current network namespace.
#[derive(Debug)]
pub(crate) struct Rules {}

impl Rules {
    /// Opens the socket.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {})
    }

    /// Brings in the rules of `attached` in one transaction; what is there already is kept.
    pub(crate) fn install(&mut self, attached: &[Attached<'_>]) -> Result<Installed, Error> {
        let _ = attached;
        Ok(Installed::Nothing)
    }

    /// Removes every rule and element of `owner`, and what reference plugins left for it; what is gone is no error.
    pub(crate) fn remove(&mut self, owner: &Owner<'_>) -> Result<(), Error> {
        let _ = owner;
        Ok(())
    }

    /// Each difference between the kernel and the rules of `attached`, in words.
    pub(crate) fn verify(&mut self, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
        let _ = attached;
        Ok(Vec::new())
    }

    /// The attachments that have rules.
    pub(crate) fn records(&mut self) -> Result<Vec<Record>, Error> {
        Ok(Vec::new())
    }

    /// Whether rules can be written here: permission and kernel support. Changes nothing.
    pub(crate) fn probe(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Foreign base chains that drop forwarded traffic.
    pub(crate) fn foreign_drops(&mut self) -> Result<Vec<ForeignDrop>, Error> {
        Ok(Vec::new())
    }

    /// Rebuilds the rules of `attached` whatever became of them; returns how many objects were missing or wrong.
    pub(crate) fn repair(&mut self, attached: &[Attached<'_>]) -> Result<usize, Error> {
        let _ = attached;
        Ok(0)
    }
}
