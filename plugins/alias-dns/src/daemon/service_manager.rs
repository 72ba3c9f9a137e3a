//! What a server says to the service manager that has started it (sd_notify(3)). It expects no answer.

use std::io::Result;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the socket of the service manager; a name that begins with `@` stands in no directory (unix(7)).
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager of this process.
#[derive(Debug)]
pub(super) struct ServiceManager(UnixDatagram);

impl ServiceManager {
    /// `None` for a process that no service manager has started, or one that does not want to be told.
    pub(super) fn of_process() -> Option<Self> {
        let name = std::env::var_os(SOCKET_VARIABLE)?;
        match connect(name.as_bytes()) {
            Ok(socket) => Some(Self(socket)),
            Err(error) => {
                log::warn!("{SOCKET_VARIABLE}={}: {error}", name.display());
                None
            }
        }
    }

    /// The server is there, or as good as: it is `doing` something.
    pub(super) fn say_ready(&self, doing: &str) {
        // Not worth an end: whoever does not hear it says so itself.
        if let Err(error) = self.0.send(format!("READY=1\nSTATUS={doing}").as_bytes()) {
            log::warn!("tell the service manager: {error}");
        }
    }
}

fn connect(name: &[u8]) -> Result<UnixDatagram> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_names_are_reached() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listeners = [
            (path.as_os_str().as_bytes().to_vec(), SocketAddr::from_pathname(&path).unwrap()),
            (b"@alias-dns test".to_vec(), SocketAddr::from_abstract_name("alias-dns test").unwrap()),
        ];
        for (name, address) in listeners {
            let listener = UnixDatagram::bind_addr(&address).unwrap();
            ServiceManager(connect(&name).unwrap()).say_ready("waiting");
            let mut heard = [0; 64];
            let len = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..len], b"READY=1\nSTATUS=waiting");
        }
        assert!(connect(b"/nowhere/notify").is_err());
    }
}
