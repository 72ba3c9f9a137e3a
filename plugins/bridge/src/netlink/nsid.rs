//! The numbers by which this namespace knows others.

use std::os::fd::{AsFd, AsRawFd as _};

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use super::{Failure, Netlink};

impl Netlink {
    /// The number of `netns` here; `None` if it has none, so that no link here has its other end there.
    pub(crate) fn netns_id(&mut self, netns: &impl AsFd) -> Result<Option<i32>, Failure> {
        let mut request = NsidMessage::default();
        request.attributes.push(NsidAttribute::Fd(netns.as_fd().as_raw_fd().unsigned_abs()));
        let RouteNetlinkMessage::NewNsId(answer) = self.get(RouteNetlinkMessage::GetNsId(request))? else {
            return Err(Failure::NoAnswer);
        };
        Ok(answer.attributes.into_iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => u32::try_from(id).is_ok().then_some(id),
            _ => None,
        }))
    }
}
