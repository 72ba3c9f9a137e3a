//! UNIX sockets that keep message boundaries and carry file descriptors (`SOCK_SEQPACKET`, `SCM_RIGHTS`; unix(7)).
//!
//! Owns the system calls and the ownership of received descriptors; knows nothing of what the messages say.

use std::io::{IoSlice, IoSliceMut, Result};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, shutdown, socket,
    socketpair,
};
use nix::sys::time::TimeVal;

/// Descriptors in one message at most (unix(7), SCM_MAX_FD is 253).
pub(crate) const MAX_FDS: usize = 250;

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Seqpacket(OwnedFd);

impl Seqpacket {
    /// Two sockets, each the peer of the other.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(one), Self(other)))
    }

    /// The listener at `path`; fails when nobody listens there, or when it has no room for one more within `limit`,
    /// which then holds for what follows, too.
    pub(crate) fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let address = Address::of(path)?;
        let connected = Self(fd);
        connected.limit(limit)?;
        connect(connected.0.as_raw_fd(), &address.unix)?;
        Ok(connected)
    }

    /// A connection waiting at `listener`, `None` when there is none.
    pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<Option<Self>> {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            // SAFETY: accept4 has just made this descriptor, so nobody else owns it.
            #[allow(unsafe_code, reason = "nix returns accepted descriptors raw")]
            Ok(fd) => Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Every later send and receive gives up after `limit`.
    pub(crate) fn limit(&self, limit: Duration) -> Result<()> {
        setsockopt(&self.0, ReceiveTimeout, &time_of(limit))?;
        self.limit_sending(limit)
    }

    /// Every later send gives up after `limit`.
    pub(crate) fn limit_sending(&self, limit: Duration) -> Result<()> {
        Ok(setsockopt(&self.0, SendTimeout, &time_of(limit))?)
    }

    /// Every later send and receive waits when it has to, for `limit` at most.
    pub(crate) fn wait_when_full(&self, limit: Duration) -> Result<()> {
        self.set_flags(OFlag::empty())?;
        self.limit(limit)
    }

    /// Every later send and receive fails when it would have to wait.
    pub(crate) fn never_wait(&self) -> Result<()> {
        self.set_flags(OFlag::O_NONBLOCK)
    }

    fn set_flags(&self, flags: OFlag) -> Result<()> {
        Ok(fcntl(&self.0, FcntlArg::F_SETFL(flags)).map(drop)?)
    }

    /// Hears no more: what the peer sends from now on fails there. What it has sent before can still be received.
    pub(crate) fn hear_no_more(&self) -> Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Read)?)
    }

    /// Sends `bytes` as one message, with `fds` attached.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_with(MsgFlags::MSG_NOSIGNAL, bytes, fds)
    }

    /// The same, but fails when it would have to wait for the peer to receive.
    pub(crate) fn send_at_once(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_with(MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT, bytes, fds)
    }

    fn send_with(&self, flags: MsgFlags, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let attached: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], attached, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives one message into `buffer`; `None` when the peer is gone. What does not fit is an error.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<(&'a [u8], Vec<OwnedFd>)>> {
        let mut space = cmsg_space!([RawFd; MAX_FDS]);
        let (len, fds, whole) = loop {
            let mut slices = [IoSliceMut::new(buffer)];
            let received =
                recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
            match received {
                Ok(message) => {
                    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
                    break (message.bytes, owned(message.cmsgs()?), !cut);
                }
                // The second: the peer went without having heard all. What it had said before is still there.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        if !whole {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "message too long"));
        }
        Ok((len > 0).then_some((&buffer[..len], fds)))
    }

    /// The effective user of the process that made the peer.
    pub(crate) fn peer_uid(&self) -> Result<u32> {
        Ok(getsockopt(&self.0, PeerCredentials)?.uid())
    }

    /// The descriptor alone.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl From<OwnedFd> for Seqpacket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Seqpacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Listens at `path`, in place of whatever socket is there: whoever connects meets the old or the new, never none.
/// The socket file is its owner's alone.
pub(crate) fn listen_at(path: &Path) -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    let aside = aside(path);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let address = Address::of(&aside)?;
    bind(fd.as_raw_fd(), &address.unix)?;
    std::fs::set_permissions(&aside, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&fd, Backlog::MAXALLOWABLE)?;
    std::fs::rename(&aside, path)?;
    Ok(fd)
}

