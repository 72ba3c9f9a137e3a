//! What is asked elsewhere, of a real name server.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alias_dns::daemon::{Client, UpstreamStatus};
use alias_dns::records::Record;
use alias_dns::serve::listen;
use alias_dns::zone::Listener;
use domain::base::iana::Rtype;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

use crate::Test;
use crate::dns::{Response, ask, connect, exchange, query, receive, send};
use crate::world::{
    BOUND, GATEWAY, STATE, eventually, host, in_time, inside, is_asleep, processes, put, put_record, record,
    remove, run, settled, state,
};

pub(crate) const TESTS: &[Test] = &[
    ("names_of_elsewhere_are_asked_once_kept_and_aged", cached),
    ("resolv_conf_is_followed_and_silent_servers_are_passed_over", followed),
    ("a_name_server_is_asked_by_the_device_that_has_its_name_now", by_device),
    ("a_long_answer_is_fetched_over_tcp", long_answers),
    ("a_server_that_breaks_off_or_cannot_be_read_is_asked_once_and_then_the_next_one", broken_off),
    ("of_a_long_answer_that_nobody_gives_whole_the_client_gets_what_came", never_whole),
    ("a_long_answer_may_take_its_time", slow_long_answers),
    ("a_server_that_takes_its_time_is_heard_all_the_same", late_answers),
    ("a_server_has_its_time_for_each_question_whatever_was_asked_before", whole_second),
    ("a_server_that_fails_at_one_name_is_asked_first_for_the_next", failures),
    ("a_server_that_says_formerr_and_no_more_is_asked_without_edns", bare_errors),
    ("a_server_that_is_silent_about_edns_is_asked_without_it", silent_about_edns),
    ("neither_silence_nor_an_error_takes_edns_from_a_server_that_speaks_it", slow_with_edns),
    ("an_answer_without_edns_is_not_kept_for_who_wants_signatures", without_signatures),
    ("a_datagram_longer_than_was_asked_for_is_taken_whole", long_datagrams),
    ("a_host_without_a_free_port_holds_it_against_no_server", no_port),
    ("a_stray_answer_is_passed_over_and_the_right_one_heard", strays),
    ("what_is_kept_is_for_those_who_ask_the_same_of_the_same_servers", kept_apart),
    ("an_alias_of_a_name_without_such_a_record_is_not_kept", alias_of_nothing),
    ("one_container_with_many_questions_leaves_others_room_to_wait", crowd),
    ("a_client_that_breaks_off_while_its_answer_is_awaited_keeps_nobody_awake", broken_off_client),
    ("what_an_older_build_asks_elsewhere_is_answered_though_a_newer_one_took_over", upgraded),
    ("what_an_older_build_has_taken_connections_for_it_answers_though_a_newer_one_took_over", half_asked),
    ("an_older_build_that_waits_for_an_answer_holds_nothing_that_others_need", upgraded_and_gone),
    ("without_a_server_and_without_forwarding_the_answer_is_immediate", nobody_to_ask),
];

/// Where a query has its number of additional records, of which OPT is the only one.
const ADDITIONAL: usize = 11;

/// Bits of a query: two in the last octet of its flags, one in the third octet of what OPT has for a TTL.
const AUTHENTIC_DATA: u8 = 0x20;
const CHECKING_DISABLED: u8 = 0x10;
const DNSSEC_OK: u8 = 0x80;

