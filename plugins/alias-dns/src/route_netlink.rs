//! One question to the kernel's routing (rtnetlink(7)) at a time, and its answer.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// The header of a message, in octets.
const HEADER: usize = 16;

/// Octets of an answer; one about a link without its counters has some thousand.
const LONGEST: usize = 8 << 10;

/// A socket for questions.
#[derive(Debug)]
pub(crate) struct Routing(OwnedFd);

impl Routing {
    /// One in the network namespace that the thread is in.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn open() -> Result<Self> {
        let kernel = Some(SockProtocol::NetlinkRoute);
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kernel)?))
    }

    /// Asks for what `kind` gets; `body` is what follows the header. Returns what follows it in the answer, which has to
    /// be of kind `expected`.
    ///
    /// # Errors
    /// The operating system's, the kernel's answer included; `InvalidData` for an answer of another kind.
    pub(crate) fn ask(&self, kind: u16, body: &[u8], expected: u16) -> Result<Vec<u8>> {
        let mut question = vec![0; HEADER];
        question.extend(body);
        let length = question.len() as u32;
        question[..4].copy_from_slice(&length.to_ne_bytes());
        question[4..6].copy_from_slice(&kind.to_ne_bytes());
        question[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        send(self.0.as_raw_fd(), &question, MsgFlags::empty())?;
        let mut answer = [0; LONGEST];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = &answer[..length];
        let found = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        match answer.get(HEADER..) {
            Some(body) if found == Some(expected) => Ok(body.to_vec()),
            Some([a, b, c, d, ..]) if found == Some(libc::NLMSG_ERROR as u16) => {
                Err(Error::from_raw_os_error(-i32::from_ne_bytes([*a, *b, *c, *d])))
            }
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_its_error() {
        let index = i32::MAX;
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.extend([0; 8]);
        let refused = Routing::open().unwrap().ask(libc::RTM_GETLINK, &body, libc::RTM_NEWLINK).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
    }
}
