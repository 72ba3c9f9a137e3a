//! An [`Answer`] -> the octets of a response. It owns header, sections, compression and truncation; it decides nothing.
//!
//! The owner of each record is the question's name or the end of it, so that a pointer there is all that compression
//! takes (RFC 1035, section 4.1.4). A builder for any message would compare each name with all before it, which took as
//! long as finding the answer.

use std::net::IpAddr;

use domain::base::iana::{Class, OptRcode, Rcode, Rtype};
use domain::base::{Header, Name};

use super::edns::{Edns, OPT_LEN, opt_octets};
use super::query::{Asked, Fault, HEADER_LEN, Query};
use crate::answer::{Answer, Apex, Pointer};

/// The mailbox of a zone that nobody can be written to about, nobody.invalid (RFC 6303, section 3; RFC 2606).
const MAILBOX: &[u8] = b"\x06nobody\x07invalid\0";
const MAILBOX_IN_WORDS: &str = "nobody.invalid.";

/// Serial, refresh, retry, expire and minimum of a zone that is its own name server (RFC 6303, section 3). Minimum 0: a
/// name that is not there may be there the next moment.
const SOA_NUMBERS: [[u8; 4]; 5] = [
    1_u32.to_be_bytes(),
    3600_u32.to_be_bytes(),
    1200_u32.to_be_bytes(),
    604_800_u32.to_be_bytes(),
    0_u32.to_be_bytes(),
];

/// How long what describes a zone may be kept, in seconds.
const ZONE_TTL: u32 = 0;

/// What a pointer begins with (RFC 1035, section 4.1.4).
const POINTER: u16 = 0xc000;

/// TC in the third octet of the header.
const TRUNCATED: u8 = 0x02;

/// Octets of a record's type, class, TTL and length (RFC 1035, section 4.1.3).
const FIXED_LEN: usize = 10;

/// Octets of the longest name (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

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
    let Query { header, asked, edns } = *query;
    let aa = rcode != Rcode::REFUSED;
    Frame { header, asked: Some(asked), edns, rcode: rcode.into(), aa, limit }
        .write(out, |response| response.records(asked.name, answer));
}

/// Replaces what is in `out` by an empty response with `rcode`.
pub(crate) fn error(out: &mut Vec<u8>, query: &Query<'_>, rcode: Rcode, limit: usize) {
    let Query { header, asked, edns } = *query;
    Frame { header, asked: Some(asked), edns, rcode: rcode.into(), aa: false, limit }.write(out, |_| ());
}

/// Replaces what is in `out` by what a faulty packet gets.
pub(crate) fn fault(out: &mut Vec<u8>, fault: &Fault<'_>, limit: usize) {
    let Fault { header, asked, edns, rcode } = *fault;
    Frame { header, asked, edns, rcode, aa: false, limit }.write(out, |_| ());
}

/// The data of the SOA of `zone` as they are written in a zone file (RFC 1035, section 5.1).
pub(crate) fn soa_in_words(zone: &str) -> String {
    let numbers = SOA_NUMBERS.map(|number| u32::from_be_bytes(number).to_string()).join(" ");
    format!("{zone} {MAILBOX_IN_WORDS} {numbers}")
}

/// What stands around the records.
struct Frame<'a> {
    header: Header,
    asked: Option<Asked<'a>>,
    edns: Option<Edns>,
    rcode: OptRcode,
    aa: bool,
    limit: usize,
}

impl Frame<'_> {
    fn write(self, out: &mut Vec<u8>, records: impl FnOnce(&mut Response<'_>)) {
        let mut header = Header::new();
        header.set_id(self.header.id());
        header.set_opcode(self.header.opcode());
        header.set_qr(true);
        header.set_aa(self.aa);
        header.set_rd(self.header.rd());
        header.set_cd(self.header.cd());
        header.set_ra(true);
        header.set_rcode(self.rcode.rcode());
        out.clear();
        out.extend_from_slice(header.as_slice());
        out.extend_from_slice(&[0, self.asked.is_some().into(), 0, 0, 0, 0, 0, self.edns.is_some().into()]);
        if let Some(Asked { name, rtype, class }) = self.asked {
            out.extend_from_slice(name.as_slice());
            out.extend_from_slice(&rtype.to_int().to_be_bytes());
            out.extend_from_slice(&class.to_int().to_be_bytes());
        }
        let room = self.limit.saturating_sub(self.edns.map_or(0, |_| OPT_LEN));
        records(&mut Response { octets: out, room });
        if let Some(edns) = self.edns {
            out.extend_from_slice(&opt_octets(edns, self.rcode));
        }
    }
}

