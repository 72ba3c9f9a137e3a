//! The VLANs of bridge ports: which ones a port is to be in, how it gets into them, and how it differs from that.

use std::collections::BTreeMap;

use crate::config::Vlans;
use crate::netlink::link::{Kind, Link};
use crate::netlink::vlan::{Carried, PortVlan, Tagging};
use crate::netlink::{Failure, Netlink};

/// The VLAN of untagged frames on a port with a trunk and nothing else: the kernel's default (IEEE 802.1Q, table 9-2).
const DEFAULT: u16 = 1;

/// Puts a new port into its VLANs.
pub(crate) fn join(host: &mut Netlink, vlans: &Vlans, port: &Link) -> Result<(), Failure> {
    let wish = Wish::by(vlans);
    let present = if wish.alone { host.vlans(port.index)? } else { BTreeMap::new() };
    wish.fulfil(host, port, &present)
}

/// How the VLANs of a port of `bridge` differ from those that an ADD leaves it in: those of `vlans`, or the one that
/// the kernel has put it into. The bridge is in that one as well, as if it were a port of its own.
pub(crate) fn differences(
    host: &mut Netlink,
    bridge: &Link,
    vlans: Option<&Vlans>,
    port: &Link,
) -> Result<Vec<String>, Failure> {
    let wish = Wish::on(bridge, vlans);
    match wish.vlans.is_empty() {
        true => Ok(Vec::new()),
        false => Ok(wish.differences(&host.vlans(port.index)?, port)),
    }
}

/// Ends such differences; says which there were.
pub(crate) fn mend(
    host: &mut Netlink,
    bridge: &Link,
    vlans: Option<&Vlans>,
    port: &Link,
) -> Result<Vec<String>, Failure> {
    let wish = Wish::on(bridge, vlans);
    if wish.vlans.is_empty() {
        return Ok(Vec::new());
    }
    let present = host.vlans(port.index)?;
    let differences = wish.differences(&present, port);
    if !differences.is_empty() {
        wish.fulfil(host, port, &present)?;
    }
    Ok(differences)
}

/// What VLANs a port is to be in.
#[derive(Debug)]
struct Wish {
    /// None where nothing is to be said about them.
    vlans: Vec<PortVlan>,
    /// Whether it is to be in no others.
    alone: bool,
    /// Whether each is to let frames pass. The spanning tree protocol may have cause to hold them.
    open: bool,
}

impl Wish {
    /// That of the settings alone; nothing where they leave the port in the bridge's default VLAN.
    fn by(vlans: &Vlans) -> Self {
        if !vlans.need_filtering() {
            return Self { vlans: Vec::new(), alone: false, open: false };
        }
        let native = vlans.untagged.unwrap_or(DEFAULT);
        // A port has a VLAN only once: were it tagged as well, untagged frames would belong to none.
        let trunk = vlans.trunk.iter().filter(|id| **id != native);
        let mut wished = vec![PortVlan { id: native, tagging: Tagging::Untagged }];
        wished.extend(trunk.map(|id| PortVlan { id: *id, tagging: Tagging::Tagged }));
        Self { vlans: wished, alone: !vlans.keep_default, open: false }
    }

    fn on(bridge: &Link, vlans: Option<&Vlans>) -> Self {
        let open = bridge.vlan_filtering && !bridge.spanning_tree;
        if let Some(vlans) = vlans.filter(|vlans| vlans.need_filtering()) {
            return Self { open, ..Self::by(vlans) };
        }
        let default = bridge.default_vlan.filter(|_| bridge.vlan_filtering);
        let vlans = default.map(|id| PortVlan { id, tagging: Tagging::Untagged });
        Self { vlans: Vec::from_iter(vlans), alone: false, open }
    }

    fn has(&self, id: u16) -> bool {
        self.vlans.iter().any(|vlan| vlan.id == id)
    }

    fn is_held(&self, carried: Carried) -> bool {
        self.open && !carried.forwards
    }

    fn differences(&self, present: &BTreeMap<u16, Carried>, port: &Link) -> Vec<String> {
        let what = if port.kind == Kind::Bridge { "bridge" } else { "port" };
        let port = format!("{what} \"{}\"", port.name);
        let mut differences = Vec::new();
        for vlan in &self.vlans {
            let id = vlan.id;
            match present.get(&id) {
                None => differences.push(format!("VLAN {id} is missing on {port}")),
                Some(carried) => {
                    if carried.tagging != Some(vlan.tagging) {
                        let should = match vlan.tagging {
                            Tagging::Untagged => "the untagged one",
                            Tagging::Tagged => "a tagged one",
                        };
                        differences.push(format!("VLAN {id} is not {should} of {port}"));
                    }
                    if self.is_held(*carried) {
                        differences.push(format!("VLAN {id} does not forward on {port}"));
                    }
                }
            }
        }
        if self.alone {
            let others = present.keys().filter(|id| !self.has(**id));
            differences.extend(others.map(|id| format!("{port} is in VLAN {id} as well")));
        }
        differences
    }

