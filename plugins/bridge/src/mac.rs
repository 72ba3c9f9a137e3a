//! Hardware addresses of six bytes (EUI-48).

use std::fmt;
use std::str::FromStr;

/// The address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    /// A random unicast address from the range that is nobody's (locally administered).
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut octets = [0; 6];
        getrandom::fill(&mut octets)?;
        octets[0] = (octets[0] & !0b01) | 0b10;
        Ok(Self(octets))
    }

    /// Its bytes, as on the wire.
    pub(crate) fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether an interface can have it: it is neither a group address nor zero.
    pub(crate) fn is_assignable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl From<[u8; 6]> for Mac {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is no address for an interface.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum MacError {
    /// It is not an address of six bytes.
    #[error("address {0}: invalid MAC address")]
    Malformed(String),
    /// It is a group address or zero.
    #[error("address {0}: not an address that an interface can have")]
    NotAssignable(String),
}

/// Reads the three usual spellings: `02:42:ac:11:00:02`, `02-42-ac-11-00-02` and `0242.ac11.0002`.
impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MacError::Malformed(text.to_owned());
        let (separator, digits) = match text.as_bytes() {
            bytes if bytes.contains(&b':') => (':', 2),
            bytes if bytes.contains(&b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let mut octets = Vec::with_capacity(6);
        for group in text.split(separator) {
            if group.len() != digits || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            let value = u16::from_str_radix(group, 16).map_err(|_| malformed())?;
            octets.extend_from_slice(&value.to_be_bytes()[2 - digits / 2..]);
        }
        let mac = Self(octets.try_into().map_err(|_| malformed())?);
        if mac.is_assignable() { Ok(mac) } else { Err(MacError::NotAssignable(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_usual_spellings_are_read() {
        for text in ["02:42:ac:11:00:0f", "02-42-AC-11-00-0F", "0242.ac11.000f"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "02:42:ac:11:00:0f");
        }
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in
            ["", "zz", "02:42", "02:42:ac:11:00:0f:01", "2:42:ac:11:0:f", "02:42:ac:11:00:+f", "0242ac11000f"]
        {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Malformed(text.into())));
        }
    }

    #[test]
    fn group_addresses_and_zero_are_refused() {
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::NotAssignable(text.into())));
        }
    }

    #[test]
    fn a_random_address_is_local_and_unicast() {
        for _ in 0..64 {
            assert_eq!(Mac::random().unwrap().octets()[0] & 0b11, 0b10);
        }
    }
}
