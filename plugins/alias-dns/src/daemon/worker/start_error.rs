//! What keeps a worker from serving.

use std::io::Error;

/// How a start ended that did not lead to serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Another server has the lock.
    #[error("another server is running")]
    Held,
    /// It could not get what it needs.
    #[error("{0}: {1}")]
    Io(String, Error),
}

pub(super) fn io(what: impl std::fmt::Display) -> impl FnOnce(Error) -> StartError {
    move |error| StartError::Io(what.to_string(), error)
}
