use std::net::UdpSocket;

use super::flight::{MAX_WAITING, MAX_WAITING_OF_PARTY};
use super::*;
use crate::serve::query::{self, Received};

/// Has whoever is at 172.20.0.`last` ask `forwarder` question number `number`, to be asked at `upstream`.
fn ask(forwarder: &mut Forwarder, upstream: &UdpSocket, last: u8, number: u16) -> Asked {
    ask_at(forwarder, &[upstream.local_addr().unwrap()], last, number)
}

fn ask_at(forwarder: &mut Forwarder, upstreams: &[SocketAddr], last: u8, number: u16) -> Asked {
    ask_for(forwarder, upstreams, last, &format!("\x05{number:05}\0"), 1)
}

/// The same for the name `name`, as it stands in a message, and type `rtype`.
fn ask_for(forwarder: &mut Forwarder, upstreams: &[SocketAddr], last: u8, name: &str, rtype: u16) -> Asked {
    let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let packet = [&header[..], name.as_bytes(), &rtype.to_be_bytes(), &[0, 1]].concat();
    let Received::Query(query) = query::read(&packet) else { panic!("{packet:?}") };
    let socket = Token::only(Kind::Datagrams);
    let recipient = Recipient::Datagram { socket, peer: ([172, 20, 0, last], 4000).into() };
    let party = Party::Container(last.into());
    let client = Waiting::for_answer_to(&query, &packet, party, recipient, 512);
    let poller = Poller::new().unwrap();
    forwarder.ask(&poller, Instant::now(), client, upstreams, |_| false, &mut Vec::new())
}

#[test]
fn a_server_that_cannot_even_be_asked_is_followed_by_the_next_one() {
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Nobody connects to that without having asked for it (socket(7), SO_BROADCAST).
    let all = SocketAddr::from(([255; 4], 53));
    let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
    assert_eq!(ask_at(&mut forwarder, &[all, upstream], 2, 0), Asked::Waiting);
    assert_eq!(ask_at(&mut forwarder, &[all], 2, 1), Asked::Failed);
    let avoided = forwarder.health(Instant::now()).into_iter().filter(|(_, health)| health.avoided);
    assert_eq!(avoided.map(|(server, _)| server).collect::<Vec<_>>(), [all]);
}

#[test]
fn the_same_name_in_another_case_is_one_question_and_another_type_is_another() {
    let upstream = [UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()];
    let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
    // Types whose numbers are letters: 65 (HTTPS) is 'A'.
    for (name, rtype, under_way) in
        [("\x01a\0", 65, 1), ("\x01A\0", 65, 1), ("\x01a\0", 97, 2), ("\x01a\0", 65 << 8, 3)]
    {
        assert_eq!(ask_for(&mut forwarder, &upstream, 2, name, rtype), Asked::Waiting);
        assert_eq!(forwarder.counts().0, under_way, "{name:?} {rtype}");
    }
}

#[test]
fn what_no_server_knew_is_not_asked_again_at_once_unless_others_can_be() {
    let [silent, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let poller = Poller::new().unwrap();
    let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
    // On a busy machine a second may be over before the next line is run.
    let number = (0..100).find(|number| {
        assert_eq!(ask(&mut forwarder, &silent, 2, *number), Asked::Waiting);
        while let Some(deadline) = forwarder.deadline() {
            forwarder.expire(&poller, deadline, &mut |_, _| ());
        }
        ask(&mut forwarder, &silent, 3, *number) == Asked::Answered
    });
    let number = number.unwrap();
    assert_eq!(ask(&mut forwarder, &silent, 2, number + 1), Asked::Waiting);
    assert_eq!(ask(&mut forwarder, &other, 2, number), Asked::Waiting);
}

#[test]
fn no_server_is_blamed_for_what_this_host_lacks() {
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut without = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::up_to(0));
    assert_eq!(ask(&mut without, &upstream, 2, 0), Asked::Failed);
    let [(_, health)] = without.health(Instant::now()).try_into().unwrap();
    assert_eq!((health.failed, health.avoided), (0, false));
}

#[test]
fn one_container_has_its_share_of_the_questions_under_way() {
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut forwarder = Forwarder::new(ResolvConf::at("/nonexistent"), Descriptors::of_process());
    let began = Instant::now();
    let mut ask = |last, number| ask(&mut forwarder, &upstream, last, number);
    let share = MAX_FLIGHTS_OF_PARTY as u16;
    assert!((0..share).all(|number| ask(2, number) == Asked::Waiting));
    assert_eq!(ask(2, share), Asked::Failed);
    // What is under way already may be waited for, and the others have theirs.
    assert_eq!([ask(2, 0), ask(3, 0), ask(3, share)], [Asked::Waiting; 3]);
    // Who has asked twice is told once.
    let (poller, mut told) = (Poller::new().unwrap(), 0);
    while let Some(deadline) = forwarder.deadline() {
        assert!(deadline.saturating_duration_since(began) <= TOTAL * 2, "it never ends");
        forwarder.expire(&poller, deadline, &mut |_, _| told += 1);
    }
    assert_eq!((told, forwarder.counts().0), (share + 2, 0));
    // What is over no longer counts.
    let again = |number| self::tests::ask(&mut forwarder, &upstream, 2, number);
    assert!((share + 1..=2 * share).map(again).all(|asked| asked == Asked::Waiting));
}

#[test]
fn a_few_containers_leave_room_for_the_others() {
    for (most, share) in [(MAX_FLIGHTS, MAX_FLIGHTS_OF_PARTY), (MAX_WAITING, MAX_WAITING_OF_PARTY)] {
        for parties in [1, 2, 4, 7] {
            let mut taken = vec![0; parties];
            let free = |taken: &[usize]| most - taken.iter().sum::<usize>();
            // Each takes what it gets before the next one comes.
            for party in 0..parties {
                while has_room(taken[party], share, free(&taken)) {
                    taken[party] += 1;
                }
            }
            assert!(taken[0] == share && has_room(0, share, free(&taken)), "{taken:?}");
        }
    }
}

#[test]
fn whoever_comes_late_has_as_much_as_the_others_once_what_is_under_way_has_ended() {
    let mut taken = [0; 8];
    for party in (0..7).chain((0..8).cycle().take(8 * MAX_FLIGHTS)) {
        // One of its questions ends, and it asks as many as it may.
        taken[party] -= usize::from(taken[party] > 0);
        while has_room(taken[party], MAX_FLIGHTS_OF_PARTY, MAX_FLIGHTS - taken.iter().sum::<usize>()) {
            taken[party] += 1;
        }
    }
    assert!(taken.iter().all(|taken| taken.abs_diff(MAX_FLIGHTS / 9) <= 1), "{taken:?}");
}