/// Where nobody is.
const SILENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 9));

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
    let began = Instant::now();
    let first = inside("c1", || ask(GATEWAY, "www.Example.org", Rtype::A).unwrap());
    assert_eq!((first.answer.as_slice(), first.ttl), (&["A 192.0.2.7".to_owned()][..], Some(60)));
    assert!(first.octets.windows(7).any(|octets| octets == b"Example"), "case is not kept");
    // A second and a little: only age changes what is answered.
    std::thread::sleep(Duration::from_millis(1100));
    let asked_elsewhere = || asked("query[A] www.example.org") + asked("query[A] www.Example.org");
    let asked_before = asked_elsewhere();
    let again = inside("c1", || ask(GATEWAY, "WWW.example.org", Rtype::A).unwrap());
    assert_eq!(again.answer, first.answer);
    let (ttl, age) = (u64::from(again.ttl.unwrap()), began.elapsed().as_secs());
    assert!((59 - age..=59).contains(&ttl), "{ttl} after {age} s");
    assert_eq!(asked_elsewhere(), asked_before);
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
    answered("a");
    // Which is remembered: the silent one is not asked first any more. The other may be slow, and then it is asked too.
    let silent_was_asked = || {
        let status = in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
        status
            .upstreams
            .iter()
            .find(|upstream| upstream.server.ip() == SILENT)
            .expect("it was asked")
            .health
            .asked
    };
    eventually("the silent server is passed over at once", || {
        let before = silent_was_asked();
        answered("b");
        silent_was_asked() == before
    });
    let mut taken = Vec::new();
    for turn in 0..3 {
        std::fs::write("/etc/aside", "nameserver 10.9.0.9\n").unwrap();
        std::fs::rename("/etc/aside", "/etc/resolv.conf").unwrap();
        let began = Instant::now();
        assert_eq!(ask(GATEWAY, &format!("c{turn}.example.org"), Rtype::A).unwrap().rcode, "SERVFAIL");
        taken.push(began.elapsed());
        std::fs::write("/etc/aside", "nameserver 10.9.0.2\n").unwrap();
        std::fs::rename("/etc/aside", "/etc/resolv.conf").unwrap();
        answered("d");
    }
    // Before a client gives up, which most do after five seconds. A busy machine may take longer, but hardly each time.
    assert!(taken.iter().min() < Some(&Duration::from_millis(4900)), "{taken:?}");
}

fn by_device() {
    outside();
    resolv_conf("nameserver fe80::2%late0");
    let host_servers = || {
        let status = in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
        status.host_servers
    };
    // The former one is kept for a moment.
    eventually("there is nobody to ask by a device that is not there", || host_servers().is_empty());
    // The file stays as it is.
    for index in [70, 71] {
        run(&format!("ip link add late0 index {index} type bridge"));
        assert_eq!(host_servers(), [format!("[fe80::2%{index}]:53").parse().unwrap()]);
        run("ip link del late0");
    }
    eventually("the device is gone", || host_servers().is_empty());
}

/// Asks for a new name each time, until it is answered: on a busy machine a name server may be too slow once.
fn answered(prefix: &str) {
    eventually(&format!("{prefix} is answered"), || {
        let response = ask(GATEWAY, &fresh(prefix), Rtype::A).unwrap();
        (response.rcode == "NOERROR").then(|| assert_eq!(response.answer, ["A 192.0.2.7"])).is_some()
    });
}

/// A name that nobody has asked for yet, so that no answer to it is kept.
fn fresh(prefix: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}.example.org", NUMBER.fetch_add(1, Ordering::Relaxed))
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

fn upgraded() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    // On a busy machine it may become too late.
    eventually("both are answered by the older build", || {
        let names = [fresh("datagram"), fresh("connection")];
        let by_datagram = names[0].clone();
        let by_datagram = std::thread::spawn(move || ask(GATEWAY, &by_datagram, Rtype::A));
        let mut by_connection = connect(GATEWAY);
        send(&mut by_connection, &query(5, &names[1], Rtype::A, None));
        // Nobody waits on this one, so that it is closed.
        let mut idle = connect(GATEWAY);
        send(&mut idle, &query(6, "centos-1", Rtype::A, None));
        assert_eq!(receive(&mut idle).unwrap().answer, ["A 172.20.0.2"]);
        let asked = names.each_ref().map(|name| query_at(&one, name));
        take_over();
        assert!(receive(&mut idle).is_none());
        assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
        for (query, client) in asked {
            one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        }
        let answers = [by_datagram.join().unwrap(), receive(&mut by_connection)];
        // Then there is nothing more to come on it.
        assert!(receive(&mut by_connection).is_none());
        answers.iter().all(|answer| answer.as_ref().is_some_and(|answer| answer.answer == ["A 192.0.2.4"]))
    });
    settled();
}

