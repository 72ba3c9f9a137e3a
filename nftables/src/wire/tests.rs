//! Bytes by value; the same bytes as an independent decoder reads them; round trips and junk by property.

use std::convert::Infallible;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup as PeerLookup, Meta, MetaKey, NfTablesMessage, Operator as PeerOperator, Payload, Register,
    RuleAttribute, SetAttribute, SetElementAttribute, SetElementList, SetFlags, TableAttribute,
    Verdict as PeerVerdict, VerdictAttribute,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use proptest::prelude::*;

use super::*;
use crate::{
    Batch, CtState, Field, Generation, InSet, Interface, Packet, Table, Verdict, address_key, ifname_key,
};

const TABLE: Table<'static> = Table { family: Family::Inet, name: "t" };

/// The bytes of a batch, less its marks.
fn changes(batch: Batch) -> Vec<u8> {
    const MARK: usize = 20;
    let (bytes, _) = batch.into_bytes(1);
    bytes[MARK..bytes.len() - MARK].to_vec()
}

/// The one change of a batch as another implementation reads it.
fn as_peer_reads(batch: Batch) -> (NetfilterProtoFamily, u16, NfTablesMessage) {
    let bytes = changes(batch);
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(&bytes).unwrap();
    assert_eq!(message.header.length as usize, bytes.len(), "one message");
    let NetlinkPayload::InnerMessage(inner) = message.payload else { panic!("{:?}", message.payload) };
    let NetfilterMessageInner::NfTables(object) = inner.inner else { panic!("{:?}", inner.inner) };
    (inner.header.family, message.header.flags, object)
}

fn number(value: u16) -> [u8; 2] {
    value.to_ne_bytes()
}

#[test]
fn a_batch_is_its_changes_between_two_marks_with_the_last_one_acknowledged() {
    let mut batch = Batch::since(Generation(0x0102_0304));
    batch.delete_table(TABLE);
    batch.delete_table(Table { family: Family::Bridge, name: "u" });
    let (bytes, last) = batch.into_bytes(7);
    assert_eq!(last, 9);
    let (request, acknowledged) = (number(1), number(5));
    let wanted = [
        // struct nlmsghdr: length, type, flags, sequence, port; struct nfgenmsg: family, version, resource
        [&28_u32.to_ne_bytes()[..], &number(0x10), &request, &7_u32.to_ne_bytes(), &[0; 4], &[0, 0, 0, 10]]
            .concat(),
        [&number(8)[..], &number(1), &[1, 2, 3, 4]].concat(),
        [&28_u32.to_ne_bytes()[..], &number(0x0a02), &request, &8_u32.to_ne_bytes(), &[0; 4], &[1, 0, 0, 0]]
            .concat(),
        [&number(6)[..], &number(1), b"t\0\0\0"].concat(),
        [
            &28_u32.to_ne_bytes()[..],
            &number(0x0a02),
            &acknowledged,
            &9_u32.to_ne_bytes(),
            &[0; 4],
            &[7, 0, 0, 0],
        ]
        .concat(),
        [&number(6)[..], &number(1), b"u\0\0\0"].concat(),
        [&20_u32.to_ne_bytes()[..], &number(0x11), &request, &10_u32.to_ne_bytes(), &[0; 4], &[0, 0, 0, 10]]
            .concat(),
    ];
    assert_eq!(bytes, wanted.concat());
}

#[test]
fn a_peer_reads_a_table_with_its_comment() {
    let mut batch = Batch::new();
    batch.create_table(TABLE, "hi");
    let (family, flags, message) = as_peer_reads(batch);
    assert_eq!((family, flags), (NetfilterProtoFamily::Inet, 0x1 | 0x4 | 0x200 | 0x400));
    let NfTablesMessage::NewTable(table) = message else { panic!("{message:?}") };
    let comment = TableAttribute::UserData(vec![0, 3, b'h', b'i', 0]);
    assert_eq!(table.attributes, [TableAttribute::Name("t".into()), comment]);
}

