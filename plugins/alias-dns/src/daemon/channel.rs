//! What supervisor and worker tell each other: descriptors to keep, each under a label.
//!
//! The worker hands over every socket that must outlive it; a new worker gets them all back. Neither side trusts a
//! stored process id: a channel that ends is how each learns that the other is gone.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::seqpacket::Seqpacket;

const MAX_MESSAGE: usize = 512;

/// Descriptors by label: a worker's whole possession.
pub(crate) type Kept = BTreeMap<String, Vec<OwnedFd>>;

/// One message.
#[derive(Debug)]
pub(crate) enum Message {
    /// Keep these.
    Keep(String, Vec<OwnedFd>),
    /// Close what is kept under the label.
    Drop(String),
    /// That was all: start to serve (to the worker).
    Go,
    /// The worker leaves for good, start no other (to the supervisor).
    Quit,
}

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel(Seqpacket);

impl From<Seqpacket> for Channel {
    fn from(socket: Seqpacket) -> Self {
        Self(socket)
    }
}

impl Channel {
    /// The next message; `None` when the other side is gone.
    ///
    /// # Errors
    /// When the socket fails or a message is none.
    pub(crate) fn receive(&self) -> Result<Option<Message>> {
        let mut buffer = [0; MAX_MESSAGE];
        let Some((bytes, fds)) = self.0.receive(&mut buffer)? else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(Error::other)?;
        match text.split_once(' ').unwrap_or((text, "")) {
            ("keep", label) if !fds.is_empty() => Ok(Some(Message::Keep(label.to_owned(), fds))),
            ("drop", label) => Ok(Some(Message::Drop(label.to_owned()))),
            ("go", "") => Ok(Some(Message::Go)),
            ("quit", "") => Ok(Some(Message::Quit)),
            _ => Err(Error::other(format!("unknown message on the supervision channel: {text}"))),
        }
    }

    /// Everything up to [`Message::Go`]; `None` when the other side went away before.
    pub(crate) fn receive_all(&self) -> Result<Option<Kept>> {
        let mut kept = Kept::new();
        loop {
            match self.receive()? {
                Some(Message::Keep(label, fds)) => {
                    kept.insert(label, fds);
                }
                Some(Message::Go) => return Ok(Some(kept)),
                Some(Message::Drop(_)) => {}
                Some(Message::Quit) | None => return Ok(None),
            }
        }
    }

    /// Sends everything in `kept`, without [`Message::Go`].
    pub(crate) fn keep_all(&self, kept: &Kept) -> Result<()> {
        kept.iter().try_for_each(|(label, fds)| {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            self.keep(label, &fds)
        })
    }

    /// Sends [`Message::Keep`].
    pub(crate) fn keep(&self, label: &str, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.0.send(format!("keep {label}").as_bytes(), fds)
    }

    /// Sends [`Message::Drop`].
    pub(crate) fn drop(&self, label: &str) -> Result<()> {
        self.0.send(format!("drop {label}").as_bytes(), &[])
    }

    /// Sends [`Message::Go`].
    pub(crate) fn go(&self) -> Result<()> {
        self.0.send(b"go", &[])
    }

    /// Sends [`Message::Quit`].
    pub(crate) fn quit(&self) -> Result<()> {
        self.0.send(b"quit", &[])
    }

    /// The socket alone.
    pub(crate) fn into_socket(self) -> Seqpacket {
        self.0
    }

    /// The socket, to wait on.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_under_its_label() {
        let (near, far) = Seqpacket::pair().unwrap();
        let (near, far) = (Channel::from(near), Channel::from(far));
        let (reader, writer) = std::io::pipe().unwrap();
        let kept = Kept::from([
            ("lock".to_owned(), vec![reader.into()]),
            ("udp 172.20.0.1 br0".to_owned(), vec![writer.into()]),
        ]);
        near.keep_all(&kept).unwrap();
        near.go().unwrap();
        let back = far.receive_all().unwrap().unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
    }

    #[test]
    fn a_side_that_leaves_before_go_hands_over_nothing() {
        let (near, far) = Seqpacket::pair().unwrap();
        let far = Channel::from(far);
        let (reader, _writer) = std::io::pipe().unwrap();
        Channel::from(near).keep("lock", &[reader.as_fd()]).unwrap();
        assert!(far.receive_all().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (near, far) = Seqpacket::pair().unwrap();
        for text in ["", "keep label", "go on", "stop"] {
            if !text.is_empty() {
                near.send(text.as_bytes(), &[]).unwrap();
                assert!(Channel(far.as_fd().try_clone_to_owned().unwrap().into()).receive().is_err());
            }
        }
    }
}
