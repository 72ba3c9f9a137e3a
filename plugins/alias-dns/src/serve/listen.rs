//! Opening the sockets of a gateway address: the one part of serving that needs privileges, so that plugins do it and
//! hand the sockets over.
//!
//! They are bound to the bridge as well as to the address. So the kernel itself keeps everything else out, and the
//! pair of socket and source address tells who asks. What the host itself asks the address counts as coming in by the
//! device that has the address, though it goes by way of `lo` (measured; Linux since 4.14).

use std::io::{ErrorKind, Result};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::sockopt::{
    BindToDevice, IpFreebind, Ipv6V6Only, RcvBuf, RcvBufForce, ReuseAddr, SndBuf, SndBufForce,
};
use nix::sys::socket::{
    AddressFamily, Backlog, GetSockOpt, SetSockOpt, SockFlag, SockType, SockaddrStorage, bind, getsockname,
    getsockopt, listen, setsockopt, socket,
};

use super::udp::internet;
use crate::zone::Listener;

/// The port of DNS.
pub const PORT: u16 = 53;

/// Ports tried when one that is free for TCP is not for UDP.
const MAX_ATTEMPTS: usize = 16;

/// Receive buffer, in octets: what waits while a worker is replaced. The memory is only used while something waits.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A device that every network namespace has, and that is no bridge.
const LOOPBACK: &str = "lo";

/// Send buffer, in octets: what waits for containers that are known and do not answer (each up to `unres_qlen_bytes`,
/// ip-sysctl), so that there is room for the others.
const SEND_BUFFER: usize = 4 << 20;

/// The two sockets of a gateway address.
#[derive(Debug)]
pub struct Sockets {
    /// For datagrams.
    pub udp: OwnedFd,
    /// For connections; it listens.
    pub tcp: TcpListener,
}

/// Opens the sockets of `listener` at `port`.
///
/// # Errors
/// The operating system's; `AddrInUse` when somebody else serves there.
pub fn open(listener: &Listener, port: u16) -> Result<Sockets> {
    with_tcp(listener, port, bound(listener, port, SockType::Stream)?)
}

/// Opens the sockets of `listener` at a port that is free for both.
///
/// # Errors
/// The operating system's.
pub(crate) fn open_anywhere(listener: &Listener) -> Result<(Sockets, u16)> {
    let mut attempt = 0;
    loop {
        let tcp = bound(listener, 0, SockType::Stream)?;
        let address: SockaddrStorage = getsockname(tcp.as_raw_fd())?;
        let port = internet(&address).map_or(0, |address| address.port());
        attempt += 1;
        match with_tcp(listener, port, tcp) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && attempt < MAX_ATTEMPTS => {}
            opened => return opened.map(|sockets| (sockets, port)),
        }
    }
}

/// Whether somebody has `port` of the gateway address on every device. Sockets that [`open`] has made never have: they
/// are bound to the bridge, and so leave the address free on another device.
pub fn is_taken_on_every_device(listener: &Listener, port: u16) -> bool {
    // A link-local address is always that of one device.
    let elsewhere = Listener { bridge: LOOPBACK.to_owned(), ..listener.clone() };
    [SockType::Stream, SockType::Datagram]
        .into_iter()
        .any(|kind| bound(&elsewhere, port, kind).is_err_and(|error| error.kind() == ErrorKind::AddrInUse))
}

fn with_tcp(listener: &Listener, port: u16, tcp: OwnedFd) -> Result<Sockets> {
    listen(&tcp, Backlog::new(128)?)?;
    let udp = bound(listener, port, SockType::Datagram)?;
    // With less room it serves as well, while there is no burst.
    let _ = widen(&udp, RcvBufForce, RcvBuf, RECEIVE_BUFFER);
    let _ = widen(&udp, SndBufForce, SndBuf, SEND_BUFFER);
    Ok(Sockets { udp, tcp: tcp.into() })
}

/// Gives `socket` a buffer of so many `octets`. Only a privileged process may go above the system's limit by `force`; any
/// other gets as much as that allows by `option`, if it is more than a socket has in the first place.
fn widen<O>(
    socket: &OwnedFd,
    force: impl SetSockOpt<Val = usize>,
    option: O,
    octets: usize,
) -> nix::Result<()>
where
    O: SetSockOpt<Val = usize> + GetSockOpt<Val = usize> + Copy,
{
    if setsockopt(socket, force, &octets).is_ok() {
        return Ok(());
    }
    // Tried at another one: a buffer that has once become smaller than the default may not get as large again.
    let trial = self::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&trial, option, &octets)?;
    if getsockopt(&trial, option)? > getsockopt(socket, option)? {
        setsockopt(socket, option, &octets)?;
    }
    Ok(())
}

fn bound(listener: &Listener, port: u16, kind: SockType) -> Result<OwnedFd> {
    let family = if listener.gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if listener.gateway.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    if kind == SockType::Stream {
        // Connections of an earlier server may still be on their way out.
        setsockopt(&fd, ReuseAddr, &true)?;
    }
    // The bridge gets its address in the same chain, but the order is the configuration's; an IPv6 address may also be
    // tentative still. IP_FREEBIND counts for both families (ip(7), ipv6(7)).
    setsockopt(&fd, IpFreebind, &true)?;
    setsockopt(&fd, BindToDevice, &listener.bridge.clone().into())?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address_of(listener, port)?))?;
    Ok(fd)
}

/// A link-local address only means something together with its link.
fn address_of(listener: &Listener, port: u16) -> Result<SocketAddr> {
    match listener.gateway {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            let scope = nix::net::if_::if_nametoindex(listener.bridge.as_str())?;
            Ok(SocketAddrV6::new(address, port, 0, scope).into())
        }
        address => Ok(SocketAddr::new(address, port)),
    }
}

#[cfg(test)]
mod tests {
    use caps::{CapSet, Capability};

    use super::*;

    #[test]
    fn without_the_right_to_more_a_buffer_is_as_large_as_the_system_lets_it_be_and_never_smaller_than_it_was()
    {
        // Capabilities are a thread's, and go with it.
        let unprivileged = std::thread::spawn(|| {
            caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
            [1 << 10, RECEIVE_BUFFER].map(|octets| {
                let open =
                    || socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
                let (widened, other) = (open(), open());
                let default = getsockopt(&other, RcvBuf).unwrap();
                widen(&widened, RcvBufForce, RcvBuf, octets).unwrap();
                setsockopt(&other, RcvBuf, &octets).unwrap();
                [default, getsockopt(&other, RcvBuf).unwrap(), getsockopt(&widened, RcvBuf).unwrap()]
            })
        });
        let [fewer, more] = unprivileged.join().unwrap();
        for [default, allowed, widened] in [fewer, more] {
            assert_eq!(widened, default.max(allowed));
        }
        assert!(fewer[1] < fewer[0], "the default is not more than was asked for: {fewer:?}");
    }
}
