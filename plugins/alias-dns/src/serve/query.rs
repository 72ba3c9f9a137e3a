//! Octets of a client -> a [`Query`], or what to say to something that is none. Borrows the packet; no input makes it
//! panic.

use domain::base::iana::{Class, Opcode, OptRcode, Rtype};
use domain::base::message::Section;
use domain::base::opt::Opt;
use domain::base::{Header, Message, Name};

use super::edns::Edns;

/// Octets of a message's header (RFC 1035, section 4.1.1).
pub(crate) const HEADER_LEN: usize = 12;

/// One question that deserves an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    /// The header as it came.
    pub(crate) header: Header,
    /// What is asked.
    pub(crate) asked: Asked<'a>,
    /// The client's OPT record, if it sent one.
    pub(crate) edns: Option<Edns>,
}

/// The only question of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    /// The name, its case kept.
    pub(crate) name: &'a Name<[u8]>,
    /// The type.
    pub(crate) rtype: Rtype,
    /// The class.
    pub(crate) class: Class,
}

/// What to do with a packet.
#[derive(Debug)]
pub(crate) enum Received<'a> {
    /// Answer it.
    Query(Query<'a>),
    /// Say what is wrong with it.
    Fault(Fault<'a>),
    /// Say nothing: it is an answer itself, or too short to have a header.
    Nothing,
}

/// A packet that gets an error.
#[derive(Debug)]
pub(crate) struct Fault<'a> {
    pub(crate) header: Header,
    /// Echoed where it could be read.
    pub(crate) asked: Option<Asked<'a>>,
    pub(crate) edns: Option<Edns>,
    pub(crate) rcode: OptRcode,
}

/// Reads `packet`.
pub(crate) fn read(packet: &[u8]) -> Received<'_> {
    let Ok(message) = Message::from_octets(packet) else { return Received::Nothing };
    let header = message.header();
    if header.qr() {
        return Received::Nothing;
    }
    let fault = |rcode, asked, edns| Received::Fault(Fault { header, asked, edns, rcode });
    // Whoever speaks EDNS is answered with it, whatever is wrong with the rest (RFC 6891, section 6.1.1).
    let edns_if_readable = || read_edns(&message).ok().flatten();
    if header.opcode() != Opcode::QUERY {
        return fault(OptRcode::NOTIMP, None, edns_if_readable());
    }
    if message.header_counts().qdcount() != 1 {
        return fault(OptRcode::FORMERR, None, edns_if_readable());
    }
    let Some(asked) = read_question(packet) else { return fault(OptRcode::FORMERR, None, None) };
    let Ok(edns) = read_edns(&message) else { return fault(OptRcode::FORMERR, Some(asked), None) };
    if edns.is_some_and(|edns| edns.version > 0) {
        return fault(OptRcode::BADVERS, Some(asked), edns);
    }
    match (asked.class, asked.rtype) {
        (Class::IN, Rtype::AXFR | Rtype::IXFR) => fault(OptRcode::REFUSED, Some(asked), edns),
        // Types that only have a place elsewhere in a message.
        (Class::IN, Rtype::OPT | Rtype::TSIG | Rtype::TKEY) => fault(OptRcode::FORMERR, Some(asked), edns),
        (Class::IN, _) => Received::Query(Query { header, asked, edns }),
        _ => fault(OptRcode::REFUSED, Some(asked), edns),
    }
}

/// The question behind the header. Its name cannot be compressed, for there is nothing yet that it could point to.
fn read_question(packet: &[u8]) -> Option<Asked<'_>> {
    let octets = packet.get(HEADER_LEN..)?;
    let mut len = 0;
    loop {
        match octets.get(len)? {
            0 => break,
            label @ 1..=63 => len += usize::from(*label) + 1,
            _ => return None,
        }
    }
    let (name, rest) = octets.split_at(len + 1);
    let [a, b, c, d] = *rest.first_chunk()?;
    Some(Asked {
        name: Name::from_slice(name).ok()?,
        rtype: Rtype::from_int(u16::from_be_bytes([a, b])),
        class: Class::from_int(u16::from_be_bytes([c, d])),
    })
}

/// The one OPT record of `message`; an error when there is more than one, one is out of its place (RFC 6891, section
/// 6.1.1), or a record cannot be read.
fn read_edns(message: &Message<&[u8]>) -> Result<Option<Edns>, domain::base::wire::ParseError> {
    let counts = message.header_counts();
    if counts.ancount() == 0 && counts.nscount() == 0 && counts.arcount() == 0 {
        return Ok(None);
    }
    let mut edns = None;
    for record in message.iter() {
        let (record, section) = record?;
        if record.rtype() != Rtype::OPT {
            continue;
        }
        if edns.is_some() || section != Section::Additional || !record.owner().is_root() {
            return Err(domain::base::wire::ParseError::form_error("no OPT record of the message"));
        }
        // RFC 6891, section 6.1.3: the TTL holds extended RCODE, version and flags.
        let [_, version, flags, _] = record.ttl().as_secs().to_be_bytes();
        // No option changes an answer, but one that is longer than its record says that the query came in broken. What
        // options of another version look like nobody knows.
        if version == 0 {
            record.to_record::<Opt<_>>()?;
        }
        edns = Some(Edns { payload: record.class().to_int(), version, dnssec_ok: flags & 0x80 != 0 });
    }
    Ok(edns)
}

#[cfg(test)]
mod tests {
    use domain::base::{MessageBuilder, Name};
    use proptest::prelude::*;

    use super::*;

