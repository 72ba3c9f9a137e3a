//! Objects and rule words as netlink attributes, and back: the one place that knows their layout.
//!
//! What `netlink-packet-netfilter` has types for goes through them; `masq`, `redir` and `ct` are written here. Text in
//! user data follows libnftnl: type, length, bytes, NUL.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NlasIterator,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook as HookAttribute, HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup as LookupAttribute,
    Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, SetAttribute,
    SetElementAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage, Verdict as VerdictCode, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use crate::object::{End, Holds};
use crate::{Base, Chain, ChainKind, Element, Family, FoundRule, Hook, KeyType, Policy, Rule, Set, Verdict};

/// Longest text of a comment in bytes: user data of rules and elements ends at 256, of which three are its frame.
const MAX_COMMENT: usize = 253;

const UDATA_COMMENT: u8 = 0;
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const UDATA_SET_COMMENT: u8 = 7;
const BYTE_ORDER_HOST: u32 = 1;
const BYTE_ORDER_BIG: u32 = 2;

const DATA_VERDICT: u32 = 0xffff_ff00;
const LOOKUP_INVERTED: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const REDIR_REG_PROTO_MIN: u16 = 1;
const BATCH_GENID: u16 = 1;

// Words of rules.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetaField {
    EtherType,
    Nfproto,
    L4Proto,
    PacketType,
    Iifname,
    Oifname,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Link,
    Network,
    Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CtField {
    State,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    Present,
    Absent,
    Verdict,
}

/// The register at `offset` bytes into the joined key. The kernel names the sixteen-byte registers where it can, so
/// the same choice here lets rules be compared.
fn register(offset: u32) -> Register {
    const SIXTEEN_BYTES: u32 = 16;
    const FIRST_FOUR_BYTE_REGISTER: u32 = 8;
    if offset.is_multiple_of(SIXTEEN_BYTES) {
        Register::from(1 + offset / SIXTEEN_BYTES)
    } else {
        Register::from(FIRST_FOUR_BYTE_REGISTER + offset / 4)
    }
}

pub(crate) fn meta(field: MetaField, offset: u32) -> Expressions {
    let key = match field {
        MetaField::EtherType => MetaKey::EtherTypeProtocol,
        MetaField::Nfproto => MetaKey::Nfproto,
        MetaField::L4Proto => MetaKey::L4Proto,
        MetaField::PacketType => MetaKey::PacketType,
        MetaField::Iifname => MetaKey::Iifname,
        MetaField::Oifname => MetaKey::Oifname,
    };
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(register(offset))])
}

pub(crate) fn payload(header: Header, at: u32, len: u32, offset: u32) -> Expressions {
    let base = match header {
        Header::Link => 0,
        Header::Network => 1,
        Header::Transport => 2,
    };
    Expressions::Payload(vec![
        Payload::DestinationRegister(register(offset)),
        Payload::Base(base),
        Payload::Offset(at),
        Payload::Len(len),
    ])
}

pub(crate) fn ct(field: CtField) -> Expressions {
    let key: u32 = match field {
        CtField::State => 0,
        CtField::Status => 2,
    };
    Expressions::Other {
        expression_type: "ct".to_owned(),
        attributes: vec![
            DefaultNla::new(CT_KEY, key.to_be_bytes().to_vec()),
            DefaultNla::new(CT_DREG, u32::from(Register::Reg1).to_be_bytes().to_vec()),
        ],
    }
}

pub(crate) fn mask(mask: &[u8]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ])
}

pub(crate) fn equals(value: &[u8]) -> Expressions {
    compare(Operator::Equal, value)
}

pub(crate) fn differs(value: &[u8]) -> Expressions {
    compare(Operator::NotEqual, value)
}

fn compare(operator: Operator, value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

pub(crate) fn lookup(set: &str, lookup: Lookup) -> Expressions {
    let mut attributes =
        vec![LookupAttribute::Set(set.to_owned()), LookupAttribute::SourceRegister(Register::Reg1)];
    match lookup {
        Lookup::Present => {}
        Lookup::Absent => attributes.push(LookupAttribute::Flags(LOOKUP_INVERTED)),
        Lookup::Verdict => attributes.push(LookupAttribute::DestinationRegister(Register::Verdict)),
    }
    Expressions::Lookup(attributes)
}

pub(crate) fn immediate(value: &[u8]) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(value.to_vec())),
    ])
}

