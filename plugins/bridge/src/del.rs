//! DEL: removes by identity, whatever the configuration says by now and whatever is left of the container.
//!
//! It goes on when a step fails and tells all failures at the end.

use cni_types::{DelCall, Delegate, Error};

use crate::attachment::Identity;
use crate::config;
use crate::netlink::Netlink;
use crate::nft::Rules;
use crate::signals::Held;
use crate::veth;

/// Detaches the container.
pub(crate) fn del(call: &DelCall) -> Result<(), Error> {
    let _signals = Held::new()?;
    let identity = Identity::new(call.conf().name(), call.attachment());
    let mut failures = Failures::default();

    // Closing the socket waits until the kernel has destroyed the rules; the link's own wait covers that.
    let rules = Rules::open().and_then(|mut rules| rules.remove(&identity.owner()).map(|()| rules));
    match Netlink::open() {
        Ok(mut host) => failures.note(veth::remove(&mut host, &identity).map_err(Error::internal)),
        Err(failure) => failures.note::<()>(Err(Error::internal(failure))),
    }
    failures.note(rules.map(drop).map_err(Error::from));
    if let Some(name) = config::ipam_type(call.conf()) {
        let released =
            Delegate::find(&name, &call.env().plugin_path()).and_then(|ipam| ipam.del(call.network()));
        failures.note(released);
    }
    failures.into_result()
}

/// The failures of steps that do not depend on each other.
#[derive(Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Keeps a failure.
    pub(crate) fn note<T>(&mut self, outcome: Result<T, Error>) {
        self.0.extend(outcome.err());
    }

    /// The first failure with its code, and the words of all.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        let Some(first) = self.0.first() else { return Ok(()) };
        let words: Vec<&str> = self.0.iter().map(Error::msg).collect();
        Err(Error::new(first.code(), words.join("; ")).with_details(first.details()))
    }
}
