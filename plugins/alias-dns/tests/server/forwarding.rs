//! What is asked elsewhere, of a real name server.

use std::time::{Duration, Instant};

use domain::base::iana::Rtype;

use crate::Test;
use crate::dns::{ask, connect, exchange, query, receive, send};
use crate::world::{GATEWAY, host, inside, put, put_record, record, run};

pub(crate) const TESTS: &[Test] = &[
    ("names_of_elsewhere_are_asked_once_kept_and_aged", cached),
    ("resolv_conf_is_followed_and_silent_servers_are_passed_over", followed),
    ("a_long_answer_is_fetched_over_tcp", long_answers),
    ("without_a_server_and_without_forwarding_the_answer_is_immediate", nobody_to_ask),
];

/// A name server at 10.9.0.2 and .3, outside.
fn outside() {
    host();
    run(
        "ip netns add up && ip link add u0 type veth peer name eth0 netns up && ip addr add 10.9.0.1/24 dev u0 && \
         ip link set u0 up && ip -n up link set lo up && ip -n up addr add 10.9.0.2/24 dev eth0 && \
         ip -n up addr add 10.9.0.3/24 dev eth0 && ip -n up link set eth0 up",
    );
    let text = (0..40).map(|n| format!("{n}{}", "x".repeat(50))).collect::<Vec<_>>().join(",");
    run(&format!(
        "ip netns exec up dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --local-ttl=60 \
         --address=/example.org/192.0.2.7 --txt-record=big.example.com,{text} --local=/example.net/ \
         --listen-address=10.9.0.2,10.9.0.3 --bind-interfaces --pid-file=/run/dnsmasq.pid --user=root \
         --log-queries --log-facility=/run/dnsmasq.log"
    ));
    run("mkdir /run/etc && touch /run/etc/resolv.conf && mount --bind /run/etc /etc && touch /etc/hosts");
    resolv_conf("nameserver 10.9.0.2");
    put("c1", "172.20.0.2", "centos-1");
}

fn resolv_conf(text: &str) {
    std::fs::write("/etc/resolv.conf", format!("{text}\n")).unwrap();
}

fn asked(line: &str) -> usize {
    std::fs::read_to_string("/run/dnsmasq.log").unwrap_or_default().matches(line).count()
}

fn cached() {
    outside();
    let first = inside("c1", || ask(GATEWAY, "www.Example.org", Rtype::A).unwrap());
    assert_eq!((first.answer.as_slice(), first.ttl), (&["A 192.0.2.7".to_owned()][..], Some(60)));
    assert!(first.octets.windows(7).any(|octets| octets == b"Example"), "case is not kept");
    std::thread::sleep(Duration::from_millis(1100));
    let again = inside("c1", || ask(GATEWAY, "WWW.example.org", Rtype::A).unwrap());
    assert_eq!((again.answer, again.ttl), (first.answer, Some(59)));
    assert_eq!(asked("query[A] www.example.org") + asked("query[A] www.Example.org"), 1);
    assert_eq!(inside("c1", || ask(GATEWAY, "no.example.net", Rtype::A).unwrap()).rcode, "NXDOMAIN");
    for name in ["single", "nobody.testnet", "9.0.20.172.in-addr.arpa"] {
        let response = inside("c1", move || ask(GATEWAY, name, Rtype::A).unwrap());
        assert_eq!((response.rcode.as_str(), asked(name)), ("NXDOMAIN", 0), "{name}");
    }
    let mut stream = connect(GATEWAY);
    send(&mut stream, &query(5, "tcp.example.org", Rtype::A, None));
    assert_eq!(receive(&mut stream).unwrap().answer, ["A 192.0.2.7"]);
}

fn followed() {
    outside();
    resolv_conf("nameserver 10.9.0.9\nnameserver 10.9.0.3");
    let began = Instant::now();
    assert_eq!(ask(GATEWAY, "a.example.org", Rtype::A).unwrap().answer, ["A 192.0.2.7"]);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(ask(GATEWAY, "b.example.org", Rtype::A).unwrap().answer, ["A 192.0.2.7"]);
    assert!(
        began.elapsed() < Duration::from_millis(900),
        "the silent server is asked first: {:?}",
        began.elapsed()
    );
    for turn in 0..3 {
        std::fs::write("/etc/aside", "nameserver 10.9.0.9\n").unwrap();
        std::fs::rename("/etc/aside", "/etc/resolv.conf").unwrap();
        let began = Instant::now();
        assert_eq!(ask(GATEWAY, &format!("c{turn}.example.org"), Rtype::A).unwrap().rcode, "SERVFAIL");
        assert!(began.elapsed() < Duration::from_millis(4900), "{:?}", began.elapsed());
        std::fs::write("/etc/aside", "nameserver 10.9.0.2\n").unwrap();
        std::fs::rename("/etc/aside", "/etc/resolv.conf").unwrap();
        assert_eq!(ask(GATEWAY, &format!("d{turn}.example.org"), Rtype::A).unwrap().rcode, "NOERROR");
    }
}

fn long_answers() {
    outside();
    let cut = exchange(GATEWAY, &query(1, "big.example.com", Rtype::TXT, Some(1232))).unwrap();
    assert!(cut.truncated && cut.answer.is_empty());
    let mut stream = connect(GATEWAY);
    send(&mut stream, &query(1, "big.example.com", Rtype::TXT, None));
    let whole = receive(&mut stream).unwrap();
    assert!(!whole.truncated && whole.octets.len() > 2000);
}

fn nobody_to_ask() {
    outside();
    let quickly = |name: &'static str, rcode: &str| {
        let began = Instant::now();
        assert_eq!(inside("c1", move || ask(GATEWAY, name, Rtype::A).unwrap()).rcode, rcode, "{name}");
        assert!(began.elapsed() < Duration::from_millis(900), "{name}: {:?}", began.elapsed());
    };
    resolv_conf("search example.org");
    quickly("a.example.org", "SERVFAIL");
    resolv_conf(&format!("nameserver {GATEWAY}"));
    quickly("b.example.org", "SERVFAIL");
    resolv_conf("nameserver 10.9.0.2");
    let mut internal = record("c1", "172.20.0.2", "centos-1");
    internal.forward = false;
    put_record(&internal);
    quickly("c.example.org", "NXDOMAIN");
    internal.forward = true;
    internal.upstreams = vec!["10.9.0.3:53".parse().unwrap()];
    put_record(&internal);
    resolv_conf("nameserver 10.9.0.9");
    quickly("d.example.org", "NOERROR");
}
