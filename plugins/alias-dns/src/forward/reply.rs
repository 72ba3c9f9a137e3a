//! An upstream server's message: whether it answers our question, how long it may be kept, and the octets that a client
//! gets of it. The records pass through as they are; no input makes it panic.

use domain::base::iana::OptRcode;

use crate::serve::edns::{Edns, OPT_LEN, opt_octets};
use crate::serve::query::HEADER_LEN;

const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
const TYPE_ANY: u16 = 255;

/// Octets of a question's type and class (RFC 1035, section 4.1.2).
const TYPE_AND_CLASS_LEN: usize = 4;

/// TC in the third octet of the header (RFC 1035, section 4.1.1).
const TRUNCATED: u8 = 0x02;

/// AD and CD in the fourth (RFC 4035, section 3.2).
const AUTHENTIC_DATA: u8 = 0x20;
const CHECKING_DISABLED: u8 = 0x10;

const RCODE_NOERROR: u8 = 0;
const RCODE_FORMERR: u8 = 1;
const RCODE_SERVFAIL: u8 = 2;
const RCODE_NXDOMAIN: u8 = 3;
const RCODE_NOTIMP: u8 = 4;

/// A message without its OPT record, and where its TTLs stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    octets: Box<[u8]>,
    question_len: usize,
    ttls: Box<[usize]>,
    rcode: u8,
    has_edns: bool,
    /// Whether the answer has what was asked for.
    is_found: bool,
    /// Seconds; `None` for what must not be kept.
    lifetime: Option<u32>,
}

/// Why a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// It does not belong to the question: a stray or a forgery.
    Foreign,
    /// It belongs to it, but cannot be read.
    Malformed,
}

impl Reply {
    /// Reads `message`, an answer to the query with `id` and `question` (name in any case, type, class).
    pub(crate) fn read(message: &[u8], id: u16, question: &[u8]) -> Result<Self, Rejected> {
        let header: &[u8; HEADER_LEN] = message.first_chunk().ok_or(Rejected::Foreign)?;
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let body = &message[HEADER_LEN..];
        let asked = body.get(..question.len());
        // A response, of the kind that a query has.
        if count(0) != id || header[2] & 0xf8 != 0x80 {
            return Err(Rejected::Foreign);
        }
        // Servers that know no EDNS, or could not read the query, send an error without the question. Nothing but id and
        // port would tell a forgery; but all that it does is to have another server asked.
        let rcode = header[3] & 0x0f;
        if message.len() == HEADER_LEN
            && (4..HEADER_LEN).all(|at| header[at] == 0)
            && !matches!(rcode, RCODE_NOERROR | RCODE_NXDOMAIN)
        {
            return Ok(Self::error(question, rcode));
        }
        if count(4) != 1 || !asked.is_some_and(|asked| is_same(asked, question)) {
            return Err(Rejected::Foreign);
        }
        let is_cut_off = header[2] & TRUNCATED != 0;
        let records = match Records::read(message, question, [6, 8, 10].map(count)) {
            Some(records) => records,
            // Not everybody cuts between records.
            None if is_cut_off => return Ok(Self::bare(question, TRUNCATED, rcode)),
            None => return Err(Rejected::Malformed),
        };
        // What there is no room for in the header says that something failed (RFC 6891, section 6.1.3).
        let rcode =
            if records.extended_rcode.is_some_and(|extended| extended > 0) { RCODE_SERVFAIL } else { rcode };
        let mut octets: Box<[u8]> = message[..records.end].into();
        octets[3] = octets[3] & 0xf0 | rcode;
        octets[10..HEADER_LEN].copy_from_slice(&records.additional.to_be_bytes());
        Ok(Self {
            octets,
            question_len: question.len(),
            rcode,
            has_edns: records.extended_rcode.is_some(),
            is_found: records.is_found,
            lifetime: records.lifetime(rcode).filter(|_| !is_cut_off),
            ttls: records.ttls.into(),
        })
    }

    /// SERVFAIL for `question`, of our own making.
    pub(crate) fn failure(question: &[u8]) -> Self {
        Self::error(question, RCODE_SERVFAIL)
    }

