//! What happens to names between two steps of a call: each call of alias-dns is stopped behind each of its system calls
//! that matter, one after the other, and another one does its work, or somebody kills the server, before it goes on.

use std::time::{Duration, Instant};

use integration_tests::{Output, PluginCall, Running, World, wait_until};
use serde_json::json;

const TRACE: &str = "/run/trace";

/// Everything that belongs to a server, as `pkill --full` finds it.
const SERVER: &str = "alias-dns serve|alias-dns supervise|cni-names guard";

/// How long a call waits for the server.
const PATIENCE: Duration = Duration::from_millis(2500);

/// How long another call may work before the stopped one goes on: it may wait for what that one has.
const BETWEEN: Duration = Duration::from_millis(300);

/// A container, the number of its network, and the last octet of its address.
type Who = (&'static str, u8, u8);

const ZERO: Who = ("zero", 0, 2);
const ONE: Who = ("one", 0, 3);
const TWO: Who = ("two", 0, 4);
const ELSEWHERE: Who = ("elsewhere", 1, 5);

/// What is called, or else happens.
#[derive(Debug, Clone, Copy)]
enum Call {
    Add(Who),
    Del(Who),
    /// The server is killed with all its parts.
    Kill,
}

/// A host with two bridges, and a firewall that drops.
struct Story {
    world: World,
    before: String,
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        for line in [
            "ip link add br0 type bridge",
            "ip addr add 172.20.0.1/16 dev br0",
            "ip link set br0 up",
            "ip link add br1 type bridge",
            "ip addr add 172.21.0.1/16 dev br1",
            "ip link set br1 up",
            "nft add table inet firewall",
            "nft add chain inet firewall in { type filter hook input priority 0; policy drop; }",
            "nft add rule inet firewall in iifname lo accept",
        ] {
            world.host().run(line).success();
        }
        for (name, ..) in [ZERO, ONE, TWO, ELSEWHERE] {
            world.container(name);
        }
        let story = Self { world, before: String::new() };
        Self { before: story.rules(), ..story }
    }

    fn rules(&self) -> String {
        self.world.host().run("nft --stateless list ruleset").success().to_owned()
    }

    fn call(&self, call: PluginCall, verb: &str, (name, network, host): Who) -> PluginCall {
        let config = json!({
            "cniVersion": "1.1.0", "name": format!("net{network}"), "type": "alias-dns",
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{ "name": format!("br{network}") }, { "name": "eth0", "sandbox": "/run/netns" }],
                "ips": [{
                    "address": format!("172.2{network}.0.{host}/16"), "gateway": format!("172.2{network}.0.1"),
                    "interface": 1
                }],
            },
        });
        let call =
            call.verb(verb).env("CNI_CONTAINERID", name).env("CNI_NETNS", &format!("/run/netns/{name}"));
        call.config(&config)
    }

    fn plain(&self, verb: &str, who: Who) -> PluginCall {
        self.call(self.world.plugin("alias-dns"), verb, who)
    }

    fn start(&self, call: Call) -> Running {
        match call {
            Call::Add(who) => self.plain("ADD", who).start(),
            Call::Del(who) => self.plain("DEL", who).start(),
            Call::Kill => {
                let kill = |signal| self.world.host().command(["pkill", signal, "--full", SERVER]);
                // None shall see another one's end.
                kill("-STOP").run().success();
                kill("-KILL").start()
            }
        }
    }

    /// `call`, which `began` then, has succeeded with `output`, or succeeds once more where it ran out of its time, as it
    /// may on a busy machine.
    #[track_caller]
    fn done(&self, call: Call, began: Instant, output: Output) {
        let again = match call {
            Call::Add(who) if output.status != 0 => self.plain("ADD", who),
            Call::Del(who) if output.status != 0 => self.plain("DEL", who),
            _ => {
                output.success();
                return;
            }
        };
        output.error(11);
        assert!(began.elapsed() >= PATIENCE, "{output}");
        again.run().success();
    }

    /// A call that is stopped when it has made its system call number `count` of the name `step`.
    fn started_until(&self, verb: &str, who: Who, step: &str, count: u32) -> Running {
        let inject = format!("inject={step}:signal=STOP:when={count}");
        let tracer = ["strace", "-qq", "-o", TRACE, "-e", &format!("trace={step}"), "-e", &inject];
        self.world.write(TRACE, "");
        self.call(self.world.traced_plugin(&tracer, "alias-dns"), verb, who).start()
    }

    fn is_stopped(&self) -> bool {
        self.world.read(TRACE).contains("stopped by SIGSTOP")
    }

    /// Lets a stopped call go on; the server goes by another name.
    #[track_caller]
    fn let_plugin_go_on(&self) {
        self.world.host().command(["pkill", "-CONT", "--full", "--exact", ".*/alias-dns"]).run().success();
    }

    /// Has `who` attached, on a busy machine with a second call.
    #[track_caller]
    fn add(&self, who: Who) {
        let began = Instant::now();
        self.done(Call::Add(who), began, self.plain("ADD", who).run());
    }

    /// Whether `call` gets through without being stopped at its system call number `count` of the name `step`; otherwise
    /// `other` happens meanwhile, and everything is looked at afterwards.
    #[track_caller]
    fn gets_through(&self, step: &str, count: u32, call: Call, other: Call) -> bool {
        self.gets_through_beside(&[ZERO], step, count, call, other)
    }

    /// The same, where the names of `beside` were there before.
    #[track_caller]
    fn gets_through_beside(&self, beside: &[Who], step: &str, count: u32, call: Call, other: Call) -> bool {
        let why = format!("{other:?} when {call:?} has made its {step} number {count}");
        let (verb, who) = match call {
            Call::Add(who) => ("ADD", who),
            Call::Del(who) => ("DEL", who),
            Call::Kill => unreachable!("it is no call"),
        };
        let (began, running) = (Instant::now(), self.started_until(verb, who, step, count));
        let is_stopped = wait_until("the call is stopped, or over", || {
            let is_stopped = self.is_stopped();
            (is_stopped || running.has_ended()).then_some(is_stopped)
        });
        if is_stopped {
            let (began, meanwhile) = (Instant::now(), self.start(other));
            wait_until("the other one is over, or has had its time", || {
                (meanwhile.has_ended() || began.elapsed() > BETWEEN).then_some(())
            });
            self.let_plugin_go_on();
            self.done(other, began, meanwhile.wait());
        }
        self.done(call, began, running.wait());
        if is_stopped {
            if matches!(other, Call::Kill) {
                // It may have come when all had been said; the next call, whatever it is, brings the server back.
                self.plain("STATUS", ZERO).run().success();
            }
            self.assert_whole(beside, &[call, other], &why);
        }
        !is_stopped
    }

    /// Whether the name of `who` leads to its address.
    #[track_caller]
    fn resolves(&self, (name, network, host): Who) -> bool {
        let asked = format!("dig +short +tries=1 +time=30 @172.2{network}.0.1 {name}.net{network}");
        let answer = self.world.host().run(&asked).success().to_owned();
        assert!(answer.is_empty() || answer == format!("172.2{network}.0.{host}\n"), "{name}: {answer}");
        !answer.is_empty()
    }

    /// Names are as `calls` have left them, beside the one that was there before, and nothing stays when they go.
    #[track_caller]
    fn assert_whole(&self, beside: &[Who], calls: &[Call], why: &str) {
        let mut there = beside.to_vec();
        for call in calls {
            match call {
                Call::Add(who) => there.push(*who),
                Call::Del(who) => there.retain(|other| other != who),
                Call::Kill => {}
            }
        }
        for who in there.iter().copied() {
            assert!(self.resolves(who), "{why}: {who:?} is lost");
            let let_in = format!("cni: names on br{} ", who.1);
            assert!(self.rules().contains(&let_in), "{why}: the rules for {who:?} are lost");
        }
        for call in calls {
            // Where nobody else is on its network, nobody answers there.
            if let Call::Del(gone) = call
                && there.iter().any(|(_, network, _)| *network == gone.1)
            {
                assert!(!self.resolves(*gone), "{why}: {gone:?} is answered");
            }
        }
        for part in SERVER.split('|') {
            wait_until(&format!("{why}: one {part}"), || {
                let found = self.world.host().command(["pgrep", "--full", "--exact", part]).run();
                (found.stdout.lines().count() == 1).then_some(())
            });
        }
        for who in [ZERO, ONE, TWO, ELSEWHERE] {
            self.plain("DEL", who).run().success();
        }
        let records = self.world.host().run("find /run/cni/alias-dns -path */records/* -type f");
        assert_eq!(records.stdout, "", "{why}");
        assert_eq!(self.rules(), self.before, "{why}");
    }
}

