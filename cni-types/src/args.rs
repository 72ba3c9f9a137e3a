//! `CNI_ARGS`: `KEY=VALUE` pairs joined by semicolons.
//!
//! Keys are case-sensitive here, unlike those of the configuration, and a key that no plugin of this suite knows is an
//! error unless `IgnoreUnknown` is true (the reference's `types.LoadArgs`).

use crate::{Error, ErrorCode};

const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

/// What any plugin of this suite reads, and `GATEWAY`, which is the reference's `static`'s. A runtime hands the same
/// `CNI_ARGS` to every plugin of a chain and to what they delegate to, so a key that one of them takes must not make
/// another one refuse the call.
const SUITE_KEYS: [&str; 9] = [
    "ALIASES",
    "CONTAINER_NAME",
    "GATEWAY",
    "IP",
    "K8S_POD_NAME",
    "K8S_POD_NAMESPACE",
    "LINKS",
    "MAC",
    "NERDCTL_CNI_DHCP_HOSTNAME",
];

/// The pairs of `CNI_ARGS`, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    pairs: Vec<(String, String)>,
}

impl CniArgs {
    /// Reads `text`; empty text has no pairs.
    ///
    /// # Errors
    /// Code 4 names a pair that has not exactly one `=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let pairs = text
            .split(';')
            .map(|pair| match pair.split_once('=') {
                Some((key, value)) if !value.contains('=') => Ok((key.to_owned(), value.to_owned())),
                _ => Err(Error::new(
                    ErrorCode::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS: ARGS: invalid pair \"{pair}\""),
                )),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// The last value given for `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Refuses pairs whose key is not one of [`SUITE_KEYS`], unless the caller said `IgnoreUnknown`.
    ///
    /// # Errors
    /// Code 4 names the unknown pairs, or an `IgnoreUnknown` that is neither true nor false.
    pub fn require_known(&self) -> Result<(), Error> {
        if self.ignores_unknown()? {
            return Ok(());
        }
        let unknown: Vec<String> = self
            .pairs
            .iter()
            .filter(|(key, _)| key != IGNORE_UNKNOWN && !SUITE_KEYS.contains(&key.as_str()))
            .map(|(key, value)| format!("\"{key}={value}\""))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::INVALID_ENVIRONMENT,
            format!("CNI_ARGS: ARGS: unknown args [{}]", unknown.join(" ")),
        ))
    }

    fn ignores_unknown(&self) -> Result<bool, Error> {
        let Some(value) = self.get(IGNORE_UNKNOWN) else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(Error::new(
                ErrorCode::INVALID_ENVIRONMENT,
                format!(
                    "CNI_ARGS: ARGS: error parsing value of pair \"{IGNORE_UNKNOWN}={value}\": boolean unmarshal error: invalid input {value}"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_in_any_order() {
        let args = CniArgs::parse("K8S_POD_NAME=c1;IgnoreUnknown=1;IP=10.0.0.5").unwrap();
        assert_eq!(args.get("K8S_POD_NAME"), Some("c1"));
        assert_eq!(args.get("IP"), Some("10.0.0.5"));
        assert_eq!(args.get("ip"), None);
        args.require_known().unwrap();
    }

    #[test]
    fn a_pair_without_exactly_one_equals_sign_is_named() {
        for (text, pair) in [("foo", "foo"), ("A=1;", ""), ("A=1=2", "A=1=2")] {
            let error = CniArgs::parse(text).unwrap_err();
            assert_eq!(error.msg(), format!("CNI_ARGS: ARGS: invalid pair \"{pair}\""));
            assert_eq!(error.code(), ErrorCode::INVALID_ENVIRONMENT);
        }
    }

    #[test]
    fn what_one_plugin_of_a_chain_reads_the_others_take() {
        let text = "IP=10.0.0.5;MAC=02:00:00:00:00:01;CONTAINER_NAME=web;ALIASES=a,b;LINKS=db:sql";
        CniArgs::parse(text).unwrap().require_known().unwrap();
        let runtimes = "K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;NERDCTL_CNI_DHCP_HOSTNAME=web";
        CniArgs::parse(runtimes).unwrap().require_known().unwrap();
        assert!(CniArgs::parse("aliases=a").unwrap().require_known().is_err(), "keys mind their case");
    }

    #[test]
    fn unknown_pairs_are_refused_unless_the_caller_says_otherwise() {
        let refused = |text: &str| CniArgs::parse(text).unwrap().require_known().unwrap_err();
        assert_eq!(refused("ip=10.0.0.77").msg(), "CNI_ARGS: ARGS: unknown args [\"ip=10.0.0.77\"]");
        assert_eq!(refused("A=1;IgnoreUnknown=FALSE").msg(), "CNI_ARGS: ARGS: unknown args [\"A=1\"]");
        assert_eq!(
            refused("IgnoreUnknown=maybe").msg(),
            "CNI_ARGS: ARGS: error parsing value of pair \"IgnoreUnknown=maybe\": boolean unmarshal error: invalid input maybe"
        );
        CniArgs::parse("A=1;IgnoreUnknown=True").unwrap().require_known().unwrap();
    }
}
