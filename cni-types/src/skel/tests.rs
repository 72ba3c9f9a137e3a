use std::cell::RefCell;
use std::io;

use proptest::prelude::*;

use super::*;
use crate::IpConfig;

/// Answers every verb, and notes which one was asked for.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<String>>,
    failure: Option<Error>,
    without_addresses: bool,
}

impl Recorder {
    fn note(&self, call: String) -> Result<(), Error> {
        self.calls.borrow_mut().push(call);
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Plugin for Recorder {
    const NAME: &'static str = "recorder";

    fn add(&self, call: &AttachmentCall) -> Result<CniResult, Error> {
        let attachment = call.attachment();
        self.note(format!(
            "add {} {} {}",
            attachment.container_id(),
            attachment.ifname(),
            call.netns().display()
        ))?;
        let address = crate::ip::parse_cidr("10.0.0.2/24").unwrap();
        let ip = IpConfig { interface: None, address, gateway: None };
        let ips = if self.without_addresses { vec![] } else { vec![ip] };
        Ok(CniResult { ips, ..CniResult::default() })
    }

    fn check(&self, call: &AttachmentCall) -> Result<(), Error> {
        self.note(format!("check {}", call.conf().name()))
    }

    fn del(&self, call: &DelCall) -> Result<(), Error> {
        self.note(format!("del {} {:?}", call.attachment().container_id(), call.netns()))
    }

    fn gc(&self, call: &NetworkCall) -> Result<(), Error> {
        self.note(format!("gc {}", call.conf().name()))
    }

    fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        self.note(format!("status {}", call.conf().name()))
    }
}

struct Outcome {
    status: u8,
    stdout: String,
    stderr: String,
    calls: Vec<String>,
}

impl Outcome {
    fn of(plugin: Recorder, env: &[(&str, &str)], mut stdin: impl Read) -> Self {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = run(&plugin, env.iter().copied().collect(), &mut stdin, &mut stdout, &mut stderr);
        Self {
            status,
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
            calls: plugin.calls.into_inner(),
        }
    }

