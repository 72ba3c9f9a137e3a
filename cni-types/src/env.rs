//! The environment that a plugin is called with: which `CNI_*` variables a verb needs, checked once.
//!
//! The process's own environment is read by [`Environment::of_process`] alone; it is handed in, so that the protocol can
//! be tested without a process, and handed on whole to a delegated plugin.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::args::CniArgs;
use crate::command::Command;
use crate::{Error, ErrorCode};

/// Longest interface name, in bytes (the kernel's `IFNAMSIZ` less the NUL).
pub const MAX_IFNAME_LEN: usize = 15;

/// A snapshot of environment variables.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    vars: Vec<(OsString, OsString)>,
}

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// The value of `name`; an empty value counts as unset, as everywhere in the protocol.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.vars
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_os_str())
    }

    /// Every variable.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.vars.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str()))
    }

    /// `CNI_ARGS`, read only by the plugins that use it.
    ///
    /// # Errors
    /// Code 4 for a malformed pair or text that is not UTF-8.
    pub fn args(&self) -> Result<CniArgs, Error> {
        CniArgs::parse(self.text("CNI_ARGS")?.unwrap_or_default())
    }

    /// `CNI_PATH`: the directories to look for a delegated plugin in.
    pub fn plugin_path(&self) -> Vec<PathBuf> {
        self.get("CNI_PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default()
    }

    /// Whether `CNI_NETNS` may be the plugin's own namespace (`CNI_NETNS_OVERRIDE` is `1` or true in any case).
    pub(crate) fn overrides_netns_check(&self) -> bool {
        self.get("CNI_NETNS_OVERRIDE").is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
    }

    fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| {
            Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("{name} is not UTF-8: {}", value.display()))
        })
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Self {
        Self { vars: vars.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }
}

/// What identifies an attachment within a network: container id and interface name, both well-formed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    container_id: String,
    ifname: String,
}

impl Attachment {
    /// # Errors
    /// Code 4 with the reference's texts for an id or a name that is malformed.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, Error> {
        validate_container_id(container_id)?;
        validate_ifname(ifname)?;
        Ok(Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }

    /// The runtime's name for the container.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface inside the container.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// The variables of one call, as far as its verb needs them.
#[derive(Debug)]
pub(crate) struct Variables {
    pub(crate) command: Command,
    pub(crate) attachment: Option<Attachment>,
    pub(crate) netns: Option<PathBuf>,
}

impl Variables {
    /// Checks the variables in the reference's order: a malformed one is reported at once, missing ones together.
    pub(crate) fn read(env: &Environment) -> Result<Self, Error> {
        let mut missing = Vec::new();
        let command = match env.text("CNI_COMMAND")? {
            None => {
                return Err(Error::new(
                    ErrorCode::INVALID_ENVIRONMENT,
                    "required env variables [CNI_COMMAND] missing",
                ));
            }
            Some(text) => Command::parse(text).ok_or_else(|| {
                Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {text}"))
            })?,
        };
        let needs = command.needs();
        let mut require = |needed: bool, name: &'static str, validate: fn(&str) -> Result<(), Error>| {
            if !needed {
                return Ok(None);
            }
            match env.text(name)? {
                Some(value) => validate(value).map(|()| Some(value)),
                None => {
                    missing.push(name);
                    Ok(None)
                }
            }
        };
        let container_id = require(needs.attachment, "CNI_CONTAINERID", validate_container_id)?;
        require(needs.netns, "CNI_NETNS", |_| Ok(()))?;
        let ifname = require(needs.attachment, "CNI_IFNAME", validate_ifname)?;
        if needs.network && env.get("CNI_PATH").is_none() {
            missing.push("CNI_PATH");
        }
        if !missing.is_empty() {
            return Err(Error::new(
                ErrorCode::INVALID_ENVIRONMENT,
                format!("required env variables [{}] missing", missing.join(",")),
            ));
        }
        let attachment = container_id
            .zip(ifname)
            .map(|(container_id, ifname)| Attachment::new(container_id, ifname))
            .transpose()?;
        let netns = if needs.attachment { env.get("CNI_NETNS").map(PathBuf::from) } else { None };
        Ok(Self { command, attachment, netns })
    }
}

