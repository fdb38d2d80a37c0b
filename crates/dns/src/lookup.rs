//! The question for the addresses of a host, and the addresses in the answer.
//!
//! For a program that asks a resolver itself, around the system's.

use std::net::IpAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 16;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 (record type A).
    V4,
    /// IPv6 (record type AAAA).
    V6,
}

/// The question for the addresses of `host`; `None` if it is not a name that
/// DNS can hold. The id is zero.
pub fn query(host: &str, family: Family) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.id = 0;
    message.metadata.recursion_desired = true;
    let kind = match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    };
    message.add_query(Query::query(name, kind));
    message.to_vec().ok()
}

/// The addresses in an answer of a resolver: those of the name that was asked
/// for, or of the name that its aliases lead to. Empty for errors.
pub fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let Ok(message) = Message::from_vec(answer) else {
        return Vec::new();
    };
    let [question] = &message.queries[..] else {
        return Vec::new();
    };
    if message.metadata.response_code != ResponseCode::NoError {
        return Vec::new();
    }
    let mut name = question.name();
    for _ in 0..MAX_ALIASES {
        let alias = message
            .answers
            .iter()
            .find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == *name => Some(&target.0),
                _ => None,
            });
        match alias {
            Some(target) => name = target,
            None => break,
        }
    }
    let records = message.answers.iter().filter(|record| record.name == *name);
    let addresses = records.filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(host: &str, records: &[(&str, RData)]) -> Vec<u8> {
        let query = Message::from_vec(&query(host, Family::V4).unwrap()).unwrap();
        let mut answer = Message::response(0, query.metadata.op_code);
        answer.add_query(query.queries[0].clone());
        for (owner, data) in records {
            answer.add_answer(Record::from_rdata(name(owner), 60, data.clone()));
        }
        answer.to_vec().unwrap()
    }

    fn alias(target: &str) -> RData {
        RData::CNAME(CNAME(name(target)))
    }

    #[test]
    fn query_asks_for_one_full_name_and_wants_recursion() {
        for host in ["Control.example.com", "control.example.com."] {
            let bytes = query(host, Family::V6).unwrap();
            let message = Message::from_vec(&bytes).unwrap();
            let question = &message.queries[0];
            assert!(message.metadata.recursion_desired);
            assert_eq!(question.query_type(), RecordType::AAAA);
            assert_eq!(*question.name(), name("control.example.com."));
            assert!(question.name().is_fqdn());
        }
        assert_eq!(query(&"x".repeat(64), Family::V4), None);
    }

    #[test]
    fn aliases_lead_to_addresses_and_other_names_do_not_count() {
        let v4 = |last| RData::A(A([192, 0, 2, last].into()));
        let bytes = answer(
            "a.example",
            &[
                ("b.example.", alias("c.example.")),
                ("A.example.", alias("B.example.")),
                ("c.example.", v4(1)),
                ("c.example.", RData::AAAA(AAAA([0; 16].into()))),
                ("other.example.", v4(66)),
                ("a.example.", v4(67)),
            ],
        );
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "::".parse().unwrap()];
        assert_eq!(addresses(&bytes), expected);
    }

    #[test]
    fn endless_aliases_and_errors_have_no_addresses() {
        let bytes = answer(
            "a.example",
            &[
                ("a.example.", alias("b.example.")),
                ("b.example.", alias("a.example.")),
            ],
        );
        assert_eq!(addresses(&bytes), Vec::<IpAddr>::new());
        let mut failed = answer("a.example", &[("a.example.", RData::A(A([1; 4].into())))]);
        assert_eq!(addresses(&failed).len(), 1);
        failed[3] |= 3;
        assert_eq!(addresses(&failed), Vec::<IpAddr>::new());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            addresses(&bytes);
        }
    }
}