    #[track_caller]
    fn check_error(&self, expected: &str) {
        assert_eq!(self.stdout, expected);
        assert_eq!(self.status, 1);
        assert!(self.calls.is_empty(), "the verb ran: {:?}", self.calls);
    }
}

fn env<'a>(command: &'a str, netns: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

const CONF: &[u8] = br#"{"cniVersion":"1.1.0","name":"testnet","type":"recorder"}"#;

#[test]
fn each_verb_reaches_its_function() {
    for (command, call) in [
        ("ADD", "add c1 eth0 /no/such/netns"),
        ("CHECK", "check testnet"),
        ("DEL", "del c1 Some(\"/no/such/netns\")"),
        ("GC", "gc testnet"),
        ("STATUS", "status testnet"),
    ] {
        let outcome = Outcome::of(Recorder::default(), &env(command, "/no/such/netns"), CONF);
        assert_eq!((outcome.status, outcome.calls), (0, vec![call.to_owned()]));
        assert_eq!(outcome.stdout.is_empty(), command != "ADD", "{command}: {}", outcome.stdout);
    }
}

#[test]
fn add_answers_in_the_version_of_the_configuration() {
    let conf: &[u8] = br#"{"name":"testnet"}"#;
    let outcome = Outcome::of(Recorder::default(), &env("ADD", "/no/such/netns"), conf);
    assert!(
        outcome.stdout.starts_with("{\n    \"cniVersion\": \"0.1.0\",\n    \"ip4\": {"),
        "{}",
        outcome.stdout
    );
    assert!(!outcome.stdout.ends_with('\n'));
}

#[test]
fn version_reads_nothing_else() {
    struct Unreadable;
    impl Read for Unreadable {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("stdin must not be read"))
        }
    }
    let outcome =
        Outcome::of(Recorder::default(), &[("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "/")], Unreadable);
    assert_eq!(
        outcome.stdout,
        "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
    );
    assert_eq!(outcome.status, 0);

    let outcome = Outcome::of(Recorder::default(), &env("DEL", ""), Unreadable);
    outcome.check_error(
        "{\n    \"code\": 5,\n    \"msg\": \"error reading from stdin: stdin must not be read\"\n}",
    );
}

#[test]
fn a_configuration_that_never_ends_is_refused() {
    let outcome = Outcome::of(Recorder::default(), &env("ADD", "/no/such/netns"), io::repeat(b' '));
    outcome.check_error(
        "{\n    \"code\": 6,\n    \"msg\": \"the network configuration is longer than 67108864 bytes\"\n}",
    );
}

#[test]
fn without_a_command_the_plugin_says_what_it_is() {
    for vars in [&[][..], &[("CNI_COMMAND", "")]] {
        let outcome = Outcome::of(Recorder::default(), vars, CONF);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (0, ""));
        let (about, versions) = outcome.stderr.split_once('\n').unwrap();
        assert!(about.starts_with("CNI recorder plugin v"), "{about}");
        assert_eq!(
            versions,
            "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
        );
    }
}

#[test]
fn the_environment_is_looked_at_before_the_configuration() {
    let outcome = Outcome::of(Recorder::default(), &[("CNI_COMMAND", "ADD")], &b"not json"[..]);
    outcome.check_error(
        "{\n    \"code\": 4,\n    \"msg\": \"required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing\"\n}",
    );
}

#[test]
fn our_own_namespace_is_refused_and_del_removes_what_it_can_unless_overridden() {
    let own = "/proc/self/ns/net";
    let refusal = "{\n    \"code\": 8,\n    \"msg\": \"plugin's netns and netns from CNI_NETNS should not be the same\"\n}";
    Outcome::of(Recorder::default(), &env("ADD", own), CONF).check_error(refusal);
    let del = Outcome::of(Recorder::default(), &env("DEL", own), CONF);
    assert_eq!((del.status, &*del.stdout, del.calls), (1, refusal, vec!["del c1 None".to_owned()]));
    for command in ["ADD", "DEL"] {
        for value in ["1", "true", "TRUE"] {
            let mut vars = env(command, own);
            vars.push(("CNI_NETNS_OVERRIDE", value));
            assert_eq!(Outcome::of(Recorder::default(), &vars, CONF).status, 0, "{command} {value}");
        }
    }
}

#[test]
fn a_mistake_in_the_log_keys_keeps_nothing_from_being_removed() {
    let conf: &[u8] = br#"{"cniVersion":"1.1.0","name":"testnet","logLevel":"loud"}"#;
    for command in ["ADD", "CHECK", "STATUS"] {
        Outcome::of(Recorder::default(), &env(command, "/no/such/netns"), conf).check_error(
            "{\n    \"code\": 7,\n    \"msg\": \"logLevel: \\\"loud\\\" is none of off, error, warn, info, debug, trace\"\n}",
        );
    }
    for command in ["DEL", "GC"] {
        let outcome = Outcome::of(Recorder::default(), &env(command, "/no/such/netns"), conf);
        assert_eq!((outcome.status, outcome.calls.len()), (0, 1), "{command}");
    }
}

#[test]
fn an_error_keeps_its_code_and_is_escaped_as_go_does() {
    let failure =
        Error::new(ErrorCode::TRY_AGAIN_LATER, "no address <yet>").with_details("172.17.0.0/16 & more");
    let plugin = Recorder { failure: Some(failure), ..Recorder::default() };
    let outcome = Outcome::of(plugin, &env("ADD", "/no/such/netns"), CONF);
    assert_eq!(
        outcome.stdout,
        "{\n    \"code\": 11,\n    \"msg\": \"no address \\u003cyet\\u003e\",\n    \"details\": \"172.17.0.0/16 \\u0026 more\"\n}"
    );
    assert_eq!(outcome.status, 1);
}

#[test]
fn a_panic_becomes_an_error_document() {
    struct Broken;
    impl Plugin for Broken {
        const NAME: &'static str = "broken";
        fn add(&self, _: &AttachmentCall) -> Result<CniResult, Error> {
            panic!("index {} of nothing", 3)
        }
        fn check(&self, _: &AttachmentCall) -> Result<(), Error> {
            Ok(())
        }
        fn del(&self, _: &DelCall) -> Result<(), Error> {
            Ok(())
        }
        fn gc(&self, _: &NetworkCall) -> Result<(), Error> {
            Ok(())
        }
        fn status(&self, _: &NetworkCall) -> Result<(), Error> {
            Ok(())
        }
    }
    let mut stdout = Vec::new();
    let vars = env("ADD", "/no/such/netns").into_iter().collect();
    let status = run(&Broken, vars, &mut &*CONF, &mut stdout, &mut io::sink());
    assert_eq!(status, 1);
    assert_eq!(
        String::from_utf8(stdout).unwrap(),
        "{\n    \"code\": 999,\n    \"msg\": \"internal error, please report it: index 3 of nothing\"\n}"
    );
}

#[test]
fn what_was_attached_is_detached_when_the_answer_cannot_be_written() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let del = "del c1 Some(\"/no/such/netns\")";
    let failure = || Some(Error::internal("of the plugin"));
    for (command, failure, calls) in [
        ("ADD", None, vec!["add c1 eth0 /no/such/netns", del]),
        // What fails has left nothing.
        ("ADD", failure(), vec!["add c1 eth0 /no/such/netns"]),
        ("CHECK", failure(), vec!["check testnet"]),
        ("DEL", failure(), vec![del]),
        ("VERSION", None, vec![]),
    ] {
        let plugin = Recorder { failure, ..Recorder::default() };
        let vars = env(command, "/no/such/netns").into_iter().collect();
        assert_eq!(run(&plugin, vars, &mut &*CONF, &mut Closed, &mut io::sink()), 1, "{command}");
        assert_eq!(plugin.calls.into_inner(), calls, "{command}");
    }
}

