//! [`DomainName`]: a name, or a domain, that can be spoken by every resolver. It owns the rules of what may be written
//! there; it knows no zone and no packet.

use std::fmt;
use std::str::FromStr;

use domain::base::RelativeName;
use serde::{Deserialize, Serialize};

/// Longest label, in octets (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// Longest name as written, without the dot at the end (RFC 1035, section 2.3.4: 255 octets on the wire).
const MAX_NAME: usize = 253;

/// A domain name without a dot at the end: `centos-1`, `web-1.default`, `dns.podman`. Its case is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// Why a text is no [`DomainName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainNameError {
    /// Nothing between two dots, or nothing at all.
    #[error("\"{0}\" is not a DNS name: it has an empty label")]
    EmptyLabel(String),
    /// A label that does not fit into its length octet.
    #[error("\"{0}\" is not a DNS name: a label is longer than {MAX_LABEL} characters")]
    LongLabel(String),
    /// A name that does not fit into a message.
    #[error("\"{0}\" is not a DNS name: it is longer than {MAX_NAME} characters")]
    LongName(String),
    /// A character that stub resolvers refuse.
    #[error("\"{0}\" is not a DNS name: {1:?} is none of letters, digits, '-', '_' and '.'")]
    Character(String, char),
}

impl DomainName {
    /// Reads `text`. Letters, digits, `-` and `_` make a label: what the runtimes allow in names of containers and what
    /// the C libraries hand to programs.
    ///
    /// # Errors
    /// The first rule that `text` breaks, with the text.
    pub fn new(text: impl Into<String>) -> Result<Self, DomainNameError> {
        let text = text.into();
        if let Some(wrong) =
            text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.'))
        {
            return Err(DomainNameError::Character(text, wrong));
        }
        if text.split('.').any(str::is_empty) {
            return Err(DomainNameError::EmptyLabel(text));
        }
        if text.split('.').any(|label| label.len() > MAX_LABEL) {
            return Err(DomainNameError::LongLabel(text));
        }
        if text.len() > MAX_NAME {
            return Err(DomainNameError::LongName(text));
        }
        Ok(Self(text))
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This name below `domain`: `centos-1` below `testnet` is `centos-1.testnet`.
    ///
    /// # Errors
    /// When the two together are too long.
    pub fn below(&self, domain: &Self) -> Result<Self, DomainNameError> {
        Self::new(format!("{}.{}", self.0, domain.0))
    }

    /// Whether both are the same to DNS, which minds no case.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// The labels as they stand in a message, without the root label.
    pub fn to_wire(&self) -> RelativeName<Box<[u8]>> {
        let mut octets = Vec::with_capacity(self.0.len() + 1);
        for label in self.0.split('.') {
            // A label has at most 63 octets.
            octets.push(label.len() as u8);
            octets.extend_from_slice(label.as_bytes());
        }
        RelativeName::from_octets(octets.into_boxed_slice()).unwrap_or_else(|error| {
            unreachable!("{:?} passed the rules of DomainName, yet domain refuses it: {error}", self.0)
        })
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for DomainName {
    type Error = DomainNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_name_is_refused_with_the_rule_that_it_breaks() {
        let long_label = "a".repeat(64);
        let long_name = [&"a".repeat(62); 5].map(String::as_str).join(".");
        for (text, message) in [
            ("", "\"\" is not a DNS name: it has an empty label"),
            ("a..b", "\"a..b\" is not a DNS name: it has an empty label"),
            ("web.", "\"web.\" is not a DNS name: it has an empty label"),
            ("a b", "\"a b\" is not a DNS name: ' ' is none of letters, digits, '-', '_' and '.'"),
            ("bücher", "\"bücher\" is not a DNS name: 'ü' is none of letters, digits, '-', '_' and '.'"),
            (
                &long_label,
                &format!("\"{long_label}\" is not a DNS name: a label is longer than 63 characters"),
            ),
            (&long_name, &format!("\"{long_name}\" is not a DNS name: it is longer than 253 characters")),
        ] {
            assert_eq!(DomainName::new(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_name_and_its_domain_have_to_fit_together() {
        let name = DomainName::new(["a".repeat(61).as_str(); 4].join(".")).unwrap();
        let domain = DomainName::new("testnet").unwrap();
        assert!(matches!(name.below(&domain), Err(DomainNameError::LongName(_))));
        let name = DomainName::new("centos-1").unwrap();
        assert_eq!(name.below(&domain).unwrap().as_str(), "centos-1.testnet");
    }

    proptest! {
        #[test]
        fn every_accepted_text_has_a_wire_form_that_reads_back(text in "[a-zA-Z0-9._é-]{0,300}") {
            if let Ok(name) = DomainName::new(text.clone()) {
                prop_assert_eq!(name.to_wire().to_string(), text);
            }
        }
    }
}