#[test]
fn a_peer_reads_a_base_chain() {
    let mut batch = Batch::new();
    let base = Base { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: -300, policy: Policy::Drop };
    batch.create_base_chain(TABLE, "c", &base, "");
    let (_, _, message) = as_peer_reads(batch);
    let NfTablesMessage::NewChain(chain) = &message else { panic!("{message:?}") };
    assert!(chain.attributes.contains(&ChainAttribute::Type("nat".into())), "{chain:?}");
    assert!(chain.attributes.contains(&ChainAttribute::Policy(0)), "{chain:?}");
    let hook = chain.attributes.iter().find_map(|attribute| match attribute {
        ChainAttribute::Hook(hook) => Some(format!("{hook:?}")),
        _ => None,
    });
    assert_eq!(
        hook.unwrap(),
        format!("[Number(Inet(PostRouting)), Priority({})]", (-300_i32).cast_unsigned())
    );
}

#[test]
fn a_peer_reads_a_rule_word_by_word() {
    let mut batch = Batch::new();
    let rule = Rule::new().ipv4().in_set(&[Field::Ip4Saddr], "s").goto("there").comment("why");
    batch.add_rule(TABLE, "c", &rule);
    let (_, flags, message) = as_peer_reads(batch);
    assert_eq!(flags, 0x1 | 0x4 | 0x400 | 0x800);
    let step = |name: &str, data| {
        ListAttribute::Element(vec![ExpressionAttribute::Name(name.into()), ExpressionAttribute::Data(data)])
    };
    let expressions = vec![
        step(
            "meta",
            Expressions::Meta(vec![Meta::Key(MetaKey::Nfproto), Meta::DestinationRegister(Register::Reg1)]),
        ),
        step(
            "cmp",
            Expressions::Cmp(vec![
                Cmp::SourceRegister(Register::Reg1),
                Cmp::Op(PeerOperator::Equal),
                Cmp::Data(DataAttribute::Value(vec![2])),
            ]),
        ),
        step(
            "payload",
            Expressions::Payload(vec![
                Payload::DestinationRegister(Register::Reg1),
                Payload::Base(1),
                Payload::Offset(12),
                Payload::Len(4),
            ]),
        ),
        step(
            "lookup",
            Expressions::Lookup(vec![
                PeerLookup::Set("s".into()),
                PeerLookup::SourceRegister(Register::Reg1),
                PeerLookup::Flags(0),
            ]),
        ),
        step(
            "immediate",
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Verdict),
                Immediate::Data(DataAttribute::Verdict(vec![
                    VerdictAttribute::Code(PeerVerdict::Goto),
                    VerdictAttribute::Chain("there".into()),
                ])),
            ]),
        ),
    ];
    let NfTablesMessage::NewRule(rule) = message else { panic!("{message:?}") };
    let wanted = [
        RuleAttribute::Table("t".into()),
        RuleAttribute::Chain("c".into()),
        RuleAttribute::Expressions(expressions),
        RuleAttribute::UserData(vec![0, 4, b'w', b'h', b'y', 0]),
    ];
    assert_eq!(rule.attributes, wanted);
}