    fn error(question: &[u8], rcode: u8) -> Self {
        Self::bare(question, 0, rcode)
    }

    /// A reply without records; `flags` are those of the header's third octet beside QR.
    fn bare(question: &[u8], flags: u8, rcode: u8) -> Self {
        let mut octets = vec![0, 0, 0x80 | flags, 0x80 | rcode, 0, 1, 0, 0, 0, 0, 0, 0];
        octets.extend_from_slice(question);
        Self {
            octets: octets.into(),
            question_len: question.len(),
            ttls: Box::default(),
            rcode,
            has_edns: false,
            is_found: false,
            lifetime: None,
        }
    }

    /// Whether another server may know better: this one failed or refused.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self.rcode, RCODE_NOERROR | RCODE_NXDOMAIN)
    }

    /// Whether there is more of it, to be asked for over TCP.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.octets[2] & TRUNCATED != 0
    }

    /// Whether it has some of what was asked for. Without, a client that does not mind that it is cut off would take it for
    /// the answer that there is nothing.
    pub(crate) fn has_some(&self) -> bool {
        !self.is_failure() && self.is_found
    }

    /// Whether the server may be one that does not know EDNS (RFC 6891, section 7).
    pub(crate) fn refuses_edns(&self) -> bool {
        matches!(self.rcode, RCODE_FORMERR | RCODE_NOTIMP)
    }

    /// Whether the server speaks EDNS: its message came with an OPT record.
    pub(crate) fn has_edns(&self) -> bool {
        self.has_edns
    }

    /// Seconds that the answer may be kept; `None` when it must not.
    pub(crate) fn lifetime(&self) -> Option<u32> {
        self.lifetime
    }

    /// Octets that the reply holds.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.octets.len() + size_of_val(&*self.ttls)
    }

    /// Replaces what is in `out` by the response to `client`, `age` seconds after the reply came.
    pub(crate) fn compose(&self, out: &mut Vec<u8>, client: &Client<'_>, age: u32) {
        let opt_len = client.edns.map_or(0, |_| OPT_LEN);
        let room = client.limit.saturating_sub(opt_len);
        out.clear();
        if self.octets.len() <= room {
            out.extend_from_slice(&self.octets);
        } else {
            self.write_what_fits(out, room);
        }
        for at in &self.ttls {
            if let Some(ttl) = out.get_mut(*at..at + 4) {
                let left = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]).saturating_sub(age);
                ttl.copy_from_slice(&left.to_be_bytes());
            }
        }
        out[..2].copy_from_slice(&client.id.to_be_bytes());
        // AA is the upstream's, not ours; AD only for those who can make use of it.
        let ad = if client.understands_ad() { AUTHENTIC_DATA } else { 0 };
        out[2] = out[2] & 0xfa | client.flags[0] & 0x01;
        out[3] = out[3] & (0x0f | ad) | 0x80 | client.flags[1] & CHECKING_DISABLED;
        out[HEADER_LEN..self.question_end()].copy_from_slice(client.question);
        if let Some(edns) = client.edns {
            out.extend_from_slice(&opt_octets(edns, OptRcode::NOERROR));
            let additional = u16::from_be_bytes([out[10], out[11]]).saturating_add(1);
            out[10..HEADER_LEN].copy_from_slice(&additional.to_be_bytes());
        }
    }

    /// Writes as much of the reply as `room` is enough for. What it can do without is left out (RFC 2181, section 9);
    /// where that does not do, as much of the answer as fits is marked as cut off: some old stub resolvers take what
    /// they get and never come back over TCP.
    fn write_what_fits(&self, out: &mut Vec<u8>, room: usize) {
        let [answer, authority] = [6, 8].map(|at| u16::from_be_bytes([self.octets[at], self.octets[at + 1]]));
        let needed = usize::from(answer) + usize::from(authority);
        let is_whole = self.end_of(needed) <= room;
        let fitting = if is_whole {
            needed
        } else {
            (0..usize::from(answer)).take_while(|record| self.end_of(record + 1) <= room).count()
        };
        out.extend_from_slice(&self.octets[..self.end_of(fitting)]);
        out[10..HEADER_LEN].fill(0);
        if !is_whole {
            out[2] |= TRUNCATED;
            out[6..8].copy_from_slice(&(fitting as u16).to_be_bytes());
            out[8..10].fill(0);
        }
    }

    /// Where the first `records` of the reply end.
    fn end_of(&self, records: usize) -> usize {
        let Some(last) = records.checked_sub(1) else { return self.question_end() };
        let Some(ttl_at) = self.ttls.get(last) else { return self.octets.len() };
        let length_at = ttl_at + 4;
        length_at + 2 + usize::from(u16::from_be_bytes([self.octets[length_at], self.octets[length_at + 1]]))
    }

    fn question_end(&self) -> usize {
        HEADER_LEN + self.question_len
    }
}