fn half_asked() {
    host();
    // On a busy machine the older build may have given up the connections.
    eventually("the older build answers what is asked on connections that it has taken", || {
        put("c1", "172.20.0.2", "centos-1");
        settled();
        let asked = |name| {
            let packet = query(5, name, Rtype::A, None);
            [&(packet.len() as u16).to_be_bytes(), &packet[..]].concat()
        };
        let (mut silent, mut amid) = (connect(GATEWAY), connect(GATEWAY));
        // So is the beginning of a second question, once the first is answered.
        let (first, second) = (asked("centos-1"), asked("centos-2"));
        amid.write_all(&[&first[..], &second[..7]].concat()).unwrap();
        assert_eq!(receive(&mut amid).unwrap().answer, ["A 172.20.0.2"]);
        take_over();
        // Nobody has told it of the ADD that the newer one came with.
        let answers = [(&mut silent, &second[..]), (&mut amid, &second[7..])].map(|(connection, rest)| {
            connection.write_all(rest).ok()?;
            receive(connection)
        });
        // That was all that there is to come.
        assert!(receive(&mut silent).is_none() && receive(&mut amid).is_none());
        ["c1", "c2"].into_iter().for_each(remove);
        let is_it = |answer: &Response| answer.answer == ["A 172.20.0.3"];
        answers.iter().all(|answer| answer.as_ref().is_some_and(is_it))
    });
}

fn upgraded_and_gone() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    let listener = Listener { bridge: "br0".to_owned(), gateway: GATEWAY.parse().unwrap() };
    // On a busy machine it may have ended before it is looked at.
    eventually("the older build waits and holds neither port, lock nor control socket", || {
        put("c1", "172.20.0.2", "centos-1");
        settled();
        let older = processes("serve")[0];
        let name = fresh("silent");
        let packet = query(5, &name, Rtype::A, None);
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(&packet, (GATEWAY, 53)).unwrap();
        client.set_nonblocking(true).unwrap();
        query_at(&one, &name);
        let control = control_socket();
        let holds = || {
            let held = std::fs::read_dir(format!("/proc/{older}/fd")).into_iter().flatten().flatten();
            let held = held.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            let held: Vec<_> = held.map(|target| target.to_string_lossy().into_owned()).collect();
            [held.iter().any(|target| target.ends_with("/lock")), held.contains(&control)]
        };
        assert_eq!(holds(), [true, true]);
        take_over();
        ["c1", "c2"].into_iter().for_each(remove);
        // What it waits for ends with an answer, and then it lets go of everything.
        let waits = || client.recv(&mut [0; 512]).is_err();
        while waits() {
            if holds() == [false, false] && listen::open(&listener, 53).is_ok() {
                return waits() && processes("serve").contains(&older);
            }
        }
        false
    });
}

/// Has a newer build of the server take over, by an ADD of `c2`.
fn take_over() {
    let newer = fresh("/run/newer-");
    run(&format!("cp /proc/{}/exe {newer} && {newer} --put c2 172.20.0.3 centos-2", std::process::id()));
}

/// The control socket, as descriptors are listed.
fn control_socket() -> String {
    const LISTENS: &str = " 00010000 ";
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let mut lines = sockets.lines().filter(|line| line.contains(LISTENS) && line.contains(STATE));
    let line = lines.next().expect("a socket");
    format!("socket:[{}]", line.split_whitespace().nth(6).unwrap())
}

/// A name server at 10.9.0.`number`, outside, that has everybody ask over TCP again.
fn server_for_long_answers(number: u8) -> (UdpSocket, TcpListener) {
    let datagrams = server(number);
    let address = SocketAddr::from(([10, 9, 0, number], 53));
    (datagrams, inside("up", move || TcpListener::bind(address).unwrap()))
}

/// Has whoever asks `server` for `name` ask over TCP; the connection, and the query that came in by it.
fn query_over_tcp((datagrams, listener): &(UdpSocket, TcpListener), name: &str) -> (TcpStream, Vec<u8>) {
    let (query, client) = query_at(datagrams, name);
    let mut cut = reply_to(&query, 0, None);
    cut[2] |= 0x02;
    datagrams.send_to(&cut, client).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut query).unwrap();
    (stream, query)
}

