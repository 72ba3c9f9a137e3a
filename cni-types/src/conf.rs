//! The network configuration on stdin: what every plugin shares, and the way to a plugin's own keys.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::Command;
use crate::env::{Attachment, is_identifier};
use crate::logging::{LogKeys, parse_level};
use crate::version::VersionNumber;
use crate::{CniResult, Error, ErrorCode, SpecVersion, json};

/// Keys of the protocol, which no plugin has to know. What is inside the first group is open to anybody.
const OPEN_KEYS: [&str; 4] = ["args", "capabilities", "runtimeConfig", "prevResult"];
const PROTOCOL_KEYS: [&str; 12] = [
    "cni.dev/attachments",
    "cni.dev/valid-attachments",
    "cniVersion",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "dns",
    "loadOnlyInlinedPlugins",
    "logFile",
    "logLevel",
    "name",
    "type",
];

/// Where a plugin's own keys stand, so that what it does not know there can be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnKeys {
    /// At the top of the document; `ipam` belongs to the delegate.
    Top,
    /// Inside `ipam`; the rest belongs to the plugin that delegates.
    Ipam,
    /// Nowhere: `T` is a part of what the plugin knows, so a key that it lacks says nothing.
    Unreported,
}

/// A network configuration whose name and spec version are in order for the verb that was asked for.
#[derive(Debug, Clone)]
pub struct NetConf {
    bytes: Vec<u8>,
    document: Value,
    name: String,
    version: SpecVersion,
    prev_result: Option<Value>,
    /// As written, with its key.
    valid_attachments: Option<(&'static str, Value)>,
    log_level: Option<Value>,
    log_file: Option<Value>,
}

const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The spelling of older drafts, which libcni sends along.
const ATTACHMENTS: &str = "cni.dev/attachments";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Common {
    cni_version: String,
    name: String,
    prev_result: Option<Value>,
    log_level: Option<Value>,
    log_file: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Value>,
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Value>,
}

/// For their types only: keys of the protocol that this verb, or this plugin, has no use for.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Unused {
    #[serde(rename = "type")]
    _type: String,
    #[serde(rename = "capabilities")]
    _capabilities: BTreeMap<String, bool>,
    #[serde(rename = "prevResult")]
    _prev_result: BTreeMap<String, IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
struct ListedAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl NetConf {
    /// Reads what the runtime wrote to stdin for `command`.
    ///
    /// # Errors
    /// Code 6 for bytes that are no JSON object; 7 for a value of the wrong type or a malformed name; 1 for a spec
    /// version that is not spoken here or does not have the verb.
    pub fn parse(command: Command, bytes: Vec<u8>) -> Result<Self, Error> {
        let undecodable = |reason: String| {
            Error::new(ErrorCode::DECODING_FAILURE, format!("error unmarshall network config: {reason}"))
        };
        let document = match serde_json::from_slice(&bytes).map_err(|error| undecodable(error.to_string()))? {
            document @ Value::Object(_) => document,
            Value::Null => Value::Object(serde_json::Map::new()),
            other => return Err(undecodable(format!("expected an object, got {other}"))),
        };
        let common: Common = json::decode(&document, |_| ())?;
        // What ADD would refuse must not keep the others from cleaning up.
        if !matches!(command, Command::Del | Command::Gc) {
            let _: Unused = json::decode(&document, |_| ())?;
        }
        if common.name.is_empty() {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "missing network name"));
        }
        if !is_identifier(&common.name) {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "invalid characters found in network name")
                .with_details(common.name));
        }
        Ok(Self {
            bytes,
            name: common.name,
            version: version_for(command, &common.cni_version)?,
            prev_result: common.prev_result,
            log_level: common.log_level,
            log_file: common.log_file,
            valid_attachments: common
                .valid_attachments
                .map(|listed| (VALID_ATTACHMENTS, listed))
                .or(common.attachments.map(|listed| (ATTACHMENTS, listed))),
            document,
        })
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The spec version that the answer must be written in.
    pub fn version(&self) -> SpecVersion {
        self.version
    }

    /// The bytes as the runtime wrote them, for a delegated plugin.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The result of the plugin before this one, or of the ADD that a CHECK or DEL belongs to.
    ///
    /// # Errors
    /// Code 7 names the value that does not fit.
    pub fn prev_result(&self) -> Result<Option<CniResult>, Error> {
        let Some(document) = &self.prev_result else { return Ok(None) };
        let result = CniResult::decode(document, self.version);
        result.map(Some).map_err(|error| inside("prevResult", error))
    }

    /// GC: the attachments that are still valid. `None` when the runtime did not say, which is not the same as an
    /// empty list. They are read here and not with the rest, since no other verb minds them.
    ///
    /// # Errors
    /// Code 7 names a malformed entry.
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, Error> {
        let Some((key, listed)) = &self.valid_attachments else { return Ok(None) };
        let listed: Vec<ListedAttachment> =
            json::decode(listed, |_| ()).map_err(|error| inside(key, error))?;
        let attachments = listed.iter().enumerate().map(|(index, entry)| {
            Attachment::new(&entry.container_id, &entry.ifname)
                .map_err(|error| Error::invalid_config(&format!("{key}[{index}]"), error))
        });
        attachments.collect::<Result<_, _>>().map(Some)
    }

    /// What `logLevel` and `logFile` say. They are read here and not with the rest, so that a mistake in them cannot
    /// keep DEL and GC from cleaning up.
    ///
    /// # Errors
    /// Code 7 names the key and the value.
    pub(crate) fn log_keys(&self) -> Result<LogKeys, Error> {
        let text = |key: &str, value: &Option<Value>| match value {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(Error::invalid_config(key, format!("expected a string, got {other}"))),
        };
        let level = text("logLevel", &self.log_level)?.map(|level| parse_level(&level));
        Ok(LogKeys {
            level: level.transpose().map_err(|reason| Error::invalid_config("logLevel", reason))?,
            file: text("logFile", &self.log_file)?.map(Into::into),
        })
    }

    /// Decodes a plugin's own part of the document and says on stderr which keys there it passed over.
    ///
    /// `T` is the shape of the whole document; `own` tells which unknown keys are the plugin's to report.
    ///
    /// # Errors
    /// Code 7 names the value that does not fit.
    pub fn decode<T: for<'de> Deserialize<'de>>(&self, own: OwnKeys) -> Result<T, Error> {
        let mut unknown = Vec::new();
        let decoded = json::decode(&self.document, |path| {
            if own.covers(&path) {
                unknown.push(path);
            }
        })?;
        if !unknown.is_empty() {
            log::warn!("network {}: ignored unknown keys: {}", self.name, unknown.join(", "));
        }
        Ok(decoded)
    }
}

