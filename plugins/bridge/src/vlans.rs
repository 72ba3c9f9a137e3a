//! The VLANs of bridge ports: which ones a port is to be in, how it gets into them, and how it differs from that.

use std::collections::BTreeMap;

use crate::config::Vlans;
use crate::netlink::link::Link;
use crate::netlink::vlan::{PortVlan, Tagging};
use crate::netlink::{Failure, Netlink};

/// The VLAN of untagged frames on a port with a trunk and nothing else: the kernel's default (IEEE 802.1Q, table 9-2).
const DEFAULT: u16 = 1;

/// Puts a port into its VLANs.
pub(crate) fn join(host: &mut Netlink, vlans: &Vlans, port: u32) -> Result<(), Failure> {
    let wished = wished(vlans);
    if !wished.is_empty() && !vlans.keep_default {
        for id in host.vlans(port)?.into_keys() {
            host.delete_vlan(port, id)?;
        }
    }
    for vlan in wished {
        host.add_vlan(port, vlan)?;
    }
    Ok(())
}

/// How the VLANs that a port is in differ from those that [`join`] has put it into.
pub(crate) fn differences(host: &mut Netlink, vlans: &Vlans, port: &Link) -> Result<Vec<String>, Failure> {
    Ok(compare(vlans, &host.vlans(port.index)?, &port.name))
}

/// The VLANs that a port is put into; none where it is left in the bridge's default one.
fn wished(vlans: &Vlans) -> Vec<PortVlan> {
    if !vlans.need_filtering() {
        return Vec::new();
    }
    let native = vlans.untagged.unwrap_or(DEFAULT);
    // A port has a VLAN only once: were it tagged as well, untagged frames would belong to none.
    let trunk = vlans.trunk.iter().filter(|id| **id != native);
    let mut wished = vec![PortVlan { id: native, tagging: Tagging::Untagged }];
    wished.extend(trunk.map(|id| PortVlan { id: *id, tagging: Tagging::Tagged }));
    wished
}

fn compare(vlans: &Vlans, present: &BTreeMap<u16, Option<Tagging>>, port: &str) -> Vec<String> {
    let wished = wished(vlans);
    let mut differences = Vec::new();
    for vlan in &wished {
        let id = vlan.id;
        match present.get(&id) {
            None => differences.push(format!("VLAN {id} is missing on port \"{port}\"")),
            Some(tagging) if *tagging != Some(vlan.tagging) => {
                let should = match vlan.tagging {
                    Tagging::Untagged => "the untagged one",
                    Tagging::Tagged => "a tagged one",
                };
                differences.push(format!("VLAN {id} is not {should} of port \"{port}\""));
            }
            Some(_) => {}
        }
    }
    if !wished.is_empty() && !vlans.keep_default {
        let others = present.keys().filter(|id| wished.iter().all(|vlan| vlan.id != **id));
        differences.extend(others.map(|id| format!("port \"{port}\" is in VLAN {id} as well")));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlans(untagged: Option<u16>, trunk: &[u16]) -> Vlans {
        Vlans { untagged, trunk: trunk.to_vec(), keep_default: false }
    }

    fn shown(vlans: &Vlans) -> Vec<(u16, Tagging)> {
        wished(vlans).iter().map(|vlan| (vlan.id, vlan.tagging)).collect()
    }

    #[test]
    fn the_native_vlan_is_once_among_them_and_never_tagged() {
        use Tagging::{Tagged, Untagged};
        assert_eq!(shown(&vlans(None, &[])), []);
        assert_eq!(shown(&vlans(Some(5), &[])), [(5, Untagged)]);
        assert_eq!(shown(&vlans(None, &[1, 2])), [(1, Untagged), (2, Tagged)]);
        assert_eq!(shown(&vlans(Some(2), &[1, 2])), [(2, Untagged), (1, Tagged)]);
    }

    #[test]
    fn every_difference_is_named() {
        let wished = vlans(Some(100), &[200, 201]);
        let port = |vlans: &[(u16, Option<Tagging>)]| compare(&wished, &vlans.iter().copied().collect(), "v");
        let (untagged, tagged) = (Some(Tagging::Untagged), Some(Tagging::Tagged));
        assert_eq!(port(&[(100, untagged), (200, tagged), (201, tagged)]), [""; 0]);
        assert_eq!(
            port(&[(1, untagged), (100, tagged), (200, None)]),
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
        let present = BTreeMap::from([(1, None), (100, Some(Tagging::Untagged))]);
        assert_eq!(compare(&kept, &present, "v"), [""; 0]);
        assert_eq!(compare(&vlans(None, &[]), &present, "v"), [""; 0]);
    }
}
