//! The bridge of a network: made when it is missing, and complete before a port is put on it.
//!
//! Parallel first attachments all find it missing. One makes it, alone; the others find it then.

use std::fmt::Display;

use cni_types::{Error, ErrorCode};
use nix::errno::Errno;

use crate::attachment::{bridge_alias, is_attachment, is_half_made, is_marked};
use crate::config::Settings;
use crate::mac::Mac;
use crate::netlink::link::{Kind, Link, NewBridge};
use crate::netlink::{Failure, Netlink};
use crate::netns::{LinkLock, Netns};
use crate::sysctl::{self, Ipv6Switch};
use crate::undo::Undo;

/// MTU in bytes where neither the user, nor the bridge, nor a default route says otherwise.
const ETHERNET_MTU: u32 = 1500;

/// Least MTU in bytes that the kernel accepts (`ETH_MIN_MTU`).
const MIN_MTU: u32 = 68;

/// How often a bridge that vanishes again is made.
const ATTEMPTS: u32 = 8;

/// Makes sure that the bridge is there and up. `attaching` is the lock under which a port will be put on it.
pub(crate) fn ensure<'a>(
    host: &mut Netlink,
    settings: &'a Settings,
    home: &'a Netns,
    attaching: &LinkLock<'_>,
    undo: &mut Undo<'a>,
) -> Result<Link, Error> {
    let name = settings.bridge();
    let failed =
        |failure: Failure| Error::internal(failure).context(format_args!("create bridge \"{name}\""));
    for _ in 0..ATTEMPTS {
        if let Some(mut link) = host.link_by_name(name).map_err(failed)? {
            require_bridge(&link)?;
            settings.call_bridge(&link.name);
            if settings.needs_vlan_filtering() && !link.vlan_filtering {
                link = filter_by_vlan(host, link, home, undo)?;
            }
            match complete(host, &mut link, settings, home, undo) {
                Ok(()) => return Ok(link),
                // Somebody removed it since.
                Err(failure) if failure.is_gone() => continue,
                Err(failure) => return Err(failed(failure)),
            }
        }
        // Nobody of ours sees it half made.
        attaching.alone(|| make(host, settings, home, undo))?;
    }
    Err(Error::new(
        ErrorCode::TRY_AGAIN_LATER,
        format!("create bridge \"{name}\": it was removed again each time"),
    ))
}

/// The hardware address of the bridge, now that it has its ports: one that is neither ours nor a gateway has that of a
/// port.
pub(crate) fn mac(host: &mut Netlink, bridge: &Link, settings: &Settings) -> Result<Option<Mac>, Error> {
    if keeps_mac(bridge, settings) {
        return Ok(bridge.mac);
    }
    let link = host.link_by_index(bridge.index).map_err(|failure| {
        Error::internal(failure)
            .context(format_args!("read the hardware address of bridge \"{}\"", bridge.name))
    })?;
    Ok(link.and_then(|link| link.mac))
}

/// Whether the bridge has a hardware address of its own, which does not follow its ports.
pub(crate) fn keeps_mac(bridge: &Link, settings: &Settings) -> bool {
    is_marked(&bridge.alias) || settings.is_gateway()
}

/// Makes the bridge, unless another attachment has made it.
fn make<'a>(
    host: &mut Netlink,
    settings: &'a Settings,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<(), Error> {
    let name = settings.bridge();
    let failed =
        |failure: Failure| Error::internal(failure).context(format_args!("create bridge \"{name}\""));
    let mtu = match settings.mtu {
        Some(mtu) => mtu,
        None => egress_mtu(host).map_err(failed)?,
    };
    let mac = Mac::random().map_err(Error::internal)?;
    let vlan_filtering = settings.vlans.is_some();
    // The kernel takes an MTU for chosen when setting it changes it; any other it fits to the ports that come and go.
    let unlike_it = mtu.saturating_sub(1).max(MIN_MTU);
    let new = |vlan_filtering| NewBridge { name, mac, mtu: unlike_it, vlan_filtering };
    let made = match host.create_bridge(new(vlan_filtering)) {
        Err(failure) if !settings.needs_vlan_filtering() && failure.is(Errno::EOPNOTSUPP) => {
            host.create_bridge(new(false))
        }
        made => made,
    };
    match made {
        Ok(()) => undo.push("remove the new bridge", move || remove_unused(home, name)),
        Err(failure) if failure.is(Errno::EEXIST) => return Ok(()),
        Err(failure) if vlan_filtering && failure.is(Errno::EOPNOTSUPP) => {
            return Err(no_vlan_filtering(name));
        }
        Err(failure) => return Err(failed(failure)),
    }
    let link = host.link_by_name(name).map_err(failed)?.ok_or_else(|| failed(Failure::NoAnswer))?;
    if settings.is_gateway() {
        expect_no_duplicate(name);
    }
    host.adopt_bridge(link.index, mtu, &bridge_alias(&settings.network)).map_err(failed)
}

