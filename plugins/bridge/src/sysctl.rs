//! Kernel parameters under `/proc/sys/net`, of the namespace that the thread is in.
//!
//! Finding one costs more the more namespaces there are, so the hot path asks for few, and reads before it writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};

use cni_types::Error;

use crate::plan::Family;

/// Lets the host forward packets of `family`; says whether it did not before.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn enable_forwarding(family: Family) -> Result<bool, Error> {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    if read(path)? == "1" {
        return Ok(false);
    }
    write(path, "1").map(|()| true)
}

/// Whether the host forwards packets of `family`.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn is_forwarding(family: Family) -> Result<bool, Error> {
    let path = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    Ok(read(path)? == "1")
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

/// Sets a switch of the link called `ifname`; no error where there is no IPv6.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn set_ipv6(ifname: &str, switch: Ipv6Switch, on: bool) -> Result<(), Error> {
    let path = ipv6_path(ifname, switch);
    match write_io(&path, if on { "1" } else { "0" }) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format_args!("write {path}"), &error))
        }
        _ => Ok(()),
    }
}

/// Whether a switch of the link called `ifname` is on, in whatever way; `false` where there is no IPv6.
///
/// # Errors
/// Code 5 with the file.
pub(crate) fn is_ipv6_on(ifname: &str, switch: Ipv6Switch) -> Result<bool, Error> {
    let path = ipv6_path(ifname, switch);
    match read_io(&path) {
        Ok(text) => Ok(text != "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format_args!("read {path}"), &error)),
    }
}

fn ipv6_path(ifname: &str, switch: Ipv6Switch) -> String {
    let name = match switch {
        Ipv6Switch::Disable => "disable_ipv6",
        Ipv6Switch::AcceptRa => "accept_ra",
        Ipv6Switch::AcceptDad => "accept_dad",
        Ipv6Switch::Announce => "ndisc_notify",
        Ipv6Switch::KeepAddressOnDown => "keep_addr_on_down",
    };
    format!("/proc/sys/net/ipv6/conf/{ifname}/{name}")
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
    write_io(path, value).map_err(|error| Error::io(format_args!("write {path}"), &error))
}

fn write_io(path: &str, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
