//! ADD: lease, plan, apply. Whatever fails takes back what was done before it.

use cni_types::{AttachmentCall, CniResult, Delegate, Error, Interface};

use crate::attachment::Identity;
use crate::config::Settings;
use crate::container::ContainerEnd;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::plan::{Plan, PlanError};
use crate::signals::Held;
use crate::undo::Undo;
use crate::{bridge, container, gateway, rules, veth};

/// Attaches the container.
pub(crate) fn add(call: &AttachmentCall) -> Result<CniResult, Error> {
    let find = |name: &str| Delegate::find(name, &call.env().plugin_path());
    let settings = Settings::new(call.conf(), &call.env().args()?, find)?;
    let identity = Identity::new(&settings.network, call.attachment());
    let home = Netns::own()?;
    let netns = Netns::open(call.netns())?;
    let mut container = netns.netlink(&home)?;
    veth::require_free_name(&mut container, &identity)?;

    let signals = Held::new()?;
    let mut undo = Undo::default();
    let plan = lease(call, &settings, &mut undo)?;
    signals.heed()?;

    let mut host = Netlink::open().map_err(Error::internal)?;
    let attaching = home.share()?;
    let bridge = bridge::ensure(&mut host, &settings, &home, &mut undo)?;
    let veth = veth::create(&mut host, &settings, &identity, &netns, &bridge, &mut undo)?;
    drop(attaching);
    signals.heed()?;

    let ifname = call.attachment().ifname();
    if !settings.leave_container_down {
        let end = ContainerEnd { netns: &netns, home: &home, ifname, index: veth.container_index };
        container::configure(&mut container, end, &settings, &plan)?;
    }
    gateway::ensure_addresses(&mut host, &bridge, &settings, &plan, &home, &mut undo)?;
    rules::install(&settings, &identity, &plan, veth.container_mac, &mut undo)?;
    signals.heed()?;
    gateway::enable_forwarding(&plan)?;

    undo.disarm();
    let bridge_mac = bridge.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let on_host = |name: &str, mac: String| Interface { name: name.to_owned(), mac, ..Interface::default() };
    let interfaces = vec![
        on_host(&settings.bridge, bridge_mac),
        on_host(identity.host_veth(), veth.host_mac.to_string()),
        Interface {
            sandbox: call.netns().display().to_string(),
            ..on_host(ifname, veth.container_mac.to_string())
        },
    ];
    Ok(plan.to_result(interfaces))
}

/// Leases addresses and makes the plan; a result that the runtime's spec version cannot hold is refused here, while
/// nothing but the lease has to be taken back.
fn lease<'a>(call: &'a AttachmentCall, settings: &'a Settings, undo: &mut Undo<'a>) -> Result<Plan, Error> {
    let plan = match &settings.ipam {
        None => Plan::switch(settings),
        Some(ipam) => {
            let leases = ipam.add(call.network())?;
            undo.push("release the leases", move || ipam.del(call.network()));
            Plan::new(settings, leases)?
        }
    };
    plan.require_representable(call.conf().version())?;
    Ok(plan)
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Self::new(cni_types::ErrorCode::INVALID_CONFIG, error.to_string())
    }
}