pub(crate) fn verdict(verdict: &Verdict) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict_attributes(verdict))),
    ])
}

pub(crate) fn masquerade() -> Expressions {
    Expressions::Other { expression_type: "masq".to_owned(), attributes: Vec::new() }
}

pub(crate) fn redirect() -> Expressions {
    let port = u32::from(Register::Reg1).to_be_bytes().to_vec();
    Expressions::Other {
        expression_type: "redir".to_owned(),
        attributes: vec![DefaultNla::new(REDIR_REG_PROTO_MIN, port)],
    }
}

/// Whether `found`, as the kernel shows it, has every attribute of `wanted`. It shows more than was sent: flags that
/// are zero, defaults.
pub(crate) fn includes(found: &Expressions, wanted: &Expressions) -> bool {
    fn attributes(expression: &Expressions) -> Vec<(u16, Vec<u8>)> {
        let mut bytes = vec![0; expression.buffer_len()];
        expression.emit(&mut bytes);
        NlasIterator::new(bytes.as_slice())
            .filter_map(Result::ok)
            .map(|attribute| (attribute.kind(), attribute.value().to_vec()))
            .collect()
    }
    let found_attributes = attributes(found);
    expression_name(found) == expression_name(wanted)
        && attributes(wanted).iter().all(|attribute| found_attributes.contains(attribute))
        && inverts(found) == inverts(wanted)
}

/// An inverted lookup has every attribute of the plain one.
fn inverts(expression: &Expressions) -> bool {
    matches!(expression, Expressions::Lookup(attributes)
        if attributes.contains(&LookupAttribute::Flags(LOOKUP_INVERTED)))
}

fn expression_name(expression: &Expressions) -> &str {
    match expression {
        Expressions::Bitwise(_) => "bitwise",
        Expressions::Cmp(_) => "cmp",
        Expressions::Immediate(_) => "immediate",
        Expressions::Lookup(_) => "lookup",
        Expressions::Meta(_) => "meta",
        Expressions::Payload(_) => "payload",
        Expressions::Other { expression_type, .. } => expression_type,
        _ => "",
    }
}

/// The chain that an expression jumps or goes to.
pub(crate) fn target(expression: &Expressions) -> Option<&str> {
    let Expressions::Immediate(attributes) = expression else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        Immediate::Data(DataAttribute::Verdict(verdict)) => verdict.iter().find_map(|part| match part {
            VerdictAttribute::Chain(chain) => Some(chain.as_str()),
            _ => None,
        }),
        _ => None,
    })
}

/// The verdict that an expression is.
pub(crate) fn verdict_of(expression: &Expressions) -> Option<Verdict> {
    let Expressions::Immediate(attributes) = expression else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        Immediate::Data(DataAttribute::Verdict(parts)) => Some(decode_verdict(parts)),
        _ => None,
    })
}

/// What an expression does to every packet, when that is the end of it.
pub(crate) fn end_of(expression: &Expressions) -> Option<End> {
    match verdict_of(expression) {
        Some(Verdict::Drop) => Some(End::Drop),
        None if expression_name(expression) == "reject" => Some(End::Reject),
        _ => None,
    }
}

/// Whether an expression neither tests nor decides anything.
pub(crate) fn only_counts(expression: &Expressions) -> bool {
    matches!(expression_name(expression), "counter" | "log")
}

/// Whether two expressions together test that the packet's interface is `link`, or starts like it.
pub(crate) fn tests_link(load: &Expressions, compare: &Expressions, link: &str) -> bool {
    let (Expressions::Meta(load), Expressions::Cmp(compare)) = (load, compare) else { return false };
    let loads_name = [MetaKey::Iifname, MetaKey::Oifname].iter().any(|key| load.contains(&Meta::Key(*key)));
    loads_name
        && compare.contains(&Cmp::Op(Operator::Equal))
        && compare.iter().any(|attribute| match attribute {
            // A name in full ends with a NUL; without one it is the start of a name.
            Cmp::Data(DataAttribute::Value(value)) => match value.iter().position(|byte| *byte == 0) {
                Some(end) => &value[..end] == link.as_bytes(),
                None => link.as_bytes().starts_with(value),
            },
            _ => false,
        })
}