fn broken_off() {
    outside();
    // On a busy machine it may take longer than a server is waited for: then it is asked again, and passed over later.
    let number = AtomicU8::new(10);
    let servers = || {
        let number = number.fetch_add(2, Ordering::Relaxed);
        (server_for_long_answers(number), server(number + 1), format!("nameserver 10.9.0.{number}"))
    };
    eventually("it is asked once", || {
        let (one, _, line) = servers();
        resolv_conf(&line);
        let name = fresh("once");
        let asking = asking(&name);
        drop(query_over_tcp(&one, &name));
        let broken_off = Instant::now();
        assert_eq!(asking.join().unwrap().rcode, "SERVFAIL");
        one.0.set_nonblocking(true).unwrap();
        // Nor is it waited for.
        one.0.recv_from(&mut [0; 512]).is_err() && broken_off.elapsed() < Duration::from_millis(900)
    });
    eventually("one whose message cannot be read is asked once", || {
        let ((one, _), _, line) = servers();
        resolv_conf(&line);
        let name = fresh("broken");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        let reply = reply_to(&query, 0, Some([192, 0, 2, 4]));
        one.send_to(&reply[..reply.len() - 1], client).unwrap();
        assert_eq!(asking.join().unwrap().rcode, "SERVFAIL");
        one.set_nonblocking(true).unwrap();
        one.recv_from(&mut [0; 512]).is_err()
    });
    eventually("the next one is asked", || {
        let (one, two, line) = servers();
        let next = two.local_addr().unwrap().ip();
        resolv_conf(&format!("{line}\nnameserver {next}"));
        let name = fresh("next");
        let asking = asking(&name);
        drop(query_over_tcp(&one, &name));
        let (query, client) = query_at(&two, &name);
        two.send_to(&reply_to(&query, 0, Some([192, 0, 2, 5])), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.5"]
    });
}

fn never_whole() {
    outside();
    // The one cannot be reached over TCP, the other cuts its answer off there, too; a third one only fails.
    let (one, two, three) = (server(4), server_for_long_answers(6), server(8));
    let cut_off = |query: &[u8], last: u8| {
        let mut reply = reply_to(query, 0, Some([192, 0, 2, last]));
        reply[2] |= 0x02;
        reply
    };
    let told = |answer: Response| (answer.rcode, answer.truncated, answer.answer);
    let expected = |last: u8| ("NOERROR".to_owned(), true, vec![format!("A 192.0.2.{last}")]);
    // On a busy machine an answer may come too late.
    eventually("as much as was told is passed on", || {
        let name = fresh("part");
        resolv_conf("nameserver 10.9.0.4\nnameserver 10.9.0.8");
        let asked = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&cut_off(&query, 4), client).unwrap();
        let (query, client) = query_at(&three, &name);
        three.send_to(&reply_to(&query, 2, None), client).unwrap();
        let by_datagram = told(asked.join().unwrap());
        let name = fresh("part");
        resolv_conf("nameserver 10.9.0.6");
        let asked = asking(&name);
        let (mut stream, query) = query_over_tcp(&two, &name);
        let reply = cut_off(&query, 6);
        stream.write_all(&[&(reply.len() as u16).to_be_bytes(), &reply[..]].concat()).unwrap();
        by_datagram == expected(4) && told(asked.join().unwrap()) == expected(6)
    });
}

fn slow_long_answers() {
    outside();
    let one = server_for_long_answers(4);
    resolv_conf("nameserver 10.9.0.4");
    // On a busy machine it may take too long.
    eventually("the whole answer is heard", || {
        let name = fresh("slow");
        let asking = asking(&name);
        let (mut stream, query) = query_over_tcp(&one, &name);
        let reply = reply_to(&query, 0, Some([192, 0, 2, 4]));
        let len = u16::try_from(reply.len()).unwrap().to_be_bytes();
        stream.write_all(&[&len[..], &reply[..20]].concat()).unwrap();
        // Longer than a server is waited for before another one is asked.
        std::thread::sleep(Duration::from_millis(1500));
        // Whoever was given up hears no more.
        let _ = stream.write_all(&reply[20..]);
        asking.join().unwrap().answer == ["A 192.0.2.4"]
    });
}

fn nobody_to_ask() {
    outside();
    // Sooner than any server would be given up. A busy machine may take longer, but not each time.
    let quickly = |prefix: &'static str, rcode: &str| {
        eventually(&format!("{prefix} is {rcode} at once"), || {
            let name = fresh(prefix);
            let began = Instant::now();
            let response = inside("c1", move || ask(GATEWAY, &name, Rtype::A).unwrap());
            response.rcode == rcode && began.elapsed() < Duration::from_millis(900)
        });
    };
    resolv_conf("search example.org");
    quickly("a", "SERVFAIL");
    resolv_conf(&format!("nameserver {GATEWAY}"));
    quickly("b", "SERVFAIL");
    resolv_conf(&format!("nameserver ::ffff:{GATEWAY}"));
    quickly("b", "SERVFAIL");
    resolv_conf("nameserver 10.9.0.2");
    let mut internal = record("c1", "172.20.0.2", "centos-1");
    internal.forward = false;
    put_record(&internal);
    quickly("c", "NXDOMAIN");
    internal.forward = true;
    internal.upstreams = vec!["10.9.0.3:53".parse().unwrap()];
    put_record(&internal);
    resolv_conf("nameserver 10.9.0.9");
    quickly("d", "NOERROR");
}

