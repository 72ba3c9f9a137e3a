//! An [`Answer`] -> the octets of a response. It owns header, sections, compression and truncation; it decides nothing.

use std::net::IpAddr;

use domain::base::iana::{Class, OptRcode, Rcode};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::{Header, MessageBuilder, Name, Question, Serial, StaticCompressor, Ttl};
use domain::rdata::{A, Aaaa, Ns, Ptr, Soa};

use super::edns::{self, Edns, OPT_LEN};
use super::query::{Asked, Fault, Query};
use crate::answer::{Answer, Apex};

/// The mailbox of a zone that nobody can be written to about, nobody.invalid (RFC 6303, section 3; RFC 2606).
const MAILBOX: &[u8] = b"\x06nobody\x07invalid\0";

/// Replaces what is in `out` by the response to `query`, of at most `limit` octets. Nothing is written for an answer
/// that has to be asked for elsewhere.
pub(crate) fn answer(out: &mut Vec<u8>, query: &Query<'_>, answer: &Answer<'_>, limit: usize) {
    let rcode = match answer {
        Answer::NxDomain(_) => Rcode::NXDOMAIN,
        Answer::Refused => Rcode::REFUSED,
        Answer::Forward(_) => return out.clear(),
        Answer::Addresses(_) | Answer::Pointer(_) | Answer::Soa(_) | Answer::Ns(_) | Answer::NoData(_) => {
            Rcode::NOERROR
        }
    };
    let Query { header, asked, edns } = query;
    let aa = rcode != Rcode::REFUSED;
    compose(
        out,
        Frame { header: *header, asked: Some(*asked), edns: *edns, rcode: rcode.into(), aa, limit },
        |builder| sections(builder, asked.name, answer),
    );
}

/// Replaces what is in `out` by an empty response with `rcode`.
pub(crate) fn error(out: &mut Vec<u8>, query: &Query<'_>, rcode: Rcode, limit: usize) {
    let Query { header, asked, edns } = *query;
    let frame = Frame { header, asked: Some(asked), edns, rcode: rcode.into(), aa: false, limit };
    compose(out, frame, |builder| Ok(builder.additional()));
}

/// Replaces what is in `out` by what a faulty packet gets.
pub(crate) fn fault(out: &mut Vec<u8>, fault: &Fault<'_>, limit: usize) {
    let Fault { header, asked, edns, rcode } = *fault;
    compose(out, Frame { header, asked, edns, rcode, aa: false, limit }, |builder| Ok(builder.additional()));
}

/// What stands around the sections.
struct Frame<'a> {
    header: Header,
    asked: Option<Asked<'a>>,
    edns: Option<Edns>,
    rcode: OptRcode,
    aa: bool,
    limit: usize,
}

type Target<'o> = StaticCompressor<&'o mut Vec<u8>>;

fn compose<'o>(
    out: &'o mut Vec<u8>,
    frame: Frame<'_>,
    sections: impl FnOnce(AnswerBuilder<Target<'o>>) -> Result<AdditionalBuilder<Target<'o>>, PushError>,
) {
    out.clear();

    let Ok(mut builder) = MessageBuilder::from_target(StaticCompressor::new(out));
    builder.set_push_limit(frame.limit.saturating_sub(frame.edns.map_or(0, |_| OPT_LEN)));
    let header = builder.header_mut();
    header.set_id(frame.header.id());
    header.set_opcode(frame.header.opcode());
    header.set_qr(true);
    header.set_aa(frame.aa);
    header.set_rd(frame.header.rd());
    header.set_cd(frame.header.cd());
    header.set_ra(true);
    header.set_rcode(frame.rcode.rcode());
    let mut builder = builder.question();
    if let Some(Asked { name, rtype, class }) = frame.asked {
        let _ = builder.push(Question::new(name, rtype, class));
    }
    let Ok(mut builder) = sections(builder.answer()) else { return };
    if let Some(edns) = frame.edns {
        builder.clear_push_limit();
        let _ = edns::push_opt(&mut builder, edns, frame.rcode);
    }
}

fn sections<'o>(
    mut builder: AnswerBuilder<Target<'o>>,
    name: &Name<[u8]>,
    answer: &Answer<'_>,
) -> Result<AdditionalBuilder<Target<'o>>, PushError> {
    match answer {
        Answer::Addresses(set) => {
            let ttl = Ttl::from_secs(set.ttl());
            // As many as there is room for: some old stub resolvers take what they get and never come back over TCP.
            let all = set.iter().try_for_each(|address| match address {
                IpAddr::V4(address) => builder.push((name, Class::IN, ttl, A::new(address))),
                IpAddr::V6(address) => builder.push((name, Class::IN, ttl, Aaaa::new(address))),
            });
            if all.is_err() {
                builder.header_mut().set_tc(true);
            }
        }
        Answer::Pointer(pointer) => {
            let target = pointer.name.for_ref().chain(pointer.domain.for_ref());
            if let Ok(target) = target.and_then(|relative| relative.chain(Name::root_slice())) {
                push(&mut builder, (name, Class::IN, Ttl::from_secs(pointer.ttl), Ptr::new(target)));
            }
        }
        Answer::Soa(apex) => {
            let zone = zone_of(name, *apex);
            push(&mut builder, (zone, Class::IN, Ttl::ZERO, soa(zone)));
        }
        Answer::Ns(apex) => {
            let zone = zone_of(name, *apex);
            push(&mut builder, (zone, Class::IN, Ttl::ZERO, Ns::new(zone)));
        }
        Answer::NoData(apex) | Answer::NxDomain(apex) => {
            let mut builder = builder.authority();
            let zone = zone_of(name, *apex);
            let _ = builder.push((zone, Class::IN, Ttl::ZERO, soa(zone)));
            return Ok(builder.additional());
        }
        Answer::Refused | Answer::Forward(_) => {}
    }
    Ok(builder.additional())
}

/// Adds the one record of a section, which is smaller than every limit.
fn push(builder: &mut AnswerBuilder<Target<'_>>, record: impl domain::base::record::ComposeRecord) {
    if builder.push(record).is_err() {
        builder.header_mut().set_tc(true);
    }
}

/// The zone at `apex` within `name`.
fn zone_of(name: &Name<[u8]>, apex: Apex) -> &Name<[u8]> {
    name.as_slice()
        .get(apex.0..)
        .and_then(|octets| Name::from_slice(octets).ok())
        .unwrap_or(Name::root_slice())
}

/// The SOA of a zone that is its own name server (RFC 6303, section 3). Minimum 0: a name that is not there may be
/// there the next moment.
fn soa(zone: &Name<[u8]>) -> Soa<&Name<[u8]>> {
    const HOUR: Ttl = Ttl::HOUR;
    let mailbox = Name::from_slice(MAILBOX).unwrap_or(Name::root_slice());
    Soa::new(zone, mailbox, Serial(1), HOUR, Ttl::from_secs(1200), Ttl::from_secs(604_800), Ttl::ZERO)
}