fn verdict_attributes(verdict: &Verdict) -> Vec<VerdictAttribute> {
    let (code, chain) = match verdict {
        Verdict::Accept => (VerdictCode::Other(NF_ACCEPT), None),
        Verdict::Drop => (VerdictCode::Other(NF_DROP), None),
        Verdict::Return => (VerdictCode::Return, None),
        Verdict::Continue => (VerdictCode::Continue, None),
        Verdict::Jump(chain) => (VerdictCode::Jump, Some(chain)),
        Verdict::Goto(chain) => (VerdictCode::Goto, Some(chain)),
        Verdict::Other(code) => (VerdictCode::from(*code), None),
    };
    let mut attributes = vec![VerdictAttribute::Code(code)];
    attributes.extend(chain.cloned().map(VerdictAttribute::Chain));
    attributes
}

fn decode_verdict(parts: &[VerdictAttribute]) -> Verdict {
    let mut code = VerdictCode::Continue;
    let mut chain = String::new();
    for part in parts {
        match part {
            VerdictAttribute::Code(value) => code = *value,
            VerdictAttribute::Chain(name) => chain.clone_from(name),
            _ => {}
        }
    }
    match code {
        VerdictCode::Jump => Verdict::Jump(chain),
        VerdictCode::Goto => Verdict::Goto(chain),
        VerdictCode::Return => Verdict::Return,
        VerdictCode::Continue => Verdict::Continue,
        other => match u32::from(other) {
            NF_ACCEPT => Verdict::Accept,
            NF_DROP => Verdict::Drop,
            number => Verdict::Other(number),
        },
    }
}

// Messages.

/// Appends one message to `buffer`.
pub(crate) fn append(
    buffer: &mut Vec<u8>,
    family: Option<Family>,
    message: impl Into<NetfilterMessageInner>,
    flags: u16,
    sequence: u32,
) {
    const NFNETLINK_V0: u8 = 0;
    // Only the marks of a batch carry the subsystem here; for other messages it is part of their type.
    let message = message.into();
    let resource =
        if matches!(message, NetfilterMessageInner::None(_)) { libc::NFNL_SUBSYS_NFTABLES as u16 } else { 0 };
    let family = family.map_or(NetfilterProtoFamily::Unspec, proto_family);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(
        header,
        NetfilterMessage::new(NetfilterHeader::new(family, NFNETLINK_V0, resource), message).into(),
    );
    packet.finalize();
    let start = buffer.len();
    buffer.resize(start + packet.buffer_len(), 0);
    packet.serialize(&mut buffer[start..]);
}

fn proto_family(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::Inet => NetfilterProtoFamily::Inet,
        Family::Ipv4 => NetfilterProtoFamily::IPv4,
        Family::Ipv6 => NetfilterProtoFamily::IPv6,
        Family::Bridge => NetfilterProtoFamily::Bridge,
        Family::Arp => NetfilterProtoFamily::ARP,
        Family::Netdev => NetfilterProtoFamily::NetDev,
    }
}

fn decode_family(family: NetfilterProtoFamily) -> Option<Family> {
    match family {
        NetfilterProtoFamily::Inet => Some(Family::Inet),
        NetfilterProtoFamily::IPv4 => Some(Family::Ipv4),
        NetfilterProtoFamily::IPv6 => Some(Family::Ipv6),
        NetfilterProtoFamily::Bridge => Some(Family::Bridge),
        NetfilterProtoFamily::ARP => Some(Family::Arp),
        NetfilterProtoFamily::NetDev => Some(Family::Netdev),
        _ => None,
    }
}

/// The mark that opens a batch; with a generation, the kernel refuses the batch when the ruleset has changed since.
pub(crate) fn batch_begin(generation: Option<u32>) -> ControlMessage {
    match generation {
        None => ControlMessage::BatchBegin,
        Some(id) => ControlMessage::Other {
            message_type: libc::NFNL_MSG_BATCH_BEGIN as u8,
            attributes: vec![DefaultNla::new(BATCH_GENID, id.to_be_bytes().to_vec())],
        },
    }
}

pub(crate) fn table(name: &str, comment: Option<&str>) -> TableMessage {
    let mut attributes = vec![TableAttribute::Name(name.to_owned())];
    attributes.extend(comment.map(|text| TableAttribute::UserData(user_text(UDATA_COMMENT, text))));
    TableMessage { attributes }
}

