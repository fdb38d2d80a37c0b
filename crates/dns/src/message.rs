//! The parts of a DNS message (RFC 1035 section 4) that are read without
//! decoding all of it.
//!
//! ```text
//!  0      2      4       6       8       10      12
//!  | id   | flags| QD    | AN    | NS    | AR    | question ... records ... |
//! ```
//!
//! A question that is forwarded may hold records and options that we do not
//! know; so only the header, the question and the EDNS record are looked at.

use hickory_proto::op::Query;
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

/// Length of the header.
pub const HEADER: usize = 12;

const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const OPT: u16 = 41;

/// The largest payload size that is passed on to upstreams, in bytes.
pub const MAX_PAYLOAD: u16 = 4095;

/// The payload that every client takes over UDP, in bytes (RFC 1035).
pub const MIN_PAYLOAD: u16 = 512;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the client; the answer repeats it.
    pub id: u16,
    /// An answer, not a question.
    pub response: bool,
    /// Kind of question; 0 is the only one in use here.
    pub opcode: u8,
    /// The answer comes from a server that is responsible for the name.
    pub authoritative: bool,
    /// The answer was too long and is cut.
    pub truncated: bool,
    /// The client wants us to ask others.
    pub recursion_desired: bool,
    /// Outcome, low four bits.
    pub rcode: u8,
    /// Number of questions.
    pub questions: u16,
    /// Number of records in the answer, authority and additional sections.
    pub records: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

impl Header {
    /// Reads the header; `None` if the message is too short for one.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = message.get(..HEADER)?.try_into().ok()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self {
            id: word(0),
            response: header[2] & QR != 0,
            opcode: (header[2] & OPCODE) >> 3,
            authoritative: header[2] & AA != 0,
            truncated: header[2] & TC != 0,
            recursion_desired: header[2] & RD != 0,
            rcode: header[3] & 0x0f,
            questions: word(4),
            records: u32::from(word(6)) + u32::from(word(8)) + u32::from(word(10)),
        })
    }
}

/// The one question of a message; `None` if there is not exactly one, or it
/// cannot be read.
pub fn question(message: &[u8]) -> Option<Query> {
    if Header::parse(message)?.questions != 1 {
        return None;
    }
    let mut decoder = BinDecoder::new(message);
    decoder.read_slice(HEADER).ok()?;
    Query::read(&mut decoder).ok()
}

/// Puts another id into a message.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// Marks a message as cut.
pub fn set_truncated(message: &mut [u8]) {
    if let Some(byte) = message.get_mut(2) {
        *byte |= TC;
    }
}