/// A question's name, and its type and class. The name minds no case, but the octets of the others may be letters, too.
pub(super) fn split(question: &[u8]) -> (&[u8], &[u8]) {
    question.split_at(question.len().saturating_sub(TYPE_AND_CLASS_LEN))
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    let ((name, kind), (other_name, other_kind)) = (split(one), split(other));
    name.eq_ignore_ascii_case(other_name) && kind == other_kind
}

/// Whether `question` asks for records of type `rtype`, which else only stand on the way to those.
fn asks_for(question: &[u8], rtype: u16) -> bool {
    let [.., high, low, _, _] = *question else { return false };
    [rtype, TYPE_ANY].contains(&u16::from_be_bytes([high, low]))
}

/// AD and CD as the fourth octet of a query's header, `octet`, has them: a question to another server has them, too, for
/// what it answers depends on them.
pub(super) fn wishes(octet: u8) -> u8 {
    octet & (AUTHENTIC_DATA | CHECKING_DISABLED)
}

/// What makes one client's response differ from another's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) id: u16,
    /// The third and fourth octet of the query's header: RD and CD go back, AD says that it is understood.
    pub(crate) flags: [u8; 2],
    /// Name, type, class as the client wrote them; as long as the reply's.
    pub(crate) question: &'a [u8],
    pub(crate) edns: Option<Edns>,
    pub(crate) limit: usize,
}

impl Client<'_> {
    /// Whether AD tells the client anything, which it says by DO or by AD in its query (RFC 6840, section 5.7).
    fn understands_ad(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok) || self.flags[1] & AUTHENTIC_DATA != 0
    }
}

/// What the records of a message tell.
#[derive(Default)]
struct Records {
    /// Where the TTLs stand.
    ttls: Vec<usize>,
    /// The shortest TTL of the answer, which may be no more than the way to a name that is not there.
    shortest: Option<u32>,
    /// Whether the answer has what was asked for.
    is_found: bool,
    /// How long it may be kept that something is not there (RFC 2308, section 5).
    negative: Option<u32>,
    /// Of the OPT record, if there is one.
    extended_rcode: Option<u8>,
    /// Additional records in front of that.
    additional: u16,
    /// Where they end. What follows, if anything, is left out as well: that section only saves questions.
    end: usize,
}

impl Records {
    /// Reads as many records in each section behind `question` as `counts` says; `None` when they cannot be read.
    fn read(message: &[u8], question: &[u8], counts: [u16; 3]) -> Option<Self> {
        let [answer, authority, additional] = counts;
        let mut walk = Walk { message, at: HEADER_LEN + question.len() };
        let mut records = Self::default();
        for _ in 0..answer {
            let record = walk.record()?;
            records.shortest = Some(records.shortest.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
            records.is_found |= asks_for(question, record.rtype);
            records.ttls.push(record.ttl_at);
        }
        for _ in 0..authority {
            let record = walk.record()?;
            if record.rtype == TYPE_SOA {
                records.negative = Some(record.ttl.min(record.soa_minimum));
            }
            records.ttls.push(record.ttl_at);
        }
        records.end = walk.at;
        for _ in 0..additional {
            let record = walk.record()?;
            if record.rtype == TYPE_OPT {
                records.extended_rcode = Some(record.extended_rcode);
                break;
            }
            records.ttls.push(record.ttl_at);
            records.additional += 1;
            records.end = walk.at;
        }
        Some(records)
    }

    /// Seconds that a message with these and `rcode` may be kept; `None` when it must not.
    fn lifetime(&self, rcode: u8) -> Option<u32> {
        let lifetime = match rcode {
            RCODE_NOERROR if self.is_found => self.shortest,
            // Without a SOA nobody says how long.
            RCODE_NOERROR | RCODE_NXDOMAIN => {
                self.negative.map(|negative| self.shortest.map_or(negative, |ttl| ttl.min(negative)))
            }
            _ => None,
        };
        lifetime.filter(|ttl| *ttl > 0)
    }
}

struct Walk<'m> {
    message: &'m [u8],
    at: usize,
}

