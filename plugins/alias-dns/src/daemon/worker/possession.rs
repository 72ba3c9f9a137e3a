//! What a worker has, and the labels that its keepers and successors get it under. Pure: it opens nothing.

use std::io::Error;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::start_error::{StartError, io};
use super::{CONTROL, GUARD, LOCK};
use crate::daemon::channel::{Channel, Kept};
use crate::daemon::control::Wanted;
use crate::daemon::seqpacket::Seqpacket;
use crate::serve::listen::Sockets;

/// What every worker has from its start on.
pub(super) struct Possession {
    pub(super) lock: OwnedFd,
    pub(super) control: OwnedFd,
    pub(super) guard: Option<Channel>,
    pub(super) gateways: Vec<(Wanted, u16, Sockets)>,
}

/// What an earlier worker had, as far as it was handed over.
#[derive(Default)]
pub(super) struct Handed {
    pub(super) lock: Option<OwnedFd>,
    pub(super) control: Option<OwnedFd>,
    pub(super) guard: Option<Channel>,
    pub(super) gateways: Vec<(Wanted, u16, Sockets)>,
}

impl From<Kept> for Handed {
    fn from(kept: Kept) -> Self {
        let mut handed = Self::default();
        for (label, fds) in kept {
            let mut fds = fds.into_iter();
            match (label.as_str(), fds.next(), fds.next()) {
                (LOCK, Some(fd), None) => handed.lock = Some(fd),
                (CONTROL, Some(fd), None) => handed.control = Some(fd),
                (GUARD, Some(fd), None) => handed.guard = Some(Channel::from(Seqpacket::from(fd))),
                (label, Some(udp), Some(tcp)) => {
                    let gateway = gateway_of(label)
                        .map(|(wanted, port)| (wanted, port, Sockets { udp, tcp: tcp.into() }));
                    handed.gateways.extend(gateway);
                }
                _ => {}
            }
        }
        handed
    }
}

impl TryFrom<Handed> for Possession {
    type Error = StartError;

    /// A worker that has no rights cannot take what is missing.
    fn try_from(handed: Handed) -> std::result::Result<Self, StartError> {
        let Handed { lock: Some(lock), control: Some(control), guard, gateways } = handed else {
            return Err(io("what was handed over")(Error::other("lock or control socket is missing")));
        };
        Ok(Self { lock, control, guard, gateways })
    }
}

/// What a gateway's sockets are kept under. A device name has no space.
pub(super) fn label_of(wanted: &Wanted, port: u16) -> String {
    format!("gateway {} {port} {} {}", wanted.ifindex, wanted.gateway, wanted.bridge)
}

fn gateway_of(label: &str) -> Option<(Wanted, u16)> {
    let mut words = label.strip_prefix("gateway ")?.splitn(4, ' ');
    let ifindex = words.next()?.parse().ok()?;
    let port = words.next()?.parse().ok()?;
    let gateway: IpAddr = words.next()?.parse().ok()?;
    Some((Wanted { bridge: words.next()?.to_owned(), gateway, ifindex }, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_tells_whose_sockets_they_are() {
        for (bridge, gateway, port) in [("br-testnet", "172.20.0.1", 53), ("br0.10", "fd00:20::1", 40_001)] {
            let wanted = Wanted { bridge: bridge.to_owned(), gateway: gateway.parse().unwrap(), ifindex: 7 };
            assert_eq!(gateway_of(&label_of(&wanted, port)), Some((wanted, port)));
        }
        for other in
            [LOCK, CONTROL, GUARD, "gateway", "gateway 7 53 172.20.0.1", "gateway x 53 172.20.0.1 br0"]
        {
            assert_eq!(gateway_of(other), None, "{other}");
        }
    }
}
