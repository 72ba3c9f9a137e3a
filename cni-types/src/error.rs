//! The error a plugin answers with: code, message, details.
//!
//! CNI spec 1.1.0, section "Error". Codes 0 to 99 belong to the spec, 100 and above to a plugin; 8 and 999 are not
//! in the spec's table but are what the reference plugins answer, so callers know them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Meaning of an error code, named as the CNI spec does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Something went wrong that nobody classified; also what the output of a broken delegate becomes.
    pub const UNKNOWN: Self = Self(0);
    /// The configuration's spec version is not one that the plugin speaks.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A key is known but cannot be honoured; the message names key and value.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// A `CNI_*` variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO_FAILURE: Self = Self(5);
    /// Bytes could not be decoded.
    pub const DECODING_FAILURE: Self = Self(6);
    /// A value in the configuration does not pass validation.
    pub const INVALID_CONFIG: Self = Self(7);
    /// `CNI_NETNS` is the plugin's own namespace.
    pub const INVALID_NETNS: Self = Self(8);
    /// A transient condition: the same call can succeed later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: the plugin cannot serve ADD, and running containers have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// CHECK: the attachment is not, or not any more, what ADD made. (The spec leaves codes from 100 on to plugins.)
    pub const CHANGED: Self = Self(100);
    /// A fault that is not the caller's.
    pub const INTERNAL: Self = Self(999);
}

/// A CNI error, printed as one JSON document on stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// One that a delegate does not tell is [`ErrorCode::UNKNOWN`].
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code: code.0, msg: msg.into(), details: String::new() }
    }

    /// The same error with `details`, a longer text for a person.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error with `context` in front of its message, as `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.msg = format!("{context}: {}", self.msg);
        self
    }

    /// Code 7: the value at `key` (a path such as `ipam.ranges[0][0].subnet`) is wrong because of `reason`.
    pub fn invalid_config(key: &str, reason: impl fmt::Display) -> Self {
        Self::new(ErrorCode::INVALID_CONFIG, format!("{key}: {reason}"))
    }

    /// Code 999 with the text of `source` and of all its causes.
    pub fn internal(source: impl fmt::Display) -> Self {
        Self::new(ErrorCode::INTERNAL, format!("{source:#}"))
    }

    /// Code 5: reading or writing failed; `what` names the operation and the path.
    pub fn io(what: impl fmt::Display, source: &std::io::Error) -> Self {
        Self::new(ErrorCode::IO_FAILURE, format!("{what}: {source}"))
    }

    /// The code.
    pub fn code(&self) -> ErrorCode {
        ErrorCode(self.code)
    }

    /// The short message.
    pub fn msg(&self) -> &str {
        &self.msg
    }

    /// The longer text; empty when there is none.
    pub fn details(&self) -> &str {
        &self.details
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