/// A name server at 10.9.0.`number`, outside, that says what the test wants.
fn server(number: u8) -> UdpSocket {
    run(&format!("ip -n up addr add 10.9.0.{number}/24 dev eth0"));
    let server = inside("up", move || UdpSocket::bind(SocketAddr::from(([10, 9, 0, number], 53))).unwrap());
    server.set_read_timeout(Some(BOUND)).unwrap();
    server
}

/// The next query for `name` that comes to `server`, and whom it is from.
fn query_at(server: &UdpSocket, name: &str) -> (Vec<u8>, SocketAddr) {
    let label = name.split('.').next().unwrap();
    let mut buffer = [0; 512];
    loop {
        let (len, from) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{name}: {error}"));
        if buffer[..len].windows(label.len()).any(|octets| octets == label.as_bytes()) {
            return (buffer[..len].to_vec(), from);
        }
    }
}

/// What a name server says to `query`: its header, question, and `address` if the name has one.
fn reply_to(query: &[u8], rcode: u8, address: Option<[u8; 4]>) -> Vec<u8> {
    let question = query[12..].iter().position(|octet| *octet == 0).unwrap() + 12 + 5;
    let mut reply = query[..question].to_vec();
    (reply[2], reply[3]) = (0x81, 0x80 | rcode);
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    if let Some(address) = address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address);
    }
    reply
}

/// Asks for `name` in the background.
fn asking(name: &str) -> JoinHandle<Response> {
    let name = name.to_owned();
    std::thread::spawn(move || ask(GATEWAY, &name, Rtype::A).unwrap())
}

fn late_answers() {
    outside();
    let (one, two) = (server(4), server(5));
    // On a busy machine it may become too late.
    resolv_conf("nameserver 10.9.0.4");
    eventually("the only server's answer counts after it was asked again", || {
        let name = fresh("only");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        query_at(&one, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.4"]
    });
    let status = in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
    let health = |number| {
        let is_it =
            |upstream: &&UpstreamStatus| upstream.server == SocketAddr::from(([10, 9, 0, number], 53));
        &status.upstreams.iter().find(is_it).expect("it was asked").health
    };
    assert!(health(4).failed > 0 && !health(4).avoided, "{status:?}");
    resolv_conf("nameserver 10.9.0.4\nnameserver 10.9.0.5");
    eventually("the first server's answer counts after the second was asked", || {
        let name = fresh("both");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        query_at(&two, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        if asking.join().unwrap().answer != ["A 192.0.2.4"] {
            return false;
        }
        // Nor is anything held against it.
        let name = fresh("next");
        let asking_next = self::asking(&name);
        let (query, client) = query_at(&one, &name);
        let is_second_left_alone = !was_asked(&two, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        drop(asking_next.join());
        is_second_left_alone
    });
}

fn whole_second() {
    outside();
    let (one, two) = (server(4), server(5));
    resolv_conf("nameserver 10.9.0.4\nnameserver 10.9.0.5");
    // On a busy machine it may become too late.
    eventually("the second server is left alone when the time of the question before is over", || {
        let name = fresh("before");
        let asking_before = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        drop(asking_before.join());
        std::thread::sleep(Duration::from_millis(700));
        let name = fresh("after");
        let asking_after = asking(&name);
        let (query, client) = query_at(&one, &name);
        std::thread::sleep(Duration::from_millis(600));
        let is_second_left_alone = !was_asked(&two, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        drop(asking_after.join());
        is_second_left_alone
    });
}

/// Whether a query for `name` waits at `server`, among others.
fn was_asked(server: &UdpSocket, name: &str) -> bool {
    let label = name.split('.').next().unwrap();
    let mut buffer = [0; 512];
    server.set_nonblocking(true).unwrap();
    let mut next = || server.recv_from(&mut buffer).ok().map(|(len, _)| buffer[..len].to_vec());
    let mut queries = std::iter::from_fn(&mut next);
    let was_asked = queries.any(|query| query.windows(label.len()).any(|octets| octets == label.as_bytes()));
    server.set_nonblocking(false).unwrap();
    was_asked
}

fn failures() {
    outside();
    let (one, two) = (server(4), server(5));
    resolv_conf("nameserver 10.9.0.4\nnameserver 10.9.0.5");
    // On a busy machine a server may be too slow, and then it is passed over for half a minute.
    eventually("the first server is asked first after it has failed", || {
        let name = fresh("broken");
        let asking_broken = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 2, None), client).unwrap();
        let (query, client) = query_at(&two, &name);
        two.send_to(&reply_to(&query, 0, Some([192, 0, 2, 5])), client).unwrap();
        let name = fresh("next");
        let is_second_heard = asking_broken.join().unwrap().answer == ["A 192.0.2.5"];
        let asking_next = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        let is_first_heard = asking_next.join().unwrap().answer == ["A 192.0.2.4"];
        two.set_nonblocking(true).unwrap();
        let is_second_left_alone = two.recv_from(&mut [0; 512]).is_err();
        two.set_nonblocking(false).unwrap();
        is_second_heard && is_first_heard && is_second_left_alone
    });
    eventually("a failure does not end the wait for the other server", || {
        let name = fresh("slow");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 2, None), client).unwrap();
        let (query, client) = query_at(&two, &name);
        query_at(&two, &name);
        two.send_to(&reply_to(&query, 0, Some([192, 0, 2, 5])), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.5"]
    });
}

fn bare_errors() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    eventually("the name is found without EDNS", || {
        let name = fresh("old");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        assert_eq!(query[ADDITIONAL], 1, "with EDNS at first");
        one.send_to(&bare_error(&query), client).unwrap();
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.4"] && query[ADDITIONAL] == 0
    });
    eventually("what it says to a question without EDNS is believed", || {
        let name = fresh("never");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        assert_eq!(query[ADDITIONAL], 0, "not remembered");
        one.send_to(&bare_error(&query), client).unwrap();
        asking.join().unwrap().rcode == "FORMERR"
    });
}

