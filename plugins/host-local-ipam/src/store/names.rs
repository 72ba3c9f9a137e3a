//! Which addresses a container name had last, so that a container re-created under its name can have them back.
//!
//! Only for networks with `stickyByName`. Two symbolic links a lease, beside the index: `name:<name>` leads to the
//! addresses, `address:<address>` to the name that had it last. An address that goes to another name is forgotten, and a
//! name with its last address, so there are never more names than addresses. A record is a wish: it keeps no address
//! from anybody.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::files::remove_file;
use super::{Place, StoreError};
use crate::span::Point;

/// A container's name as a file name: what is not plain is written as `%xx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StickyName(String);

impl StickyName {
    /// Longest file name here, leaving room for the prefix.
    const MAX_LEN: usize = 200;

    pub(crate) fn new(name: &str) -> Self {
        let mut encoded = String::with_capacity(name.len());
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
                encoded.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(encoded, "%{byte:02x}");
            }
        }
        if encoded.len() > Self::MAX_LEN {
            let digest = super::hash::hash(name.as_bytes());
            encoded.truncate(Self::MAX_LEN - 17);
            let _ = write!(encoded, "~{digest:016x}");
        }
        Self(encoded)
    }
}

/// The records of one network.
#[derive(Debug)]
pub(super) struct Names {
    directory: PathBuf,
}

impl Names {
    pub(super) fn of(place: &Place) -> Self {
        Self { directory: place.own_file("names") }
    }

    /// The addresses that `name` had last; none when nothing is known or readable.
    pub(super) fn addresses(&self, name: &StickyName) -> Vec<Point> {
        let Ok(target) = std::fs::read_link(self.by_name(name)) else { return Vec::new() };
        let Some(text) = target.to_str() else { return Vec::new() };
        text.split(',').filter_map(|text| text.parse::<IpAddr>().ok()).map(Point::from).collect()
    }

    /// Records that `name` has `addresses` now.
    pub(super) fn record(&self, name: &StickyName, addresses: &[Point]) -> Result<(), StoreError> {
        if self.addresses(name) == addresses {
            return Ok(());
        }
        std::fs::create_dir_all(&self.directory)
            .map_err(|source| StoreError::new("create", &self.directory, source))?;
        for address in addresses {
            let by_address = self.by_address(*address);
            if let Ok(earlier) = std::fs::read_link(&by_address)
                && let Some(earlier) = earlier.to_str().filter(|earlier| *earlier != name.0)
            {
                self.forget(&StickyName(earlier.to_owned()), *address)?;
            }
            self.link(&by_address, &name.0)?;
        }
        self.write(name, addresses)
    }

    /// Takes `address` from those of `name`, which may have moved on to others since.
    fn forget(&self, name: &StickyName, address: Point) -> Result<(), StoreError> {
        let known = self.addresses(name);
        let left: Vec<Point> = known.iter().copied().filter(|other| *other != address).collect();
        if left == known {
            Ok(())
        } else if left.is_empty() {
            remove_file(&self.by_name(name))
        } else {
            self.write(name, &left)
        }
    }

    fn write(&self, name: &StickyName, addresses: &[Point]) -> Result<(), StoreError> {
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        self.link(&self.by_name(name), &list.join(","))
    }

    /// Makes `path` a symbolic link to `target`, in one step.
    fn link(&self, path: &Path, target: &str) -> Result<(), StoreError> {
        let aside = self.directory.join("new");
        let linked = match std::os::unix::fs::symlink(target, &aside) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                std::fs::remove_file(&aside).and_then(|()| std::os::unix::fs::symlink(target, &aside))
            }
            other => other,
        };
        linked
            .and_then(|()| std::fs::rename(&aside, path))
            .map_err(|source| StoreError::new("record the name in", path, source))
    }

    fn by_name(&self, name: &StickyName) -> PathBuf {
        self.directory.join(format!("name:{}", name.0))
    }

    fn by_address(&self, address: Point) -> PathBuf {
        self.directory.join(format!("address:{address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(text: &str) -> Point {
        Point::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_name_is_remembered_until_its_address_goes_to_another() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::of(&Place::new(directory.path(), "net"));
        let (web, db) = (StickyName::new("shop/web"), StickyName::new("../db"));
        assert!(names.addresses(&web).is_empty());
        names.record(&web, &[point("10.0.0.2"), point("fd00::2")]).unwrap();
        names.record(&db, &[point("10.0.0.3")]).unwrap();
        assert_eq!(names.addresses(&web), [point("10.0.0.2"), point("fd00::2")]);
        names.record(&db, &[point("10.0.0.2")]).unwrap();
        assert_eq!(names.addresses(&db), [point("10.0.0.2")]);
        assert_eq!(names.addresses(&web), [point("fd00::2")]);
        names.record(&db, &[point("fd00::2")]).unwrap();
        assert!(names.addresses(&web).is_empty());
    }

    #[test]
    fn a_name_that_has_moved_loses_nothing_when_its_old_address_goes_to_another() {
        let directory = tempfile::tempdir().unwrap();
        let names = Names::of(&Place::new(directory.path(), "net"));
        let (web, db) = (StickyName::new("web"), StickyName::new("db"));
        names.record(&web, &[point("10.0.0.2")]).unwrap();
        names.record(&web, &[point("10.0.0.3")]).unwrap();
        names.record(&db, &[point("10.0.0.2")]).unwrap();
        assert_eq!(names.addresses(&web), [point("10.0.0.3")]);
    }

    #[test]
    fn a_name_is_a_plain_file_name_of_bounded_length() {
        assert_eq!(StickyName::new("a/../b c").0, "a%2f..%2fb%20c");
        let (one, other) = ("x".repeat(900) + "1", "x".repeat(900) + "2");
        assert_eq!(StickyName::new(&one).0.len(), StickyName::MAX_LEN);
        assert_ne!(StickyName::new(&one), StickyName::new(&other));
    }
}
