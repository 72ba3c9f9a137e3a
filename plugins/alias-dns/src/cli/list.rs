//! `alias-dns list`: one line an attachment.

use std::io::Write;

use cni_types::by_hand::write_json;
use cni_types::table;

use super::Format;
use crate::names::SHORT_ID;
use crate::records::{Link, Record};

pub(super) fn print(records: Vec<Record>, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    match format {
        Format::Json => Ok(write_json(&records, out)?),
        Format::Text => {
            let rows: Vec<_> = records.iter().map(row).collect();
            let head = ["NETWORK", "CONTAINER", "IFNAME", "ADDRESSES", "NAMES", "LINKS"];
            Ok(out.write_all(table::columns(head, &rows).as_bytes())?)
        }
    }
}

fn row(record: &Record) -> [String; 6] {
    let key = &record.key;
    let id = key.container_id();
    // Digits say enough when cut short; a name that somebody chose does not.
    let is_hexadecimal = id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = if is_hexadecimal { id.get(..SHORT_ID).unwrap_or(id) } else { id };
    let link = |Link { target, alias }: &Link| format!("{alias}={target}");
    [
        key.network().to_owned(),
        id.to_owned(),
        key.ifname().to_owned(),
        joined(record.addresses.iter().map(ToString::to_string)),
        joined(record.names.iter().map(ToString::to_string)),
        joined(record.links.iter().map(link)),
    ]
}

fn joined(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}
