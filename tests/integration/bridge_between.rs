//! What somebody else does between two steps of a call: each call is stopped behind each of its messages to the kernel
//! and each process that it starts, one after the other, and the other one comes to its end, or has to wait, before it
//! goes on.

use integration_tests::{Container, Output, PluginCall, Running, Suite, World, wait_until};
use serde_json::{Value, json};

const TRACE: &str = "/run/trace";

/// What is in table nat of iptables is reloaded.
const RELOAD: &str = "
    for program in iptables ip6tables; do $program -t nat -F && $program -t nat -X || exit; done
    iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE &&
    ip6tables -t nat -A POSTROUTING -s 2001:db8::/64 -j MASQUERADE
";

/// The rest of what is ours goes, but for the rules in the firewall's chain.
const FLUSH: &str = "
    for table in 'inet cni-bridge' 'bridge cni-bridge' 'bridge cni-ra-guard'; do
        nft delete table $table 2> /dev/null
    done
";

/// For a network that asks for nothing else.
const IPTABLES_ALONE: &str = "iptables alone";

/// The same for the other table of ours.
const MAC_CHECK_ALONE: &str = "macspoofchk alone";

/// A host with two containers, a firewall that drops, and a configuration that asks for every kind of rule.
struct Story {
    world: World,
    path: String,
    config: Value,
    one: Container,
    two: Container,
    before: String,
}

/// What is called.
#[derive(Debug, Clone, Copy)]
enum Call {
    Add,
    Del,
    Gc,
    Repair,
    /// Somebody takes away all that is ours but the rules in the firewall's chain.
    Flush,
    /// The same, and an ADD after it.
    FlushAndAdd,
}

impl Story {
    #[track_caller]
    fn new(backend: &str) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        for line in [
            "nft add table inet firewall",
            "nft add chain inet firewall through { type filter hook forward priority 10; policy drop; }",
        ] {
            world.host().run(line).success();
        }
        world.host().command(["sh", "-c", RELOAD]).run().success();
        let config = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
            "ipMasq": true, "ipMasqBackend": backend, "ingressPolicy": "isolated", "macspoofchk": true,
            "acceptForward": true,
            "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]] },
        });
        let mut config = config;
        if backend == IPTABLES_ALONE {
            for key in ["isDefaultGateway", "macspoofchk", "acceptForward"] {
                config[key] = json!(false);
            }
            config["ipMasqBackend"] = json!("iptables");
            config["ingressPolicy"] = json!("");
        }
        if backend == MAC_CHECK_ALONE {
            for key in ["isDefaultGateway", "ipMasq", "acceptForward"] {
                config[key] = json!(false);
            }
            config["ipMasqBackend"] = json!("nftables");
            config["ingressPolicy"] = json!("");
        }
        world.write("/run/net.d/n.conf", config.to_string());
        let (one, two) = (world.container("one"), world.container("two"));
        let story = Self { world, path, config, one, two, before: String::new() };
        Self { before: story.ruleset(), ..story }
    }

    fn ruleset(&self) -> String {
        self.world.host().run("nft --stateless list ruleset").success().to_owned()
    }

    fn call(&self, call: PluginCall, verb: &str, container: &Container) -> PluginCall {
        call.verb(verb).container(container).env("CNI_PATH", &self.path).config(&self.config)
    }

    fn plain(&self, verb: &str, container: &Container) -> PluginCall {
        self.call(self.world.plugin("bridge"), verb, container)
    }

    fn start(&self, call: Call, container: &Container) -> Running {
        match call {
            Call::Add => self.plain("ADD", container).start(),
            Call::Del => self.plain("DEL", container).start(),
            Call::Gc => self.plain("GC", container).config(&self.collecting()).start(),
            Call::Repair => {
                let program = Suite::Ours.binary("bridge");
                let command = self.world.host().command([program.as_os_str(), "repair".as_ref()]);
                command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &self.path).start()
            }
            Call::FlushAndAdd => {
                let script = format!("{FLUSH}{RELOAD}exec \"$@\"");
                let behind = self.world.traced_plugin(&["sh", "-c", &script, "sh"], "bridge");
                self.call(behind, "ADD", container).start()
            }
            Call::Flush => self.world.host().command(["sh", "-c", &format!("{FLUSH}{RELOAD}")]).start(),
        }
    }

    /// For a GC that leaves the second container alone.
    fn collecting(&self) -> Value {
        let mut config = self.config.clone();
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "two", "ifname": "eth0" }]);
        config
    }

    /// Has `call`, of the first container, stopped when it has made its system call number `count` of the name `step`,
    /// until `other`, of the second, has ended or waits for it. The results of both, if it came so far.
    #[track_caller]
    fn stopped_at(&self, step: &str, count: u32, call: Call, other: Call) -> Option<[Output; 2]> {
        let inject = format!("inject={step}:signal=STOP:when={count}");
        let tracer = ["strace", "-o", TRACE, "-e", &format!("trace={step}"), "-e", &inject];
        self.world.write(TRACE, "");
        let traced = self.world.traced_plugin(&tracer, "bridge");
        let running = match call {
            Call::Add => self.call(traced, "ADD", &self.one),
            Call::Del => self.call(traced, "DEL", &self.one),
            Call::Gc => self.call(traced, "GC", &self.one).config(&self.collecting()),
            Call::Repair => {
                let script = "unset CNI_COMMAND; exec \"$@\" repair";
                let tracer = ["sh", "-c", script, "sh"].iter().copied().chain(tracer).collect::<Vec<_>>();
                self.call(self.world.traced_plugin(&tracer, "bridge"), "", &self.one)
                    .env("NETCONFPATH", "/run/net.d")
            }
            Call::Flush | Call::FlushAndAdd => unreachable!("it is no call"),
        };
        let running = running.start();
        let is_stopped = wait_until("the call is stopped, or over", || {
            let is_stopped = self.world.read(TRACE).contains("stopped by SIGSTOP");
            (is_stopped || running.has_ended()).then_some(is_stopped)
        });
        let other = self.start(other, &self.two);
        wait_until("the other one is over, or waits for a lock", || {
            let locks = self.world.host().run("cat /proc/locks");
            (other.has_ended() || locks.success().contains("-> FLOCK")).then_some(())
        });
        if is_stopped {
            self.world.host().run("pkill -CONT -x bridge").success();
        }
        let outputs = [running.wait(), other.wait()];
        for output in &outputs {
            output.success();
        }
        is_stopped.then_some(outputs)
    }

    /// Whether `call` gets through without being stopped there; otherwise everything is looked at afterwards.
    #[track_caller]
    fn gets_through(&self, step: &str, count: u32, call: Call, other: Call) -> bool {
        let (one, two) = (&self.one, &self.two);
        let why = format!("{other:?} when {call:?} has made its {step} number {count}");
        if !matches!(call, Call::Add) {
            self.add(one);
        }
        if matches!(other, Call::Del) {
            self.add(two);
        }
        if matches!(call, Call::Repair) {
            self.start(Call::Flush, one).wait().success();
        }
        let Some([first, second]) = self.stopped_at(step, count, call, other) else {
            for container in [one, two] {
                self.plain("DEL", container).run().success();
            }
            return true;
        };
        if matches!(call, Call::Repair) {
            self.plain("DEL", one).run().success();
        }
        if matches!(other, Call::Flush) {
            self.start(Call::Repair, two).wait().success();
        }
        let mut attached = Vec::new();
        if matches!(call, Call::Add) {
            attached.push((one, &first));
        }
        if matches!(other, Call::Add | Call::FlushAndAdd) {
            attached.push((two, &second));
        }
        self.assert_whole(&attached, &why);
        false
    }

    #[track_caller]
    fn add(&self, container: &Container) {
        self.plain("ADD", container).run().success();
    }

    /// Nothing is missing for those whose results these are, and nothing stays when they go.
    #[track_caller]
    fn assert_whole(&self, attached: &[(&Container, &Output)], why: &str) {
        for (container, result) in attached {
            let mut config = self.config.clone();
            config["prevResult"] = result.json();
            let check = self.plain("CHECK", container).config(&config).run();
            assert_eq!(check.status, 0, "{why}: {check}\n{}", self.config);
        }
        let told = self.start(Call::Repair, &self.two).wait();
        assert_eq!(told.success(), "", "{why}");
        for (container, _) in attached {
            self.plain("DEL", container).run().success();
        }
        assert_eq!(self.ruleset(), self.before, "{why}");
        let ports = self.world.host().run("ip -o link show type veth");
        assert_eq!(ports.success(), "", "{why}");
    }
}

