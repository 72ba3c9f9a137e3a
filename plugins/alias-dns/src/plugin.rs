//! [`AliasDns`]: the plugin, one verb a module.

use cni_types::{AttachmentCall, CniResult, DelCall, Error, NetworkCall, Plugin};

use crate::host::Host;
use crate::{add, check, del, gc, status};

/// The plugin on a host.
#[derive(Debug)]
pub(crate) struct AliasDns<H>(pub(crate) H);

impl<H: Host> Plugin for AliasDns<H> {
    const NAME: &'static str = "alias-dns";

    fn add(&self, call: &AttachmentCall) -> Result<CniResult, Error> {
        add::add(&self.0, call)
    }

    fn check(&self, call: &AttachmentCall) -> Result<(), Error> {
        check::check(&self.0, call)
    }

    fn del(&self, call: &DelCall) -> Result<(), Error> {
        del::del(&self.0, call)
    }

    fn gc(&self, call: &NetworkCall) -> Result<(), Error> {
        gc::gc(&self.0, call)
    }

    fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        status::status(&self.0, call)
    }
}

#[cfg(test)]
mod tests;