    /// Brings a port to it that is in the VLANs `present`, of which a new one that is in others besides needs to know none.
    fn fulfil(
        &self,
        host: &mut Netlink,
        port: &Link,
        present: &BTreeMap<u16, Carried>,
    ) -> Result<(), Failure> {
        if self.alone {
            for id in present.keys().filter(|id| !self.has(**id)) {
                host.delete_vlan(port, *id)?;
            }
        }
        for vlan in &self.vlans {
            let carried = present.get(&vlan.id);
            if carried.and_then(|carried| carried.tagging) != Some(vlan.tagging) {
                host.add_vlan(port, *vlan)?;
            }
            if carried.is_some_and(|carried| self.is_held(*carried)) {
                host.open_vlan(port, vlan.id)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::link::link;

    fn vlans(untagged: Option<u16>, trunk: &[u16]) -> Vlans {
        Vlans { untagged, trunk: trunk.to_vec(), keep_default: false }
    }

    fn shown(wish: &Wish) -> Vec<(u16, Tagging)> {
        wish.vlans.iter().map(|vlan| (vlan.id, vlan.tagging)).collect()
    }

    const UNTAGGED: Option<Tagging> = Some(Tagging::Untagged);
    const TAGGED: Option<Tagging> = Some(Tagging::Tagged);

    fn differences(wish: &Wish, vlans: &[(u16, Option<Tagging>)]) -> Vec<String> {
        let present = vlans.iter().map(|(id, tagging)| (*id, Carried { tagging: *tagging, forwards: true }));
        wish.differences(&present.collect(), &link("v", Kind::Veth))
    }

    #[test]
    fn the_native_vlan_is_once_among_them_and_never_tagged() {
        use Tagging::{Tagged, Untagged};
        let shown = |untagged, trunk: &[u16]| shown(&Wish::by(&vlans(untagged, trunk)));
        assert_eq!(shown(None, &[]), []);
        assert_eq!(shown(Some(5), &[]), [(5, Untagged)]);
        assert_eq!(shown(None, &[1, 2]), [(1, Untagged), (2, Tagged)]);
        assert_eq!(shown(Some(2), &[1, 2]), [(2, Untagged), (1, Tagged)]);
    }

    #[test]
    fn every_difference_is_named() {
        let wish = Wish::by(&vlans(Some(100), &[200, 201]));
        assert_eq!(differences(&wish, &[(100, UNTAGGED), (200, TAGGED), (201, TAGGED)]), [""; 0]);
        assert_eq!(
            differences(&wish, &[(1, UNTAGGED), (100, TAGGED), (200, None)]),
            [
                "VLAN 100 is not the untagged one of port \"v\"",
                "VLAN 200 is not a tagged one of port \"v\"",
                "VLAN 201 is missing on port \"v\"",
                "port \"v\" is in VLAN 1 as well",
            ]
        );
    }

    #[test]
    fn other_vlans_are_no_difference_where_the_default_is_kept() {
        let kept = Vlans { keep_default: true, ..vlans(Some(100), &[]) };
        let present = [(1, None), (100, UNTAGGED)];
        assert_eq!(differences(&Wish::by(&kept), &present), [""; 0]);
        assert_eq!(differences(&Wish::by(&vlans(None, &[])), &present), [""; 0]);
    }

    #[test]
    fn without_a_vlan_of_its_own_a_port_is_in_the_one_that_the_bridge_gives_it() {
        let empty_trunk = Vlans { keep_default: true, ..vlans(None, &[]) };
        for (vlan_filtering, default_vlan, expected) in
            [(true, Some(7), vec![(7, Tagging::Untagged)]), (true, None, vec![]), (false, Some(1), vec![])]
        {
            let bridge = Link { vlan_filtering, default_vlan, ..link("br0", Kind::Bridge) };
            for vlans in [None, Some(&empty_trunk), Some(&vlans(None, &[]))] {
                assert_eq!(shown(&Wish::on(&bridge, vlans)), expected);
            }
        }
        let bridge = Link { vlan_filtering: true, default_vlan: Some(7), ..link("br0", Kind::Bridge) };
        let wish = Wish::on(&bridge, None);
        assert_eq!(differences(&wish, &[(7, UNTAGGED), (8, TAGGED), (9, None)]), [""; 0]);
        assert_eq!(differences(&wish, &[(1, UNTAGGED)]), ["VLAN 7 is missing on port \"v\""]);
        assert_eq!(wish.differences(&BTreeMap::new(), &bridge), ["VLAN 7 is missing on bridge \"br0\""]);
    }

    #[test]
    fn a_vlan_that_is_held_is_named_unless_the_spanning_tree_protocol_may_hold_it() {
        let held = BTreeMap::from([(5, Carried { tagging: UNTAGGED, forwards: false })]);
        for (vlan_filtering, spanning_tree, named) in
            [(true, false, true), (true, true, false), (false, false, false)]
        {
            let bridge = Link { vlan_filtering, spanning_tree, ..link("br0", Kind::Bridge) };
            let wish = Wish::on(&bridge, Some(&vlans(Some(5), &[])));
            let expected = named.then_some("VLAN 5 does not forward on port \"v\"");
            assert_eq!(wish.differences(&held, &link("v", Kind::Veth)), Vec::from_iter(expected));
        }
    }
}
