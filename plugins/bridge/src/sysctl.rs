//! Kernel parameters under `/proc/sys/net`, of the namespace that the thread is in.
//!
//! Finding one costs more the more namespaces there are, since each has its own under the same name: a quarter of a
//! millisecond with a thousand. So the hot path looks for few, and for those of one link once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use cni_types::Error;
use nix::fcntl::{OFlag, openat};
use nix::libc::{O_DIRECTORY, O_PATH};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};

use crate::family::Family;

/// Lets the host forward packets of `family`.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn enable_forwarding(family: Family) -> Result<(), Error> {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    write(path, "1")
}

/// Lets the host forward IPv4 packets that come in by the link called `ifname`.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn enable_forwarding_from(ifname: &str) -> Result<(), Error> {
    write(&format!("/proc/sys/net/ipv4/conf/{ifname}/forwarding"), "1")
}

/// Whether the link called `ifname` drops packets whose source would be answered by another link (`rp_filter` 1). The
/// stricter of its own setting and that of all links holds.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn filters_strictly(ifname: &str) -> Result<bool, Error> {
    let own = read(&format!("/proc/sys/net/ipv4/conf/{ifname}/rp_filter"))?;
    let all = read("/proc/sys/net/ipv4/conf/all/rp_filter")?;
    Ok(own.max(all) == "1")
}

/// A switch of a link's IPv6 half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipv6Switch {
    /// The link does not speak IPv6 at all.
    Disable,
    /// It believes router advertisements.
    AcceptRa,
    /// It looks for duplicates of its addresses.
    AcceptDad,
    /// It advertises its addresses when its hardware address is set.
    Announce,
    /// It keeps its addresses when it goes down.
    KeepAddressOnDown,
}

/// The switches of a link's IPv6 half, found once.
#[derive(Debug)]
pub(crate) struct Ipv6Switches {
    path: String,
    /// `None` where there is no IPv6.
    directory: Option<File>,
}

impl Ipv6Switches {
    /// Those of the link called `ifname`.
    ///
    /// # Errors
    /// Code 5 with the directory.
    pub(crate) fn open(ifname: &str) -> Result<Self, Error> {
        let path = ipv6_directory(ifname);
        let opened = OpenOptions::new().read(true).custom_flags(O_PATH | O_DIRECTORY).open(&path);
        let directory = present(opened).map_err(|error| Error::io(format_args!("open {path}"), &error))?;
        Ok(Self { path, directory })
    }

    /// Sets those that the kernel has. The thread has to be in the namespace that they were found in.
    ///
    /// # Errors
    /// Code 5 with the file.
    pub(crate) fn set(&self, switches: &[(Ipv6Switch, bool)]) -> Result<(), Error> {
        let Self { path, directory: Some(directory) } = self else { return Ok(()) };
        for (switch, on) in switches {
            let name = switch.name();
            let opened = openat(directory, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            let written = present(opened.map_err(io::Error::from)).and_then(|file| match file {
                Some(file) => File::from(file).write_all(if *on { b"1" } else { b"0" }),
                None => Ok(()),
            });
            written.map_err(|error| Error::io(format_args!("write {path}/{name}"), &error))?;
        }
        Ok(())
    }
}

/// Sets switches of the link called `ifname`, those that the kernel has; no error where there is no IPv6.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn set_ipv6(ifname: &str, switches: &[(Ipv6Switch, bool)]) -> Result<(), Error> {
    Ipv6Switches::open(ifname)?.set(switches)
}

/// Has the link called `ifname` believe router advertisements as [`Link::accept_ra`](crate::netlink::link::Link) says.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn set_accept_ra(ifname: &str, value: i32) -> Result<(), Error> {
    write(&format!("{}/accept_ra", ipv6_directory(ifname)), &value.to_string())
}

/// Whether switches can be set at all: in containers `/proc/sys` is often read-only, or not there.
pub(crate) fn can_set_ipv6() -> bool {
    access("/proc/sys/net/ipv6/conf/all/accept_ra", AccessFlags::W_OK).is_ok()
}

impl Ipv6Switch {
    fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable_ipv6",
            Self::AcceptRa => "accept_ra",
            Self::AcceptDad => "accept_dad",
            Self::Announce => "ndisc_notify",
            Self::KeepAddressOnDown => "keep_addr_on_down",
        }
    }
}

/// What was found, unless there is no such file.
fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn ipv6_directory(ifname: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{ifname}")
}

fn read(path: &str) -> Result<String, Error> {
    read_io(path).map_err(|error| Error::io(format_args!("read {path}"), &error))
}

/// A number, as most parameters are; the kernel hands it over in one piece.
fn read_io(path: &str) -> io::Result<String> {
    let mut text = [0; 32];
    let len = File::open(path)?.read(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..len]).trim_end().to_owned())
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    let written =
        OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| Error::io(format_args!("write {path}"), &error))
}
