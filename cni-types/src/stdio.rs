//! This process's stdin and stdout as a plugin uses them: not buffered, and waited for also where somebody has set them
//! not to block (`O_NONBLOCK`), as event loops do with the pipes that they make.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What the runtime writes.
pub(crate) struct Stdin;

/// Where the answer goes. The library's own ends a write at the last line's end, so that an answer, which ends without
/// one, would wake the runtime twice.
pub(crate) struct Stdout;

impl Read for Stdin {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        waiting_for(PollFlags::POLLIN, stdin.as_fd(), || nix::unistd::read(&stdin, bytes))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        waiting_for(PollFlags::POLLOUT, stdout.as_fd(), || nix::unistd::write(&stdout, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn waiting_for(
    event: PollFlags,
    fd: BorrowedFd<'_>,
    mut call: impl FnMut() -> nix::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EAGAIN) => match poll(&mut [PollFd::new(fd, event)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            done => return Ok(done?),
        }
    }
}
