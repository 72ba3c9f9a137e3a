//! The verbs of the protocol, and what each of them needs, as one table.

use crate::SpecVersion;

/// What the runtime asks for (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to a network.
    Add,
    /// Compare an attachment with what ADD made.
    Check,
    /// Detach a container.
    Del,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Tell whether ADD could be served.
    Status,
    /// List the spec versions spoken.
    Version,
}

/// What a verb needs from its caller.
pub(crate) struct Needs {
    /// `CNI_CONTAINERID`, `CNI_IFNAME`
    pub(crate) attachment: bool,
    /// `CNI_NETNS`
    pub(crate) netns: bool,
    /// `CNI_PATH`, and a configuration on stdin
    pub(crate) network: bool,
    /// The first spec version that has the verb.
    pub(crate) since: SpecVersion,
}

impl Command {
    /// As written in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The verb spelled exactly `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Check, Self::Del, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|command| command.as_str() == text)
    }

    pub(crate) const fn needs(self) -> Needs {
        use SpecVersion as V;
        let (attachment, netns, network, since) = match self {
            Self::Add => (true, true, true, V::V0_1_0),
            Self::Check => (true, true, true, V::V0_4_0),
            Self::Del => (true, false, true, V::V0_1_0),
            Self::Gc | Self::Status => (false, false, true, V::V1_1_0),
            Self::Version => (false, false, false, V::V0_1_0),
        };
        Needs { attachment, netns, network, since }
    }
}
