//! Which network namespace of this boot a thread is in.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

use nix::libc;

/// The kernel's number of a network namespace, which it gives to no other one until it is started again (from Linux 5.14
/// on; `SO_NETNS_COOKIE` in socket(7)). The inode of a namespace goes to another one as soon as it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsCookie(NonZeroU64);

impl NetnsCookie {
    /// That of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// The kernel's, `ENOPROTOOPT` before Linux 5.14.
    pub fn own() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let cookie = ask(&socket)?;
        Self::from_number(cookie).ok_or_else(|| io::Error::other("the kernel has not numbered the namespace"))
    }

    /// The cookie with this number; none is 0.
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

#[allow(unsafe_code, reason = "nix does not know SO_NETNS_COOKIE")]
fn ask(socket: &UnixDatagram) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the two pointers are to live variables of the sizes that the option asks for (socket(7)).
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_keeps_its_cookie() {
        let own = NetnsCookie::own().unwrap();
        assert_eq!(NetnsCookie::own().unwrap(), own);
        assert_eq!(NetnsCookie::from_number(own.number()), Some(own));
        assert_eq!(NetnsCookie::from_number(0), None);
    }
}
