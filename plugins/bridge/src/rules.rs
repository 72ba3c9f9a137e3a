//! The rules of an attachment: who writes them, mends them and takes them away.

mod guard;
mod install;
mod removal;
mod repair;
mod subject;
mod verify;

use cni_types::{Error, ErrorCode};

use crate::attachment::Identity;
use crate::config::{MasqueradeBackend, Settings};
use crate::iptables::{self, Told};
use crate::mac::Mac;
use crate::nft::{self, Rules};
use crate::xtables;

pub(crate) use self::guard::remove_unneeded_alone as remove_unneeded_guard;
pub(crate) use self::install::{Prepared, install, prepare, remove_after_link};
pub(crate) use self::removal::{
    Removal, collect, collect_iptables, forget, forget_flows, remove, remove_orphans, remove_stale,
};
pub(crate) use self::repair::{repair, repair_guard, restore_port};
pub(crate) use self::subject::{FoundGateway, Subject, gateways, policy};
pub(crate) use self::verify::verify;

/// Refuses a host that lacks the programs which the settings ask for.
pub(crate) fn require_programs(settings: &Settings) -> Result<(), Error> {
    match settings.masquerade {
        Some(MasqueradeBackend::Iptables) => iptables::require(),
        _ => Ok(()),
    }
}

/// The comments of what both kinds of iptables have behind routing: our masquerade rules through them are among it,
/// whatever the configuration says by now. Starts no process.
pub(crate) fn iptables_comments(rules: &mut Rules) -> Result<Vec<String>, Error> {
    let mut comments = rules.iptables_comments().map_err(failed)?;
    comments.extend(xtables::comments(iptables::NAT)?);
    Ok(comments)
}

/// The hardware address that those behind a VLAN's gateway interface know it by, whose bridge port is called `port`;
/// `None` if it is nobody's gateway yet.
pub(crate) fn gateway_mac(port: &str) -> Result<Option<Mac>, Error> {
    let known = Rules::open().and_then(|mut rules| rules.gateway_mac(port)).map_err(failed)?;
    Ok(known.map(Mac::from))
}

/// Whether there are masquerade rules of the network through iptables.
pub(crate) fn has_iptables(network: &str) -> Result<bool, Error> {
    let comments = iptables_comments(&mut Rules::open().map_err(failed)?)?;
    Ok(comments.iter().any(|comment| iptables::is_of_network(comment, network)))
}

/// Whether there are masquerade rules of the attachment through iptables as it was before nf_tables: those through
/// `iptables-nft` go with the others.
pub(crate) fn has_legacy_iptables(identity: &Identity) -> Result<bool, Error> {
    let comments = xtables::comments(iptables::NAT)?;
    Ok(comments.iter().filter_map(|comment| Told::by(comment)).any(|told| told.is(identity.jumps())))
}

/// Whether the rules that the settings ask for could be written.
pub(crate) fn probe(settings: &Settings) -> Result<(), Error> {
    if policy(settings).needs_rules() {
        Rules::open().and_then(|mut rules| rules.probe()).map_err(failed)?;
    }
    require_programs(settings)
}

fn failed(error: nft::Error) -> Error {
    let code = if error.is_unsupported() { ErrorCode::UNSUPPORTED_FIELD } else { ErrorCode::INTERNAL };
    Error::new(code, error.to_string())
}
