//! What an attachment is called: from CNI_ARGS, `args.cni`, `runtimeConfig`, the pod's annotations and the container id
//! to the names and links of its record, in Docker's order. Pure.
//!
//! | source | who uses it |
//! |---|---|
//! | `CONTAINER_NAME`, `ALIASES=a,b`, `LINKS=target:alias,…` in CNI_ARGS | people, cnitool |
//! | `K8S_POD_NAME` | podman (the container's name), Kubernetes (with `K8S_POD_NAMESPACE`) |
//! | `NERDCTL_CNI_DHCP_HOSTNAME` | nerdctl |
//! | `args.cni.containerName`, `.aliases`, `.links` | a conflist for one container; go-cni |
//! | `runtimeConfig.containerName`, `.aliases`, `.links` | runtimes; lists are flat or by network (podman) |
//! | annotations `alias-dns.cni/aliases`, `alias-dns.cni/links` of the pod | Kubernetes |

use std::collections::BTreeMap;
use std::fmt;

use cni_types::{CniArgs, Error};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::domain_name::DomainName;
use crate::records::Link;

/// The pod annotation with aliases, separated by commas.
const ALIASES_ANNOTATION: &str = "alias-dns.cni/aliases";

/// The pod annotation with links, `target:alias`, separated by commas.
const LINKS_ANNOTATION: &str = "alias-dns.cni/links";

/// How much of a container id the runtimes show, and resolve.
pub(crate) const SHORT_ID: usize = 12;

/// The keys that stand alike in `args.cni` and in `runtimeConfig`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NameKeys<'c> {
    pub(crate) container_name: &'c str,
    pub(crate) aliases: Option<&'c NameList>,
    pub(crate) links: Option<&'c NameList>,
}

/// The annotations of a pod.
pub(crate) type Annotations = BTreeMap<String, String>;

/// A list of names: `["a", "b"]`, `{"network": ["a", "b"]}`, or `"a,b"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameList {
    Flat(Vec<String>),
    ByNetwork(BTreeMap<String, Option<Vec<String>>>),
}

/// Where names may be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'c> {
    pub(crate) env_args: &'c CniArgs,
    pub(crate) conf_args: NameKeys<'c>,
    pub(crate) runtime_config: NameKeys<'c>,
    pub(crate) annotations: Option<&'c Annotations>,
    pub(crate) container_id: &'c str,
    pub(crate) network: &'c str,
}

/// What an attachment is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// Each once, most important first.
    pub(crate) names: Vec<DomainName>,
    pub(crate) links: Vec<Link>,
}

/// A text, and where it was written.
struct Written<'c> {
    key: String,
    text: &'c str,
}

impl Names {
    /// The names that `sources` give, for an attachment whose names stand in each of `domains`.
    ///
    /// A name that a runtime made up (a pod's, a host's) and that is none to DNS is passed over with a line on stderr,
    /// for its user has no say in it. One that somebody wrote for us is an error.
    ///
    /// # Errors
    /// Code 7 names the key and the text.
    pub(crate) fn of(sources: Sources<'_>, domains: &[&DomainName]) -> Result<Self, Error> {
        let mut names = Collected { names: Vec::new(), domains };
        let mut container_names = container_names(sources).into_iter();
        // The first is what the container is called; what else it is called comes last, as a hostname does in Docker.
        if let Some(first) = container_names.next() {
            names.add(first)?;
        }
        for alias in aliases(sources) {
            names.push(alias.parse(DomainName::new)?, &alias)?;
        }
        if let Some(id) = short_id(sources.container_id).filter(|id| names.check(id).is_ok()) {
            names.keep(id);
        }
        container_names.try_for_each(|name| names.add(name))?;
        let links = links(sources).map(|link| link.parse(parse_link)).collect::<Result<_, _>>()?;
        Ok(Self { names: names.names, links })
    }
}

/// A name of the container itself.
enum ContainerName<'c> {
    /// Somebody wrote it for us.
    Chosen(Written<'c>),
    /// A runtime made it up.
    Given(String),
}

/// Names on their way into a record.
struct Collected<'d> {
    names: Vec<DomainName>,
    domains: &'d [&'d DomainName],
}

