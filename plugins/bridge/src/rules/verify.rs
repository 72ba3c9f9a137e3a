//! The rules of an attachment against the kernel's, for CHECK.

use cni_types::Error;
use ipnetwork::IpNetwork;

use super::failed;
use super::subject::{FoundGateway, Subject, in_order};
use crate::attachment::Identity;
use crate::config::{MasqueradeBackend, Settings};
use crate::iptables;
use crate::mac::Mac;
use crate::netlink::Netlink;
use crate::nft::{Attached, Rules};
use crate::plan::Plan;
use crate::xtables;

/// Each difference between the rules of an attachment and the kernel's, in words. `present` are all addresses of the
/// container's interface that reach beyond the link.
pub(crate) fn verify(
    host: &mut Netlink,
    settings: &Settings,
    identity: &Identity,
    plan: &Plan,
    mac: Mac,
    present: Vec<IpNetwork>,
) -> Result<Vec<String>, Error> {
    let subject = Subject::new(settings, identity, plan, mac, FoundGateway::find(host, settings)?);
    let mut differences = Vec::new();
    if subject.policy.needs_rules() || settings.is_gateway() {
        let mut rules = Rules::open().map_err(failed)?;
        differences = verify_nftables(&mut rules, &subject, present)?;
        if settings.is_gateway() {
            differences.extend(verify_guard(&mut rules)?);
        }
    }
    if subject.policy.accept_forward {
        differences.extend(xtables::differences(subject.traffic())?);
    }
    if settings.masquerade == Some(MasqueradeBackend::Iptables) {
        differences.extend(iptables::verify(identity.jumps(), &subject.addresses)?);
    }
    Ok(differences)
}

/// The differences in nf_tables. A repair goes by what the interface has: where others gave it more addresses, the
/// rules may be for all of these.
fn verify_nftables(
    rules: &mut Rules,
    subject: &Subject,
    present: Vec<IpNetwork>,
) -> Result<Vec<String>, Error> {
    let differences = rules.verify(&subject.attached()).map_err(failed)?;
    let present = in_order(present);
    let has_all = subject.addresses.iter().all(|address| present.contains(address));
    if !differences.is_empty() && has_all && present != subject.addresses {
        let whole = Attached { addresses: &present, ..subject.attached() };
        if rules.verify(&whole).map_err(failed)?.is_empty() {
            return Ok(Vec::new());
        }
    }
    Ok(differences)
}

/// The differences of the RA guard. A kernel that has no rules has none, and ADD has done without as well.
fn verify_guard(rules: &mut Rules) -> Result<Vec<String>, Error> {
    let differences = rules.verify_guard().map_err(failed)?;
    let is_impossible = !differences.is_empty() && rules.probe().is_err_and(|error| error.is_unsupported());
    Ok(if is_impossible { Vec::new() } else { differences })
}
