//! The rules of bridge networks, in three nf_tables tables of our own: `inet cni-bridge` sees what is routed, `bridge
//! cni-bridge` what enters a port, `bridge cni-ra-guard` what a router says there.
//!
//! Owns these tables and, where a network asks for it, rules with a comment of ours in the forward chains of others; it
//! never starts a process and never reads a file. A table is born with the first attachment that needs it and gone with
//! the last one. For the guard's, which has no elements, the caller counts them ([`Rules::guard`],
//! [`Rules::remove_guard`]).
//!
//! How a verb uses it: one [`Rules`] (one socket) per call. ADD: [`Rules::join`], and when that says
//! [`Installed::Anew`], somebody may have flushed the ruleset, or the network has another policy now: [`Rules::repair`]
//! all attachments at once; [`Rules::install`] for the first one. Undo of an ADD: RTM_DELLINK, then [`Rules::remove`].
//! DEL: `remove`, then RTM_DELLINK, then [`Rules::remove_again`], and only then drop the `Rules`: closing the socket waits
//! until what it removed is destroyed (about 12 ms), and that wait overlaps with the link's own.
//! CHECK: [`Rules::verify`]. STATUS: [`Rules::probe`].
//!
//! A repair of others can meet the DEL of one of them, between its `remove` and its RTM_DELLINK. So that no rule is left
//! over, each side looks again after its own last step: the DEL removes once more when the link is gone (a few reads),
//! the repair removes the rules of those whose link has gone meanwhile.
//!
//! The design, in short. The number of rules does not depend on the number of containers: an attachment is an element
//! of sets. Each table but the guard's has one map in which its element, keyed by the host veth, is the record: the comment says whose
//! it is and which other elements belong to it, so that DEL reads one element however many there are; the verdict
//! refers to what it uses, so that the kernel counts who still needs what. Parallel ADDs and DELs need no lock.

mod accept;
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
mod skeleton;
mod spoofcheck;
mod untracked;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_types::Attachment;
use ipnetwork::IpNetwork;
use nft_netlink::{Batch, Element, Holds, Socket, ifname_key};

use crate::flows::Flows;
use content::Newcomer;
use skeleton::Skeleton;

pub(crate) use foreign::ForeignDrop;
pub(crate) use guard::GUARDED;
pub(crate) use record::Record;

/// nf_tables did not do what it was asked; the text names the object.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Error(#[from] nft_netlink::Error);

impl Error {
    /// Whether the kernel has no packet filters that could be asked.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.0.is_unsupported()
    }
}

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
    /// How `gateway_link` is connected with the bridge, if it is not the bridge.
    pub(crate) vlan_gateway: Option<VlanGateway<'a>>,
    /// In what the network's ports are unlike others, in words. No rule is about that; but who comes with others has to
    /// learn that those who are there have to be told.
    pub(crate) port_words: &'a [String],
    pub(crate) policy: Policy,
}

/// The gateway interface of a VLAN, seen from the bridge.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VlanGateway<'a> {
    pub(crate) bridge: &'a str,
    /// The bridge port that leads to it.
    pub(crate) port: &'a str,
    pub(crate) mac: [u8; 6],
}

/// What the network asks of its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) masquerade: bool,
    pub(crate) ingress: IngressPolicy,
    /// Frames from the container's port pass only with the container's MAC as source.
    pub(crate) mac_spoof_check: bool,
    /// The network's traffic is let through the forward chains of others that would drop it.
    pub(crate) accept_forward: bool,
}

impl Policy {
    /// That of a network which asks for nothing.
    pub(crate) const NONE: Self = Self {
        masquerade: false,
        ingress: IngressPolicy::Open,
        mac_spoof_check: false,
        accept_forward: false,
    };

    /// Whether it takes any rule.
    pub(crate) fn needs_rules(self) -> bool {
        let Self { masquerade, ingress, mac_spoof_check, accept_forward } = self;
        masquerade || mac_spoof_check || accept_forward || ingress != IngressPolicy::Open
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

impl IngressPolicy {
    /// Each there is.
    pub(crate) const ALL: [Self; 3] = [Self::Open, Self::SameBridge, Self::Isolated];

    /// As the configuration has it; `open` for the absence of a policy.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }
}

/// What [`Rules::install`] and [`Rules::join`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The chains of the bridge's networks were there, or none was needed.
    Joined,
    /// A table or a chain was missing: this is the first attachment of its kind, or somebody flushed the ruleset, or
    /// changed the configuration.
    Anew,
}

/// What [`Rules::remove`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    /// No record of the attachment.
    Nothing,
    /// Its rules, which are gone.
    Rules,
    /// The same, and nobody is left on the network who came with `acceptForward`.
    LastAccepted,
}

