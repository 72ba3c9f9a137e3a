//! The veth pair of an attachment: its host end a port of the bridge, its container end in place under its final name.

use std::io;
use std::time::Duration;

use cni_types::{Error, ErrorCode};
use nix::errno::Errno;

use crate::attachment::Identity;
use crate::bridge::believe_no_router;
use crate::config::Settings;
use crate::mac::Mac;
use crate::maker::{self, Progress};
use crate::names;
use crate::netlink::events::Events;
use crate::netlink::link::{Admission, Kind, Link, NewVethEnd, PortSetup};
use crate::netlink::{Failure, Netlink};
use crate::netns::{self, Netns};
use crate::nft::GUARDED;
use crate::plan::{IPV6_MIN_MTU, Plan};
use crate::undo::Undo;
use crate::vlans;

/// Longest wait for a bridge port to come up; it takes some 30 us.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for the kernel to destroy a namespace that nobody uses any more. It takes a few grace periods of RCU
/// behind the namespaces that are to be destroyed before it: some 20 ms, and more the busier the host is.
const NETNS_PATIENCE: Duration = Duration::from_secs(3);

/// The pair as made.
#[derive(Debug)]
pub(crate) struct Veth {
    /// Index of the host end.
    pub(crate) host_index: u32,
    /// Hardware address of the host end.
    pub(crate) host_mac: Mac,
    /// Index of the container end, in the container's namespace.
    pub(crate) container_index: u32,
    /// Hardware address of the container end.
    pub(crate) container_mac: Mac,
    /// Whether it took the place of one whose ADD was killed, and whose rules and leases may be there.
    pub(crate) replaced: bool,
    /// MTU in bytes that both ends are to have; as made, they have at least what IPv6 needs ([`narrow`]).
    mtu: u32,
}

/// Refuses a name that the container's interface would not get, or that the container has already. What an ADD that was
/// killed has left does not count: [`create`] puts the new pair in its place, if it is of the same identity.
pub(crate) fn require_free_name(container: &mut Netlink, identity: &Identity) -> Result<(), Error> {
    let ifname = identity.attachment().ifname();
    if !names::is_link_name(ifname) {
        return Err(Error::new(
            ErrorCode::INVALID_ENVIRONMENT,
            format!("CNI_IFNAME: \"{ifname}\" is not the name of an interface"),
        ));
    }
    match container.link_by_name(ifname) {
        Ok(Some(link)) if maker::progress(link.group) != Progress::Abandoned => Err(taken(identity)),
        Ok(_) => Ok(()),
        Err(failure) => {
            Err(Error::internal(failure).context(format_args!("look for \"{ifname}\" in the container")))
        }
    }
}

/// Refuses an identity that is attached already, wherever that is.
pub(crate) fn require_unattached(host: &mut Netlink, identity: &Identity) -> Result<(), Error> {
    if is_attached(host, identity)? { Err(taken(identity)) } else { Ok(()) }
}