/// Where the name that starts at `at` ends (RFC 1035 section 4.1.4).
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length >> 6 {
            0 if length == 0 => return at.checked_add(1),
            0 => at = at.checked_add(1 + usize::from(length))?,
            3 => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// Where in the message the question ends.
pub fn question_end(message: &[u8]) -> Option<usize> {
    if Header::parse(message)?.questions != 1 {
        return None;
    }
    let end = skip_name(message, HEADER)?.checked_add(4)?;
    (end <= message.len()).then_some(end)
}

/// The offset of the payload size in the EDNS record (RFC 6891 section 6.1.2);
/// `None` if there is no such record or the message is broken before it.
fn payload_at(message: &[u8]) -> Option<usize> {
    let records = Header::parse(message)?.records;
    let mut at = question_end(message)?;
    for _ in 0..records {
        let name_end = skip_name(message, at)?;
        let kind = u16_at(message, name_end)?;
        if kind == OPT {
            u16_at(message, name_end + 2)?;
            return Some(name_end + 2);
        }
        let length = u16_at(message, name_end.checked_add(8)?)?;
        at = name_end.checked_add(10 + usize::from(length))?;
    }
    None
}

/// The largest UDP answer that the sender of this question takes, in bytes;
/// `None` if it does not speak EDNS.
pub fn edns_payload(message: &[u8]) -> Option<u16> {
    u16_at(message, payload_at(message)?)
}

/// Lowers the payload size of the EDNS record to [`MAX_PAYLOAD`].
pub fn clamp_payload(message: &mut [u8]) {
    let Some(at) = payload_at(message) else {
        return;
    };
    if u16_at(message, at).is_some_and(|size| size > MAX_PAYLOAD)
        && let Some(bytes) = message.get_mut(at..at + 2)
    {
        bytes.copy_from_slice(&MAX_PAYLOAD.to_be_bytes());
    }
}

/// Cuts an answer that is longer than `limit` to its header and question, and
/// marks it as cut. A message that cannot be cut keeps its length,
/// but is marked.
pub fn fit(answer: &mut Vec<u8>, limit: usize) {
    if answer.len() <= limit {
        return;
    }
    set_truncated(answer);
    if let Some(end) = question_end(answer).filter(|end| *end <= limit) {
        answer.truncate(end);
        if let Some(counts) = answer.get_mut(6..HEADER) {
            counts.fill(0);
        }
    }
}

/// Whether the answer repeats the question: type, class and, whatever the
/// case of its letters, the name.
pub fn same_question(query: &[u8], answer: &[u8]) -> bool {
    match (question(query), question(answer)) {
        (Some(query), Some(answer)) => {
            query.name() == answer.name()
                && query.query_type() == answer.query_type()
                && query.query_class() == answer.query_class()
        }
        _ => false,
    }
}

/// Writes the question into the answer as the client asked it; the answer may
/// have its name in another case.
pub fn repeat_question(query: &[u8], answer: &mut [u8]) {
    let Some(end) = question_end(query) else {
        return;
    };
    if let Some(asked) = query.get(HEADER..end)
        && let Some(repeated) = answer.get_mut(HEADER..end)
        && repeated.eq_ignore_ascii_case(asked)
    {
        repeated.copy_from_slice(asked);
    }
}

/// The query turned into an answer without records and with this code.
pub fn failure(query: &[u8], rcode: u8) -> Vec<u8> {
    let end = question_end(query).unwrap_or(query.len().min(HEADER));
    let mut answer = query.get(..end).unwrap_or_default().to_vec();
    if let Some(counts) = answer.get_mut(6..HEADER) {
        counts.fill(0);
    }
    if let Some(flags) = answer.get_mut(2..4) {
        let recursion_desired = flags[0] & RD;
        flags[0] |= QR;
        flags[1] = recursion_desired << 7 | rcode;
    }
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hickory_proto::op::{Edns, Message};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    fn query(payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 0x1234;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(
            Name::from_ascii("DB.example.com.").unwrap(),
            RecordType::A,
        ));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn the_header_and_question_are_read() {
        let bytes = query(None);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(
            (header.id, header.response, header.opcode, header.questions),
            (0x1234, false, 0, 1)
        );
        assert!(header.recursion_desired);
        assert_eq!(
            question(&bytes).unwrap().name().to_ascii(),
            "DB.example.com."
        );
        assert_eq!(question_end(&bytes), Some(bytes.len()));
        assert_eq!(edns_payload(&bytes), None);
    }

    #[test]
    fn the_payload_size_is_lowered_and_nothing_else_changes() {
        let mut bytes = query(Some(8192));
        let before = bytes.clone();
        clamp_payload(&mut bytes);
        assert_eq!(edns_payload(&bytes), Some(MAX_PAYLOAD));
        let differing: Vec<_> = (0..bytes.len())
            .filter(|i| bytes[*i] != before[*i])
            .collect();
        assert_eq!(differing.len(), 2);
        let mut small = query(Some(1232));
        clamp_payload(&mut small);
        assert_eq!(edns_payload(&small), Some(1232));
    }

    #[test]
    fn a_long_answer_is_cut_to_its_question() {
        let mut bytes = query(None);
        let end = bytes.len();
        bytes[7] = 1;
        bytes.extend([0; 1000]);
        fit(&mut bytes, 512);
        assert_eq!(bytes.len(), end);
        assert!(Header::parse(&bytes).unwrap().truncated);
        assert_eq!(Header::parse(&bytes).unwrap().records, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Header::parse(&bytes), question(&bytes), question_end(&bytes), edns_payload(&bytes));
            clamp_payload(&mut bytes);
            fit(&mut bytes, 64);
            set_id(&mut bytes, 7);
        }

        #[test]
        fn broken_questions_are_survived(at in 0usize..60, value: u8, cut in 0usize..60) {
            let mut bytes = query(Some(4096));
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = (question(&bytes), edns_payload(&bytes));
            clamp_payload(&mut bytes);
        }
    }
}
