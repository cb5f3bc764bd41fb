//! Probe: what a node tells anybody who asks the status service: enough to find a master and to
//! choose a term.
//!
//! ```text
//! question  version u8
//! answer    version u8, role u8 (0 replica, 1 master), term u32, first i64, last i64, DTVLSN i64,
//!           name of the node, address of the master (u16 lengths; empty if unknown)
//! ```

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Name, Term, Vlsn};

/// The only version so far.
const PROBE_VERSION: u8 = 1;
const MAX_ADDRESS_BYTES: usize = 300;

/// A node's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Whether it is master.
    pub is_master: bool,
    /// The highest term it knows.
    pub term: Term,
    /// First entry of its log, or the one that would be.
    pub first: Vlsn,
    /// Last entry of its log.
    pub last: Vlsn,
    /// Highest VLSN it knows durable on a majority.
    pub dtvlsn: Vlsn,
    /// The node.
    pub node: Name,
    /// Address of the master; empty if it knows none.
    pub master: String,
}

/// The question.
pub fn encode_question() -> Vec<u8> {
    vec![PROBE_VERSION]
}

/// Whether a frame is the question.
pub fn decode_question(frame: &[u8]) -> Result<(), CodecError> {
    let mut r = Reader::new(frame);
    check_version(&mut r)?;
    r.finish("status question")
}

impl ProbeAnswer {
    /// The answer as bytes. An address longer than the format allows is left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![PROBE_VERSION];
        out.put_bool(self.is_master);
        out.put_u32(self.term.number());
        out.put_vlsn(self.first);
        out.put_vlsn(self.last);
        out.put_vlsn(self.dtvlsn);
        out.put_text(self.node.as_str());
        out.put_text(if self.master.len() <= MAX_ADDRESS_BYTES { &self.master } else { "" });
        out
    }

    /// The answer in a frame.
    pub fn decode(frame: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(frame);
        check_version(&mut r)?;
        let answer = Self {
            is_master: r.bool("role")?,
            term: Term::new(r.u32("term")?),
            first: r.vlsn("first VLSN")?,
            last: r.vlsn("last VLSN")?,
            dtvlsn: r.vlsn("DTVLSN")?,
            node: r.name("node")?,
            master: r.text("master address", MAX_ADDRESS_BYTES)?.to_owned(),
        };
        r.finish("status answer")?;
        Ok(answer)
    }
}

fn check_version(r: &mut Reader<'_>) -> Result<(), CodecError> {
    match r.u8("status version")? {
        PROBE_VERSION => Ok(()),
        other => Err(CodecError::OutOfRange {
            what: "status version",
            found: other.to_string(),
            expected: "1",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_back_and_every_cut_is_an_error() {
        let answer = ProbeAnswer {
            is_master: true,
            term: Term::new(4),
            first: Vlsn::new(7),
            last: Vlsn::new(100),
            dtvlsn: Vlsn::new(90),
            node: "n1".parse().unwrap(),
            master: "127.0.0.1:7001".to_owned(),
        };
        let bytes = answer.encode();
        assert_eq!(ProbeAnswer::decode(&bytes), Ok(answer));
        for len in 0..bytes.len() {
            assert!(ProbeAnswer::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(decode_question(&encode_question()).is_ok());
        assert!(decode_question(b"GET / HTTP/1.1").is_err());
    }
}
