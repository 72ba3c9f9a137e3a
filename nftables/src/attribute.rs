//! Netlink attributes: length, type, value, padding (netlink(7)). Writing into a buffer, and walking through one.
//!
//! Knows no nf_tables, and serves other families of netlink as well. Nested attributes carry no `NLA_F_NESTED` flag:
//! nf_tables neither asks for it nor sets it, so what is written compares with what is read, byte by byte.

const HEADER: usize = 4;
const TYPE_MASK: u16 = 0x3fff;

/// Appends an attribute.
///
/// # Panics
/// When the value is longer than an attribute can be; callers keep names, comments and lists far below.
pub fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nest(buffer, kind, |buffer| buffer.extend_from_slice(value));
}

/// Appends a number in network order, as nf_tables has all its numbers.
pub(crate) fn put_u32(buffer: &mut Vec<u8>, kind: u16, value: u32) {
    put(buffer, kind, &value.to_be_bytes());
}

/// Appends a number in network order.
pub(crate) fn put_u64(buffer: &mut Vec<u8>, kind: u16, value: u64) {
    put(buffer, kind, &value.to_be_bytes());
}

/// Appends a text with its NUL.
pub(crate) fn put_text(buffer: &mut Vec<u8>, kind: u16, text: &str) {
    nest(buffer, kind, |buffer| {
        buffer.extend_from_slice(text.as_bytes());
        buffer.push(0);
    });
}

/// Appends an attribute whose value is whatever `inner` appends.
pub(crate) fn nest(buffer: &mut Vec<u8>, kind: u16, inner: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend([0, 0]);
    buffer.extend(kind.to_ne_bytes());
    inner(buffer);
    let len = u16::try_from(buffer.len() - start).expect("an attribute is shorter than 64 KiB");
    buffer[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes`, up to the first that is malformed.
pub(crate) fn walk(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<HEADER>()?;
        let [a, b, c, d] = *header;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, value))
    })
}

/// The first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    walk(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The first attribute of a type, as a number.
pub(crate) fn find_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    find(bytes, kind)?.try_into().ok().map(u32::from_be_bytes)
}

/// The first attribute of a type, as a number.
pub(crate) fn find_u64(bytes: &[u8], kind: u16) -> Option<u64> {
    find(bytes, kind)?.try_into().ok().map(u64::from_be_bytes)
}

/// The first attribute of a type, as text without its NUL.
pub(crate) fn find_text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = find(bytes, kind)?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_attribute_is_length_type_value_and_padding() {
        let mut buffer = Vec::new();
        put_text(&mut buffer, 3, "ab");
        nest(&mut buffer, 4, |buffer| put_u32(buffer, 1, 7));
        assert_eq!(
            buffer,
            [
                &7_u16.to_ne_bytes()[..],
                &3_u16.to_ne_bytes(),
                b"ab\0\0",
                &12_u16.to_ne_bytes(),
                &4_u16.to_ne_bytes(),
                &8_u16.to_ne_bytes(),
                &1_u16.to_ne_bytes(),
                &[0, 0, 0, 7],
            ]
            .concat()
        );
    }

    #[test]
    fn attributes_are_found_behind_others_and_broken_ones_end_the_search() {
        let mut attributes = Vec::new();
        put(&mut attributes, 1, b"lo\0");
        put(&mut attributes, 2, &7_u32.to_ne_bytes());
        assert_eq!(find(&attributes, 1), Some(&b"lo\0"[..]));
        assert_eq!(find(&attributes, 2), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(find(&attributes, 3), None);
        for cut in 0..attributes.len() {
            assert_eq!(find(&attributes[..cut], 2), None, "{cut}");
        }
        attributes[..2].copy_from_slice(&3_u16.to_ne_bytes());
        assert_eq!(find(&attributes, 2), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(list in prop::collection::vec((0_u16..0x3fff, prop::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut buffer = Vec::new();
            for (kind, value) in &list {
                put(&mut buffer, *kind, value);
            }
            let read: Vec<_> = walk(&buffer).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn no_bytes_make_the_walk_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(walk(&bytes).map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
        }
    }
}
