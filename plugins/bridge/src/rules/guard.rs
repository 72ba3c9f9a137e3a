//! How long the RA guard lives: as long as a port of this host is guarded, whoever's it is.
//!
//! An ADD makes its port while nobody excludes it ([`Netns::share`]) and looks for the guard afterwards. So who excludes
//! others, finds no port and removes the guard takes it from nobody.

use cni_types::Error;

use super::failed;
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::netns::{LinkLock, Netns};
use crate::nft::{GUARDED, Rules};

/// Removes the guard if nobody has a guarded port but `host_veth`, which is about to go. When it has gone,
/// [`remove_unneeded`] has to follow: others may have looked meanwhile.
///
/// The kernel takes as long to forget a link as to forget a table, and for both at once no longer.
pub(super) fn remove_before_link(rules: &mut Rules, host_veth: &str) -> Result<(), Error> {
    remove_unless(rules, |port| port.name != host_veth)
}

/// Removes the guard if there is no guarded port.
pub(crate) fn remove_unneeded(rules: &mut Rules) -> Result<(), Error> {
    remove_unless(rules, |_| true)
}

/// The same, for who excludes others already.
pub(crate) fn remove_unneeded_alone(rules: &mut Rules, _alone: &LinkLock<'_>) -> Result<(), Error> {
    match rules.has_guard().map_err(failed)? && !has_guarded_port(|_| true)? {
        true => rules.remove_guard().map_err(failed),
        false => Ok(()),
    }
}

/// Removes the guard unless a guarded port is `in_need`.
fn remove_unless(rules: &mut Rules, in_need: impl Fn(&Link) -> bool) -> Result<(), Error> {
    if !rules.has_guard().map_err(failed)? || has_guarded_port(&in_need)? {
        return Ok(());
    }
    let home = Netns::own()?;
    let _alone = home.exclude()?;
    match has_guarded_port(&in_need)? {
        true => Ok(()),
        false => rules.remove_guard().map_err(failed),
    }
}

fn has_guarded_port(counts: impl Fn(&Link) -> bool) -> Result<bool, Error> {
    let failed = |failure: Failure| Error::internal(failure).context("look for guarded ports");
    let host = Netlink::open().map_err(failed)?;
    host.has_veth(|link| link.group == GUARDED && counts(link)).map_err(failed)
}