/// Has the first container's `call` stopped at each of its steps while `other` happens, in four worlds at once: most of
/// the time each waits for the kernel to let go of links.
fn beside(call: Call, other: Call) {
    std::thread::scope(|scope| {
        for backend in ["nftables", "iptables", IPTABLES_ALONE, MAC_CHECK_ALONE] {
            scope.spawn(move || beside_with(backend, call, other));
        }
    });
}

fn beside_with(backend: &str, call: Call, other: Call) {
    const MOST: u32 = 200;
    let story = Story::new(backend);
    for step in ["sendto", "clone"] {
        // Where nothing is masqueraded through iptables, a repair starts no process.
        if matches!(call, Call::Repair) && ["nftables", MAC_CHECK_ALONE].contains(&backend) && step == "clone"
        {
            continue;
        }
        let last = (1..MOST).find(|count| story.gets_through(step, *count, call, other));
        let last = last.unwrap_or_else(|| panic!("{call:?} makes {MOST} calls of {step}"));
        assert!(last > 1, "{call:?} was never stopped at {step}");
    }
}

#[test]
fn a_repair_at_each_step_of_an_add_leaves_it_whole() {
    beside(Call::Add, Call::Repair);
}

#[test]
fn an_add_at_each_step_of_the_first_add_is_whole_and_leaves_it_whole() {
    beside(Call::Add, Call::Add);
}

#[test]
fn the_del_of_the_only_other_one_at_each_step_of_an_add_leaves_it_whole() {
    beside(Call::Add, Call::Del);
}

#[test]
fn a_flush_at_each_step_of_an_add_is_mended_by_a_repair() {
    beside(Call::Add, Call::Flush);
}

#[test]
fn a_flush_and_another_add_at_each_step_of_an_add_leave_it_whole() {
    beside(Call::Add, Call::FlushAndAdd);
}

#[test]
fn a_repair_at_each_step_of_a_del_brings_back_nothing() {
    beside(Call::Del, Call::Repair);
}

#[test]
fn an_add_at_each_step_of_the_last_del_is_whole() {
    beside(Call::Del, Call::Add);
}

#[test]
fn two_last_dels_leave_nothing_at_whatever_step_they_meet() {
    beside(Call::Del, Call::Del);
}

#[test]
fn a_flush_at_each_step_of_a_del_leaves_nothing() {
    beside(Call::Del, Call::Flush);
}

#[test]
fn a_del_at_each_step_of_a_repair_leaves_nothing() {
    beside(Call::Repair, Call::Del);
}

#[test]
fn a_repair_at_each_step_of_a_gc_brings_back_nothing() {
    beside(Call::Gc, Call::Repair);
}

#[test]
fn an_add_at_each_step_of_a_gc_is_whole() {
    beside(Call::Gc, Call::Add);
}
