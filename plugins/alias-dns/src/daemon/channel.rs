//! What the parts of a server tell each other: descriptors to keep, each under a label.
//!
//! The worker hands over every socket that must outlive it to supervisor and guard; a new worker gets them all back. No
//! side trusts a stored process id: a channel that ends is how each learns that the other is gone.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::seqpacket::{MAX_FDS, Seqpacket};

const MAX_MESSAGE: usize = 16 << 10;

/// The first line of a message with many labels; each of the others has a number of descriptors and their label.
const ALL: &str = "all";

/// Octets of such a line beside the label.
const LINE_ROOM: usize = 8;

/// Descriptors by label: a worker's whole possession.
pub(crate) type Kept = BTreeMap<String, Vec<OwnedFd>>;

/// A message to be sent, with its descriptors.
pub(crate) type Parcel<'f> = (String, Vec<BorrowedFd<'f>>);

/// One message.
#[derive(Debug)]
pub(crate) enum Message {
    /// Keep these.
    Keep(Kept),
    /// Close what is kept under the label.
    Drop(String),
    /// To a worker: that was all, start to serve. From a guard: it is there.
    Go,
    /// From a worker: it leaves for good, or keeps to another guard; start no other. From a guard: leave, for nobody finds
    /// this server any more.
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
        let mut buffer = vec![0; MAX_MESSAGE];
        let Some((bytes, fds)) = self.0.receive(&mut buffer)? else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(Error::other)?;
        if let Some(lines) = text.strip_prefix(ALL).and_then(|lines| lines.strip_prefix('\n')) {
            return sorted(lines, fds).map(|kept| Some(Message::Keep(kept)));
        }
        match text.split_once(' ').unwrap_or((text, "")) {
            ("keep", label) if !fds.is_empty() => {
                Ok(Some(Message::Keep(Kept::from([(label.to_owned(), fds)]))))
            }
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
                Some(Message::Keep(more)) => kept.extend(more),
                Some(Message::Go) => return Ok(Some(kept)),
                Some(Message::Drop(_)) => {}
                Some(Message::Quit) | None => return Ok(None),
            }
        }
    }

    /// Sends everything in `all`.
    pub(crate) fn keep_all<'f>(
        &self,
        all: impl IntoIterator<Item = (String, Vec<BorrowedFd<'f>>)>,
    ) -> Result<()> {
        parcels(all).iter().try_for_each(|parcel| self.send(parcel))
    }

    /// Sends one message.
    pub(crate) fn send(&self, (text, fds): &Parcel<'_>) -> Result<()> {
        self.0.send(text.as_bytes(), fds)
    }

    /// Sends the first of `parcels`, as many as the socket holds before anybody reads it, and tells how many.
    pub(crate) fn send_what_fits(&self, parcels: &[Parcel<'_>]) -> Result<usize> {
        for (sent, (text, fds)) in parcels.iter().enumerate() {
            match self.0.send_at_once(text.as_bytes(), fds) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(sent),
                other => other?,
            }
        }
        Ok(parcels.len())
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
        self.send(&the_go())
    }

    /// Sends [`Message::Quit`].
    pub(crate) fn quit(&self) -> Result<()> {
        self.0.send(b"quit", &[])
    }

    /// Every later message is given up after `limit`.
    pub(crate) fn limit(&self, limit: Duration) -> Result<()> {
        self.0.limit(limit)
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

/// Everything in `all`, in a few messages: thousands fit into the socket before anybody reads it.
pub(crate) fn parcels<'f>(all: impl IntoIterator<Item = (String, Vec<BorrowedFd<'f>>)>) -> Vec<Parcel<'f>> {
    let mut parcels: Vec<Parcel<'f>> = Vec::new();
    for (label, some) in all {
        let is_full = |(text, fds): &&mut Parcel<'f>| {
            fds.len() + some.len() > MAX_FDS || text.len() + label.len() + LINE_ROOM > MAX_MESSAGE
        };
        let (text, fds) = match parcels.last_mut().filter(|last| !is_full(last)) {
            Some(last) => last,
            None => parcels.push_mut((String::from(ALL), Vec::new())),
        };
        text.push_str(&format!("\n{} {label}", some.len()));
        fds.extend(some);
    }
    parcels
}

/// [`Message::Go`], to be sent.
pub(crate) fn the_go() -> Parcel<'static> {
    ("go".to_owned(), Vec::new())
}

/// `fds` under the labels that `lines` give for them.
fn sorted(lines: &str, fds: Vec<OwnedFd>) -> Result<Kept> {
    let mut fds = fds.into_iter();
    let mut kept = Kept::new();
    for line in lines.lines() {
        let parts = line.split_once(' ').and_then(|(count, label)| Some((count.parse().ok()?, label)));
        let Some((count, label)) = parts else {
            return Err(Error::other(format!("unknown line on the supervision channel: {line}")));
        };
        kept.insert(label.to_owned(), fds.by_ref().take(count).collect());
    }
    Ok(kept)
}

/// What `kept` holds, to be sent.
pub(crate) fn borrowed(kept: &Kept) -> impl Iterator<Item = (String, Vec<BorrowedFd<'_>>)> {
    kept.iter().map(|(label, fds)| (label.clone(), fds.iter().map(|fd| fd.as_fd()).collect()))
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
        near.keep_all(borrowed(&kept)).unwrap();
        near.go().unwrap();
        let back = far.receive_all().unwrap().unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
    }

    #[test]
    fn a_thousand_labels_fit_before_anybody_reads() {
        let (near, far) = Seqpacket::pair().unwrap();
        let (near, far) = (Channel::from(near), Channel::from(far));
        let (reader, _writer) = std::io::pipe().unwrap();
        let all = (0..1000).map(|number| (format!("gateway {number}"), vec![reader.as_fd(), reader.as_fd()]));
        near.keep_all(all).unwrap();
        near.go().unwrap();
        let kept = far.receive_all().unwrap().unwrap();
        assert_eq!(kept.len(), 1000);
        assert!(kept.values().all(|fds| fds.len() == 2));
    }

    #[test]
    fn more_than_fits_is_sent_as_it_is_read() {
        let (near, far) = Seqpacket::pair().unwrap();
        let (near, far) = (Channel::from(near), Channel::from(far));
        let (reader, _writer) = std::io::pipe().unwrap();
        let label = |number: usize| format!("gateway {number} 53 172.20.100.100 br-with-a-name");
        let all: Vec<_> = (0..6000).map(|number| (label(number), vec![reader.as_fd(); 2])).collect();
        let mut parcels = parcels(all);
        parcels.push(the_go());
        let sent = near.send_what_fits(&parcels).unwrap();
        assert!((1..parcels.len()).contains(&sent), "{sent} of {}", parcels.len());
        let reading = std::thread::spawn(move || far.receive_all().unwrap().unwrap().len());
        parcels[sent..].iter().for_each(|parcel| near.send(parcel).unwrap());
        assert_eq!(reading.join().unwrap(), 6000);
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
        let far = Channel::from(far);
        for text in ["keep label", "go on", "stop", "all\nlabel"] {
            near.send(text.as_bytes(), &[]).unwrap();
            assert!(far.receive().is_err(), "{text}");
        }
    }
}