/// FORMERR without the question, as servers say it that know no EDNS.
fn bare_error(query: &[u8]) -> Vec<u8> {
    let mut header = query[..12].to_vec();
    (header[2], header[3]) = (0x81, 0x81);
    header[4..].fill(0);
    header
}

fn silent_about_edns() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    // On a busy machine it may be given up before it has answered.
    eventually("the name is found without EDNS", || {
        let name = fresh("quiet");
        let asking = asking(&name);
        let (mut query, mut client) = query_at(&one, &name);
        assert_eq!(query[ADDITIONAL], 1, "with EDNS at first");
        while query[ADDITIONAL] > 0 {
            (query, client) = query_at(&one, &name);
        }
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.4"]
    });
    // Which is remembered, so that the next question loses no time.
    let name = fresh("next");
    let asking = asking(&name);
    assert_eq!(query_at(&one, &name).0[ADDITIONAL], 0);
    drop(asking.join());
    let status = in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
    let upstream = status.upstreams.iter().find(|upstream| upstream.server == one.local_addr().unwrap());
    assert!(upstream.expect("it was asked").health.without_edns);
}

fn slow_with_edns() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    let with_edns = |query: &[u8]| {
        let mut reply = reply_to(query, 0, Some([192, 0, 2, 4]));
        reply[ADDITIONAL] = 1;
        reply.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        reply
    };
    eventually("it answers with EDNS", || {
        let name = fresh("fast");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&with_edns(&query), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.4"]
    });
    let name = fresh("slow");
    let asking_slow = asking(&name);
    for time in 0..2 {
        assert_eq!(query_at(&one, &name).0[ADDITIONAL], 1, "{time}");
    }
    drop(asking_slow.join());
    eventually("what it answers without EDNS after an error counts for this question", || {
        let name = fresh("odd");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        assert_eq!(query[ADDITIONAL], 1);
        one.send_to(&bare_error(&query), client).unwrap();
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 5])), client).unwrap();
        asking.join().unwrap().answer == ["A 192.0.2.5"] && query[ADDITIONAL] == 0
    });
    let name = fresh("next");
    let asking = asking(&name);
    assert_eq!(query_at(&one, &name).0[ADDITIONAL], 1);
    drop(asking.join());
}