    fn ask(name: &str, qtype: Rtype, class: Class) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(7);
        let mut builder = builder.question();
        builder.push((Name::<Vec<u8>>::from_chars(name.chars()).unwrap(), qtype, class)).unwrap();
        builder.finish()
    }

    fn with_opt(payload: u16, version: u8) -> Vec<u8> {
        let mut packet = ask("web", Rtype::A, Class::IN);
        packet[11] = 1;
        packet.extend([0, 0, 41]);
        packet.extend(payload.to_be_bytes());
        packet.extend([0, version, 0x80, 0, 0, 0]);
        packet
    }

    fn rcode(packet: &[u8]) -> Option<OptRcode> {
        match read(packet) {
            Received::Fault(fault) => Some(fault.rcode),
            Received::Query(_) | Received::Nothing => None,
        }
    }

    #[test]
    fn a_question_is_read_with_its_case() {
        let packet = ask("CenTos-1.TestNet", Rtype::A, Class::IN);
        let Received::Query(query) = read(&packet) else { panic!("{packet:?}") };
        assert_eq!(query.asked.name.to_string(), "CenTos-1.TestNet");
        assert_eq!((query.asked.rtype, query.header.id(), query.edns), (Rtype::A, 7, None));
    }

    #[test]
    fn the_opt_record_is_read() {
        let packet = with_opt(4096, 0);
        let Received::Query(query) = read(&packet) else { panic!("{packet:?}") };
        assert_eq!(query.edns, Some(Edns { payload: 4096, version: 0, dnssec_ok: true }));
        assert_eq!(rcode(&with_opt(4096, 1)), Some(OptRcode::BADVERS));
        // A cookie of eight octets, and the same cut off in the middle of the option and of its header.
        for (len, rcode_expected) in [(12, None), (11, Some(OptRcode::FORMERR)), (3, Some(OptRcode::FORMERR))]
        {
            let mut with_option = with_opt(4096, 0);
            let at = with_option.len() - 1;
            with_option[at] = len;
            with_option.extend(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8][..len.into()]);
            assert_eq!(rcode(&with_option), rcode_expected, "{len}");
        }
        let mut twice = with_opt(4096, 0);
        twice[11] = 2;
        twice.extend([0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(rcode(&twice), Some(OptRcode::FORMERR));
    }

    #[test]
    fn an_opt_record_out_of_its_place_is_a_fault() {
        // Where the number of the records of each section ends in the header.
        for (section, rcode_expected) in
            [(7, Some(OptRcode::FORMERR)), (9, Some(OptRcode::FORMERR)), (11, None)]
        {
            let mut packet = with_opt(4096, 0);
            packet.swap(11, section);
            assert_eq!(rcode(&packet), rcode_expected, "{section}");
        }
    }

    #[test]
    fn options_of_another_version_may_have_another_form() {
        let mut packet = with_opt(4096, 7);
        let at = packet.len() - 1;
        packet[at] = 3;
        packet.extend([1, 2, 3]);
        assert_eq!(rcode(&packet), Some(OptRcode::BADVERS));
    }

    #[test]
    fn what_is_no_query_gets_the_error_that_the_rfcs_name_or_silence() {
        assert_eq!(rcode(&ask("web", Rtype::A, Class::CH)), Some(OptRcode::REFUSED));
        assert_eq!(rcode(&ask("web", Rtype::AXFR, Class::IN)), Some(OptRcode::REFUSED));
        assert_eq!(rcode(&ask("web", Rtype::OPT, Class::IN)), Some(OptRcode::FORMERR));
        let good = ask("web", Rtype::A, Class::IN);
        let changed = |at: usize, to: u8| {
            let mut packet = good.clone();
            packet[at] = to;
            packet
        };
        assert_eq!(rcode(&changed(2, 0x10)), Some(OptRcode::NOTIMP));
        assert_eq!(rcode(&changed(5, 0)), Some(OptRcode::FORMERR));
        assert_eq!(rcode(&changed(5, 2)), Some(OptRcode::FORMERR));
        assert_eq!(rcode(&changed(11, 1)), Some(OptRcode::FORMERR));
        assert_eq!(rcode(&good[..good.len() - 1]), Some(OptRcode::FORMERR));
        assert!(matches!(read(&changed(2, 0x80)), Received::Nothing));
        assert!(matches!(read(&good[..11]), Received::Nothing));
    }

    #[test]
    fn a_fault_is_told_with_edns_to_whoever_speaks_it() {
        let with_header = |opcode: u8, questions: usize| {
            let mut packet = with_opt(4096, 0);
            let question = packet[HEADER_LEN..packet.len() - 11].to_vec();
            packet.splice(HEADER_LEN..packet.len() - 11, question.repeat(questions));
            (packet[2], packet[5]) = (opcode << 3, questions as u8);
            packet
        };
        let edns = Some(Edns { payload: 4096, version: 0, dnssec_ok: true });
        for (opcode, questions, rcode) in [
            (2, 1, OptRcode::NOTIMP),
            (5, 0, OptRcode::NOTIMP),
            (0, 0, OptRcode::FORMERR),
            (0, 2, OptRcode::FORMERR),
        ] {
            let packet = with_header(opcode, questions);
            let Received::Fault(fault) = read(&packet) else { panic!("{packet:?}") };
            assert_eq!((fault.rcode, fault.edns), (rcode, edns), "opcode {opcode}, {questions} questions");
        }
        // One that cannot be read is left out.
        let cut = with_header(2, 1);
        let Received::Fault(fault) = read(&cut[..cut.len() - 1]) else { panic!("{cut:?}") };
        assert_eq!((fault.rcode, fault.edns), (OptRcode::NOTIMP, None));
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&packet);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..40, to in any::<u8>(), len in 0_usize..60) {
            let mut packet = with_opt(1232, 0);
            if let Some(octet) = packet.get_mut(at) {
                *octet = to;
            }
            packet.truncate(len);
            let _ = read(&packet);
        }
    }
}
