//! Network namespaces as `/proc` tells of them: by inode, and by where they are mounted, as `ip netns` and container
//! runtimes mount them. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// The inode of the network namespace that the kernel calls `net:[<inode>]` (namespaces(7)).
pub fn inode_of(name: &OsStr) -> Option<u64> {
    let number = name.as_bytes().strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    str::from_utf8(number).ok()?.parse().ok()
}

/// The network namespaces in a table of mounts (proc_pid_mountinfo(5)): each one's inode, and where it is mounted.
pub fn mounted(table: &[u8]) -> impl Iterator<Item = (u64, PathBuf)> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some((inode_of(OsStr::from_bytes(root))?, PathBuf::from(OsString::from_vec(unescaped(point)))))
    })
}

/// A path without the octal escapes that stand for blanks in it.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let byte = digits
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_told_by_how_the_kernel_calls_it() {
        assert_eq!(inode_of(OsStr::new("net:[4026531840]")), Some(4_026_531_840));
        for other in ["mnt:[4026531841]", "net:[]", "net:[x]", "/run/netns/net:[7]", "socket:[7]", ""] {
            assert_eq!(inode_of(OsStr::new(other)), None, "{other}");
        }
    }

    #[test]
    fn mounted_namespaces_are_told_from_other_mounts() {
        let table = b"24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            310 24 0:4 net:[4026532201] /run/netns/cni-1 rw shared:9 - nsfs nsfs rw\n\
            311 24 0:4 mnt:[4026532300] /run/other rw - nsfs nsfs rw\n\
            312 24 0:4 net:[4026532202] /run/with\\040space\\134 rw - nsfs nsfs rw\n\
            313 24";
        let wanted =
            [(4_026_532_201, "/run/netns/cni-1".into()), (4_026_532_202, PathBuf::from("/run/with space\\"))];
        assert_eq!(mounted(table).collect::<Vec<_>>(), wanted);
    }
}
