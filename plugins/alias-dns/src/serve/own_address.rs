//! Whether an address is the host's own. Asked only about those that are no container's and no gateway's, so that it
//! costs nobody else anything.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::sockopt::BindToDevice;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockname, setsockopt, socket,
};

use super::udp::internet;

/// Whether `peer` is an address of the device `bridge` on this host; `false` where the kernel does not say.
///
/// Nobody on the bridge gains anything by writing such an address into a packet: the kernel takes none with it from a
/// device (IPv4), and the answer goes to the host in any case. For the same reason an address of another device does
/// not count: what a socket that is bound to the bridge sends there leaves by the bridge.
///
/// The kernel says it in choosing the source for a connected socket: for one's own address it is the address itself,
/// for every other one some address of the device. Nothing is sent, and no right is needed (Linux since 5.7). Where a
/// device has several addresses of one subnet (IPv4), that goes for the first of them.
pub(crate) fn is_on(bridge: &str, peer: SocketAddr) -> bool {
    let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let chosen = socket(family, SockType::Datagram, flags, None).and_then(|socket| {
        setsockopt(&socket, BindToDevice, &bridge.into())?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(peer))?;
        getsockname::<SockaddrStorage>(socket.as_raw_fd())
    });
    chosen.is_ok_and(|chosen| internet(&chosen).is_some_and(|chosen| chosen.ip() == peer.ip()))
}