fn without_signatures() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    let ask_with_do = |name: &str| {
        let mut query = query(7, name, Rtype::A, Some(1232));
        let flags = query.len() - 4;
        query[flags] = 0x80;
        std::thread::spawn(move || exchange(GATEWAY, &query).unwrap())
    };
    // On a busy machine the answer may come too late.
    eventually("it is asked again", || {
        let name = fresh("unsigned");
        let mut is_answered = true;
        for _ in 0..2 {
            let asking = ask_with_do(&name);
            let (query, client) = query_at(&one, &name);
            one.send_to(&kept(reply_to(&query, 0, Some([192, 0, 2, 4]))), client).unwrap();
            is_answered &= asking.join().unwrap().answer == ["A 192.0.2.4"];
        }
        is_answered
    });
    eventually("it is kept for the others", || {
        let name = fresh("plain");
        let asking_first = asking(&name);
        let (query, client) = query_at(&one, &name);
        one.send_to(&kept(reply_to(&query, 0, Some([192, 0, 2, 4]))), client).unwrap();
        asking_first.join().unwrap().answer == ["A 192.0.2.4"]
            && asking(&name).join().unwrap().answer == ["A 192.0.2.4"]
    });
}

/// `reply` with an hour for its only record, which has four octets of data.
fn kept(mut reply: Vec<u8>) -> Vec<u8> {
    let ttl = reply.len() - 10;
    reply[ttl..ttl + 4].copy_from_slice(&3600_u32.to_be_bytes());
    reply
}

fn no_port() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    run("echo 50000 50000 > /proc/sys/net/ipv4/ip_local_port_range");
    // On a busy machine the server may have been silent for too long, which is held against it.
    eventually("a question fails, and the server is not blamed", || {
        let name = fresh("first");
        let asked = inside("c1", || UdpSocket::bind("0.0.0.0:0").unwrap());
        asked.connect((GATEWAY, 53)).unwrap();
        let failed = || {
            let status = in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
            status.upstreams.iter().map(|upstream| upstream.health.failed).sum::<u64>()
        };
        let before = failed();
        asked.send(&query(7, &name, Rtype::A, None)).unwrap();
        // While it waits for its answer it has the only port.
        let (query, client) = query_at(&one, &name);
        let other = fresh("second");
        let second = inside("c1", move || ask(GATEWAY, &other, Rtype::A).unwrap());
        let is_blamed = failed() > before;
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        asked.recv(&mut [0; 512]).unwrap();
        second.rcode == "SERVFAIL" && !is_blamed
    });
}

fn strays() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    let ids = RefCell::new(Vec::new());
    // On a busy machine the right answer may come too late.
    eventually("the right answer is heard, and several questions were asked", || {
        let name = fresh("stray");
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        ids.borrow_mut().push([query[0], query[1]]);
        let [mut of_another_id, mut of_another_name] =
            [(); 2].map(|()| reply_to(&query, 0, Some([192, 0, 2, 66])));
        of_another_id[1] ^= 1;
        of_another_name[13] ^= 1;
        for reply in [of_another_id, of_another_name, reply_to(&query, 0, Some([192, 0, 2, 4]))] {
            one.send_to(&reply, client).unwrap();
        }
        let answer = asking.join().unwrap().answer;
        assert!(!answer.contains(&"A 192.0.2.66".to_owned()), "{answer:?}");
        answer == ["A 192.0.2.4"] && ids.borrow().len() >= 4
    });
    let ids = ids.into_inner();
    assert!(ids.iter().any(|id| *id != ids[0]), "{ids:?}");
}

fn kept_apart() {
    outside();
    let (one, two) = (server(4), server(5));
    resolv_conf("nameserver 10.9.0.4");
    let with_own_server = record("c2", "172.20.0.3", "centos-2");
    put_record(&Record { upstreams: vec!["10.9.0.5:53".parse().unwrap()], ..with_own_server });
    let with_flags = |name: &str, wishes: u8, dnssec_ok: u8| {
        let mut query = query(7, name, Rtype::A, Some(1232));
        let flags = query.len() - 4;
        (query[3], query[flags]) = (wishes, dnssec_ok);
        query
    };
    let asking_in = |container, asked: Vec<u8>| {
        std::thread::spawn(move || inside(container, move || exchange(GATEWAY, &asked).unwrap()))
    };
    // On a busy machine an answer may come too late.
    eventually("each gets the answer to what it has asked", || {
        let name = fresh("apart");
        let questions = [(0, 0), (CHECKING_DISABLED, 0), (AUTHENTIC_DATA, 0), (0, DNSSEC_OK)];
        let of_one = questions.iter().all(|(wishes, dnssec_ok)| {
            let asking = asking_in("c1", with_flags(&name, *wishes, *dnssec_ok));
            let is_it =
                |(query, _): &(Vec<u8>, _)| query[3] & (CHECKING_DISABLED | AUTHENTIC_DATA) == *wishes;
            let (query, client) = std::iter::repeat_with(|| query_at(&one, &name)).find(is_it).unwrap();
            one.send_to(&kept(reply_to(&query, 0, Some([192, 0, 2, 4]))), client).unwrap();
            asking.join().unwrap().answer == ["A 192.0.2.4"]
        });
        let asking = asking_in("c2", with_flags(&name, 0, 0));
        let (query, client) = query_at(&two, &name);
        two.send_to(&kept(reply_to(&query, 0, Some([192, 0, 2, 5]))), client).unwrap();
        of_one && asking.join().unwrap().answer == ["A 192.0.2.5"]
    });
}