/// A section, by where the number of its records stands in the header.
#[derive(Clone, Copy)]
enum Section {
    Answer = 6,
    Authority = 8,
}

/// A name that the question's ends in, as it is written behind the question.
#[derive(Clone, Copy)]
struct Reference {
    octets: [u8; 2],
    len: usize,
}

impl Reference {
    /// The name that begins at `apex` of `name`.
    fn to(name: &Name<[u8]>, apex: Apex) -> Self {
        match name.as_slice().get(apex.0) {
            Some(1..) => Self { octets: (POINTER | (HEADER_LEN + apex.0) as u16).to_be_bytes(), len: 2 },
            // The root's only octet is shorter than a pointer to it.
            Some(0) | None => Self { octets: [0; 2], len: 1 },
        }
    }

    fn as_slice(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// A response with its question and the records so far.
struct Response<'o> {
    octets: &'o mut Vec<u8>,
    /// Octets that it may have with its records.
    room: usize,
}

impl Response<'_> {
    fn records(&mut self, name: &Name<[u8]>, answer: &Answer<'_>) {
        let owner = Reference::to(name, Apex(0));
        match answer {
            Answer::Addresses(set) => {
                let (rtype, ttl) = (set.rtype(), set.ttl());
                // As many as there is room for: some old stub resolvers take what they get and never come back over TCP.
                set.iter().all(|address| match address {
                    IpAddr::V4(ip) => self.push(Section::Answer, owner, rtype, ttl, &[&ip.octets()]),
                    IpAddr::V6(ip) => self.push(Section::Answer, owner, rtype, ttl, &[&ip.octets()]),
                });
            }
            Answer::Pointer(Pointer { name, domain, ttl }) => {
                // Only in a record that somebody has edited are the two too long together.
                if name.len() + domain.len() < MAX_NAME {
                    let target = [name.as_slice(), domain.as_slice(), &[0]];
                    self.push(Section::Answer, owner, Rtype::PTR, *ttl, &target);
                }
            }
            Answer::Soa(apex) => self.soa(Section::Answer, Reference::to(name, *apex)),
            Answer::Ns(apex) => {
                let zone = Reference::to(name, *apex);
                self.push(Section::Answer, zone, Rtype::NS, ZONE_TTL, &[zone.as_slice()]);
            }
            Answer::NoData(apex) | Answer::NxDomain(apex) => {
                self.soa(Section::Authority, Reference::to(name, *apex));
            }
            Answer::Refused | Answer::Forward(_) => {}
        }
    }

    /// Adds the SOA of `zone`.
    fn soa(&mut self, section: Section, zone: Reference) {
        let data = [zone.as_slice(), MAILBOX, SOA_NUMBERS.as_flattened()];
        self.push(section, zone, Rtype::SOA, ZONE_TTL, &data);
    }

    /// Adds a record whose data are these octets together. One that there is no room for marks the response as cut off;
    /// tells whether there was.
    fn push(&mut self, section: Section, owner: Reference, rtype: Rtype, ttl: u32, data: &[&[u8]]) -> bool {
        let data_len: usize = data.iter().map(|part| part.len()).sum();
        if self.octets.len() + owner.len + FIXED_LEN + data_len > self.room {
            self.octets[2] |= TRUNCATED;
            return false;
        }
        self.octets.extend_from_slice(owner.as_slice());
        self.octets.extend_from_slice(&rtype.to_int().to_be_bytes());
        self.octets.extend_from_slice(&Class::IN.to_int().to_be_bytes());
        self.octets.extend_from_slice(&ttl.to_be_bytes());
        self.octets.extend_from_slice(&(data_len as u16).to_be_bytes());
        data.iter().for_each(|part| self.octets.extend_from_slice(part));
        let count = &mut self.octets[section as usize..][..2];
        count.copy_from_slice(&(u16::from_be_bytes([count[0], count[1]]) + 1).to_be_bytes());
        true
    }
}