#[test]
fn what_was_attached_is_detached_when_there_is_no_answer_in_the_version_asked_for() {
    let conf = br#"{"cniVersion":"0.2.0","name":"testnet","type":"recorder"}"#;
    let plugin = Recorder { without_addresses: true, ..Recorder::default() };
    let outcome = Outcome::of(plugin, &env("ADD", "/no/such/netns"), &conf[..]);
    assert!(outcome.stdout.contains("cannot convert: no valid IP addresses"), "{}", outcome.stdout);
    assert_eq!(outcome.status, 1);
    assert_eq!(outcome.calls, ["add c1 eth0 /no/such/netns", "del c1 Some(\"/no/such/netns\")"]);
}

proptest! {
    /// Whatever comes in, exactly one JSON document (or nothing) goes out, and the status agrees with it.
    #[test]
    fn no_input_makes_it_panic(
        command in "(ADD|DEL|CHECK|GC|STATUS|VERSION|[A-Z]{0,4})",
        id in "[a-z./]{0,4}", ifname in "[a-z:/ ]{0,17}", netns in "[a-z/]{0,9}", args in "[A-Z=;a-z]{0,9}",
        stdin in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            r#"\{"name":("n"|1|null),"cniVersion":("1\.1\.0"|"0\.4\.0"|""|[0-9\[]),"prevResult":(\{\}|null|3|\[\])\}"#.prop_map(String::into_bytes),
        ],
    ) {
        let vars = [
            ("CNI_COMMAND", command.as_str()), ("CNI_CONTAINERID", &id), ("CNI_IFNAME", &ifname),
            ("CNI_NETNS", &netns), ("CNI_ARGS", &args), ("CNI_PATH", "/x"),
        ];
        let outcome = Outcome::of(Recorder::default(), &vars, &stdin[..]);
        let document: Option<serde_json::Value> = match outcome.stdout.as_str() {
            "" => None,
            text => Some(serde_json::from_str(text).unwrap()),
        };
        let failed = document.is_some_and(|document| document.get("code").is_some());
        prop_assert_eq!(outcome.status, u8::from(failed));
        prop_assert!(!outcome.stdout.contains("internal error"), "{}", outcome.stdout);
    }
}