/// Has a link that is being made look for no duplicate of its link-local address, which comes from a random hardware
/// address. As long as it looks, a second or two, the host asks for no neighbour by it (`ndisc_send_ns`), and nothing
/// that is routed reaches a container by IPv6. To fail at it only costs that time.
pub(crate) fn expect_no_duplicate(name: &str) {
    if let Err(error) = sysctl::set_ipv6(name, &[(Ipv6Switch::AcceptDad, false)]) {
        log::warn!("{error}");
    }
}

/// Refuses a link of the bridge's name that cannot serve as the bridge.
///
/// # Errors
/// Code 7, with the key `bridge` and the name.
pub(crate) fn require_bridge(link: &Link) -> Result<(), Error> {
    if link.kind != Kind::Bridge {
        let reason = format!("\"{}\" already exists but is not a bridge", link.name);
        return Err(Error::invalid_config("bridge", reason));
    }
    Ok(())
}

/// Has a bridge filter by VLAN that was made without: for a network that has none, or by a person. Our ports are in
/// the default VLAN and stay together there; through those of others frames may pass that would be dropped then.
fn filter_by_vlan<'a>(
    host: &mut Netlink,
    bridge: Link,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<Link, Error> {
    let (name, index) = (&bridge.name, bridge.index);
    let failed = |failure: Failure| {
        Error::internal(failure).context(format_args!("have bridge \"{name}\" filter by VLAN"))
    };
    let ports = host.ports(index).map_err(failed)?;
    if let Some(port) =
        ports.iter().find(|port| !is_marked(&port.alias) && !is_half_made(&port.name, &port.alias))
    {
        let reason = format!(
            "vlan, vlanTrunk: bridge \"{name}\" does not filter by VLAN; turning that on could cut off its port \"{}\"",
            port.name
        );
        return Err(Error::new(ErrorCode::UNSUPPORTED_FIELD, reason));
    }
    host.set_vlan_filtering(index, true).map_err(|failure| match failure.is(Errno::EOPNOTSUPP) {
        true => no_vlan_filtering(name),
        false => failed(failure),
    })?;
    let relies = came_since(&ports);
    undo.push("have the bridge filter by VLAN no more", move || {
        take_back(home, index, relies, |host| host.set_vlan_filtering(index, false))
    });
    match host.link_by_index(index).map_err(failed)? {
        Some(link) if !link.vlan_filtering => Err(no_vlan_filtering(name)),
        Some(link) => Ok(link),
        None => Err(failed(Failure::NoAnswer)),
    }
}

/// Brings the bridge to what the settings ask of it, and up.
fn complete<'a>(
    host: &mut Netlink,
    link: &mut Link,
    settings: &Settings,
    home: &'a Netns,
    undo: &mut Undo<'a>,
) -> Result<(), Failure> {
    let index = link.index;
    let is_others = !is_marked(&link.alias);
    if is_others && settings.is_gateway() {
        // Else it has the address of one of its ports, and containers lose their gateway when that port goes.
        let mac = match link.mac {
            Some(mac) if mac.is_assignable() => mac,
            _ => Mac::random().map_err(std::io::Error::other)?,
        };
        host.set_mac(index, mac)?;
        link.mac = Some(mac);
    }
    // Somebody may have had ours believe them since.
    if is_others || !link.up || settings.is_gateway() {
        believe_no_router(link);
        let (name, before) = (link.name.clone(), link.accept_ra);
        if (is_others || link.up) && before != 0 {
            undo.push("have the bridge believe routers", move || {
                take_back(home, index, anybody, |_| sysctl::set_accept_ra(&name, before))
            });
        }
    }
    // No rule sees these frames, and one of them is enough to get what is sent to another container.
    if settings.mac_spoof_check && link.learns_unforwarded {
        let relies = came_since(&host.ports(index)?);
        host.set_learns_unforwarded(index, false)?;
        undo.push("have the bridge learn from every frame", move || {
            take_back(home, index, relies, |host| host.set_learns_unforwarded(index, true))
        });
    }
    if settings.promiscuous && !link.promiscuous {
        let relies = came_since(&host.ports(index)?);
        host.set_promiscuous(index, true)?;
        undo.push("take the bridge out of promiscuous mode", move || {
            take_back(home, index, relies, |host| host.set_promiscuous(index, false))
        });
    }
    if !link.up {
        host.set_up(index)?;
        undo.push("take the bridge down", move || {
            take_back(home, index, anybody, |host| host.set_down(index))
        });
    }
    Ok(())
}