pub(crate) fn chain(table: &str, name: &str, base: Option<&Base>, comment: Option<&str>) -> ChainMessage {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(name.to_owned())];
    if let Some(base) = base {
        let hook = match base.hook {
            Hook::Prerouting => InetHookNumber::PreRouting,
            Hook::Input => InetHookNumber::LocalIn,
            Hook::Forward => InetHookNumber::Forward,
            Hook::Output => InetHookNumber::LocalOut,
            Hook::Postrouting => InetHookNumber::PostRouting,
            Hook::Other(number) => InetHookNumber::Other(number),
        };
        let kind = match &base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Other(name) => name,
        };
        let policy = match base.policy {
            Policy::Accept => NF_ACCEPT,
            Policy::Drop => NF_DROP,
        };
        attributes.push(ChainAttribute::Hook(vec![
            HookAttribute::Number(HookNumber::Inet(hook)),
            HookAttribute::Priority(base.priority.cast_unsigned()),
        ]));
        attributes.push(ChainAttribute::Policy(policy));
        attributes.push(ChainAttribute::Type(kind.to_owned()));
    }
    attributes.extend(comment.map(|text| ChainAttribute::UserData(user_text(UDATA_COMMENT, text))));
    ChainMessage { attributes }
}

pub(crate) fn rule(table: &str, chain: &str, rule: &Rule) -> RuleMessage {
    let expressions = rule.expressions.iter().cloned().map(ListAttribute::from).collect();
    let mut attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions),
    ];
    attributes
        .extend(rule.comment.as_deref().map(|text| RuleAttribute::UserData(user_text(UDATA_COMMENT, text))));
    RuleMessage { attributes }
}

/// All rules of a chain, or (with a handle) one of them.
pub(crate) fn rule_reference(table: &str, chain: &str, handle: Option<u64>) -> RuleMessage {
    let mut attributes = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    attributes.extend(handle.map(RuleAttribute::Handle));
    RuleMessage { attributes }
}

pub(crate) fn set(table: &str, set: &Set<'_>, id: u32, comment: Option<&str>) -> SetMessage {
    /// Bits that `nft` has for each part's type in the number of a joined type.
    const TYPE_BITS: u32 = 6;
    let number = set.key.iter().fold(0, |number, part| number << TYPE_BITS | part.number());
    let len: usize = set.key.iter().map(|part| part.len().next_multiple_of(4)).sum();
    // A single part is not padded.
    let len = if let [part] = set.key { part.len() } else { len };
    let mut flags = SetFlags::empty();
    flags.set(SetFlags::Map, set.holds == Holds::Verdicts);
    let byte_order = if set.key == [KeyType::Ifname] { BYTE_ORDER_HOST } else { BYTE_ORDER_BIG };
    let mut user_data = vec![UDATA_SET_KEY_BYTE_ORDER, 4];
    user_data.extend(byte_order.to_ne_bytes());
    user_data.extend(comment.map(|text| user_text(UDATA_SET_COMMENT, text)).unwrap_or_default());
    let mut attributes = vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(set.name.to_owned()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(number),
        SetAttribute::KeyLen(len as u32),
        SetAttribute::Id(id),
        SetAttribute::UserData(user_data),
    ];
    if set.holds == Holds::Verdicts {
        attributes.push(SetAttribute::DataType(DATA_VERDICT));
    }
    SetMessage { attributes }
}

/// A set by its name.
pub(crate) fn set_reference(table: &str, set: &str) -> SetMessage {
    SetMessage { attributes: vec![SetAttribute::Table(table.to_owned()), SetAttribute::Name(set.to_owned())] }
}

pub(crate) fn elements(table: &str, set: &str, elements: &[Element]) -> SetElementMessage {
    let mut attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
    if !elements.is_empty() {
        attributes.push(SetElementList::Elements(elements.iter().map(element).collect()));
    }
    SetElementMessage { attributes }
}

fn element(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
    if let Some(verdict) = &element.verdict {
        attributes.push(SetElementAttribute::Data(DataAttribute::Verdict(verdict_attributes(verdict))));
    }
    if let Some(text) = &element.comment {
        attributes.push(SetElementAttribute::UserData(user_text(UDATA_COMMENT, text)));
    }
    ListAttribute::Element(attributes)
}

// Reading back.

/// What the kernel said, as far as this crate asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Generation(u32),
    Table {
        uses: u32,
    },
    Chain(Chain),
    Rule(FoundRule),
    Elements(Vec<Element>),
    /// Something that nobody asked for.
    Unknown,
}

