//! firewalld on a bus of its own.

use integration_tests::{Output, Running, World, wait_until};

/// Where D-Bus programs look for the system's bus. A world has it for itself, as all of `/run`.
const BUS: &str = "/run/dbus/system_bus_socket";

/// As that of a session: whoever comes may ask whatever he wants. The system's own needs polkit beside it.
const BUS_CONFIGURATION: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// Which rules a firewalld writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A table of its own in nf_tables, removed and made again at each reload.
    Nftables,
    /// The tables of iptables, which a reload empties of everybody's rules.
    Iptables,
}

/// A firewalld that runs on the host of a world, with the configuration that the package brings: every interface is in
/// the zone `public`, and what is forwarded from there is rejected. It ends with the world.
pub(crate) struct Firewalld<'a> {
    world: &'a World,
    _bus: Running,
    _daemon: Running,
}

impl<'a> Firewalld<'a> {
    #[track_caller]
    pub(crate) fn start(world: &'a World, backend: Backend) -> Self {
        let backend = match backend {
            Backend::Nftables => "nftables",
            Backend::Iptables => "iptables",
        };
        // Not in /etc, which leads to the machine's own files.
        world.write(
            "/run/firewalld/firewalld.conf",
            format!("DefaultZone=public\nFirewallBackend={backend}\n"),
        );
        world.write("/run/dbus/bus.conf", BUS_CONFIGURATION);
        let bus = world.host().start("dbus-daemon --config-file=/run/dbus/bus.conf --nofork");
        wait_until("the bus listens", || world.path(BUS).exists().then_some(()));
        let daemon = world
            .host()
            .start("firewalld --nofork --nopid --system-config /run/firewalld --log-target console");
        let firewalld = Self { world, _bus: bus, _daemon: daemon };
        wait_until("firewalld has its rules", || (firewalld.command("--state").status == 0).then_some(()));
        firewalld
    }

    /// Runs a `firewall-cmd` command as typed.
    #[track_caller]
    pub(crate) fn command(&self, line: &str) -> Output {
        self.world.host().run(&format!("firewall-cmd {line}"))
    }
}
