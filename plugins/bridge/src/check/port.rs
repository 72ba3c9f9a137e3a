//! The host end of the pair, a port of the bridge.

use super::{Comparison, Maker};
use crate::bridge::believes_routers;
use crate::mac::Mac;
use crate::netlink::link::{Conduct, Link, PortState};
use crate::netlink::{Failure, Netlink};
use crate::tuning::Before;
use crate::{predecessor, veth, vlans};

impl Comparison<'_> {
    /// The host end: that it is the container's, on the bridge, up and forwarding, and behaves as asked.
    pub(super) fn port(
        &mut self,
        host: &mut Netlink,
        bridge: Option<&Link>,
        end: Option<&Link>,
    ) -> Result<Option<Maker>, Failure> {
        let ifname = self.identity.attachment().ifname();
        let ours =
            host.link_by_name(self.identity.host_veth())?.filter(|link| veth::is_of(link, self.identity));
        let (link, maker) = match ours {
            Some(link) => (link, Maker::Ours),
            None => match predecessor::peer_of(host, self.netns, ifname) {
                Some(link) if link.name == self.identity.host_veth() => (link, Maker::Ours),
                Some(link) if link.alias == self.identity.alias() => {
                    let (name, wished) = (&link.name, self.identity.host_veth());
                    self.differs(format_args!(
                        "host veth of \"{ifname}\" is called \"{name}\", not \"{wished}\""
                    ));
                    (link, Maker::Ours)
                }
                Some(link) => (link, Maker::Reference),
                None => {
                    let name = self.identity.host_veth();
                    self.differs(format_args!("host veth \"{name}\" of \"{ifname}\" is missing"));
                    return Ok(None);
                }
            },
        };
        let name = link.name.clone();
        if maker == Maker::Ours {
            // Without it nobody but DEL knows whose the link is.
            let (mark, wished) = (format!("{:?}", link.alias), format!("{:?}", self.identity.alias()));
            self.compare(format_args!("mark of host veth \"{name}\""), mark, wished);
        }
        if let Some(end) = end
            && (link.peer != Some(end.index) || link.peer_netns != host.netns_id(self.netns)?)
        {
            self.differs(format_args!("host veth \"{name}\" is not the other end of \"{ifname}\""));
        }
        if let Some(told) = self.told_on_host(&name).and_then(|interface| interface.mac.parse::<Mac>().ok())
            && let Some(mac) = link.mac
        {
            self.compare(format_args!("hardware address of host veth \"{name}\""), mac, told);
        }
        if !link.up {
            self.differs(format_args!("host veth \"{name}\" is down"));
        }
        if maker == Maker::Ours && believes_routers(&link) {
            self.differs(format_args!("host veth \"{name}\" accepts router advertisements"));
        }
        if maker == Maker::Ours && !veth::is_guarded_as_wished(&link, self.settings) {
            let wished = veth::port_group(self.settings);
            self.compare(format_args!("group of host veth \"{name}\""), link.group, wished);
        }
        if let Some(bridge) = bridge
            && link.controller != Some(bridge.index)
        {
            self.differs(format_args!("host veth \"{name}\" is not a port of bridge \"{}\"", bridge.name));
            return Ok(Some(maker));
        }
        if let Some(end) = end {
            // Both ends were made alike; a path MTU that somebody lowered on one of them loses packets.
            let wished = self.settings.mtu.unwrap_or(link.mtu);
            if end.mtu != wished && Before::noted(self.identity.attachment()).mtu() != Some(wished) {
                self.differs(format_args!("MTU of \"{ifname}\" is {}, not {wished}", end.mtu));
            }
        }
        if let Some(mtu) = self.settings.mtu {
            self.compare(format_args!("MTU of host veth \"{name}\""), link.mtu, mtu);
        }
        if let Some(port) = link.port {
            self.conduct(&format!("host veth \"{name}\""), port, self.settings.port);
            if link.up && port.is_closed(bridge) && !self.settings.leave_container_down {
                self.differs(format_args!("bridge port \"{name}\" does not forward"));
            }
        }
        if let Some(bridge) = bridge {
            let vlans = self.settings.vlans.as_ref();
            self.differences.extend(vlans::differences(host, bridge, vlans, &link)?);
        }
        Ok(Some(maker))
    }

    /// Whether a port treats frames as wished.
    pub(super) fn conduct(&mut self, of: &str, port: PortState, wished: Conduct) {
        for [what, is, should] in port.conduct.differences(wished) {
            self.differs(format_args!("{what} of {of} is {is}, not {should}"));
        }
    }
}
