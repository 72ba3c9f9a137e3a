//! STATUS: whether ADD could be served. Changes nothing, and asks the kernel as little as possible.

use cni_types::{Delegate, Error, ErrorCode, NetworkCall};

use crate::bridge::require_bridge;
use crate::config::Settings;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::rules;

/// Tells why ADD could not be served.
pub(crate) fn status(call: &NetworkCall) -> Result<(), Error> {
    let find = |name: &str| Delegate::find(name, &call.env().plugin_path()).map_err(unavailable);
    let settings = Settings::new(call.conf(), &cni_types::CniArgs::default(), find)?;
    let present = Netlink::open()
        .and_then(|mut host| host.may_change_links().and_then(|()| host.link_by_name(settings.bridge())))
        .map_err(|failure| unavailable(Error::internal(failure).context("links cannot be changed")))?;
    present.as_ref().map_or(Ok(()), require_bridge).map_err(unavailable)?;
    log::debug!("links can be changed");
    // As a container's has to be, which takes the same right.
    let home = Netns::own().map_err(unavailable)?;
    home.visit(&home, || Ok(())).map_err(unavailable)?;
    rules::probe(&settings).map_err(unavailable)?;
    log::debug!("rules can be installed");
    match &settings.ipam {
        Some(ipam) => ipam.status(call).map_err(unavailable),
        None => Ok(()),
    }
}

/// The same error as STATUS tells it: 50, unless the IPAM plugin itself has chosen between 50 and 51.
fn unavailable(error: Error) -> Error {
    match error.code() {
        ErrorCode::NOT_AVAILABLE | ErrorCode::LIMITED_CONNECTIVITY => error,
        _ => Error::new(ErrorCode::NOT_AVAILABLE, error.msg()).with_details(error.details()),
    }
}