/// Where a listener for `path` stands for the moment before it takes its place.
pub(crate) fn aside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// `limit` as a socket takes it, for which zero would mean none at all.
fn time_of(limit: Duration) -> TimeVal {
    let micros = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX).max(1);
    TimeVal::new(micros / 1_000_000, micros % 1_000_000)
}

fn owned(messages: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in messages {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just installed these descriptors for this message, so nobody else owns them.
            #[allow(unsafe_code, reason = "nix returns passed descriptors raw")]
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    fds
}

/// A socket address for a path of any length: a long one goes by way of its open directory, for `sun_path` ends at
/// 108 bytes.
struct Address {
    unix: UnixAddr,
    _directory: Option<std::fs::File>,
}

impl Address {
    fn of(path: &Path) -> Result<Self> {
        match UnixAddr::new(path) {
            Ok(unix) => Ok(Self { unix, _directory: None }),
            Err(Errno::ENAMETOOLONG) => {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(Errno::ENAMETOOLONG.into());
                };
                let directory = std::fs::File::open(parent)?;
                let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
                Ok(Self { unix: UnixAddr::new(&short)?, _directory: Some(directory) })
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn a_message_keeps_its_bounds_and_carries_descriptors() {
        let (one, other) = Seqpacket::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send(b"first", &[writer.as_fd()]).unwrap();
        one.send(b"second", &[]).unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        let (bytes, mut fds) = other.receive(&mut buffer).unwrap().unwrap();
        assert_eq!((bytes, fds.len()), (&b"first"[..], 1));
        std::fs::File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (bytes, fds) = other.receive(&mut buffer).unwrap().unwrap();
        assert_eq!((bytes, fds.len()), (&b"second"[..], 0));
        drop(one);
        assert!(other.receive(&mut buffer).unwrap().is_none());
    }

    #[test]
    fn what_was_said_before_the_end_is_heard_also_when_the_peer_has_not_heard_all() {
        let (one, other) = Seqpacket::pair().unwrap();
        one.send(b"last", &[]).unwrap();
        other.send(b"unheard", &[]).unwrap();
        drop(one);
        let mut buffer = [0; 64];
        assert_eq!(other.receive(&mut buffer).unwrap().unwrap().0, b"last");
        assert!(other.receive(&mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let (one, other) = Seqpacket::pair().unwrap();
        one.send(&[1; 100], &[]).unwrap();
        assert_eq!(other.receive(&mut [0; 10]).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_silent_peer_is_given_up() {
        let (one, _other) = Seqpacket::pair().unwrap();
        one.limit(Duration::from_millis(10)).unwrap();
        assert_eq!(one.receive(&mut [0; 10]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_listener_takes_the_place_of_a_stale_socket_at_a_path_of_any_length() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["short", &"long/".repeat(40)] {
            let parent = directory.path().join(name);
            std::fs::create_dir_all(&parent).unwrap();
            let path = parent.join("control");
            drop(listen_at(&path).unwrap());
            assert_eq!(
                Seqpacket::connect(&path, LIMIT).unwrap_err().kind(),
                std::io::ErrorKind::ConnectionRefused
            );
            let listener = listen_at(&path).unwrap();
            assert!(Seqpacket::accept(listener.as_fd()).unwrap().is_none());
            let client = Seqpacket::connect(&path, LIMIT).unwrap();
            client.send(b"hello", &[]).unwrap();
            let server = Seqpacket::accept(listener.as_fd()).unwrap().unwrap();
            let mut buffer = [0; 16];
            assert_eq!(server.receive(&mut buffer).unwrap().unwrap().0, b"hello");
            assert_eq!(server.peer_uid().unwrap(), nix::unistd::geteuid().as_raw());
        }
    }
}