impl Collected<'_> {
    fn add(&mut self, name: ContainerName<'_>) -> Result<(), Error> {
        match name {
            ContainerName::Chosen(written) => self.push(written.parse(DomainName::new)?, &written),
            ContainerName::Given(text) => {
                let fits = DomainName::new(text).and_then(|name| self.check(&name).map(|()| name));
                match fits {
                    Ok(name) => self.keep(name),
                    Err(error) => log::warn!("passed over a name of the container: {error}"),
                }
                Ok(())
            }
        }
    }

    fn push(&mut self, name: DomainName, written: &Written<'_>) -> Result<(), Error> {
        self.check(&name).map_err(|error| Error::invalid_config(&written.key, error))?;
        self.keep(name);
        Ok(())
    }

    /// A name has to fit into a message together with its domain.
    fn check(&self, name: &DomainName) -> Result<(), crate::domain_name::DomainNameError> {
        self.domains.iter().try_for_each(|domain| name.below(domain).map(|_| ()))
    }

    fn keep(&mut self, name: DomainName) {
        if !self.names.iter().any(|known| known.is_same(&name)) {
            self.names.push(name);
        }
    }
}

impl<'c> Written<'c> {
    fn new(key: impl Into<String>, text: &'c str) -> Self {
        Self { key: key.into(), text }
    }

    fn split(self) -> impl Iterator<Item = Self> {
        let Self { key, text } = self;
        items(text).map(move |text| Self { key: key.clone(), text })
    }

