//! A small DNS client: one question, the answer as text.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use domain::base::iana::{Class, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::AllRecordData;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};

/// How long an answer is waited for. A server needs far less, also after it was killed; a busy machine may not.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) rcode: String,
    pub(crate) truncated: bool,
    /// `TYPE data`, one a record of the answer section.
    pub(crate) answer: Vec<String>,
    pub(crate) ttl: Option<u32>,
    pub(crate) octets: Vec<u8>,
}

/// A query for `name` with `id`.
pub(crate) fn query(id: u16, name: &str, rtype: Rtype, payload: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
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

/// Reads a response.
pub(crate) fn read(octets: &[u8]) -> Response {
    let message = Message::from_octets(octets).expect("a message");
    let mut answer = Vec::new();
    let mut ttl = None;
    for record in message.answer().unwrap().limit_to::<AllRecordData<_, _>>() {
        let record = record.unwrap();
        ttl = Some(record.ttl().as_secs());
        answer.push(format!("{} {}", record.rtype(), record.data()));
    }
    Response {
        rcode: message.header().rcode().to_string(),
        truncated: message.header().tc(),
        answer,
        ttl,
        octets: octets.to_vec(),
    }
}

/// Asks `server` over UDP, once; `None` when nothing comes back.
pub(crate) fn ask(server: &str, name: &str, rtype: Rtype) -> Option<Response> {
    exchange(server, &query(7, name, rtype, Some(1232)))
}

/// The same, where silence is to be expected and is not waited for longer than `patience`.
pub(crate) fn ask_within(patience: Duration, server: &str, name: &str, rtype: Rtype) -> Option<Response> {
    exchange_within(patience, server, &query(7, name, rtype, Some(1232)))
}

/// Whether `server` answers within `patience` that `name` exists.
pub(crate) fn ask_once(server: &str, name: &str, patience: Duration) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.connect((server, 53)).unwrap();
    socket.send(&query(7, name, Rtype::A, None)).unwrap();
    let mut buffer = [0; 512];
    receive_datagram(&socket, &mut buffer).is_ok_and(|len| read(&buffer[..len]).rcode == "NOERROR")
}

/// Asks `server` from the address `source`, over UDP and TCP; `None` when nothing comes back.
pub(crate) fn ask_from(source: &str, server: &str, name: &str) -> [Option<Response>; 2] {
    let (source, server): (IpAddr, IpAddr) = (source.parse().unwrap(), server.parse().unwrap());
    let packet = query(7, name, Rtype::A, None);
    let datagrams = UdpSocket::bind((source, 0)).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    datagrams.send_to(&packet, (server, 53)).unwrap();
    let mut buffer = [0; 4096];
    let datagram = receive_datagram(&datagrams, &mut buffer).ok().map(|len| read(&buffer[..len]));
    let mut stream = connect_from(&source.to_string(), &server.to_string());
    send(&mut stream, &packet);
    [datagram, receive(&mut stream)]
}

/// A connection to `server` from the address `source`.
pub(crate) fn connect_from(source: &str, server: &str) -> TcpStream {
    let (source, server): (IpAddr, IpAddr) = (source.parse().unwrap(), server.parse().unwrap());
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let stream = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0))).unwrap();
    nix::sys::socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(server, 53)))
        .unwrap();
    let stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `packet` to `server`, and reads what comes back.
pub(crate) fn exchange(server: &str, packet: &[u8]) -> Option<Response> {
    exchange_within(PATIENCE, server, packet)
}

fn exchange_within(patience: Duration, server: &str, packet: &[u8]) -> Option<Response> {
    let server = SocketAddr::new(server.parse().unwrap(), 53);
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.connect(server).unwrap();
    socket.send(packet).ok()?;
    let mut buffer = [0; 4096];
    let len = receive_datagram(&socket, &mut buffer).ok()?;
    Some(read(&buffer[..len]))
}

/// Receives a datagram. The end of a child interrupts a wait that has a limit, which is no answer yet.
pub(crate) fn receive_datagram(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// A connection to `server`.
pub(crate) fn connect(server: &str) -> TcpStream {
    let stream = TcpStream::connect(SocketAddr::new(server.parse().unwrap(), 53)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a message with its length.
pub(crate) fn send(stream: &mut TcpStream, packet: &[u8]) {
    let mut framed = (packet.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).unwrap();
}

/// Receives a message; `None` at the end of the connection.
pub(crate) fn receive(stream: &mut TcpStream) -> Option<Response> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).ok()?;
    let mut octets = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut octets).ok()?;
    Some(read(&octets))
}
