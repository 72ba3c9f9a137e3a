//! The versions of the CNI spec, and what each of them decides.

use std::fmt;

use serde::Serialize;

use crate::{Error, ErrorCode};

/// A version of the CNI spec that this library speaks, in order of publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum SpecVersion {
    /// 0.1.0
    #[serde(rename = "0.1.0")]
    V0_1_0,
    /// 0.2.0: VERSION
    #[serde(rename = "0.2.0")]
    V0_2_0,
    /// 0.3.0: interfaces, several addresses
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0: CHECK, prevResult on DEL
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0: no address family in `ips`
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0: GC, STATUS
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl SpecVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version.
    pub const LATEST: Self = Self::V1_1_0;

    /// As written in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version spelled exactly `text`; a configuration without `cniVersion` means 0.1.0.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Any dotted version number, for ordering ones that are not spoken here ("1.2.0" is newer than all of ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionNumber([i64; 3]);

impl VersionNumber {
    /// Up to three integers; missing ones are 0, and the empty text is 0.1.0.
    ///
    /// # Errors
    /// Code 6 names the part that is no number.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self([0, 1, 0]));
        }
        let undecodable = |reason: String| Error::new(ErrorCode::DECODING_FAILURE, reason);
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() > 3 {
            return Err(undecodable(format!("invalid version \"{text}\": too many parts")));
        }
        let mut number = [0; 3];
        for ((slot, part), place) in number.iter_mut().zip(parts).zip(["major", "minor", "micro"]) {
            *slot = part.parse().map_err(|source| {
                undecodable(format!("failed to convert {place} version part \"{part}\": {source}"))
            })?;
        }
        Ok(Self(number))
    }
}

impl From<SpecVersion> for VersionNumber {
    fn from(version: SpecVersion) -> Self {
        Self(match version {
            SpecVersion::V0_1_0 => [0, 1, 0],
            SpecVersion::V0_2_0 => [0, 2, 0],
            SpecVersion::V0_3_0 => [0, 3, 0],
            SpecVersion::V0_3_1 => [0, 3, 1],
            SpecVersion::V0_4_0 => [0, 4, 0],
            SpecVersion::V1_0_0 => [1, 0, 0],
            SpecVersion::V1_1_0 => [1, 1, 0],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_read_back_as_itself_and_only_as_itself() {
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::parse(version.as_str()), Some(version));
            assert_eq!(VersionNumber::parse(version.as_str()).unwrap(), version.into());
        }
        assert_eq!(SpecVersion::parse(""), Some(SpecVersion::V0_1_0));
        assert_eq!(SpecVersion::parse("1.1"), None);
    }

    #[test]
    fn a_part_that_is_no_number_is_named() {
        let error = VersionNumber::parse("x.1").unwrap_err();
        assert_eq!(error.code(), ErrorCode::DECODING_FAILURE);
        assert!(error.msg().starts_with("failed to convert major version part \"x\": "), "{error}");
    }

    #[test]
    fn a_part_may_be_any_number_that_the_reference_reads() {
        assert!(VersionNumber::parse("-1.0.0").unwrap() < SpecVersion::V0_1_0.into());
        assert!(VersionNumber::parse("1.-1").unwrap() < SpecVersion::V1_0_0.into());
        assert!(VersionNumber::parse("9223372036854775807").unwrap() > SpecVersion::LATEST.into());
        assert!(VersionNumber::parse("9223372036854775808").is_err());
    }

    #[test]
    fn missing_parts_are_zero() {
        assert_eq!(VersionNumber::parse("1").unwrap(), SpecVersion::V1_0_0.into());
        assert!(VersionNumber::parse("1.2.0").unwrap() > SpecVersion::LATEST.into());
    }
}
