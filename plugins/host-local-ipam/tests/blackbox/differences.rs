//! Random calls to ours and to the reference, each on a directory of its own: same answers, same files.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::calls::{Network, ours, reference};

#[derive(Debug, Clone)]
enum Call {
    Add { id: u8, requested: Option<u8> },
    Del { id: u8 },
    Check { id: u8 },
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let id = 0u8..8;
    let call = prop_oneof![
        5 => (id.clone(), prop::option::weighted(0.2, 0u8..24))
            .prop_map(|(id, requested)| Call::Add { id, requested }),
        4 => id.clone().prop_map(|id| Call::Del { id }),
        1 => id.prop_map(|id| Call::Check { id }),
    ];
    prop::collection::vec(call, 5..40)
}

fn keys() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({"subnet": "10.8.0.0/29"}),
        json!({"subnet": "10.8.0.0/28", "rangeStart": "10.8.0.3", "rangeEnd": "10.8.0.6", "gateway": "10.8.0.5"}),
        json!({"ranges": [[{"subnet": "10.8.0.0/30"}, {"subnet": "10.8.0.8/29"}]]}),
        json!({"ranges": [
            [{"subnet": "10.8.0.0/28", "rangeStart": "10.8.0.10", "rangeEnd": "10.8.0.12"},
             {"subnet": "10.8.0.0/28", "rangeStart": "10.8.0.2", "rangeEnd": "10.8.0.4"}],
            [{"subnet": "fd00:8::/125"}],
        ]}),
    ])
}

/// The reference makes a lock for a DEL before the first ADD; we make nothing.
fn leases_and_cursors(network: &Network) -> BTreeMap<String, Vec<u8>> {
    network.files().into_iter().filter(|(name, _)| name != "lock").collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// What differs on purpose is left out: a second ADD of an attachment that asks for an address, which the reference
    /// serves, and a failed ADD's releases and cursors, by which the reference loses the leases of others.
    #[test]
    fn answers_and_files_are_the_same(keys in keys(), calls in calls()) {
        let (mine, theirs) = (Network::with(keys.clone()), Network::with(keys));
        let reference = reference();
        for call in calls {
            let (verb, id, args) = match &call {
                Call::Add { id, requested } => {
                    let args = requested.map(|low| format!("IP=10.8.0.{low}")).unwrap_or_default();
                    ("ADD", format!("c{id}"), args)
                }
                Call::Del { id } => ("DEL", format!("c{id}"), String::new()),
                Call::Check { id } => ("CHECK", format!("c{id}"), String::new()),
            };
            let held = mine.leases().into_values().any(|content| content == format!("{id}\r\neth0"));
            if verb == "ADD" && held && !args.is_empty() {
                continue;
            }
            let ask = |network: &Network, program| {
                let output = network.command(program, verb, &id).env("CNI_ARGS", &args).output().unwrap();
                (output.status.success(), String::from_utf8(output.stdout).unwrap())
            };
            let before = leases_and_cursors(&mine);
            let (mine_answer, theirs_answer) = (ask(&mine, ours()), ask(&theirs, &reference));
            prop_assert_eq!(mine_answer.0, theirs_answer.0, "{:?}: {} | {}", call, mine_answer.1, theirs_answer.1);
            if mine_answer.0 {
                prop_assert_eq!(mine_answer.1, theirs_answer.1, "{:?}", call);
                prop_assert_eq!(leases_and_cursors(&mine), leases_and_cursors(&theirs), "{:?}", call);
            } else {
                let msg = |text: &str| serde_json::from_str::<Value>(text).unwrap()["msg"].clone();
                prop_assert_eq!(msg(&mine_answer.1), msg(&theirs_answer.1), "{:?}", call);
                prop_assert_eq!(leases_and_cursors(&mine), before, "{:?}", call);
                if leases_and_cursors(&theirs) != leases_and_cursors(&mine) {
                    return Ok(());
                }
            }
        }
    }
}
