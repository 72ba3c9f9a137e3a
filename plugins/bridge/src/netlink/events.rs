//! Waiting for the kernel to change something, without asking over and over.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// Notifications about links and addresses of the namespace that it was opened in.
pub(crate) struct Events {
    socket: Socket,
    deadline: Instant,
}

impl Events {
    /// From now on, for at most `patience`.
    pub(crate) fn subscribe(patience: Duration) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv6Ifaddr];
        let groups = groups.into_iter().fold(0, |groups, group| groups | 1 << (group as u32 - 1));
        socket.bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, deadline: Instant::now() + patience })
    }

    /// Waits for the next ones; `Ok(false)` when the time is over.
    pub(crate) fn wait(&mut self) -> io::Result<bool> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        // Only that something happened counts; what, is asked of the kernel.
        let mut buffer = Vec::with_capacity(1 << 16);
        match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
            Err(error)
                if ![io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind())
                    && error.raw_os_error() != Some(libc::ENOBUFS) =>
            {
                Err(error)
            }
            _ => Ok(true),
        }
    }
}