/// Whether `text` is made of what the spec allows in container ids and network names:
/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn validate_container_id(id: &str) -> Result<(), Error> {
    if is_identifier(id) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::INVALID_ENVIRONMENT, "invalid characters in containerID").with_details(id))
}

fn validate_ifname(name: &str) -> Result<(), Error> {
    let invalid = |msg: &str| Error::new(ErrorCode::INVALID_ENVIRONMENT, msg);
    if name.is_empty() {
        return Err(invalid("interface name is empty"));
    }
    if name.len() > MAX_IFNAME_LEN {
        return Err(invalid("interface name is too long")
            .with_details("interface name should be less than 16 characters"));
    }
    if matches!(name, "." | "..") {
        return Err(invalid("interface name is . or .."));
    }
    if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
        return Err(invalid("interface name contains / or : or whitespace characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Variables, Error> {
        Variables::read(&vars.iter().copied().collect())
    }

    #[track_caller]
    fn check_error(vars: &[(&str, &str)], msg: &str) {
        let error = read(vars).unwrap_err();
        assert_eq!((error.code(), error.msg()), (ErrorCode::INVALID_ENVIRONMENT, msg));
    }

    #[test]
    fn missing_variables_are_reported_together_in_order() {
        let all = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
        check_error(&[("CNI_COMMAND", "ADD")], all);
        check_error(&[("CNI_COMMAND", "CHECK"), ("CNI_PATH", "")], all);
        check_error(
            &[("CNI_COMMAND", "DEL")],
            "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing",
        );
        check_error(&[("CNI_COMMAND", "GC")], "required env variables [CNI_PATH] missing");
        check_error(&[("CNI_COMMAND", "STATUS")], "required env variables [CNI_PATH] missing");
        check_error(&[], "required env variables [CNI_COMMAND] missing");
    }

    #[test]
    fn a_malformed_variable_is_reported_before_missing_ones() {
        check_error(
            &[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a/b")],
            "invalid characters in containerID",
        );
        check_error(&[("CNI_COMMAND", "BOGUS")], "unknown CNI_COMMAND: BOGUS");
    }

    #[test]
    fn a_variable_that_the_verb_does_not_need_is_not_validated() {
        let vars = read(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/x"), ("CNI_CONTAINERID", "///")]).unwrap();
        assert_eq!(vars.attachment, None);
        read(&[("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "much too long for a name")]).unwrap();
    }

    #[test]
    fn interface_names_follow_the_kernels_rules() {
        let with = |ifname| {
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", ifname), ("CNI_PATH", "/x")]
        };
        for (name, msg) in [
            ("0123456789abcdef", "interface name is too long"),
            (".", "interface name is . or .."),
            ("..", "interface name is . or .."),
            ("a/b", "interface name contains / or : or whitespace characters"),
            ("a:b", "interface name contains / or : or whitespace characters"),
            ("a\u{a0}b", "interface name contains / or : or whitespace characters"),
        ] {
            check_error(&with(name), msg);
        }
        assert_eq!(read(&with("0123456789abcde")).unwrap().attachment.unwrap().ifname(), "0123456789abcde");
    }

    #[test]
    fn a_path_need_not_be_text_where_it_does_not_come_back_in_the_answer() {
        use std::os::unix::ffi::OsStrExt as _;

        let path = OsStr::from_bytes(b"/run/\xff");
        let read = |command: &str| {
            let texts = [("CNI_COMMAND", command), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")]
                .map(|(key, text)| (key, OsStr::new(text)));
            let paths = [("CNI_NETNS", path), ("CNI_PATH", path)];
            Variables::read(&texts.into_iter().chain(paths).collect())
        };
        assert_eq!(read("DEL").unwrap().netns.unwrap(), path);
        assert_eq!(read("ADD").unwrap_err().msg(), "CNI_NETNS is not UTF-8: /run/\u{fffd}");
        read("GC").unwrap();
    }

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        let vars = read(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/x"),
            ("CNI_NETNS", ""),
        ]);
        assert_eq!(vars.unwrap().netns, None);
    }
}