fn long_datagrams() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    // On a busy machine the answer may come too late.
    eventually("all addresses are told", || {
        let name = fresh("long");
        let asking = std::thread::spawn({
            let name = name.clone();
            move || {
                let mut stream = connect(GATEWAY);
                send(&mut stream, &query(7, &name, Rtype::A, None));
                receive(&mut stream).unwrap()
            }
        });
        let (query, client) = query_at(&one, &name);
        let mut reply = reply_to(&query, 0, None);
        reply[6..8].copy_from_slice(&1000_u16.to_be_bytes());
        for number in 0..1000_u16 {
            let [high, low] = number.to_be_bytes();
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 1, high, low]);
        }
        one.send_to(&reply, client).unwrap();
        let answer = asking.join().unwrap().answer;
        answer.len() == 1000 && answer[999] == "A 10.1.3.231"
    });
}

fn alias_of_nothing() {
    outside();
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    let name = fresh("alias");
    // Nobody says how long the name behind the alias has no address (RFC 2308, section 5).
    for _ in 0..2 {
        let asking = asking(&name);
        let (query, client) = query_at(&one, &name);
        let mut reply = reply_to(&query, 0, None);
        reply[7] = 1;
        reply.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 14, 16, 0, 4, 1, b'x', 0xc0, 12]);
        one.send_to(&reply, client).unwrap();
        // Too late on a busy machine, which then asks anew for that reason.
        let _ = asking.join();
    }
}

fn crowd() {
    outside();
    put("c2", "172.20.0.3", "centos-2");
    let one = server(4);
    resolv_conf("nameserver 10.9.0.4");
    let received = || {
        in_time("ask", || Client::connect_existing(&state())?.expect("a server").status()).queries.received
    };
    let client = |name| inside(name, || UdpSocket::bind("0.0.0.0:0").unwrap());
    let (many, single) = (client("c1"), client("c2"));
    single.set_read_timeout(Some(BOUND)).unwrap();
    // On a busy machine the server may be given up before all have asked.
    eventually("the other one is answered", || {
        let (name, before) = (fresh("crowd"), received());
        for id in 0..300 {
            many.send_to(&query(id, &name, Rtype::A, None), (GATEWAY, 53)).unwrap();
            if id % 50 == 49 {
                eventually("they are read", || received() > before + u64::from(id));
            }
        }
        single.send_to(&query(7, &name, Rtype::A, None), (GATEWAY, 53)).unwrap();
        eventually("the last one is read", || received() > before + 300);
        let (query, client) = query_at(&one, &name);
        one.send_to(&reply_to(&query, 0, Some([192, 0, 2, 4])), client).unwrap();
        let mut response = [0; 512];
        single.recv(&mut response).unwrap();
        response[3] & 0x0f == 0
    });
}

fn broken_off_client() {
    outside();
    resolv_conf(&format!("nameserver {SILENT}"));
    let status = || in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
    let mut stream = inside("c1", || connect(GATEWAY));
    send(&mut stream, &query(7, &fresh("silent"), Rtype::A, None));
    eventually("it is asked for elsewhere", || status().in_flight == 1);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // Once the second is told, the end of the questions has been seen.
    (0..2).for_each(|_| drop(status()));
    // With it, the end of the connection is a reset.
    setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(stream);
    let [server] = processes("serve")[..] else { panic!("more than one server") };
    let looks = (0..200).map(|_| {
        std::thread::sleep(Duration::from_millis(2));
        is_asleep(server)
    });
    let asleep = looks.filter(|is_asleep| *is_asleep).count();
    assert!(asleep > 100, "asleep in {asleep} of 200 looks");
}
