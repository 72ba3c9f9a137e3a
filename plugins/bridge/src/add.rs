//! ADD: wire and lease side by side, plan, apply. Whatever fails takes back what was done before it.

use std::time::Duration;

use cni_types::{
    AttachmentCall, CniResult, Command, Delegate, Error, ErrorCode, Interface, NetworkCall, NotAdded, Running,
};

use crate::attachment::Identity;
use crate::config::{MasqueradeBackend, Settings};
use crate::container::{Company, ContainerEnd};
use crate::gateway::Gateway;
use crate::netlink::link::Link;
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{Plan, PlanError};
use crate::rules::{FoundGateway, Prepared, Subject};
use crate::signals::Held;
use crate::sysctl::Ipv6Switches;
use crate::undo::{Undo, WayBack};
use crate::veth::Veth;
use crate::{bridge, container, gateway, iptables, maker, reverse_path, rules, veth};

/// How long others are kept from making links while leases are given back. It takes some milliseconds.
const OTHERS_PATIENCE: Duration = Duration::from_secs(2);

/// Attaches the container.
pub(crate) fn add(call: &AttachmentCall) -> Result<CniResult, Error> {
    let find = |name: &str| Delegate::find(name, &call.env().plugin_path());
    let settings = Settings::new(call.conf(), &call.env().args()?, find)?;
    rules::require_programs(&settings)?;
    let identity = Identity::new(&settings.network, call.attachment());
    let home = Netns::own()?;
    let netns = Netns::open(call.netns())?;
    let mut container = netns.netlink(&home)?;
    veth::require_free_name(&mut container, &identity)?;
    log::debug!("opened the container's namespace");

    let signals = Held::new()?;
    let mut back = WayBack::default();
    let mut host = Netlink::open().map_err(Error::internal)?;
    let (lease, wired) = if settings.leases_without_link {
        // Whoever is attached elsewhere has leases by the same name, which a way back would release.
        veth::require_unattached(&mut host, &identity)?;
        let lease = Lease::ask(call, &settings)?;
        (lease, wire(&mut host, &settings, &identity, &netns, &home, &mut back))
    } else {
        let wired = wire(&mut host, &settings, &identity, &netns, &home, &mut back)?;
        (Lease::ask(call, &settings)?, Ok(wired))
    };
    let veth = wired.as_ref().ok().map(|Wired { veth, .. }| veth);
    let leases = lease.given(&identity, &home, veth, &signals, &mut back.leases)?;
    let plan = plan(call, &settings, leases)?;
    let Wired { bridge, veth, switches, gateway, prepared } = wired?;
    log::debug!("planned {} addresses and {} routes", plan.addresses.len(), plan.routes.len());
    veth::narrow(&mut host, &mut container, &veth, settings.bridge(), &plan)?;

    if let Some(gateway) = &gateway {
        gateway.ensure_addresses(&mut host, &settings, &plan, &home, &mut back.network)?;
        log::debug!("{} has {} gateway addresses", gateway.link.name, plan.gateways.len());
    }
    signals.heed()?;

    let gateway_port = FoundGateway::find(&mut host, &settings)?;
    let subject = Subject::new(&settings, &identity, &plan, veth.container_mac, gateway_port);
    let undo = &mut back.attachment;
    let rules = rules::install(prepared, &mut host, &bridge, &settings, &identity, subject, undo)?;
    log::debug!("installed the rules");
    let ifname = call.attachment().ifname();
    let end = ContainerEnd { netns: &netns, home: &home, ifname, index: veth.container_index };
    let company = if settings.leave_container_down {
        None
    } else {
        let company = container::configure(&mut container, end, &settings, &plan, switches)?;
        log::debug!("gave {ifname} its addresses and routes");
        if let Some(rules) = rules {
            rules.confirm(&mut host, &bridge, &settings)?;
        }
        veth::await_port(&mut host, &identity, veth.host_index)?;
        log::debug!("the bridge port forwards");
        if let Some(gateway) = &gateway {
            gateway.follow_carrier(&mut host)?;
        }
        container::follow_carrier(&mut container, end)?;
        Some(company)
    };
    signals.heed()?;
    if let Some(gateway) = &gateway {
        gateway.enable_forwarding(&mut host, &plan)?;
        log::debug!("the host forwards");
    }
    if company == Some(Company::Others) && !plan.addresses.is_empty() {
        reverse_path::loosen(&mut host, &mut container, &netns, &home);
    }
    let bridge_mac = bridge::mac(&mut host, &bridge, &settings)?;
    let gateway_link = gateway.as_ref().map_or(&bridge, |gateway| &gateway.link);
    finish(&mut host, &mut container, gateway_link.index, &veth, &plan)?;
    log::debug!("announced the addresses");
    if company.is_some() {
        // Last, for most of the wait is over by now.
        if let Some(gateway) = &gateway {
            gateway.await_solicited(&plan);
        }
        container::await_solicited(end, &plan)?;
    }
    back.disarm();
    let bridge_mac = bridge_mac.map(|mac| mac.to_string()).unwrap_or_default();
    let on_host = |name: &str, mac: String| Interface { name: name.to_owned(), mac, ..Interface::default() };
    let mut interfaces = vec![
        on_host(settings.bridge(), bridge_mac),
        on_host(identity.host_veth(), veth.host_mac.to_string()),
        Interface {
            sandbox: call.netns().display().to_string(),
            ..on_host(ifname, veth.container_mac.to_string())
        },
    ];
    if gateway_link.index != bridge.index {
        let mac = gateway_link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        interfaces.push(on_host(&gateway_link.name, mac));
    }
    Ok(plan.to_result(interfaces))
}

