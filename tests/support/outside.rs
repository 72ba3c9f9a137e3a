//! A host behind the host: what containers see as the rest of the world.

use crate::command::Running;
use crate::world::{Space, World};

/// Another host, one hop behind the world's host, which has it as its default route. It knows no way back to the
/// addresses of containers: only what is masqueraded gets an answer.
#[derive(Debug)]
pub struct Outside {
    space: Space,
    host: Space,
}

impl Outside {
    /// Address of the outside host.
    pub const ADDRESS: &str = "203.0.113.9";
    /// Its IPv6 address.
    pub const ADDRESS6: &str = "2001:db8:ffff::9";
    /// Address of the world's host as the outside sees it.
    pub const HOST: &str = "203.0.113.1";
    /// The host's IPv6 address.
    pub const HOST6: &str = "2001:db8:ffff::1";
    /// The host's interface towards the outside.
    pub const UPLINK: &str = "up0";

    #[track_caller]
    pub(crate) fn new(world: &World) -> Self {
        let (host, space) = (world.host(), world.netns("outside"));
        let on = |space: &Space, line: &str| {
            space.run(line).success();
        };
        on(&host, &format!("ip link add {} type veth peer name eth0 netns outside", Self::UPLINK));
        on(&host, &format!("ip address add {}/24 dev {}", Self::HOST, Self::UPLINK));
        on(&host, &format!("ip address add {}/64 dev {} nodad", Self::HOST6, Self::UPLINK));
        on(&space, &format!("ip address add {}/24 dev eth0", Self::ADDRESS));
        on(&space, &format!("ip address add {}/64 dev eth0 nodad", Self::ADDRESS6));
        on(&host, &format!("ip link set {} up", Self::UPLINK));
        on(&space, "ip link set eth0 up");
        on(&host, &format!("ip route add default via {}", Self::ADDRESS));
        on(&host, &format!("ip -6 route add default via {}", Self::ADDRESS6));
        Self { space, host }
    }

    /// Where commands of the outside host are run.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Gives the outside host a way to `subnet`, by the world's host: so that it can try.
    #[track_caller]
    pub fn route(&self, subnet: &str) {
        let via = if subnet.contains(':') { Self::HOST6 } else { Self::HOST };
        self.space.run(&format!("ip route add {subnet} via {via}")).success();
    }

    /// Starts a DNS server (dnsmasq) that knows `records` (name, address) and nothing else, and makes it the
    /// upstream of the host. It logs each query on its stderr.
    #[track_caller]
    pub fn serve_dns(&self, records: &[(&str, &str)]) -> Running {
        let mut argv: Vec<String> = [
            "dnsmasq",
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--no-daemon",
            "--user=root",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--bind-interfaces",
            "--log-queries",
            "--log-facility=-",
        ]
        .map(str::to_owned)
        .to_vec();
        argv.push(format!("--listen-address={},{}", Self::ADDRESS, Self::ADDRESS6));
        argv.extend(records.iter().map(|(name, address)| format!("--host-record={name},{address}")));
        let server = self.space.command(argv).start();
        crate::wait_until("the outside DNS server answers", || {
            let probe = format!("dig +time=1 +tries=1 @{} version.bind CH TXT", Self::ADDRESS);
            self.host.run(&probe).stdout.contains("status: NOERROR").then_some(())
        });
        self.host
            .command(["sh", "-c", "echo \"nameserver $1\" > /etc/resolv.conf", "sh", Self::ADDRESS])
            .run()
            .success();
        server
    }
}
