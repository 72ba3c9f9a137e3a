//! CHECK: compares the record with prevResult, and the server with the record.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_types::{AttachmentCall, CniResult, Error, ErrorCode};

use crate::add::container_addresses;
use crate::config::{OnError, Settings};
use crate::host::Host;
use crate::records::disk::Store;
use crate::records::{Record, RecordKey};

pub(crate) fn check(host: &impl Host, call: &AttachmentCall) -> Result<(), Error> {
    let settings = Settings::of(call)?;
    let result = call
        .conf()
        .prev_result()?
        .ok_or_else(|| Error::invalid_config("prevResult", "missing: CHECK compares with it"))?;
    match compare(host, call, &result) {
        Err(error) if settings.on_error == OnError::Warn => {
            log::warn!("network {}: {error}", call.conf().name());
            Ok(())
        }
        compared => compared,
    }
}

fn compare(host: &impl Host, call: &AttachmentCall, result: &CniResult) -> Result<(), Error> {
    let key = RecordKey::new(call.conf().name(), call.attachment().clone())?;
    let state = host.state(call.env())?;
    let record = Store::new(&state).read(&key).map_err(|unreadable| difference(&key, unreadable))?;
    log::debug!("read the record");
    let Some(record) = record else {
        return Err(Error::new(ErrorCode::UNKNOWN_CONTAINER, format!("{}: no record", described(&key))));
    };
    compare_addresses(&record, result)?;
    if host.answers(&state, &record)? {
        log::debug!("the server answers by it");
        return Ok(());
    }
    Err(difference(&key, "the server does not answer by its record"))
}

/// What prevResult says of name servers is not compared: a plugin later in the list may have put others there.
fn compare_addresses(record: &Record, result: &CniResult) -> Result<(), Error> {
    let recorded: BTreeSet<IpAddr> = record.addresses.iter().copied().collect();
    let attached: BTreeSet<IpAddr> = container_addresses(result).into_iter().collect();
    if recorded == attached {
        return Ok(());
    }
    let text = format_args!("the record has {recorded:?}, prevResult has {attached:?}");
    Err(difference(&record.key, text))
}

fn difference(key: &RecordKey, what: impl std::fmt::Display) -> Error {
    Error::internal(format_args!("{}: {what}", described(key)))
}

fn described(key: &RecordKey) -> String {
    format!("network {}, container {}, {}", key.network(), key.container_id(), key.ifname())
}
