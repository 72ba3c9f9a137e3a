//! From the octets of a query to the octets of its response, without sockets.

use cni_types::Attachment;
use domain::base::iana::{Class, Rtype};
use domain::base::{Message, MessageBuilder, Name, ParsedName};
use domain::rdata::AllRecordData;
use proptest::prelude::*;

use super::*;
use crate::domain_name::DomainName;
use crate::records::{Link, Record, RecordKey};

const BRIDGE: &str = "br0";

fn record(number: u8, names: &[&str]) -> Record {
    let name = |text: &str| DomainName::new(text).unwrap();
    Record {
        key: RecordKey::new("testnet", Attachment::new(&format!("c{number}"), "eth0").unwrap()).unwrap(),
        boot: None,
        joined: number.into(),
        bridge: BRIDGE.to_owned(),
        gateways: vec!["172.20.0.1/16".parse().unwrap()],
        addresses: vec![[172, 20, 0, number].into()],
        names: names.iter().copied().map(name).collect(),
        links: vec![Link { target: name("centos-1"), alias: name("db") }],
        domain: name("testnet"),
        other_domains: Vec::new(),
        ttl: 5,
        forward: false,
        upstreams: Vec::new(),
        netns: None,
    }
}

fn server() -> Server {
    let many = (10..240).map(|number| record(number, &["many"]));
    let zones = Zones::load(many.chain([record(2, &["centos-1"]), record(3, &["centos-2"])]));
    Server::new(zones, ResolvConf::at("/nonexistent"), Descriptors::of_process())
}

fn query(name: &str, rtype: Rtype, payload: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((Name::<Vec<u8>>::from_chars(name.chars()).unwrap(), rtype, Class::IN)).unwrap();
    let mut builder = builder.additional();
    if let Some(payload) = payload {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(payload);
                Ok(())
            })
            .unwrap();
    }
    builder.finish()
}

fn respond(server: &mut Server, recipient: Recipient, packet: &[u8]) -> Vec<u8> {
    let poller = Poller::new().unwrap();
    let listener = Listener { bridge: BRIDGE.to_owned(), gateway: "172.20.0.1".parse().unwrap() };
    let mut out = Vec::new();
    assert_eq!(
        server.desk.serve(&poller, Instant::now(), &listener, recipient, packet, &mut out),
        Made::Done
    );
    out
}

fn datagram() -> Recipient {
    Recipient::Datagram { socket: token(Kind::Datagrams, 0, 0), peer: "172.20.0.2:4000".parse().unwrap() }
}

/// Every section of `octets` in words, after all of it has been read.
fn in_words(octets: &[u8]) -> Vec<String> {
    let message = Message::from_octets(octets).unwrap();
    let mut words =
        vec![format!("{}{}", message.header().rcode(), if message.header().aa() { " aa" } else { "" })];
    for record in message.iter() {
        let (record, section) = record.unwrap();
        let record = record.into_record::<AllRecordData<_, ParsedName<_>>>().unwrap().unwrap();
        if record.rtype() != Rtype::OPT {
            words.push(format!("{section:?} {} {} {}", record.owner(), record.rtype(), record.data()));
        }
    }
    words
}

#[test]
fn a_container_has_its_share_of_the_questions_under_way_whichever_address_it_asks_from() {
    let upstream = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addresses = [[172, 20, 0, 2], [172, 20, 0, 5]];
    let asker = Record {
        addresses: addresses.map(IpAddr::from).to_vec(),
        forward: true,
        upstreams: vec![upstream.local_addr().unwrap()],
        ..record(2, &["centos-1"])
    };
    let mut server =
        Server::new(Zones::load([asker]), ResolvConf::at("/nonexistent"), Descriptors::of_process());
    let poller = Poller::new().unwrap();
    let listener = Listener { bridge: BRIDGE.to_owned(), gateway: "172.20.0.1".parse().unwrap() };
    let under_way = (0..600).filter(|number| {
        let peer = (addresses[number % 2], 4000).into();
        let recipient = Recipient::Datagram { socket: token(Kind::Datagrams, 0, 0), peer };
        let packet = query(&format!("n{number}.example.org"), Rtype::A, None);
        let made = server.desk.serve(&poller, Instant::now(), &listener, recipient, &packet, &mut Vec::new());
        made == Made::Awaited
    });
    assert_eq!(under_way.count(), 256);
}