/// Tells the neighbours who has the addresses now, has the host forget who had them, and takes from the interface the
/// mark that it is being made. To fail at the telling is no reason to refuse the container: its neighbours find out by
/// themselves, only later. Left marked, it would be taken for what a killed ADD has left.
fn finish(
    host: &mut Netlink,
    container: &mut Netlink,
    gateway: u32,
    veth: &Veth,
    plan: &Plan,
) -> Result<(), Error> {
    let warn = |failure: &Failure| log::warn!("announce the container's addresses: {failure}");
    for address in &plan.addresses {
        let _ = host.forget_neighbour(gateway, address.network.ip()).inspect_err(warn);
    }
    let index = veth.container_index;
    if !plan.addresses.is_empty() {
        match container.announce(index, veth.container_mac, maker::NO_GROUP) {
            Ok(()) => return Ok(()),
            Err(failure) => warn(&failure),
        }
    }
    container
        .set_group(index, maker::NO_GROUP)
        .map_err(|failure| Error::internal(failure).context("take the mark from the container's interface"))
}

/// What there is of an attachment before its addresses are known.
struct Wired {
    bridge: Link,
    veth: Veth,
    switches: Option<Ipv6Switches>,
    gateway: Option<Gateway>,
    prepared: Option<Prepared>,
}

/// Makes the bridge where there is none, and the veth pair with its host end on it, and does all else that needs no
/// addresses.
fn wire<'a>(
    host: &mut Netlink,
    settings: &'a Settings,
    identity: &'a Identity,
    netns: &Netns,
    home: &'a Netns,
    back: &mut WayBack<'a>,
) -> Result<Wired, Error> {
    let attaching = home.share()?;
    let bridge = bridge::ensure(host, settings, home, &attaching, &mut back.network)?;
    log::debug!("bridge {} is up", settings.bridge());
    rules::remove_after_link(settings, identity, &mut back.attachment);
    let veth = veth::create(host, settings, identity, netns, &bridge, &mut back.attachment)?;
    if veth.replaced {
        rules::remove_stale(&identity.owner())?;
        if settings.masquerade == Some(MasqueradeBackend::Iptables) {
            iptables::remove(identity.jumps())?;
        }
        log::debug!("took over what a killed ADD has left");
    }
    log::debug!("made the veth pair {}", identity.host_veth());
    drop(attaching);
    let switches = container::believe_no_router(netns, home, identity.attachment().ifname(), settings)?;
    let gateway = gateway::ensure(host, &bridge, settings, home, &mut back.network)?;
    let prepared = rules::prepare(settings, gateway.as_ref().is_some_and(|gateway| gateway.is_new))?;
    log::debug!("looked at the gateway and the host's rules");
    Ok(Wired { bridge, veth, switches, gateway, prepared })
}