/// Has `call` stopped at each of its steps while `other` happens, on a host where names are served.
fn beside(call: Call, other: Call) {
    const MOST: u32 = 50;
    let story = Story::new();
    let write = if matches!(call, Call::Add(_)) { "rename" } else { "unlink" };
    for step in [write, "connect", "sendmsg", "recvmsg", "flock"] {
        let last = (1..MOST).find(|count| {
            story.plain("ADD", ZERO).run().success();
            if let Call::Del(who) = call {
                story.plain("ADD", who).run().success();
            }
            story.gets_through(step, *count, call, other)
        });
        let last = last.unwrap_or_else(|| panic!("{call:?} makes {MOST} calls of {step}"));
        // Where everything is open already, no lock is taken.
        assert!(last > 1 || step == "flock", "{call:?} was never stopped at {step}");
    }
    story.plain("DEL", ZERO).run().success();
    story.plain("DEL", ONE).run().success();
    story.plain("DEL", ELSEWHERE).run().success();
    wait_until("nothing is left", || (!story.world.path("/run/cni/alias-dns").exists()).then_some(()));
}

#[test]
fn an_add_at_each_step_of_an_add_leaves_both_names() {
    beside(Call::Add(ONE), Call::Add(TWO));
}

#[test]
fn an_add_at_each_step_of_the_first_add_of_a_network_leaves_both_names() {
    beside(Call::Add(ELSEWHERE), Call::Add(ONE));
}