pub(crate) fn decode(message: NetfilterMessage) -> Object {
    let NetfilterMessageInner::NfTables(inner) = message.inner else { return Object::Unknown };
    match inner {
        NfTablesMessage::NewGen(message) => generation(&message.attributes),
        NfTablesMessage::NewTable(message) => Object::Table {
            uses: message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    TableAttribute::Use(uses) => Some(*uses),
                    _ => None,
                })
                .unwrap_or_default(),
        },
        NfTablesMessage::NewChain(chain) => {
            Object::Chain(decode_chain(decode_family(message.header.family), chain.attributes))
        }
        NfTablesMessage::NewRule(rule) => Object::Rule(decode_rule(rule.attributes)),
        NfTablesMessage::NewSetElement(list) => Object::Elements(
            list.attributes
                .into_iter()
                .filter_map(|attribute| match attribute {
                    SetElementList::Elements(elements) => Some(elements),
                    _ => None,
                })
                .flatten()
                .filter_map(|element| match element {
                    ListAttribute::Element(attributes) => Some(decode_element(attributes)),
                    _ => None,
                })
                .collect(),
        ),
        _ => Object::Unknown,
    }
}

fn generation(attributes: &[netlink_packet_netfilter::nftables::GenAttribute]) -> Object {
    attributes
        .iter()
        .find_map(|attribute| match attribute {
            netlink_packet_netfilter::nftables::GenAttribute::Id(id) => Some(Object::Generation(*id)),
            _ => None,
        })
        .unwrap_or(Object::Unknown)
}

