//! Deleting links without the wait until the kernel has freed them.
//!
//! A link is gone for everybody as soon as RTM_DELLINK has taken it off the kernel's lists, which takes some hundred
//! microseconds. But who asked gets no answer before rcu_barrier() has returned (`netdev_run_todo()` in
//! `net/core/dev.c`), and that is 10 to 20 ms of waiting for grace periods. So a forked child asks, and its parent waits
//! for the announcement that the links are gone.
//!
//! The child is a short cut, and nothing depends on it: the parent then deletes the links itself, and so learns that
//! there are none, or does what a child that was killed or refused has not done.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use libc::{STDERR_FILENO, STDIN_FILENO, STDOUT_FILENO};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, chdir, close, fork, pipe};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::link::Link;
use super::{Failure, Netlink};

/// Longest wait for the child, which may have been stopped. It takes less than a millisecond where nobody else has the
/// kernel's lock.
const PATIENCE: Duration = Duration::from_secs(2);

impl Netlink {
    /// Deletes links, with them the other ends of veth pairs, and returns when nobody finds them any more; no error for
    /// those that are gone. The kernel frees them later.
    ///
    /// For a process with one thread. Until the kernel is done, some 20 ms, a child of it lives on with every descriptor
    /// but the standard ones. Where the kernel makes the last one that closes a descriptor wait, that is the child.
    pub(crate) fn unlink(&mut self, links: &[Link]) -> Result<(), Failure> {
        if let Err(error) = delete_in_child(links) {
            log::debug!("delete the links without a child: {error}");
        }
        self.delete_links(links)
    }
}

/// Has a child delete the links, and returns when they are gone or the child has ended.
fn delete_in_child(links: &[Link]) -> io::Result<()> {
    let announced = Departures::subscribe()?;
    let (ended, held_by_child) = pipe()?;
    // SAFETY: no other thread runs that could hold a lock which the child waits for.
    #[allow(unsafe_code, reason = "the compiler does not know how many threads there are")]
    match unsafe { fork() }? {
        ForkResult::Child => run_child(links),
        ForkResult::Parent { .. } => {
            drop(held_by_child);
            announced.wait(links, &ended)
        }
    }
}

/// Deletes the links, and ends. Nobody asks how that went.
fn run_child(links: &[Link]) -> ! {
    let host = Netlink::open();
    // The runtime reads its ends of these until nobody has the plugin's any more; nothing is opened in their place. And
    // its folder can be unmounted as soon as the plugin has ended.
    for standard in [STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO] {
        _ = close(standard);
    }
    _ = chdir("/");
    let deleted = host.and_then(|mut host| host.delete_links(links));
    std::process::exit(i32::from(deleted.is_err()))
}

/// Announcements of links that are gone from this namespace.
struct Departures {
    socket: Socket,
}

impl Departures {
    fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 1 << (MulticastGroup::Link as u32 - 1)))?;
        Ok(Self { socket })
    }

    /// Waits until all of `links` were announced, or the other end of `ended` is closed, or an announcement was lost, or
    /// for [`PATIENCE`].
    fn wait(&self, links: &[Link], ended: &OwnedFd) -> io::Result<()> {
        let mut left: Vec<u32> = links.iter().map(|link| link.index).collect();
        let mut buffer = Vec::with_capacity(1 << 16);
        let deadline = Instant::now() + PATIENCE;
        while !left.is_empty() {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let mut fds = [self.socket.as_fd(), ended.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::try_from(remaining).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if fds[0].any() != Some(true) {
                return Ok(());
            }
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            if let Some(gone) = departed(&buffer) {
                left.retain(|index| *index != gone);
            }
        }
        Ok(())
    }
}

/// The index of the link that a datagram of the kernel's says is gone; each has one message. A bridge announces in the
/// same way, but of its own family, that a link is no port any more.
fn departed(datagram: &[u8]) -> Option<u32> {
    match NetlinkMessage::deserialize(datagram).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
            if link.header.interface_family == AddressFamily::Unspec =>
        {
            Some(link.header.index)
        }
        _ => None,
    }
}