struct WalkedRecord {
    rtype: u16,
    ttl_at: usize,
    ttl: u32,
    /// Of an OPT record, which has no TTL.
    extended_rcode: u8,
    /// The last field of the data, which is the minimum of a SOA.
    soa_minimum: u32,
}

impl Walk<'_> {
    fn record(&mut self) -> Option<WalkedRecord> {
        self.skip_name()?;
        let fixed: &[u8; 10] = self.message.get(self.at..)?.first_chunk()?;
        let [t1, t2, _, _, a, b, c, d, l1, l2] = *fixed;
        let ttl_at = self.at + 4;
        let data_at = self.at + fixed.len();
        let data = self.message.get(data_at..data_at + usize::from(u16::from_be_bytes([l1, l2])))?;
        self.at = data_at + data.len();
        let ttl = u32::from_be_bytes([a, b, c, d]);
        Some(WalkedRecord {
            rtype: u16::from_be_bytes([t1, t2]),
            ttl_at,
            // RFC 2181, section 8: with the highest bit set it means zero.
            ttl: if ttl > i32::MAX as u32 { 0 } else { ttl },
            extended_rcode: a,
            soa_minimum: data.last_chunk().map_or(0, |minimum| u32::from_be_bytes(*minimum)),
        })
    }

    fn skip_name(&mut self) -> Option<()> {
        loop {
            match *self.message.get(self.at)? {
                0 => {
                    self.at += 1;
                    return Some(());
                }
                label @ 1..=63 => self.at += usize::from(label) + 1,
                0xc0.. => {
                    self.at += 2;
                    return (self.at <= self.message.len()).then_some(());
                }
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] = b"\x07Example\x03org\0\0\x01\0\x01";

    fn message(rcode: u8, flags: u8, sections: [&[&[u8]]; 3]) -> Vec<u8> {
        let mut octets = vec![0x12, 0x34, 0x84 | flags, 0xa0 | rcode, 0, 1];
        for section in sections {
            octets.extend((section.len() as u16).to_be_bytes());
        }
        octets.extend(QUESTION.to_ascii_lowercase());
        octets.extend(sections.concat().concat());
        octets
    }

    fn record(rtype: u8, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut octets = vec![0xc0, 12, 0, rtype, 0, 1];
        octets.extend(ttl.to_be_bytes());
        octets.extend((data.len() as u16).to_be_bytes());
        octets.extend(data);
        octets
    }

    const OPT: &[u8] = &[0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 4, 0, 10, 0, 0];

    fn soa(minimum: u32) -> Vec<u8> {
        let mut data = vec![0, 0];
        data.extend([0; 16]);
        data.extend(minimum.to_be_bytes());
        data
    }

    fn client(limit: usize, edns: Option<Edns>) -> Client<'static> {
        Client { id: 0xabcd, flags: [0x01, 0x10], question: QUESTION, edns, limit }
    }

    #[test]
    fn only_the_answer_to_our_question_is_taken() {
        let good = message(0, 0, [&[&record(1, 60, &[1, 2, 3, 4])], &[], &[]]);
        assert!(Reply::read(&good, 0x1234, QUESTION).is_ok());
        assert_eq!(Reply::read(&good, 0x1235, QUESTION), Err(Rejected::Foreign));
        assert_eq!(Reply::read(&good, 0x1234, b"\x07example\x03com\0\0\x01\0\x01"), Err(Rejected::Foreign));
        // Types whose numbers are letters.
        let of_type = |rtype: u8| [&QUESTION[..QUESTION.len() - 3], &[rtype, 0, 1]].concat();
        let https = [&good[..HEADER_LEN], &of_type(65), &good[HEADER_LEN + QUESTION.len()..]].concat();
        assert!(Reply::read(&https, 0x1234, &of_type(65)).is_ok());
        assert_eq!(Reply::read(&https, 0x1234, &of_type(97)), Err(Rejected::Foreign));
        assert_eq!(Reply::read(&good[..11], 0x1234, QUESTION), Err(Rejected::Foreign));
        assert_eq!(Reply::read(&good[..good.len() - 1], 0x1234, QUESTION), Err(Rejected::Malformed));
        let query = {
            let mut query = good.clone();
            query[2] &= 0x7f;
            query
        };
        assert_eq!(Reply::read(&query, 0x1234, QUESTION), Err(Rejected::Foreign));
        let notify = {
            let mut notify = good.clone();
            notify[2] |= 4 << 3;
            notify
        };
        assert_eq!(Reply::read(&notify, 0x1234, QUESTION), Err(Rejected::Foreign));
        for questions in [0, 2] {
            let mut other = good.clone();
            other[5] = questions;
            assert_eq!(Reply::read(&other, 0x1234, QUESTION), Err(Rejected::Foreign));
        }
    }

    #[test]
    fn what_is_cut_off_is_not_kept_and_goes_on_as_far_as_it_can_be_read() {
        let records = [record(1, 60, &[1, 2, 3, 4]), record(1, 60, &[1, 2, 3, 5])];
        let whole = message(0, 0, [&[&records[0], &records[1]], &[], &[]]);
        assert!(!Reply::read(&whole, 0x1234, QUESTION).unwrap().is_cut_off());
        let cut_off = message(0, TRUNCATED, [&[&records[0], &records[1]], &[], &[]]);
        for (octets, count) in [(&cut_off[..], 2), (&cut_off[..cut_off.len() - 1], 0)] {
            let reply = Reply::read(octets, 0x1234, QUESTION).unwrap();
            assert_eq!(reply.has_some(), count > 0);
            assert_eq!((reply.is_cut_off(), reply.is_failure(), reply.lifetime()), (true, false, None));
            let mut out = Vec::new();
            reply.compose(&mut out, &client(512, None), 0);
            assert_eq!(
                (out[2] & TRUNCATED, out[7], out.len()),
                (TRUNCATED, count, 12 + QUESTION.len() + 16 * usize::from(count))
            );
        }
    }

    #[test]
    fn an_error_may_come_without_the_question() {
        let header = |rcode: u8| [0x12, 0x34, 0x81, 0x80 | rcode, 0, 0, 0, 0, 0, 0, 0, 0];
        for rcode in [1, 2, 4, 5] {
            let reply = Reply::read(&header(rcode), 0x1234, QUESTION).unwrap();
            assert!(reply.is_failure() && reply.refuses_edns() == matches!(rcode, 1 | 4), "{rcode}");
            let mut out = Vec::new();
            reply.compose(&mut out, &client(512, None), 0);
            assert_eq!(out[..HEADER_LEN], [0xab, 0xcd, 0x81, 0x90 | rcode, 0, 1, 0, 0, 0, 0, 0, 0]);
            assert_eq!(out[HEADER_LEN..], *QUESTION);
        }
        // What says that there is or is no such name says of which.
        for rcode in [0, 3] {
            assert_eq!(Reply::read(&header(rcode), 0x1234, QUESTION), Err(Rejected::Foreign));
        }
        assert_eq!(Reply::read(&header(1), 0x1235, QUESTION), Err(Rejected::Foreign));
    }

    #[test]
    fn the_client_gets_its_own_header_question_and_opt_record_and_aged_ttls() {
        let octets = message(0, 0, [&[&record(1, 60, &[1, 2, 3, 4])], &[], &[OPT]]);
        let reply = Reply::read(&octets, 0x1234, QUESTION).unwrap();
        assert_eq!(reply.lifetime(), Some(60));
        let mut out = Vec::new();
        reply.compose(&mut out, &client(512, None), 10);
        let mut expected = vec![0xab, 0xcd, 0x81, 0x90, 0, 1, 0, 1, 0, 0, 0, 0];
        expected.extend(QUESTION);
        expected.extend(record(1, 50, &[1, 2, 3, 4]));
        assert_eq!(out, expected);
        let edns = Edns { payload: 1232, version: 0, dnssec_ok: false };
        reply.compose(&mut out, &client(1232, Some(edns)), 100);
        assert_eq!(out[11], 1);
        assert_eq!(out[out.len() - OPT_LEN..], opt_octets(edns, OptRcode::NOERROR));
        assert_eq!(out[out.len() - OPT_LEN - 14..][..4], record(1, 0, &[])[2..6]);
        // What stands in front of OPT is passed on, and counted.
        let glue = record(1, 60, &[5, 6, 7, 8]);
        let octets = message(0, 0, [&[&record(1, 60, &[1, 2, 3, 4])], &[], &[&glue, OPT]]);
        Reply::read(&octets, 0x1234, QUESTION).unwrap().compose(&mut out, &client(512, None), 0);
        assert_eq!((out[11], out.ends_with(&glue)), (1, true));
    }

    #[test]
    fn what_does_not_fit_is_cut_after_as_many_records_of_the_answer_as_do_and_marked() {
        let records: Vec<Vec<u8>> = (0..40).map(|n| record(1, 60, &[1, 2, 3, n])).collect();
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let name_server = record(2, 60, &[0xc0, 12]);
        let octets = message(0, 0, [&records, &[&name_server], &[]]);
        let reply = Reply::read(&octets, 0x1234, QUESTION).unwrap();
        let question_end = HEADER_LEN + QUESTION.len();
        // For clients of 1987 as many as in 512 octets.
        let mut out = Vec::new();
        reply.compose(&mut out, &client(512, None), 10);
        let fitting = (512 - question_end) / 16;
        assert_eq!((out.len(), out[2] & TRUNCATED), (question_end + 16 * fitting, TRUNCATED));
        assert_eq!(out[6..HEADER_LEN], [0, fitting as u8, 0, 0, 0, 0]);
        assert!(out.ends_with(&record(1, 50, &[1, 2, 3, fitting as u8 - 1])));
        reply.compose(&mut out, &client(65_535, None), 0);
        assert_eq!((out[2] & TRUNCATED, out[7], out[9]), (0, 40, 1));
        let edns = Edns { payload: 1232, version: 0, dnssec_ok: false };
        for (limit, truncated) in [(out.len() + OPT_LEN, 0), (out.len() + OPT_LEN - 1, TRUNCATED)] {
            let mut with_opt = Vec::new();
            reply.compose(&mut with_opt, &client(limit, Some(edns)), 0);
            assert_eq!((with_opt.len() <= limit, with_opt[2] & TRUNCATED), (true, truncated), "{limit}");
            assert_eq!(with_opt[11], 1);
        }
        // Whatever there is room for is whole, and nothing is longer than that.
        for limit in question_end..octets.len() {
            reply.compose(&mut out, &client(limit, None), 0);
            assert_eq!(out.len(), question_end + 16 * usize::from(out[7]), "{limit}");
            assert!(out.len() <= limit && out[2] & TRUNCATED != 0, "{limit}");
        }
    }

    #[test]
    fn additional_records_that_do_not_fit_are_left_out_and_nothing_is_marked() {
        let address = record(1, 60, &[1, 2, 3, 4]);
        let name_server = record(2, 60, &[0xc0, 12]);
        let glue: Vec<Vec<u8>> = (0..40).map(|n| record(1, 60, &[5, 6, 7, n])).collect();
        let glue: Vec<&[u8]> = glue.iter().map(Vec::as_slice).collect();
        let octets = message(0, 0, [&[&address], &[&name_server], &glue]);
        let mut out = Vec::new();
        Reply::read(&octets, 0x1234, QUESTION).unwrap().compose(&mut out, &client(512, None), 10);
        assert_eq!((out[2] & TRUNCATED, &out[6..HEADER_LEN]), (0, &[0, 1, 0, 1, 0, 0][..]));
        assert!(out.ends_with(&[record(1, 50, &[1, 2, 3, 4]), record(2, 50, &[0xc0, 12])].concat()));
    }

    #[test]
    fn an_error_in_the_opt_record_is_one_and_what_is_authentic_is_told_to_who_asks_for_it() {
        let mut extended = OPT.to_vec();
        extended[5] = 1;
        let reply = Reply::read(&message(0, 0, [&[], &[], &[&extended]]), 0x1234, QUESTION).unwrap();
        assert!(reply.is_failure());
        // AD is set in all of these messages.
        let reply = Reply::read(&message(0, 0, [&[], &[], &[OPT]]), 0x1234, QUESTION).unwrap();
        assert!(!reply.is_failure());
        for (dnssec_ok, flags, ad) in
            [(true, 0, AUTHENTIC_DATA), (false, 0, 0), (false, AUTHENTIC_DATA, AUTHENTIC_DATA)]
        {
            let mut out = Vec::new();
            let edns = Some(Edns { payload: 1232, version: 0, dnssec_ok });
            reply.compose(&mut out, &Client { flags: [1, flags], ..client(512, edns) }, 0);
            assert_eq!(out[3] & AUTHENTIC_DATA, ad, "{dnssec_ok} {flags:x}");
        }
    }

    #[test]
    fn lifetimes_follow_the_records_and_the_soa_of_a_negative_answer() {
        let lifetime = |rcode, answer: &[Vec<u8>], authority: &[Vec<u8>]| {
            let [answer, authority] =
                [answer, authority].map(|section| section.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let octets = message(rcode, 0, [&answer, &authority, &[]]);
            Reply::read(&octets, 0x1234, QUESTION).unwrap().lifetime()
        };
        let address = |ttl| record(1, ttl, &[0; 4]);
        assert_eq!(lifetime(0, &[address(60), address(30)], &[]), Some(30));
        assert_eq!(lifetime(0, &[address(0)], &[]), None);
        assert_eq!(lifetime(0, &[address(u32::MAX)], &[]), None);
        assert_eq!(lifetime(3, &[], &[record(6, 900, &soa(300))]), Some(300));
        assert_eq!(lifetime(0, &[], &[record(6, 20, &soa(300))]), Some(20));
        assert_eq!(lifetime(3, &[], &[]), None);
        assert_eq!(lifetime(2, &[], &[record(6, 900, &soa(300))]), None);
        // The way to a name that has no such record, or is not there.
        let alias = |ttl| record(5, ttl, &[0xc0, 12]);
        assert_eq!(lifetime(0, &[alias(60), address(30)], &[]), Some(30));
        assert_eq!(lifetime(0, &[alias(3600)], &[record(6, 900, &soa(60))]), Some(60));
        assert_eq!(lifetime(0, &[alias(20)], &[record(6, 900, &soa(60))]), Some(20));
        assert_eq!(lifetime(0, &[alias(3600)], &[]), None);
        assert_eq!(lifetime(3, &[alias(20)], &[record(6, 900, &soa(60))]), Some(20));
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic_and_all_that_is_taken_can_be_composed(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            counts in proptest::array::uniform6(0_u8..3),
            limit in 512_usize..2000,
        ) {
            let mut octets = vec![0x12, 0x34, 0x80, 0, 0, 1];
            octets.extend([0, counts[0], 0, counts[1], 0, counts[2]]);
            octets.extend(QUESTION);
            octets.extend(body);
            if let Ok(reply) = Reply::read(&octets, 0x1234, QUESTION) {
                let mut out = Vec::new();
                reply.compose(&mut out, &client(limit, None), 5);
                prop_assert!(out.len() <= limit);
            }
        }
    }
}