#[test]
fn the_connections_of_a_container_are_counted_together_whichever_address_they_come_from() {
    let addresses = ["172.20.0.2", "172.20.0.5"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let both = Record { addresses: addresses.to_vec(), ..record(2, &["centos-1"]) };
    let zones = Zones::load([both, record(3, &["centos-2"])]);
    let listener = Listener { bridge: BRIDGE.to_owned(), gateway: "172.20.0.1".parse().unwrap() };
    let bridge = OnBridge { zones: &zones, listener: &listener };
    let whose = |ip: &str| bridge.whose(ip.parse().unwrap());
    assert_eq!(whose("172.20.0.2"), whose("172.20.0.5"));
    assert!(
        matches!([whose("172.20.0.2"), whose("172.20.0.3")], [Source::Container(one), Source::Container(other)] if one != other)
    );
    assert_eq!(whose("172.20.0.1"), Source::Host(listener.gateway));
    assert_eq!([whose("172.20.0.7"), whose("10.0.0.7")], [Source::Strangers; 2]);
}

#[test]
fn every_kind_of_answer_is_written_as_the_rfcs_say() {
    let mut server = server();
    for (name, rtype, expected) in [
        ("CentOS-1", Rtype::A, &["NOERROR aa", "Answer CentOS-1 A 172.20.0.2"][..]),
        ("db", Rtype::A, &["NOERROR aa", "Answer db A 172.20.0.2"]),
        ("centos-2.testnet", Rtype::ANY, &["NOERROR aa", "Answer centos-2.testnet A 172.20.0.3"]),
        (
            "3.0.20.172.in-addr.arpa",
            Rtype::PTR,
            &["NOERROR aa", "Answer 3.0.20.172.in-addr.arpa PTR centos-2.testnet."],
        ),
        (
            "centos-1.testnet",
            Rtype::AAAA,
            &["NOERROR aa", "Authority testnet SOA testnet. nobody.invalid. 1 3600 1200 604800 0"],
        ),
        (
            "x.TestNet",
            Rtype::A,
            &["NXDOMAIN aa", "Authority TestNet SOA TestNet. nobody.invalid. 1 3600 1200 604800 0"],
        ),
        (
            "testnet",
            Rtype::SOA,
            &["NOERROR aa", "Answer testnet SOA testnet. nobody.invalid. 1 3600 1200 604800 0"],
        ),
        ("testnet", Rtype::NS, &["NOERROR aa", "Answer testnet NS testnet."]),
    ] {
        for payload in [None, Some(1232)] {
            let response = respond(&mut server, datagram(), &query(name, rtype, payload));
            assert_eq!(in_words(&response), expected, "{name} {rtype}");
            let header = Message::from_octets(&response).unwrap().header();
            assert!(header.id() == 0x1234 && header.qr() && header.rd() && header.ra() && !header.tc());
            assert_eq!(Message::from_octets(&response).unwrap().opt().is_some(), payload.is_some());
        }
    }
}

#[test]
fn what_stands_in_the_question_is_not_written_again() {
    const RECORD: usize = 2 + 10;
    const SOA: usize = RECORD + "\x06nobody\x07invalid\0".len() + 20;
    let mut server = server();
    for (name, rtype, longer) in [
        ("centos-1", Rtype::A, RECORD + 4),
        ("centos-1.testnet", Rtype::AAAA, SOA + 2),
        ("x.TestNet", Rtype::A, SOA + 2),
        // The root, in one octet each time.
        ("nosuch", Rtype::A, SOA - 1 + 1),
        ("testnet", Rtype::NS, RECORD + 2),
    ] {
        let query = query(name, rtype, None);
        assert_eq!(respond(&mut server, datagram(), &query).len(), query.len() + longer, "{name} {rtype}");
    }
}

#[test]
fn an_asker_that_nobody_knows_is_refused_without_authority() {
    let stranger = Recipient::Datagram {
        socket: token(Kind::Datagrams, 0, 0),
        peer: "172.20.1.9:4000".parse().unwrap(),
    };
    let response = respond(&mut server(), stranger, &query("centos-1", Rtype::A, None));
    assert_eq!(in_words(&response), ["REFUSED"]);
}

#[test]
fn as_many_records_as_fit_are_sent_and_the_rest_is_marked_as_missing() {
    let mut server = server();
    for (payload, limit, least) in
        [(None, 512, 29), (Some(512), 512, 28), (Some(700), 700, 40), (Some(4096), 1232, 73)]
    {
        let response = respond(&mut server, datagram(), &query("many", Rtype::A, payload));
        let message = Message::from_octets(&response).unwrap();
        assert!(message.header().tc() && response.len() <= limit, "{}", response.len());
        assert!(
            usize::from(message.header_counts().ancount()) >= least,
            "{}",
            message.header_counts().ancount()
        );
        assert_eq!(message.opt().is_some(), payload.is_some());
    }
    let connection = Recipient::Connection {
        connection: token(Kind::Connection, 0, 0),
        peer: "172.20.0.2:4000".parse().unwrap(),
    };
    let response = respond(&mut server, connection, &query("many", Rtype::A, None));
    let message = Message::from_octets(&response).unwrap();
    assert_eq!((message.header().tc(), message.header_counts().ancount()), (false, 230));
}

#[test]
fn holders_of_one_name_take_turns() {
    let mut server = server();
    let mut first = HashSet::new();
    for _ in 0..230 {
        first.insert(in_words(&respond(&mut server, datagram(), &query("many", Rtype::A, None)))[1].clone());
        // As every stub resolver does.
        respond(&mut server, datagram(), &query("many", Rtype::AAAA, None));
    }
    assert_eq!(first.len(), 230);
}

proptest! {
    #[test]
    fn whatever_comes_in_what_goes_out_can_be_read(
        name in "(centos-1|many|db|x|[a-z]{1,9})([.]testnet|[.]arpa|[.]2[.]0[.]20[.]172[.]in-addr[.]arpa)?",
        rtype in 0_u16..300,
        payload in proptest::option::of(any::<u16>()),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in 0_usize..8,
    ) {
        let mut packet = query(&name, Rtype::from_int(rtype), payload);
        for (at, to) in damage {
            let at = at.index(packet.len());
            packet[at] = to;
        }
        packet.truncate(packet.len() - cut);
        let mut server = server();
        let response = respond(&mut server, datagram(), &packet);
        prop_assert_eq!(server.counters().panicked, 0);
        if !response.is_empty() {
            prop_assert!(response.len() <= 1232);
            in_words(&response);
        }
    }
}

#[test]
fn whoever_is_known_is_told_of_every_fault_and_strangers_of_few() {
    let mut server = server();
    let faulty = [0; 12];
    let mut told = |source: &str| {
        let peer = source.parse().unwrap();
        let socket = token(Kind::Datagrams, 0, 0);
        let recipient = Recipient::Datagram { socket, peer };
        (0..200).filter(|_| !respond(&mut server, recipient, &faulty).is_empty()).count()
    };
    assert_eq!(told("172.20.0.2:4000"), 200);
    // A second may end meanwhile.
    assert!((64..200).contains(&told("172.20.9.9:4000")));
}

#[test]
fn an_address_is_its_own_as_long_as_it_is_open() {
    let (poller, mut server) = (Poller::new().unwrap(), server());
    let listener = |last| Listener { bridge: BRIDGE.to_owned(), gateway: [127, 0, 0, last].into() };
    for last in [1, 2] {
        let sockets = Sockets {
            udp: std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            tcp: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        };
        server.open(&poller, listener(last), 5353, sockets).unwrap();
    }
    let own = |server: &Server| {
        let mut own: Vec<String> = server.desk.own.iter().map(ToString::to_string).collect();
        own.sort();
        own
    };
    assert_eq!(own(&server), ["127.0.0.1:53", "127.0.0.1:5353", "127.0.0.2:53", "127.0.0.2:5353"]);
    server.close(&poller, &listener(1));
    assert_eq!(own(&server), ["127.0.0.2:53", "127.0.0.2:5353"]);
}
