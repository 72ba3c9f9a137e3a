//! CHECK: the plan of ADD, made again from prevResult, compared with the kernel. It names each difference.
//!
//! What others have put there (sniffers, addresses, rules) does not disturb it, and an attachment that the reference
//! plugin wired is judged by what that plugin makes.

mod container;
mod gateway;
mod port;

use std::fmt::Display;

use cni_types::{AttachmentCall, CniResult, Command, Delegate, Error, ErrorCode, Interface, Running};

use crate::attachment::{Identity, is_marked};
use crate::bridge::keeps_mac;
use crate::config::Settings;
use crate::mac::Mac;
use crate::netlink::link::{Kind, Link};
use crate::netlink::{Failure, Netlink};
use crate::netns::Netns;
use crate::plan::{Plan, addresses_of};
use crate::rules;
use crate::tuning::Before;

/// Compares the attachment with what ADD made.
pub(crate) fn check(call: &AttachmentCall) -> Result<(), Error> {
    let find = |name: &str| Delegate::find(name, &call.env().plugin_path());
    let settings = Settings::new(call.conf(), &call.env().args()?, find)?;
    let identity = Identity::new(&settings.network, call.attachment());
    let result = call
        .conf()
        .prev_result()?
        .ok_or_else(|| Error::new(ErrorCode::INVALID_CONFIG, "Required prevResult missing"))?;
    let home = Netns::own()?;
    let netns = Netns::open(call.netns())?;
    if netns.is(&home).map_err(|error| Error::io("compare network namespaces", &error))? {
        return Err(Error::new(ErrorCode::INVALID_NETNS, "CNI_NETNS is the plugin's own network namespace"));
    }
    log::debug!("opened the container's namespace");
    let plan = match &settings.ipam {
        None => Plan::switch(&settings),
        Some(_) => {
            let ips = addresses_of(&result, call.attachment().ifname()).cloned().collect();
            Plan::new(&settings, CniResult { ips, ..result.clone() })?
        }
    };
    let leases = settings.ipam.as_ref().map(|ipam| ipam.start(Command::Check, call.network())).transpose()?;
    let mut comparison = Comparison {
        settings: &settings,
        identity: &identity,
        result: &result,
        plan: &plan,
        netns: &netns,
        home: &home,
        differences: Vec::new(),
    };
    let compared = comparison.run();
    match leases.map(Running::ended).transpose() {
        // What else differs must not go unnamed because the leases do, too.
        Err(of_ipam) if compared.is_ok() && !comparison.differences.is_empty() => comparison.differs(of_ipam),
        ended => {
            ended?;
        }
    }
    compared?;
    comparison.verdict()
}

struct Comparison<'a> {
    settings: &'a Settings,
    identity: &'a Identity,
    result: &'a CniResult,
    plan: &'a Plan,
    netns: &'a Netns,
    home: &'a Netns,
    differences: Vec<String>,
}

/// Who made the veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Ours,
    Reference,
}

impl Comparison<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let mut container = self.netns.netlink(self.home)?;
        let failed = |failure: Failure| Error::internal(failure).context("read the state of the kernel");
        let mut host = Netlink::open().map_err(failed)?;
        let bridge = self.bridge(&mut host).map_err(failed)?;
        log::debug!("compared the bridge");
        let (end, present) = self.container(&mut container).map_err(failed)?.unzip();
        log::debug!("compared the container's interface and addresses");
        let maker = self.port(&mut host, bridge.as_ref(), end.as_ref()).map_err(failed)?;
        log::debug!("compared the bridge port");
        if let Some(end) = end.as_ref().filter(|_| !self.plan.addresses.is_empty()) {
            self.routes(&mut container, end.index, maker).map_err(failed)?;
            log::debug!("compared the container's routes");
        }
        if let Some(bridge) = &bridge {
            self.gateway(&mut host, bridge)?;
            log::debug!("compared the gateway and forwarding");
        }
        if maker == Some(Maker::Ours)
            && let Some(end) = &end
            && !self.settings.leave_container_down
        {
            self.switches(&mut host, &mut container, bridge.as_ref(), end)?;
            log::debug!("compared the switches");
        }
        if let (Some(Maker::Ours), Some(mac)) = (maker, end.and_then(|end| end.mac)) {
            let present = present.unwrap_or_default();
            let mut verify =
                |mac| rules::verify(&mut host, self.settings, self.identity, self.plan, mac, present.clone());
            let mut differences = verify(mac)?;
            // The spoof check has to know the address that the container sends with; the others work with the old one.
            if !differences.is_empty()
                && !self.settings.mac_spoof_check
                && let Some(before) = Before::noted(self.identity.attachment()).mac()
                && verify(before)?.is_empty()
            {
                differences.clear();
            }
            self.differences.extend(differences);
            log::debug!("compared the rules");
        }
        Ok(())
    }

    fn verdict(self) -> Result<(), Error> {
        let Self { differences, identity, .. } = self;
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::CHANGED, differences.join("; "))
            .with_details(format!("attachment {}", identity.alias())))
    }

    fn differs(&mut self, what: impl Display) {
        self.differences.push(what.to_string());
    }

    /// Compares a value with the one that it should have.
    fn compare<T: PartialEq + Display>(&mut self, what: impl Display, is: T, should: T) {
        if is != should {
            self.differs(format_args!("{what} is {is}, not {should}"));
        }
    }

    fn bridge(&mut self, host: &mut Netlink) -> Result<Option<Link>, Failure> {
        let name = self.settings.bridge();
        let Some(link) = host.link_by_name(name)? else {
            self.differs(format_args!("bridge \"{name}\" is missing"));
            return Ok(None);
        };
        let name = self.settings.call_bridge(&link.name);
        if link.kind != Kind::Bridge {
            self.differs(format_args!("\"{name}\" is not a bridge"));
            return Ok(None);
        }
        if !link.up {
            self.differs(format_args!("bridge \"{name}\" is down"));
        }
        let told = self.told_on_host(name).and_then(|interface| interface.mac.parse::<Mac>().ok());
        if let (Some(told), Some(mac), true) = (told, link.mac, keeps_mac(&link, self.settings)) {
            self.compare(format_args!("hardware address of bridge \"{name}\""), mac, told);
        }
        if self.settings.promiscuous && !link.promiscuous {
            self.differs(format_args!("bridge \"{name}\" is not promiscuous"));
        }
        if self.settings.needs_vlan_filtering() && !link.vlan_filtering {
            self.differs(format_args!("bridge \"{name}\" does not filter by VLAN"));
        }
        // A person's bridge may be meant to; ours was made to know the tags that a trunk carries.
        let has_trunk = self.settings.vlans.as_ref().is_some_and(|vlans| !vlans.trunk.is_empty());
        if has_trunk && is_marked(&link.alias) && link.foreign_tags {
            self.differs(format_args!("bridge \"{name}\" knows no VLANs by tags of IEEE 802.1Q"));
        }
        Ok(Some(link))
    }

    fn told_on_host(&self, name: &str) -> Option<&Interface> {
        self.result.interfaces.iter().find(|interface| interface.sandbox.is_empty() && interface.name == name)
    }
}