/// Whether there is a pair of `identity` whose container end is in a namespace that lives.
///
/// The kernel does not say who uses a namespace, and destroys it some time after its last user went: the sockets that a
/// killed ADD had in there hold on to it for a while longer than its process lives. So a namespace that lives is given
/// the time to turn out to be a dying one, unless it is mounted somewhere, as runtimes do with those that they use.
pub(crate) fn is_attached(host: &mut Netlink, identity: &Identity) -> Result<bool, Error> {
    if !has_container_end(host, identity)? {
        return Ok(false);
    }
    if is_mounted(host, identity)? {
        return Ok(true);
    }
    let failed = |error: io::Error| Error::io("wait for links that go", &error);
    let mut events = Events::subscribe(NETNS_PATIENCE).map_err(failed)?;
    while has_container_end(host, identity)? {
        if !events.wait().map_err(failed)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the container end of the pair of `identity` is in a namespace that is mounted somewhere.
fn is_mounted(host: &mut Netlink, identity: &Identity) -> Result<bool, Error> {
    let name = identity.host_veth();
    let link = host
        .link_by_name(name)
        .map_err(|failure| Error::internal(failure).context(format_args!("look for \"{name}\"")))?;
    let Some(id) = link.filter(|link| is_of(link, identity)).and_then(|link| link.peer_netns) else {
        return Ok(false);
    };
    for path in netns::mounted()? {
        // One that was unmounted since is no longer kept alive.
        if let Ok(netns) = Netns::open(&path)
            && host.netns_id(&netns).map_err(Error::internal)? == Some(id)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether there is a pair of `identity` whose container end can be asked about, and whose ADD was not killed.
fn has_container_end(host: &mut Netlink, identity: &Identity) -> Result<bool, Error> {
    let name = identity.host_veth();
    let failed = |failure: Failure| Error::internal(failure).context(format_args!("look for \"{name}\""));
    let Some(link) = host.link_by_name(name).map_err(failed)?.filter(|link| is_of(link, identity)) else {
        return Ok(false);
    };
    let (Some(netns), Some(index)) = (link.peer_netns, link.peer) else { return Ok(true) };
    match host.link_there(netns, index) {
        Ok(end) => Ok(end.is_some_and(|end| maker::progress(end.group) != Progress::Abandoned)),
        Err(failure) if failure.is_gone_there() => Ok(false),
        Err(failure) => Err(failed(failure)),
    }
}

/// The group of the host ends of a network: on the bridge of a gateway, containers do not act as routers.
pub(crate) fn port_group(settings: &Settings) -> u32 {
    if settings.is_gateway() { GUARDED } else { maker::NO_GROUP }
}

/// Whether the host end of a pair is guarded if the network's are, and not if they are not. Other groups are anybody's.
pub(crate) fn is_guarded_as_wished(link: &Link, settings: &Settings) -> bool {
    (link.group == GUARDED) == settings.is_gateway()
}

/// Makes the pair, and the host end a port of the bridge.
pub(crate) fn create<'a>(
    host: &mut Netlink,
    settings: &Settings,
    identity: &'a Identity,
    netns: &Netns,
    bridge: &Link,
    undo: &mut Undo<'a>,
) -> Result<Veth, Error> {
    let name = identity.host_veth();
    let failed =
        |failure: Failure| Error::internal(failure).context(format_args!("create veth pair \"{name}\""));
    let host_mac = Mac::random().map_err(Error::internal)?;
    let container_mac = match settings.mac {
        Some(mac) => mac,
        None => Mac::random().map_err(Error::internal)?,
    };
    let host_end = NewVethEnd { name, mac: host_mac, group: port_group(settings) };
    let ifname = identity.attachment().ifname();
    let container_end = NewVethEnd { name: ifname, mac: container_mac, group: maker::group() };
    let mtu = settings.mtu.unwrap_or(bridge.mtu);
    let made_with = mtu.max(IPV6_MIN_MTU);
    let attempt =
        |host: &mut Netlink| host.create_veth(host_end, container_end, netns, bridge.index, made_with);
    let mut replaced = false;
    let made = match attempt(host) {
        // A pair of the same identity whose container is gone: the kernel has not come to destroy it, or just has. Or
        // one whose ADD was killed.
        Err(failure) if failure.is(Errno::EEXIST) && !is_attached(host, identity)? => {
            replaced = remove(host, identity).map_err(failed)? == Removed::Link;
            attempt(host)
        }
        other => other,
    }
    .map_err(|failure| match failure {
        Failure::Refused(Errno::EEXIST) => taken(identity),
        Failure::Refused(Errno::EXFULL) => full(bridge),
        failure => failed(failure),
    });
    let announced = made?;
    undo.push("remove the veth pair", move || {
        let mut host = Netlink::open().map_err(Error::internal)?;
        remove(&mut host, identity).map(drop).map_err(Error::internal)
    });
    let link = match announced {
        Some(link) => link,
        None => host.link_by_name(name).map_err(failed)?.ok_or_else(|| failed(Failure::NoAnswer))?,
    };
    let container_index = link.peer.ok_or_else(|| failed(Failure::NoAnswer))?;
    // What a container sends to an address of IEEE 802.1D is not bridged: it comes in by the port itself.
    believe_no_router(&link);
    if let Some(vlans) = &settings.vlans {
        vlans::join(host, vlans, &link)
            .map_err(|failure| Error::internal(failure).context("set the VLANs of the bridge port"))?;
    }
    let (hairpin, isolated) = (settings.port.hairpin, settings.port.isolated);
    host.set_up_port(link.index, PortSetup { alias: &identity.alias(), hairpin, isolated })
        .map_err(|failure| Error::internal(failure).context(format_args!("set up bridge port \"{name}\"")))?;
    Ok(Veth { host_index: link.index, host_mac, container_index, container_mac, replaced, mtu })
}

/// Gives the pair an MTU that is too small for IPv6, if it is to have one.
///
/// That ends IPv6 on both ends, and on the bridge if it takes its MTU from its ports, with all addresses that it has:
/// nothing to be done before it is known that the container needs none.
///
/// # Errors
/// Code 7 where the plan needs more; the MTU is the bridge's then, since the plan goes by the settings'.
pub(crate) fn narrow(
    host: &mut Netlink,
    container: &mut Netlink,
    veth: &Veth,
    bridge: &str,
    plan: &Plan,
) -> Result<(), Error> {
    if veth.mtu >= IPV6_MIN_MTU {
        return Ok(());
    }
    if plan.needs_ipv6() {
        return Err(too_narrow(bridge, veth.mtu));
    }
    container
        .set_mtu(veth.container_index, veth.mtu)
        .and_then(|()| host.set_mtu(veth.host_index, veth.mtu))
        .map_err(|failure| Error::internal(failure).context(format_args!("set MTU {}", veth.mtu)))
}

/// The error for a link of the host that somebody has given an MTU with which it speaks no IPv6.
pub(crate) fn too_narrow(link: &str, mtu: u32) -> Error {
    Error::invalid_config(
        "mtu",
        format!("\"{link}\" has {mtu}, which is less than IPv6 needs, {IPV6_MIN_MTU}"),
    )
}

/// Waits until the bridge lets frames through the host end. The kernel sees to that as soon as both ends are up.
pub(crate) fn await_port(host: &mut Netlink, identity: &Identity, index: u32) -> Result<(), Error> {
    let name = identity.host_veth();
    let mut admitted = || match host.link_by_index(index) {
        Ok(Some(link)) => {
            Ok(link.operational && link.port.is_some_and(|port| port.state != Admission::Disabled))
        }
        Ok(None) => Err(Error::internal(format_args!("bridge port \"{name}\" was removed"))),
        Err(failure) => Err(Error::internal(failure).context(format_args!("read bridge port \"{name}\""))),
    };
    if admitted()? {
        return Ok(());
    }
    let failed = |error: io::Error| Error::io(format_args!("wait for bridge port \"{name}\""), &error);
    let mut events = Events::subscribe(PORT_PATIENCE).map_err(failed)?;
    while !admitted()? {
        if !events.wait().map_err(failed)? {
            return Err(Error::internal(format_args!(
                "bridge port in error state: \"{name}\" has no carrier"
            )));
        }
    }
    Ok(())
}

/// What [`remove`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The pair, which is gone now.
    Link,
    /// Nothing.
    Nothing,
}

/// Removes the pair of `identity` by its host end.
pub(crate) fn remove(host: &mut Netlink, identity: &Identity) -> Result<Removed, Failure> {
    match host_end(host, identity)? {
        Some(link) => host.delete_link(link.index).map(|()| Removed::Link),
        None => Ok(Removed::Nothing),
    }
}

/// The host end of the pair of `identity`, by its name.
pub(crate) fn host_end(host: &mut Netlink, identity: &Identity) -> Result<Option<Link>, Failure> {
    let link = host.link_by_name(identity.host_veth())?;
    Ok(link.filter(|link| is_of(link, identity)))
}

/// The host ends of pairs of `identity` by the mark on them, whatever somebody has made of their names.
pub(crate) fn renamed_host_ends(host: &mut Netlink, identity: &Identity) -> Result<Vec<Link>, Failure> {
    let alias = identity.alias();
    let mut links = host.links()?;
    links.retain(|link| link.kind == Kind::Veth && link.peer_netns.is_some() && link.alias == alias);
    Ok(links)
}

/// Whether the link of the derived name is the identity's. One without a mark is: its ADD was killed before it got it.
pub(crate) fn is_of(link: &Link, identity: &Identity) -> bool {
    link.kind == Kind::Veth && (link.alias.is_empty() || link.alias == identity.alias())
}

/// A bridge that has as many ports as the kernel numbers (`BR_MAX_PORTS` in net/bridge/br_private.h).
fn full(bridge: &Link) -> Error {
    Error::new(
        ErrorCode::TRY_AGAIN_LATER,
        format!(
            "bridge \"{}\" has as many ports as the kernel lets a bridge have, which is 1023",
            bridge.name
        ),
    )
}

fn taken(identity: &Identity) -> Error {
    let (ifname, peer) = (identity.attachment().ifname(), identity.host_veth());
    Error::new(
        ErrorCode::INVALID_ENVIRONMENT,
        format!("CNI_IFNAME: container veth name (\"{ifname}\") peer provided (\"{peer}\") already exists"),
    )
}