    fn parse<T, E: fmt::Display>(&self, parse: impl Fn(&'c str) -> Result<T, E>) -> Result<T, Error> {
        parse(self.text).map_err(|error| Error::invalid_config(&self.key, error))
    }
}

fn container_names(sources: Sources<'_>) -> Vec<ContainerName<'_>> {
    let arg = |key: &str| sources.env_args.get(key).filter(|value| !value.is_empty());
    let chosen = |key: &str, text| ContainerName::Chosen(Written::new(key, text));
    let mut names = Vec::new();
    names.extend(arg("CONTAINER_NAME").map(|name| chosen("CNI_ARGS: CONTAINER_NAME", name)));
    if let Some(pod) = arg("K8S_POD_NAME") {
        names.push(ContainerName::Given(pod.to_owned()));
        names.extend(
            arg("K8S_POD_NAMESPACE").map(|namespace| ContainerName::Given(format!("{pod}.{namespace}"))),
        );
    }
    names.extend(arg("NERDCTL_CNI_DHCP_HOSTNAME").map(|name| ContainerName::Given(name.to_owned())));
    for (key, written) in [
        ("args.cni.containerName", sources.conf_args),
        ("runtimeConfig.containerName", sources.runtime_config),
    ] {
        names.extend(
            Some(written.container_name).filter(|name| !name.is_empty()).map(|name| chosen(key, name)),
        );
    }
    names
}

fn aliases(sources: Sources<'_>) -> impl Iterator<Item = Written<'_>> {
    listed(sources, "aliases", |keys| keys.aliases, "ALIASES", ALIASES_ANNOTATION)
}

fn links(sources: Sources<'_>) -> impl Iterator<Item = Written<'_>> {
    listed(sources, "links", |keys| keys.links, "LINKS", LINKS_ANNOTATION)
}

/// One kind of list from everywhere that it may be written.
fn listed<'c>(
    sources: Sources<'c>,
    key: &'static str,
    list: fn(NameKeys<'c>) -> Option<&'c NameList>,
    arg: &'static str,
    annotation: &'static str,
) -> impl Iterator<Item = Written<'c>> {
    let of_runtime =
        list(sources.runtime_config).map(|list| list.items(format!("runtimeConfig.{key}"), sources.network));
    let of_conf = list(sources.conf_args).map(|list| list.items(format!("args.cni.{key}"), sources.network));
    let of_env = sources.env_args.get(arg).map(|text| Written::new(format!("CNI_ARGS: {arg}"), text));
    let of_pod = sources.annotations.and_then(|annotations| annotations.get(annotation));
    let of_pod = of_pod.map(|text| Written::new(format!("annotation {annotation}"), text));
    let with_commas = of_env.into_iter().chain(of_pod).flat_map(Written::split);
    of_runtime.into_iter().chain(of_conf).flatten().chain(with_commas)
}

/// The items of a text with commas, without the blanks around them.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// `target:alias`.
fn parse_link(text: &str) -> Result<Link, String> {
    let (target, alias) =
        text.split_once(':').ok_or_else(|| format!("\"{text}\" is not a link: target:alias"))?;
    let name = |name: &str| DomainName::new(name).map_err(|error| error.to_string());
    Ok(Link { target: name(target)?, alias: name(alias)? })
}

/// What the runtimes show of a container id: twelve hexadecimal digits, behind a prefix that some put in front
/// (`cnitool-`, nerdctl's namespace). An id of another kind is a name itself, if it can be one.
fn short_id(container_id: &str) -> Option<DomainName> {
    let digits = container_id.rsplit('-').next().unwrap_or(container_id);
    let is_hexadecimal = digits.len() >= SHORT_ID && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = if is_hexadecimal { &digits[..SHORT_ID] } else { container_id };
    DomainName::new(name).ok()
}

impl NameList {
    /// The items for `network`, each with the path of its key.
    fn items<'c>(&'c self, key: String, network: &str) -> impl Iterator<Item = Written<'c>> {
        let (path, texts) = match self {
            Self::Flat(texts) => (key, texts.as_slice()),
            Self::ByNetwork(lists) => {
                let texts = lists.get(network).and_then(Option::as_deref).unwrap_or_default();
                (format!("{key}.{network}"), texts)
            }
        };
        texts.iter().enumerate().map(move |(index, text)| Written::new(format!("{path}[{index}]"), text))
    }
}

impl<'de> Deserialize<'de> for NameList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = NameList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names, or a list for each network")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<NameList, E> {
                Ok(NameList::Flat(items(text).map(str::to_owned).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<NameList, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = items.next_element()? {
                    names.push(name);
                }
                Ok(NameList::Flat(names))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut networks: A) -> Result<NameList, A::Error> {
                let mut lists = BTreeMap::new();
                while let Some((network, list)) = networks.next_entry()? {
                    lists.insert(network, list);
                }
                Ok(NameList::ByNetwork(lists))
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DIGITS: &str = "9c0c1adead2aa0463bf097c962cd438705907395a9cbeab2c25c163f0324da2a";

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Keys {
        container_name: String,
        aliases: Option<NameList>,
        links: Option<NameList>,
    }

    impl Keys {
        fn borrow(&self) -> NameKeys<'_> {
            NameKeys {
                container_name: &self.container_name,
                aliases: self.aliases.as_ref(),
                links: self.links.as_ref(),
            }
        }
    }

    struct Case {
        env_args: &'static str,
        conf_args: serde_json::Value,
        runtime_config: serde_json::Value,
        annotations: serde_json::Value,
        container_id: &'static str,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                env_args: "",
                conf_args: json!({}),
                runtime_config: json!({}),
                annotations: json!(null),
                container_id: DIGITS,
            }
        }
    }

    fn names(case: &Case) -> Result<Names, Error> {
        let conf_args: Keys = cni_types::json::decode(&case.conf_args, |_| ())?;
        let runtime_config: Keys = cni_types::json::decode(&case.runtime_config, |_| ())?;
        let annotations: Option<Annotations> = serde_json::from_value(case.annotations.clone()).unwrap();
        let sources = Sources {
            env_args: &CniArgs::parse(case.env_args)?,
            conf_args: conf_args.borrow(),
            runtime_config: runtime_config.borrow(),
            annotations: annotations.as_ref(),
            container_id: case.container_id,
            network: "testnet",
        };
        Names::of(sources, &[&DomainName::new("testnet").unwrap()])
    }

    #[track_caller]
    fn check(case: Case, expected: &[&str]) {
        let names = names(&case).unwrap().names;
        assert_eq!(names.iter().map(DomainName::as_str).collect::<Vec<_>>(), expected);
    }

    #[track_caller]
    fn check_links(case: Case, expected: &[(&str, &str)]) {
        let links = names(&case).unwrap().links;
        let links: Vec<_> = links.iter().map(|link| (link.target.as_str(), link.alias.as_str())).collect();
        assert_eq!(links, expected);
    }

    #[track_caller]
    fn check_error(case: Case, msg: &str) {
        let error = names(&case).unwrap_err();
        assert_eq!((error.code(), error.msg()), (cni_types::ErrorCode::INVALID_CONFIG, msg));
    }

    #[test]
    fn name_then_aliases_then_short_id_then_other_names() {
        check(
            Case {
                env_args: "CONTAINER_NAME=centos-1;ALIASES=env-1, env-2;NERDCTL_CNI_DHCP_HOSTNAME=host-1",
                conf_args: json!({"aliases": ["conf-1"]}),
                runtime_config: json!({"aliases": ["web"], "containerName": "other"}),
                annotations: json!({"alias-dns.cni/aliases": "pod-1,pod-2"}),
                ..Case::default()
            },
            &[
                "centos-1",
                "web",
                "conf-1",
                "env-1",
                "env-2",
                "pod-1",
                "pod-2",
                "9c0c1adead2a",
                "host-1",
                "other",
            ],
        );
    }

    #[test]
    fn podman_sends_the_name_as_a_pods_and_aliases_by_network() {
        check(
            Case {
                env_args: "IgnoreUnknown=1;K8S_POD_NAME=c1;MAC=92:d0:c6:0a:29:33",
                runtime_config: json!({"aliases": {"testnet": ["centos-1", "9c0c1adead2a"], "other": ["x"]}}),
                ..Case::default()
            },
            &["c1", "centos-1", "9c0c1adead2a"],
        );
    }

    #[test]
    fn a_pod_is_also_found_within_its_namespace() {
        check(
            Case {
                env_args: "K8S_POD_UID=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;IgnoreUnknown=1",
                ..Case::default()
            },
            &["web-1", "9c0c1adead2a", "web-1.default"],
        );
    }

    #[test]
    fn null_and_empty_lists_are_no_names() {
        for aliases in [json!(null), json!([]), json!({}), json!({"testnet": null}), json!("")] {
            let runtime_config = json!({"aliases": aliases, "links": aliases, "containerName": null});
            check(Case { runtime_config, ..Case::default() }, &["9c0c1adead2a"]);
        }
    }

    #[test]
    fn the_same_name_is_one_whatever_its_case() {
        let runtime_config = json!({"Aliases": ["WEB", "web", "C1"]});
        check(
            Case { env_args: "CONTAINER_NAME=c1", runtime_config, ..Case::default() },
            &["c1", "WEB", "9c0c1adead2a"],
        );
    }

    #[test]
    fn short_ids_are_found_behind_the_runtimes_prefixes() {
        for (container_id, short) in [
            ("cnitool-f25129611a9ba90578c9", "f25129611a9b"),
            ("k8s.io-9c0c1adead2aa0463bf097c962cd438705907395a9cbeab2c25c163f0324da2a", "9c0c1adead2a"),
            ("default-t1", "default-t1"),
            ("c1", "c1"),
        ] {
            check(Case { container_id, ..Case::default() }, &[short]);
        }
        check(Case { container_id: "a..b", ..Case::default() }, &[]);
        // With the domain, one character more than fits into a message.
        let long = ["a".repeat(61), "b".repeat(61), "c".repeat(61), "d".repeat(60)].join(".");
        check(Case { container_id: Box::leak(long.into_boxed_str()), ..Case::default() }, &[]);
    }

    #[test]
    fn links_have_a_target_and_an_alias() {
        check_links(
            Case {
                env_args: "LINKS=n1:lnk,db:db",
                runtime_config: json!({"links": {"testnet": ["mysql:db"]}}),
                conf_args: json!({"links": ["a.b:c"]}),
                ..Case::default()
            },
            &[("mysql", "db"), ("a.b", "c"), ("n1", "lnk"), ("db", "db")],
        );
    }

    #[test]
    fn a_wrong_name_is_named_with_its_key() {
        let wrong = |text: &str| {
            format!("\"{text}\" is not a DNS name: ' ' is none of letters, digits, '-', '_' and '.'")
        };
        check_error(
            Case { runtime_config: json!({"aliases": ["ok", "a b"]}), ..Case::default() },
            &format!("runtimeConfig.aliases[1]: {}", wrong("a b")),
        );
        check_error(
            Case { runtime_config: json!({"aliases": {"testnet": ["a b"]}}), ..Case::default() },
            &format!("runtimeConfig.aliases.testnet[0]: {}", wrong("a b")),
        );
        check_error(
            Case { conf_args: json!({"links": ["x:a b"]}), ..Case::default() },
            &format!("args.cni.links[0]: {}", wrong("a b")),
        );
        check_error(
            Case { env_args: "ALIASES=a b", ..Case::default() },
            &format!("CNI_ARGS: ALIASES: {}", wrong("a b")),
        );
        check_error(
            Case { runtime_config: json!({"links": ["a:b", "mysql"]}), ..Case::default() },
            "runtimeConfig.links[1]: \"mysql\" is not a link: target:alias",
        );
        check_error(
            Case { runtime_config: json!({"links": ["mysql:"]}), ..Case::default() },
            "runtimeConfig.links[0]: \"\" is not a DNS name: it has an empty label",
        );
    }

    #[test]
    fn a_name_that_the_runtime_made_up_is_passed_over_when_it_is_none() {
        check(Case { env_args: "K8S_POD_NAME=a b;ALIASES=web", ..Case::default() }, &["web", "9c0c1adead2a"]);
        let container_id = "9c0c1adead2a";
        let long = Box::leak(format!("K8S_POD_NAME={}", "a".repeat(64)).into_boxed_str());
        check(Case { env_args: long, container_id, ..Case::default() }, &["9c0c1adead2a"]);
    }

    #[test]
    fn a_list_of_another_shape_is_an_error_with_its_path() {
        for (runtime_config, path) in [
            (json!({"aliases": 1}), "aliases"),
            (json!({"aliases": ["a", 1]}), "aliases[1]"),
            (json!({"aliases": {"testnet": [1]}}), "aliases.testnet[0]"),
        ] {
            let error = names(&Case { runtime_config, ..Case::default() }).unwrap_err();
            assert!(error.msg().starts_with(&format!("{path}: invalid type: integer `1`")), "{error}");
        }
    }
}