impl OwnKeys {
    fn covers(self, path: &str) -> bool {
        let top = path.split(['.', '[']).next().unwrap_or_default();
        match self {
            Self::Top => {
                let open = OPEN_KEYS.iter().any(|key| key.eq_ignore_ascii_case(top));
                // Compared whole: two of them have a dot of their own.
                let protocol = PROTOCOL_KEYS.iter().any(|key| key.eq_ignore_ascii_case(path));
                top != "ipam" && !open && !protocol
            }
            Self::Ipam => top == "ipam" && path != "ipam",
            Self::Unreported => false,
        }
    }
}

impl From<json::DecodeError> for Error {
    fn from(error: json::DecodeError) -> Self {
        Self::invalid_config(&error.path, error.reason)
    }
}

/// The error of a value somewhere inside that of `key`.
fn inside(key: &str, error: json::DecodeError) -> Error {
    let path = match error.path.as_str() {
        // All of it.
        "." => key.to_owned(),
        path if path.starts_with('[') => format!("{key}{path}"),
        path => format!("{key}.{path}"),
    };
    Error::invalid_config(&path, error.reason)
}

/// The spec version written as `text`, if `command` exists there and we speak it.
fn version_for(command: Command, text: &str) -> Result<SpecVersion, Error> {
    let incompatible = |msg: String| Error::new(ErrorCode::INCOMPATIBLE_VERSION, msg);
    let since = command.needs().since;
    if since > SpecVersion::V0_1_0 {
        let wanted = VersionNumber::parse(text)?;
        if wanted < since.into() {
            return Err(incompatible(format!("config version does not allow {}", command.as_str())));
        }
        if wanted > SpecVersion::LATEST.into() {
            return Err(incompatible(format!("plugin version does not allow {}", command.as_str())));
        }
    }
    SpecVersion::parse(text).ok_or_else(|| {
        let spoken: Vec<String> = SpecVersion::ALL.iter().map(|version| format!("\"{version}\"")).collect();
        incompatible("incompatible CNI versions".into())
            .with_details(format!("config is \"{text}\", plugin supports [{}]", spoken.join(" ")))
    })
}

/// The answer to VERSION.
#[derive(Serialize)]
pub(crate) struct VersionAnswer {
    #[serde(rename = "cniVersion")]
    pub(crate) cni_version: SpecVersion,
    #[serde(rename = "supportedVersions")]
    pub(crate) supported_versions: [SpecVersion; SpecVersion::ALL.len()],
}

#[cfg(test)]
mod tests;
