//! The table `inet cni-bridge`: what is routed between the networks, the host and the outside.
//!
//! Its map `attachments` is read by no rule. It is the record: who is attached, which addresses have elements, and by
//! the chain in its verdict, that the network is in use.

use nft_netlink::{
    Base, ChainKind, Element, Error, Family, Hook, KeyType, Policy as ChainPolicy, Rule, Set, Socket, Table,
    Verdict, ifname_key,
};
use nft_netlink::{Holds, address_key};

use super::content::{self, Content, Member, Skeleton, SkeletonChain};
use super::{Attached, IngressPolicy, Owner, isolation, masquerade, record};

const ATTACHMENTS: &str = "attachments";

pub(super) static SKELETON: Skeleton = Skeleton {
    table: Table { family: Family::Inet, name: "cni-bridge" },
    comment: "CNI bridge networks: masquerade and ingress policy",
    sets: &[
        (verdicts(ATTACHMENTS, &[KeyType::Ifname]), "host veth: whose, addresses, chain of the network"),
        (verdicts(masquerade::ADDRESSES_V4, &[KeyType::Ipv4Addr]), "container address"),
        (verdicts(masquerade::ADDRESSES_V6, &[KeyType::Ipv6Addr]), "container address"),
        (verdicts(isolation::ISOLATED, &[KeyType::Ifname]), "bridge with ingressPolicy isolated"),
        (verdicts(isolation::SAME_BRIDGE, &[KeyType::Ifname]), "bridge with an ingressPolicy"),
        (verdicts(isolation::GATEWAYS_V4, &[KeyType::Ipv4Addr]), "gateway address of such a bridge"),
        (verdicts(isolation::GATEWAYS_V6, &[KeyType::Ipv6Addr]), "gateway address of such a bridge"),
    ],
    chains,
};

const fn verdicts(name: &'static str, key: &'static [KeyType]) -> Set<'static> {
    Set { name, key, holds: Holds::Verdicts }
}

fn chains() -> Vec<SkeletonChain> {
    let chain = |name, comment, kind, hook, priority, rules: Vec<Rule>| SkeletonChain {
        name,
        comment,
        base: Some(Base { kind, hook, priority, policy: ChainPolicy::Accept }),
        rules,
    };
    /// `NF_IP_PRI_FILTER`, where `iptables` filters too.
    const FILTER: i32 = 0;
    /// `NF_IP_PRI_NAT_SRC`.
    const SOURCE_NAT: i32 = 100;
    vec![
        chain(
            "postrouting",
            "masquerades what leaves its subnet",
            ChainKind::Nat,
            Hook::Postrouting,
            SOURCE_NAT,
            masquerade::dispatch(),
        ),
        chain(
            "forward",
            "who may open a flow to a container",
            ChainKind::Filter,
            Hook::Forward,
            FILTER,
            isolation::forward(),
        ),
        chain(
            "input",
            "who may open a flow to a gateway address",
            ChainKind::Filter,
            Hook::Input,
            FILTER,
            isolation::input(),
        ),
    ]
}

/// What the attachments need here; nothing when none of them is masqueraded or has an ingress policy.
pub(super) fn content(attached: &[Attached<'_>]) -> Option<Content> {
    let mut content = Content::new(&SKELETON);
    for attachment in attached {
        if !attachment.policy.masquerade && attachment.policy.ingress == IngressPolicy::Open {
            continue;
        }
        let network = isolation::chain_of(attachment, &mut content);
        let masqueraded = if attachment.policy.masquerade { attachment.addresses } else { &[] };
        content.element(
            ATTACHMENTS,
            Element::new(ifname_key(attachment.owner.host_veth))
                .with_verdict(Verdict::Goto(network))
                .with_comment(&record::with_addresses(&attachment.owner, masqueraded)),
        );
        masquerade::content(&attachment.owner, masqueraded, &mut content);
    }
    (!content.elements.is_empty()).then_some(content)
}

/// Removes the elements of `owner`, the chains that only it referred to, and the table after its last attachment.
pub(super) fn remove(socket: &mut Socket, owner: &Owner<'_>) -> Result<(), Error> {
    let table = SKELETON.table;
    let removed = content::unless_raced(|| {
        let Some(found) = socket.element(table, ATTACHMENTS, &ifname_key(owner.host_veth))? else {
            return Ok(None);
        };
        let comment = found.comment.clone().unwrap_or_default();
        let mut members = vec![Member { set: ATTACHMENTS, element: found }];
        for address in record::addresses(&comment) {
            let set = masquerade::addresses_of(address);
            // The address may have been leased to somebody else since.
            if let Some(element) = socket.element(table, set, &address_key(address))?
                && element.comment.as_deref() == Some(record::identity(owner).as_str())
            {
                members.push(Member { set, element });
            }
        }
        content::delete(socket, table, &members)?;
        Ok(Some(members))
    })?;
    let Some(removed) = removed else { return Ok(()) };
    let mut chains: Vec<String> = removed
        .into_iter()
        .filter_map(|member| match member.element.verdict {
            Some(Verdict::Goto(chain)) => Some(chain),
            _ => None,
        })
        .collect();
    isolation::add_referred(&mut chains);
    chains.dedup();
    for chain in &chains {
        content::sweep_chain(socket, table, chain, isolation::ENTRY_SETS)?;
    }
    content::sweep_table(socket, &SKELETON, |_| Ok(true))
}

/// The elements that are records.
pub(super) fn records(socket: &mut Socket) -> Result<Vec<Element>, Error> {
    socket.elements(SKELETON.table, ATTACHMENTS)
}