/// Makes the plan; a result that the runtime's spec version cannot hold is refused.
fn plan(call: &AttachmentCall, settings: &Settings, leases: Option<CniResult>) -> Result<Plan, Error> {
    let plan = match leases {
        None => Plan::switch(settings),
        Some(leases) => Plan::new(settings, leases)?,
    };
    plan.require_representable(call.conf().version())?;
    for address in plan.own_gateways() {
        // The reference makes it, and other containers reach it.
        log::warn!(
            "{address} is the gateway's address, too: the container reaches neither the host nor what is beyond it"
        );
    }
    Ok(plan)
}

/// The addresses that the IPAM plugin has been asked for. It works on them while the pair is made, which takes as long.
struct Lease<'a> {
    call: &'a AttachmentCall,
    asked: Option<(&'a Delegate, Running)>,
}

impl<'a> Lease<'a> {
    /// Asks, and does not wait for the answer.
    fn ask(call: &'a AttachmentCall, settings: &'a Settings) -> Result<Self, Error> {
        let asked = match &settings.ipam {
            Some(ipam) => Some((ipam, ipam.start(Command::Add, call.network())?)),
            None => None,
        };
        Ok(Self { call, asked })
    }

    /// Waits for the addresses; `None` if the settings ask for none. `veth` is the pair of `identity`, if it was made.
    fn given(
        self,
        identity: &'a Identity,
        home: &'a Netns,
        veth: Option<&Veth>,
        signals: &Held,
        undo: &mut Undo<'a>,
    ) -> Result<Option<CniResult>, Error> {
        let Some((ipam, running)) = self.asked else { return Ok(None) };
        let network = self.call.network();
        let mut leased = running.added();
        let ended = signals.heed();
        let replaced = veth.is_some_and(|veth| veth.replaced);
        if ended.is_ok()
            && let (Some(_), Err(NotAdded { error, .. })) = (veth, &leased)
            && (replaced || error.code() == ErrorCode::TRY_AGAIN_LATER)
        {
            // The pair says that there is no other attachment of this identity which lives. What an attempt that was
            // killed has leased, or one that has lost the race for the pair, is in the way of its repetition.
            if !replaced {
                rules::remove_stale(&identity.owner())?;
            }
            ipam.del(network)?;
            leased = ipam.add(network);
        }
        // Who is refused has nothing to give back: what there is by the same name may be somebody else's.
        if leased.as_ref().map_or_else(|failed| failed.in_doubt, |_| true) {
            undo.push("release the leases", move || release(ipam, network, identity, home));
        }
        ended?;
        leased.map(Some).map_err(|failed| failed.error)
    }
}

/// Gives back what an ADD has leased, unless there is an attachment of the same identity, in another namespace: that one
/// was made by a call at the same time and may have leased the addresses anew, by the same name. Nobody makes one as long
/// as it is given back, but for an allocator that takes too long for others to wait.
fn release(ipam: &Delegate, network: &NetworkCall, identity: &Identity, home: &Netns) -> Result<(), Error> {
    let alone = home.exclude()?;
    let attached = Netlink::open().and_then(|mut host| veth::host_end(&mut host, identity));
    if attached.map_err(Error::internal)?.is_some() {
        log::debug!("left the leases to another attachment of the same name");
        return Ok(());
    }
    let releasing = ipam.start(Command::Del, network)?;
    // Where the kernel does not tell, the others wait for the end.
    let _ =
        releasing.ends_within(OTHERS_PATIENCE).inspect_err(|error| log::debug!("wait for an end: {error}"));
    drop(alone);
    releasing.ended()
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Self::new(ErrorCode::INVALID_CONFIG, error.to_string())
    }
}