#[test]
fn a_del_at_each_step_of_an_add_takes_no_other_name() {
    beside(Call::Add(ONE), Call::Del(ZERO));
}

#[test]
fn the_end_of_the_server_at_each_step_of_an_add_loses_no_name() {
    beside(Call::Add(ELSEWHERE), Call::Kill);
}

#[test]
fn an_add_at_each_step_of_a_del_takes_no_other_name() {
    beside(Call::Del(ONE), Call::Add(TWO));
}

#[test]
fn an_add_at_each_step_of_the_last_del_keeps_its_rules() {
    let story = Story::new();
    for count in 1..50 {
        story.plain("ADD", ELSEWHERE).run().success();
        story.plain("ADD", ONE).run().success();
        if story.gets_through_beside(&[ELSEWHERE], "sendmsg", count, Call::Del(ONE), Call::Add(TWO)) {
            assert!(count > 1, "it was never stopped");
            return;
        }
    }
    panic!("it never gets through");
}

#[test]
fn the_last_del_leaves_the_rules_of_another_add_where_the_server_hangs() {
    let story = Story::new();
    [ELSEWHERE, ONE].into_iter().for_each(|who| story.add(who));
    let del = story.started_until("DEL", ONE, "sendmsg", 1);
    wait_until("the DEL is stopped, having said what is gone", || story.is_stopped().then_some(()));
    // The server answers in turn: who is heard after the DEL comes when the listener is closed, and the DEL told so.
    wait_until("the server is heard", || {
        let heard = story.plain("STATUS", ELSEWHERE).run();
        (heard.success().is_empty() && heard.stderr.is_empty()).then_some(())
    });
    story.add(TWO);
    let server =
        |signal| story.world.host().command(["pkill", signal, "--full", "--exact", "alias-dns serve"]);
    server("-STOP").run().success();
    story.let_plugin_go_on();
    let del = del.wait();
    server("-CONT").run().success();
    let told = "take the host's rules back: the DNS server does not answer within 2500 ms";
    assert!(del.success().is_empty() && del.stderr.contains(told), "{del}");
    story.assert_whole(&[ELSEWHERE], &[Call::Del(ONE), Call::Add(TWO)], "the server hung");
}

#[test]
fn the_end_of_the_server_at_each_step_of_a_del_loses_no_other_name() {
    beside(Call::Del(ONE), Call::Kill);
}