/// Has the bridge let frames through a port that could carry them and that somebody has closed; says whether it did. What
/// the spanning tree protocol holds stays as it is.
pub(crate) fn reopen(host: &mut Netlink, bridge: &Link, port: &Link) -> Result<bool, Failure> {
    let is_closed = port.port.is_some_and(|state| state.is_closed(Some(bridge)));
    // A port without carrier, or of a bridge that is down, the kernel opens itself in time.
    if !is_closed || !port.operational || !bridge.up || bridge.spanning_tree {
        return Ok(false);
    }
    host.open_port(port.index)?;
    Ok(true)
}

/// Whether a link believes router advertisements although ADD has had a way to have it ignore them.
pub(crate) fn believes_routers(link: &Link) -> bool {
    link.accept_ra != 0 && sysctl::can_set_ipv6()
}

/// Has a link of the host's ignore router advertisements: they are for hosts, and whoever sent them here would be a
/// container. To fail at it is no reason to refuse one.
pub(crate) fn believe_no_router(link: &Link) {
    if link.accept_ra != 0
        && let Err(error) = sysctl::set_ipv6(&link.name, &[(Ipv6Switch::AcceptRa, false)])
    {
        log::warn!("{error}");
    }
}

/// Takes back something of the network's, unless an attachment to the bridge, of whatever network, `relies` on it by
/// now.
pub(crate) fn take_back<E: Display>(
    home: &Netns,
    bridge: u32,
    relies: impl Fn(&mut Netlink, &Link) -> Result<bool, Failure>,
    back: impl FnOnce(&mut Netlink) -> Result<(), E>,
) -> Result<(), Error> {
    let _alone = home.exclude()?;
    let mut host = Netlink::open().map_err(Error::internal)?;
    for port in host.ports(bridge).map_err(Error::internal)? {
        if is_attachment(&port.alias) && relies(&mut host, &port).map_err(Error::internal)? {
            return Ok(());
        }
    }
    back(&mut host).map_err(Error::internal)
}

/// Whoever is attached relies on it.
fn anybody(_: &mut Netlink, _: &Link) -> Result<bool, Failure> {
    Ok(true)
}

/// Whoever is not among `before` may rely on it: an ADD sees to the bridge before it puts a port on it.
fn came_since(before: &[Link]) -> impl Fn(&mut Netlink, &Link) -> Result<bool, Failure> + use<> {
    let before: Vec<u32> = before.iter().map(|port| port.index).collect();
    move |_, port| Ok(!before.contains(&port.index))
}

/// MTU of the device that the host's default route leaves by.
fn egress_mtu(host: &mut Netlink) -> Result<u32, Failure> {
    let Some(index) = host.default_route_link()? else { return Ok(ETHERNET_MTU) };
    Ok(host.link_by_index(index)?.map_or(ETHERNET_MTU, |link| link.mtu))
}

/// Takes back the making of a bridge, unless somebody has begun to use it.
fn remove_unused(home: &Netns, name: &str) -> Result<(), Error> {
    let failed =
        |failure: Failure| Error::internal(failure).context(format_args!("remove bridge \"{name}\""));
    let _alone = home.exclude()?;
    let mut host = Netlink::open().map_err(failed)?;
    let Some(link) = host.link_by_name(name).map_err(failed)? else { return Ok(()) };
    if host.ports(link.index).map_err(failed)?.is_empty() {
        host.delete_link(link.index).map_err(failed)?;
    }
    Ok(())
}

fn no_vlan_filtering(bridge: &str) -> Error {
    Error::new(
        ErrorCode::UNSUPPORTED_FIELD,
        format!("vlan, vlanTrunk: bridge \"{bridge}\" does not filter by VLAN: {}", Errno::EOPNOTSUPP.desc()),
    )
}