fn decode_chain(family: Option<Family>, attributes: Vec<ChainAttribute>) -> Chain {
    let mut chain = Chain { family, table: String::new(), name: String::new(), base: None, uses: 0 };
    let mut hook = None;
    let mut priority = 0;
    let mut policy = Policy::Accept;
    let mut kind = ChainKind::Filter;
    for attribute in attributes {
        match attribute {
            ChainAttribute::Table(name) => chain.table = name,
            ChainAttribute::Name(name) => chain.name = name,
            ChainAttribute::Use(uses) => chain.uses = uses,
            ChainAttribute::Policy(NF_DROP) => policy = Policy::Drop,
            ChainAttribute::Type(name) => {
                kind = match name.as_str() {
                    "filter" => ChainKind::Filter,
                    "nat" => ChainKind::Nat,
                    _ => ChainKind::Other(name),
                }
            }
            ChainAttribute::Hook(parts) => {
                for part in parts {
                    match part {
                        HookAttribute::Number(number) => hook = Some(decode_hook(number)),
                        HookAttribute::Priority(value) => priority = value.cast_signed(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    chain.base = hook.map(|hook| Base { kind, hook, priority, policy });
    chain
}

fn decode_hook(number: HookNumber) -> Hook {
    match number {
        HookNumber::Inet(InetHookNumber::PreRouting) => Hook::Prerouting,
        HookNumber::Inet(InetHookNumber::LocalIn) => Hook::Input,
        HookNumber::Inet(InetHookNumber::Forward) => Hook::Forward,
        HookNumber::Inet(InetHookNumber::LocalOut) => Hook::Output,
        HookNumber::Inet(InetHookNumber::PostRouting) => Hook::Postrouting,
        other => Hook::Other(other.into()),
    }
}

fn decode_rule(attributes: Vec<RuleAttribute>) -> FoundRule {
    let mut found = FoundRule { handle: 0, comment: None, rule: Rule::new() };
    for attribute in attributes {
        match attribute {
            RuleAttribute::Handle(handle) => found.handle = handle,
            RuleAttribute::UserData(bytes) => found.comment = text_of(UDATA_COMMENT, &bytes),
            RuleAttribute::Expressions(expressions) => {
                found.rule.expressions = expressions.into_iter().filter_map(decode_expression).collect();
            }
            _ => {}
        }
    }
    found
}

fn decode_expression(attribute: ListAttribute<ExpressionAttribute>) -> Option<Expressions> {
    let ListAttribute::Element(parts) = attribute else { return None };
    let mut name = None;
    for part in parts {
        match part {
            ExpressionAttribute::Name(text) => name = Some(text),
            ExpressionAttribute::Data(expression) => return Some(expression),
            _ => {}
        }
    }
    // An expression without settings, such as a plain `masq`, can come without data.
    name.map(|expression_type| Expressions::Other { expression_type, attributes: Vec::new() })
}

fn decode_element(attributes: Vec<SetElementAttribute>) -> Element {
    let mut element = Element::new(Vec::new());
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(key)) => element.key = key,
            SetElementAttribute::Data(DataAttribute::Verdict(parts)) => {
                element.verdict = Some(decode_verdict(&parts));
            }
            SetElementAttribute::UserData(bytes) => element.comment = text_of(UDATA_COMMENT, &bytes),
            _ => {}
        }
    }
    element
}

// User data.

fn user_text(kind: u8, text: &str) -> Vec<u8> {
    let text = &text[..text.floor_char_boundary(MAX_COMMENT)];
    let mut bytes = vec![kind, text.len() as u8 + 1];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

fn text_of(kind: u8, mut bytes: &[u8]) -> Option<String> {
    while let [found, len, rest @ ..] = bytes {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *found == kind {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = rest;
    }
    None
}

/// The object that a message of a batch was about, in `nft`'s words, for an error's text.
pub(crate) fn describe(message: &NetfilterMessage) -> String {
    let family = decode_family(message.header.family).map_or("", Family::name);
    let NetfilterMessageInner::NfTables(inner) = &message.inner else { return "transaction".to_owned() };
    let (verb, object, names) = match inner {
        NfTablesMessage::NewTable(message) => ("create", "table", table_names(&message.attributes)),
        NfTablesMessage::DeleteTable(message) => ("delete", "table", table_names(&message.attributes)),
        NfTablesMessage::GetTable(message) => ("read", "table", table_names(&message.attributes)),
        NfTablesMessage::NewChain(message) => ("create", "chain", chain_names(&message.attributes)),
        NfTablesMessage::DeleteChain(message) => ("delete", "chain", chain_names(&message.attributes)),
        NfTablesMessage::GetChain(message) => ("read", "chain", chain_names(&message.attributes)),
        NfTablesMessage::NewRule(message) => ("add a rule to", "chain", rule_names(&message.attributes)),
        NfTablesMessage::DeleteRule(message) => ("delete rules of", "chain", rule_names(&message.attributes)),
        NfTablesMessage::GetRule(message) => ("read rules of", "chain", rule_names(&message.attributes)),
        NfTablesMessage::NewSet(message) => ("create", "set", set_names(&message.attributes)),
        NfTablesMessage::DeleteSet(message) => ("delete", "set", set_names(&message.attributes)),
        NfTablesMessage::NewSetElement(message) => ("add to", "set", element_names(&message.attributes)),
        NfTablesMessage::DeleteSetElement(message) => {
            ("delete from", "set", element_names(&message.attributes))
        }
        NfTablesMessage::GetSet(message) => ("read", "set", set_names(&message.attributes)),
        NfTablesMessage::GetSetElement(message) => ("read", "set", element_names(&message.attributes)),
        _ => ("read", "ruleset", String::new()),
    };
    [verb, object, family, names.as_str()]
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn table_names(attributes: &[TableAttribute]) -> String {
    join(attributes.iter().filter_map(|attribute| match attribute {
        TableAttribute::Name(name) => Some(name.as_str()),
        _ => None,
    }))
}

fn chain_names(attributes: &[ChainAttribute]) -> String {
    join(attributes.iter().filter_map(|attribute| match attribute {
        ChainAttribute::Table(name) | ChainAttribute::Name(name) => Some(name.as_str()),
        _ => None,
    }))
}

fn rule_names(attributes: &[RuleAttribute]) -> String {
    join(attributes.iter().filter_map(|attribute| match attribute {
        RuleAttribute::Table(name) | RuleAttribute::Chain(name) => Some(name.as_str()),
        _ => None,
    }))
}

fn set_names(attributes: &[SetAttribute]) -> String {
    join(attributes.iter().filter_map(|attribute| match attribute {
        SetAttribute::Table(name) | SetAttribute::Name(name) => Some(name.as_str()),
        _ => None,
    }))
}

fn element_names(attributes: &[SetElementList]) -> String {
    join(attributes.iter().filter_map(|attribute| match attribute {
        SetElementList::Table(name) | SetElementList::Set(name) => Some(name.as_str()),
        _ => None,
    }))
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(" ")
}

/// Reads one netlink message of this subsystem.
pub(crate) fn parse(bytes: &[u8]) -> Result<NetlinkMessage<NetfilterMessage>, DecodeError> {
    NetlinkMessage::deserialize(bytes)
}

// The crate's own attribute types set the flag themselves; it is named here so that a change of theirs is noticed.
const _: () = assert!(NLA_F_NESTED == 1 << 15);
