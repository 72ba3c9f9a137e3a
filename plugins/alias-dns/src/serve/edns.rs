//! EDNS(0) (RFC 6891): what a client's OPT record allows, and the OPT record of ours in the answer. Nothing of the
//! client's is sent back: no cookie, no option, no flag but DO.

use domain::base::iana::OptRcode;

/// The largest UDP payload that we send or take: it crosses every path in one piece.
pub(crate) const PAYLOAD: u16 = 1232;

/// The largest UDP message to a client without EDNS (RFC 1035, section 2.3.4).
const PLAIN_PAYLOAD: u16 = 512;

/// Octets of our OPT record.
pub(crate) const OPT_LEN: usize = 11;

/// What a query's OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    /// The client's UDP payload size.
    pub(crate) payload: u16,
    /// The version asked for; we speak 0.
    pub(crate) version: u8,
    /// DNSSEC records are wanted.
    pub(crate) dnssec_ok: bool,
}

/// Octets that an answer over UDP may have.
pub(crate) fn udp_limit(edns: Option<Edns>) -> usize {
    edns.map_or(PLAIN_PAYLOAD, |edns| edns.payload.clamp(PLAIN_PAYLOAD, PAYLOAD)).into()
}

/// Our OPT record, with those bits of `rcode` that have room nowhere else.
pub(crate) fn opt_octets(edns: Edns, rcode: OptRcode) -> [u8; OPT_LEN] {
    let [payload_high, payload_low] = PAYLOAD.to_be_bytes();
    let flags = if edns.dnssec_ok { 0x80 } else { 0 };
    // Root name, type 41, payload size, extended RCODE, version, flags, no options.
    [0, 0, 41, payload_high, payload_low, rcode.ext(), 0, flags, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_clients_within_512_and_ours() {
        let limit = |payload| udp_limit(Some(Edns { payload, version: 0, dnssec_ok: false }));
        assert_eq!(udp_limit(None), 512);
        assert_eq!([0, 512, 1000, 1232, 4096].map(limit), [512, 512, 1000, 1232, 1232]);
    }

    #[test]
    fn our_opt_record_says_what_it_should() {
        for (dnssec_ok, rcode) in [(false, OptRcode::NOERROR), (true, OptRcode::BADVERS)] {
            let mut message = vec![0, 7, 0x80, rcode.rcode().to_int(), 0, 0, 0, 0, 0, 0, 0, 1];
            message.extend(opt_octets(Edns { payload: 4096, version: 0, dnssec_ok }, rcode));
            let message = domain::base::Message::from_octets(message).unwrap();
            let opt = message.opt().unwrap();
            assert_eq!((opt.udp_payload_size(), opt.version(), opt.dnssec_ok()), (PAYLOAD, 0, dnssec_ok));
            assert_eq!((opt.rcode(message.header()), opt.opt().len()), (rcode, 0));
        }
    }
}