#[test]
fn a_peer_reads_a_verdict_map_and_its_element() {
    let mut batch = Batch::new();
    let set = Set { name: "m", key: &[KeyType::Ifname, KeyType::EtherAddr], holds: Holds::Verdicts };
    batch.create_set(TABLE, &set, "");
    let (_, _, message) = as_peer_reads(batch);
    let NfTablesMessage::NewSet(set) = &message else { panic!("{message:?}") };
    for wanted in [
        SetAttribute::Flags(SetFlags::Map),
        SetAttribute::KeyType(41 << 6 | 9),
        SetAttribute::KeyLen(24),
        SetAttribute::DataType(0xffff_ff00),
        SetAttribute::Id(1),
    ] {
        assert!(set.attributes.contains(&wanted), "{wanted:?} in {set:?}");
    }

    let mut batch = Batch::new();
    let element = Element::new(ifname_key("v")).with_verdict(Verdict::Drop).with_comment("c");
    batch.create_elements(TABLE, "m", [&element]);
    let (_, _, message) = as_peer_reads(batch);
    let NfTablesMessage::NewSetElement(list) = message else { panic!("{message:?}") };
    let attributes = vec![
        SetElementAttribute::Key(DataAttribute::Value(ifname_key("v"))),
        SetElementAttribute::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(PeerVerdict::Other(
            0,
        ))])),
        SetElementAttribute::UserData(vec![0, 2, b'c', 0]),
    ];
    let wanted = [
        SetElementList::Table("t".into()),
        SetElementList::Set("m".into()),
        SetElementList::Elements(vec![ListAttribute::Element(attributes)]),
    ];
    assert_eq!(list.attributes, wanted);
}

#[test]
fn a_refusal_names_the_object() {
    let mut batch = Batch::new();
    batch.delete_chain(Table { family: Family::Bridge, name: "t" }, "c");
    let bytes = changes(batch);
    let (header, body) = messages(&bytes).flatten().next().unwrap();
    assert_eq!(describe(header, body), "delete chain bridge t c");
}

#[test]
fn a_refusal_of_the_whole_names_the_transaction() {
    let (bytes, _) = Batch::since(Generation(1)).into_bytes(1);
    let (header, body) = messages(&bytes).flatten().next().unwrap();
    assert_eq!(describe(header, body), "transaction");
}

#[test]
fn a_long_comment_is_cut_at_a_whole_character() {
    let element = Element::new(vec![1]).with_comment(&"ä".repeat(200));
    let comment = round_trip(&[element])[0].comment.clone().unwrap();
    assert_eq!((comment.len(), comment.chars().all(|c| c == 'ä')), (250, true));
}

#[test]
fn keys_of_addresses_are_in_network_order() {
    assert_eq!(address_key("10.1.2.3".parse().unwrap()), [10, 1, 2, 3]);
    assert_eq!(address_key("fd00::1".parse().unwrap())[..2], [0xfd, 0]);
}

fn round_trip(elements: &[Element]) -> Vec<Element> {
    let mut batch = Batch::new();
    batch.create_elements(TABLE, "s", elements);
    let bytes = changes(batch);
    messages(&bytes).flatten().flat_map(|(_, body)| decode_elements(body).collect::<Vec<_>>()).collect()
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        Just(Verdict::Continue),
        "[a-z0-9./_-]{1,200}".prop_map(Verdict::Goto),
        "[a-z0-9./_-]{1,200}".prop_map(Verdict::Jump),
    ]
}

fn any_element() -> impl Strategy<Value = Element> {
    let key = prop::collection::vec(any::<u8>(), 1..40);
    (key, prop::option::of(verdicts()), prop::option::of("[^\0]{0,60}"))
        .prop_map(|(key, verdict, comment)| Element { key, verdict, comment })
}

proptest! {
    #[test]
    fn elements_survive_the_wire_however_many(elements in prop::collection::vec(any_element(), 0..250)) {
        prop_assert_eq!(round_trip(&elements), elements);
    }

    #[test]
    fn no_answer_makes_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (header, body) in messages(&bytes).flatten() {
            describe(header, body);
        }
        decode_generation(&bytes);
        decode_table(&bytes);
        decode_chain(&bytes);
        decode_error(&bytes);
        if let Some(rule) = decode_rule(&bytes) {
            let interface = Interface { name: "br0".to_owned(), index: 7 };
            let address = Some([10, 9, 0, 2].into());
            let packet = Packet {
                from: Some(&interface),
                to: Some(&interface),
                state: Some(CtState::New),
                source: address,
                destination: address,
            };
            let Ok(_) = rule.end(&packet, &mut |_, _| Ok::<_, Infallible>(InSet::No));
            rule.targets().count();
        }
        decode_elements(&bytes).count();
    }
}