/// An attachment that has lost its rules.
#[derive(Debug)]
pub(crate) struct Departed {
    pub(crate) removed: Removed,
    /// Those of its addresses that were masqueraded and that nobody else has been given since.
    pub(crate) addresses: Vec<IpAddr>,
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
        Ok(content::install(&mut self.socket, &contents(attached), Newcomer::Founds)?)
    }

    /// The same, but where a chain is missing nothing is changed: others may lack theirs as well, and a caller who
    /// ended between his own transaction and theirs would leave no trace of that.
    pub(crate) fn join(&mut self, attached: &[Attached<'_>]) -> Result<Installed, Error> {
        let contents = contents(attached);
        let installed = content::install(&mut self.socket, &contents, Newcomer::OnlyJoins)?;
        if installed == Installed::Joined && self.has_another_past(attached, &contents)? {
            return Ok(Installed::Anew);
        }
        Ok(installed)
    }

    /// Whether the record of each of `attached` is there, as it should be: nobody has flushed the ruleset since, or
    /// replaced it by what he knew of the attachment.
    pub(crate) fn has_records(&mut self, attached: &[Attached<'_>]) -> Result<bool, Error> {
        for content in contents(attached) {
            for Attached { owner, .. } in attached {
                let key = ifname_key(owner.host_veth);
                let skeleton = content.skeleton;
                let wished = content.record(&key);
                if wished.is_some()
                    && self.socket.element(skeleton.table, skeleton.records, &key)?.as_ref() != wished
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether the network of an attachment that needs nothing in a table itself had something there before. Where an
    /// attachment needs something, a change shows in what is new for it.
    fn has_another_past(
        &mut self,
        attached: &[Attached<'_>],
        contents: &[content::Content],
    ) -> Result<bool, Error> {
        let chains_of = [routed::possible_chains, ports::possible_chains];
        for (content, chains_of) in contents.iter().zip(chains_of).filter(|(content, _)| content.is_empty()) {
            let table = content.skeleton.table;
            if self.socket.table(table)?.is_none() {
                continue;
            }
            for chain in attached.iter().flat_map(chains_of) {
                if self.socket.chain(table, &chain)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Removes every element of `owner`, with the last one of a network or a table that too, and what the reference
    /// plugins left for the attachment; all in one transaction. What is gone is no error. Where somebody has removed the
    /// record, the chains stay, since others may have lost theirs too: they go with the network's next attachment.
    pub(crate) fn remove(&mut self, owner: &Owner<'_>) -> Result<Departed, Error> {
        Ok(content::change(&mut self.socket, |socket, batch| {
            let departed = remove_elements(socket, owner.host_veth, batch)?;
            for skeleton in [&routed::SKELETON, &ports::SKELETON] {
                remove_unrecorded(socket, skeleton, owner, batch)?;
            }
            legacy::remove(socket, owner, batch)?;
            Ok(departed)
        })?)
    }

    /// The comments of what `iptables-nft` has behind routing, where masquerade rules of ours through it are.
    pub(crate) fn iptables_comments(&mut self) -> Result<Vec<String>, Error> {
        Ok(legacy::comments(&mut self.socket)?)
    }

    /// Removes every element of the attachment that a record is of, with the last one of a network or a table that too.
    pub(crate) fn remove_recorded(&mut self, record: &Record) -> Result<Departed, Error> {
        let host_veth = &record.host_veth;
        Ok(content::change(&mut self.socket, |socket, batch| remove_elements(socket, host_veth, batch))?)
    }

    /// Removes every element of `owner` that somebody brought back since [`remove`](Self::remove). Whoever is about to
    /// bring one back looks afterwards whether the link is there, so that nothing here has to wait for that.
    pub(crate) fn remove_again(&mut self, owner: &Owner<'_>) -> Result<Removed, Error> {
        let key = ifname_key(owner.host_veth);
        for skeleton in [&routed::SKELETON, &ports::SKELETON] {
            if self.socket.element(skeleton.table, skeleton.records, &key)?.is_some() {
                let departed = content::change(&mut self.socket, |socket, batch| {
                    remove_elements(socket, owner.host_veth, batch)
                })?;
                return Ok(departed.removed);
            }
        }
        Ok(Removed::Nothing)
    }

    /// Has the host forget the flows from and to `addresses`. Kernels before 6.11 are not able to.
    pub(crate) fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        match self.socket.forget_flows(addresses) {
            Err(error) if error.is_invalid() => {
                log::debug!("{error}");
                Ok(())
            }
            forgotten => Ok(forgotten?),
        }
    }

    /// Whether the chains of others have rules for a network that has lost its record of them.
    pub(crate) fn has_orphans(&mut self) -> Result<bool, Error> {
        Ok(!accept::orphans(&mut self.socket)?.is_empty())
    }

    /// Removes such rules, but not those for `networks`.
    pub(crate) fn remove_orphans(&mut self, networks: &BTreeSet<String>) -> Result<(), Error> {
        let look = |socket: &mut Socket, batch: &mut Batch| accept::remove_orphans(socket, networks, batch);
        Ok(content::change(&mut self.socket, look)?)
    }

    /// Lets the traffic of the attachment's network through the forward chains of others; says which rules were
    /// missing, or there for another policy. Its record has to be there: see [`install`](Self::install).
    pub(crate) fn accept_forward(&mut self, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
        Ok(accept::install(&mut self.socket, attached)?)
    }

    /// Whether somebody is attached to the network who came with `acceptForward`.
    pub(crate) fn is_accepted(&mut self, network: &str) -> Result<bool, Error> {
        Ok(self.socket.chain(routed::SKELETON.table, &accept::chain_of(network))?.is_some())
    }

    /// Each difference between the kernel and the rules of `attached`, in words.
    pub(crate) fn verify(&mut self, attached: &Attached<'_>) -> Result<Vec<String>, Error> {
        let mut words = Vec::new();
        let key = ifname_key(attached.owner.host_veth);
        for content in contents(std::slice::from_ref(attached)) {
            let differences = compare::differences(&mut self.socket, &content)?;
            if !differences.is_empty() && !self.is_as_before(attached, &content)? {
                words.extend(differences.iter().map(ToString::to_string));
            }
            if content.record(&key).is_none() {
                let skeleton = content.skeleton;
                let unneeded = self.socket.element(skeleton.table, skeleton.records, &key)?;
                words.extend(unneeded.map(|record| compare::not_needed(&content, &record)));
            }
        }
        if attached.policy.accept_forward {
            words.extend(accept::differences(&mut self.socket, attached)?);
        }
        Ok(words)
    }

    /// Whether what differs from `content` is as an earlier build has left it, which does the same.
    fn is_as_before(
        &mut self,
        attached: &Attached<'_>,
        content: &content::Content,
    ) -> Result<bool, nft_netlink::Error> {
        if content.skeleton.table != ports::SKELETON.table {
            return Ok(false);
        }
        let before = ports::content_without_chains(std::slice::from_ref(attached));
        Ok(compare::differences(&mut self.socket, &before)?.is_empty())
    }

    /// The hardware address that attachments know of the gateway interface behind the bridge port `port`; `None` if
    /// there are none.
    pub(crate) fn gateway_mac(&mut self, port: &str) -> Result<Option<[u8; 6]>, Error> {
        Ok(ports::gateway_mac(&mut self.socket, port)?)
    }

    /// Mends whatever became of the rules of `attached`, in one transaction, and then of those in the chains of others;
    /// returns what was wrong, in words.
    pub(crate) fn repair(&mut self, attached: &[Attached<'_>]) -> Result<Vec<String>, Error> {
        let keys: Vec<Vec<u8>> =
            attached.iter().map(|attached| ifname_key(attached.owner.host_veth)).collect();
        let mut words = compare::repair(&mut self.socket, &contents(attached), &keys)?;
        let mut mended = BTreeSet::new();
        for attached in attached.iter().filter(|attached| attached.policy.accept_forward) {
            if mended.insert((attached.owner.network, attached.gateway_link)) {
                words.extend(accept::install(&mut self.socket, attached)?);
            }
        }
        Ok(words)
    }

    /// The attachments that have rules.
    pub(crate) fn records(&mut self) -> Result<Vec<Record>, Error> {
        let mut elements = routed::records(&mut self.socket)?;
        elements.extend(ports::records(&mut self.socket)?);
        let records: BTreeSet<Record> = elements.iter().filter_map(Record::of).collect();
        Ok(records.into_iter().collect())
    }

    /// What the rules of the attachment with `host_veth` do for it; `None` if it has no rules.
    pub(crate) fn policy_of(&mut self, host_veth: &str) -> Result<Option<Policy>, Error> {
        let (routed, ports) =
            (routed::uses(&mut self.socket, host_veth)?, ports::checks_mac(&mut self.socket, host_veth)?);
        if routed.is_none() && ports.is_none() {
            return Ok(None);
        }
        let uses = routed.unwrap_or_default();
        let has = |is_chain: fn(&str) -> bool| uses.iter().any(|chain| is_chain(chain));
        Ok(Some(Policy {
            masquerade: has(masquerade::is_chain),
            ingress: isolation::policy_of(&uses),
            mac_spoof_check: ports.unwrap_or_default(),
            accept_forward: has(accept::is_chain),
        }))
    }

    /// Brings in the RA guard for every port that is [guarded](GUARDED), if it is not there as it should be.
    pub(crate) fn guard(&mut self) -> Result<(), Error> {
        if guard::fault_of_chain(&mut self.socket)?.is_some() {
            guard::install(&mut self.socket)?;
        }
        Ok(())
    }

    /// Mends whatever became of the RA guard; returns what was wrong, in words.
    pub(crate) fn repair_guard(&mut self) -> Result<Vec<String>, Error> {
        Ok(guard::install(&mut self.socket)?.iter().map(ToString::to_string).collect())
    }

    /// Each difference between the kernel and the RA guard, in words.
    pub(crate) fn verify_guard(&mut self) -> Result<Vec<String>, Error> {
        Ok(guard::faults(&mut self.socket)?.iter().map(ToString::to_string).collect())
    }

    /// Whether the RA guard is still there, and sees frames: one question.
    pub(crate) fn guard_is_awake(&mut self) -> Result<bool, Error> {
        Ok(guard::is_awake(&mut self.socket)?)
    }

    /// Whether there is an RA guard.
    pub(crate) fn has_guard(&mut self) -> Result<bool, Error> {
        Ok(guard::exists(&mut self.socket)?)
    }

    /// Removes the RA guard.
    pub(crate) fn remove_guard(&mut self) -> Result<(), Error> {
        Ok(guard::remove(&mut self.socket)?)
    }

    /// Whether rules can be written here: permission and kernel support. Changes nothing.
    pub(crate) fn probe(&mut self) -> Result<(), Error> {
        self.socket.generation()?;
        Ok(())
    }

    /// Whether there are base chains of others that filter what is forwarded.
    pub(crate) fn has_foreign_filters(&mut self) -> Result<bool, Error> {
        Ok(foreign::is_there_any(&mut self.socket)?)
    }

    /// Base chains of others that drop `flows`.
    pub(crate) fn foreign_drops(&mut self, flows: &mut Flows<'_>) -> Result<Vec<ForeignDrop>, Error> {
        Ok(foreign::drops(&mut self.socket, flows)?)
    }
}

fn remove_elements(
    socket: &mut Socket,
    host_veth: &str,
    batch: &mut Batch,
) -> Result<Departed, nft_netlink::Error> {
    let mut departed = Departed { removed: Removed::Nothing, addresses: Vec::new() };
    for doomed in [routed::doomed(socket, host_veth)?, ports::doomed(socket, host_veth)?].iter().flatten() {
        doomed.delete(socket, batch)?;
        departed.addresses.extend(doomed.members().iter().filter_map(masquerade::address_of));
        if doomed.chains().iter().any(|chain| accept::is_chain(chain)) {
            departed.removed = Removed::LastAccepted;
        } else if departed.removed == Removed::Nothing {
            departed.removed = Removed::Rules;
        }
    }
    Ok(departed)
}

/// Removes from one table the elements of `owner` that no record tells of any more: somebody has removed it.
fn remove_unrecorded(
    socket: &mut Socket,
    skeleton: &Skeleton,
    owner: &Owner<'_>,
    batch: &mut Batch,
) -> Result<(), nft_netlink::Error> {
    let (table, key) = (skeleton.table, ifname_key(owner.host_veth));
    if socket.table(table)?.is_none() || socket.element(table, skeleton.records, &key)?.is_some() {
        return Ok(());
    }
    let identity = record::identity(owner);
    let is_own = |element: &Element| element.comment.as_deref() == Some(&*identity);
    for (set, _) in skeleton.sets.iter().filter(|(set, _)| set.holds == Holds::Keys) {
        let elements = socket.elements(table, set.name)?;
        batch.delete_elements(table, set.name, elements.iter().filter(|element| is_own(element)));
    }
    Ok(())
}

/// The comment of the rules that let a network through the chains of others.
pub(crate) fn accept_comment(network: &str) -> String {
    accept::comment(&accept::chain_of(network))
}

/// Whether a comment is that of such rules, of whatever network.
pub(crate) fn is_accept_comment(comment: &str) -> bool {
    accept::is_comment(comment)
}

fn contents(attached: &[Attached<'_>]) -> [content::Content; 2] {
    [routed::content(attached), ports::content(attached)]
}

#[cfg(test)]
mod tests;
