//! The decision about one question.
//!
//! In order: names that must not leave the machine, names of the tailnet,
//! domains that are ours (a name we do not know there does not exist), and
//! last the upstreams. Local answers are authoritative and live five seconds;
//! answers without content carry an SOA so that they are not cached longer than
//! ten.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::config::{ResolverConfig, Route, canonical, is_under};
use crate::message::{self, Header};

/// How long a local answer may be remembered, in seconds.
const TTL: u32 = 5;

/// How long it may be remembered that a name does not exist, in seconds.
const NEGATIVE_TTL: u32 = 10;

/// Payload size that our answers to EDNS questions announce.
const OUR_PAYLOAD: u16 = 4095;

/// The transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// The decision about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send this back.
    Answer(Vec<u8>),
    /// Ask one of these, in this order of preference (never empty), with this
    /// message: the question as it came, only its payload size clamped. The
    /// id is still the client's.
    Forward {
        /// The upstreams.
        upstreams: Vec<SocketAddr>,
        /// The message to send.
        query: Vec<u8>,
    },
    /// It is not a question; send nothing.
    Drop,
}

/// Answers questions from a configuration.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    config: ResolverConfig,
}

/// Our knowledge about a name.
enum Local<'a> {
    /// A record, and the zone it is in is of no interest.
    Record(RData),
    /// The name exists, but has nothing of the wanted type.
    Empty,
    /// The name does not exist; the zone, if it is one of ours.
    Missing(Option<&'a str>),
    /// We do not do this.
    NotImplemented,
    /// Not ours; ask these.
    Ask(&'a [SocketAddr]),
}

impl Resolver {
    /// A resolver with this configuration.
    pub fn new(config: ResolverConfig) -> Self {
        Self { config }
    }

    /// Uses another configuration from now on.
    pub fn set_config(&mut self, config: ResolverConfig) {
        self.config = config;
    }

    /// The configuration in use.
    pub fn config(&self) -> &ResolverConfig {
        &self.config
    }

    /// Decides about a question. `wall` is the time since the UNIX epoch.
    pub fn handle_query(&self, wall: Duration, query: &[u8], transport: Transport) -> Decision {
        let Some(header) = Header::parse(query) else {
            return Decision::Drop;
        };
        if header.response {
            return Decision::Drop;
        }
        let Some(question) = message::question(query) else {
            return Decision::Answer(bare_answer(header, ResponseCode::FormErr));
        };
        if header.opcode != 0 {
            return Decision::Answer(bare_answer(header, ResponseCode::NotImp));
        }
        let name = canonical(&question.name().to_ascii());
        let mut answer = answer_to(header, &question);
        if message::edns_payload(query).is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(OUR_PAYLOAD);
            answer.set_edns(edns);
        }
        match self.look_up(&name, question.query_type(), question.query_class()) {
            Local::Record(data) => {
                answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
            }
            Local::Empty => {
                if let Route::Local(zone) = self.config.route(&name) {
                    add_soa(&mut answer, zone, wall);
                }
            }
            Local::Missing(zone) => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                if let Some(zone) = zone {
                    add_soa(&mut answer, zone, wall);
                }
            }
            Local::NotImplemented => answer.metadata.response_code = ResponseCode::NotImp,
            Local::Ask([]) => {
                answer.metadata.authoritative = false;
                answer.metadata.response_code = ResponseCode::ServFail;
            }
            Local::Ask(upstreams) => {
                let mut query = query.to_vec();
                message::clamp_payload(&mut query);
                return Decision::Forward {
                    upstreams: upstreams.to_vec(),
                    query,
                };
            }
        }
        let Ok(mut bytes) = answer.to_vec() else {
            return Decision::Answer(bare_answer(header, ResponseCode::ServFail));
        };
        if transport == Transport::Udp {
            let limit = message::edns_payload(query)
                .unwrap_or(0)
                .max(message::MIN_PAYLOAD);
            message::fit(&mut bytes, usize::from(limit));
        }
        Decision::Answer(bytes)
    }

    fn look_up(&self, name: &str, kind: RecordType, class: DNSClass) -> Local<'_> {
        if is_under(name, "onion.") {
            return Local::Missing(None);
        }
        if class != DNSClass::IN {
            return self.not_a_host(name);
        }
        if kind == RecordType::PTR {
            return self.look_up_pointer(name);
        }
        let Some(addresses) = self.addresses(name) else {
            return self.not_a_host(name);
        };
        let first = |wanted: fn(&IpAddr) -> bool| addresses.iter().find(|ip| wanted(ip)).copied();
        let found = match kind {
            RecordType::A => first(IpAddr::is_ipv4),
            RecordType::AAAA => first(IpAddr::is_ipv6),
            RecordType::ANY => addresses.first().copied(),
            RecordType::NS | RecordType::SOA | RecordType::AXFR | RecordType::HINFO => {
                return Local::NotImplemented;
            }
            _ => None,
        };
        match found {
            Some(IpAddr::V4(ip)) => Local::Record(RData::A(A(ip))),
            Some(IpAddr::V6(ip)) => Local::Record(RData::AAAA(AAAA(ip))),
            None => Local::Empty,
        }
    }

    /// The addresses of a host, or of the nearest one above that answers for
    /// the names below it.
    fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        if let Some(addresses) = self.config.hosts.get(name) {
            return Some(addresses);
        }
        if self.config.subdomain_hosts.is_empty() {
            return None;
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if self.config.subdomain_hosts.contains(parent) {
                return self.config.hosts.get(parent).map(Vec::as_slice);
            }
            rest = parent;
        }
        None
    }

    fn not_a_host(&self, name: &str) -> Local<'_> {
        match self.config.route(name) {
            Route::Local(zone) => Local::Missing(Some(zone)),
            Route::Upstreams(upstreams) => Local::Ask(upstreams),
            Route::None => Local::Ask(&[]),
        }
    }

    fn look_up_pointer(&self, name: &str) -> Local<'_> {
        if is_service_discovery(name) {
            return Local::Missing(None);
        }
        let known = reverse_address(name).and_then(|ip| self.config.names.get(&ip));
        if let Some(target) = known {
            // Names from the netmap may be too long for DNS; then there is none.
            return match Name::from_ascii(target) {
                Ok(target) => Local::Record(RData::PTR(PTR(target))),
                Err(_) => Local::Empty,
            };
        }
        if self.config.hosts.contains_key(name) {
            return Local::Empty;
        }
        self.not_a_host(name)
    }
}

/// Whether the name asks for the services of a network (RFC 6763 section 11),
/// which never leaves this machine.
fn is_service_discovery(name: &str) -> bool {
    ["b", "db", "r", "dr", "lb"].into_iter().any(|label| {
        name.strip_prefix(label)
            .is_some_and(|rest| rest.starts_with("._dns-sd._udp."))
    })
}

/// The address in a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(front) = name.strip_suffix(".in-addr.arpa.") {
        let mut octets = [0; 4];
        let mut labels = front.split('.');
        for octet in octets.iter_mut().rev() {
            let label = labels.next()?;
            if label.is_empty() || !label.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            *octet = label.parse().ok()?;
        }
        return labels
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let front = name.strip_suffix(".ip6.arpa.")?;
    let mut value: u128 = 0;
    let mut count = 0;
    for label in front.rsplit('.') {
        let &[digit] = label.as_bytes() else {
            return None;
        };
        let digit = char::from(digit).to_digit(16)?;
        count += 1;
        if count > 32 {
            return None;
        }
        value = value << 4 | u128::from(digit);
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from(value)))
}

/// An answer without question and records, for questions that make no sense.
fn bare_answer(header: Header, code: ResponseCode) -> Vec<u8> {
    let mut bytes = vec![0; message::HEADER];
    message::set_id(&mut bytes, header.id);
    bytes[2] = 0x80 | (header.opcode << 3) | u8::from(header.recursion_desired);
    bytes[3] = code.low();
    bytes
}

fn answer_to(header: Header, question: &Query) -> Message {
    let mut answer = Message::response(header.id, OpCode::Query);
    answer.metadata.authoritative = true;
    answer.metadata.recursion_desired = header.recursion_desired;
    answer.metadata.recursion_available = header.recursion_desired;
    answer.add_query(question.clone());
    answer
}

fn add_soa(answer: &mut Message, zone: &str, wall: Duration) {
    let Ok(zone) = Name::from_ascii(zone) else {
        return;
    };
    // The serial is the time, which wraps around as serials do (RFC 1982).
    let serial = (wall.as_secs() & u64::from(u32::MAX)) as u32;
    let timer = NEGATIVE_TTL as i32;
    let soa = SOA::new(
        zone.clone(),
        zone.clone(),
        serial,
        timer,
        timer,
        timer,
        NEGATIVE_TTL,
    );
    answer.add_authority(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(soa)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::example;
    use proptest::prelude::*;

    const WALL: Duration = Duration::from_secs(1_700_000_000);

    fn ask(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 99;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn answered(resolver: &Resolver, name: &str, kind: RecordType) -> Message {
        match resolver.handle_query(WALL, &ask(name, kind), Transport::Udp) {
            Decision::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{name} {kind}: {other:?}"),
        }
    }

    fn data(message: &Message) -> Vec<String> {
        message
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect()
    }

    #[test]
    fn hosts_are_answered_as_the_rules_say() {
        let resolver = Resolver::new(example(|_, _| ()));
        let table: &[(&str, RecordType, ResponseCode, &[&str], bool)] = &[
            (
                "db.net.example.com.",
                RecordType::A,
                ResponseCode::NoError,
                &["100.64.0.2"],
                false,
            ),
            (
                "DB.Net.Example.COM.",
                RecordType::A,
                ResponseCode::NoError,
                &["100.64.0.2"],
                false,
            ),
            (
                "db.net.example.com.",
                RecordType::AAAA,
                ResponseCode::NoError,
                &[],
                true,
            ),
            (
                "db.net.example.com.",
                RecordType::TXT,
                ResponseCode::NoError,
                &[],
                true,
            ),
            (
                "db.net.example.com.",
                RecordType::ANY,
                ResponseCode::NoError,
                &["100.64.0.2"],
                false,
            ),
            (
                "db.net.example.com.",
                RecordType::NS,
                ResponseCode::NotImp,
                &[],
                false,
            ),
            (
                "db.net.example.com.",
                RecordType::SOA,
                ResponseCode::NotImp,
                &[],
                false,
            ),
            (
                "db.net.example.com.",
                RecordType::HINFO,
                ResponseCode::NotImp,
                &[],
                false,
            ),
            (
                "db.net.example.com.",
                RecordType::AXFR,
                ResponseCode::NotImp,
                &[],
                false,
            ),
            (
                "six.net.example.com.",
                RecordType::AAAA,
                ResponseCode::NoError,
                &["fd7a:115c:a1e0::6"],
                false,
            ),
            (
                "nope.net.example.com.",
                RecordType::A,
                ResponseCode::NXDomain,
                &[],
                true,
            ),
            (
                "x.db.net.example.com.",
                RecordType::A,
                ResponseCode::NXDomain,
                &[],
                true,
            ),
            (
                "any.onion.",
                RecordType::A,
                ResponseCode::NXDomain,
                &[],
                false,
            ),
            (
                "magicdns.localhost-tailscale-daemon.",
                RecordType::A,
                ResponseCode::NoError,
                &["100.100.100.100"],
                false,
            ),
            (
                "2.0.64.100.in-addr.arpa.",
                RecordType::PTR,
                ResponseCode::NoError,
                &["db.net.example.com."],
                false,
            ),
            (
                "100.100.100.100.in-addr.arpa.",
                RecordType::PTR,
                ResponseCode::NoError,
                &["magicdns.localhost-tailscale-daemon."],
                false,
            ),
            (
                "77.0.64.100.in-addr.arpa.",
                RecordType::PTR,
                ResponseCode::NXDomain,
                &[],
                true,
            ),
            (
                "lb._dns-sd._udp.0.0.0.10.in-addr.arpa.",
                RecordType::PTR,
                ResponseCode::NXDomain,
                &[],
                false,
            ),
            (
                "x.doh.example.",
                RecordType::A,
                ResponseCode::ServFail,
                &[],
                false,
            ),
        ];
        for (name, kind, code, expected, soa) in table {
            let message = answered(&resolver, name, *kind);
            assert_eq!(message.metadata.id, 99);
            assert_eq!(message.metadata.response_code, *code, "{name} {kind}");
            assert_eq!(data(&message), *expected, "{name} {kind}");
            assert_eq!(
                message.authorities.len(),
                usize::from(*soa),
                "{name} {kind}"
            );
            assert!(message.metadata.recursion_available);
            assert_eq!(
                message.queries[0].name().to_ascii(),
                *name,
                "the case is kept"
            );
            assert!(message.answers.iter().all(|record| record.ttl == TTL));
            assert!(
                message
                    .authorities
                    .iter()
                    .all(|record| record.ttl == NEGATIVE_TTL)
            );
        }
    }

    #[test]
    fn six_nibble_names_point_back() {
        let resolver = Resolver::new(example(|_, _| ()));
        let mut name = String::new();
        for octet in "fd7a:115c:a1e0::2"
            .parse::<Ipv6Addr>()
            .unwrap()
            .octets()
            .iter()
            .rev()
        {
            name += &format!("{:x}.{:x}.", octet & 15, octet >> 4);
        }
        let message = answered(&resolver, &format!("{name}ip6.arpa."), RecordType::PTR);
        assert_eq!(data(&message), ["db.net.example.com."]);
    }

    #[test]
    fn host_may_answer_for_the_names_below() {
        let mut config = example(|_, _| ());
        config
            .subdomain_hosts
            .insert("db.net.example.com.".to_owned());
        let message = answered(
            &Resolver::new(config),
            "a.b.db.net.example.com.",
            RecordType::A,
        );
        assert_eq!(data(&message), ["100.64.0.2"]);
    }

    #[test]
    fn other_names_are_forwarded_as_they_came() {
        let resolver = Resolver::new(example(|_, _| ()));
        for (name, upstream) in [
            ("example.org.", "9.9.9.9:53"),
            ("a.Corp.example.", "10.0.0.53:5353"),
            ("1.0.0.10.in-addr.arpa.", "9.9.9.9:53"),
        ] {
            let query = ask(name, RecordType::PTR);
            assert_eq!(
                resolver.handle_query(WALL, &query, Transport::Udp),
                Decision::Forward {
                    upstreams: vec![upstream.parse().unwrap()],
                    query: query.clone()
                },
                "{name}"
            );
        }
    }

    #[test]
    fn malformed_questions_are_refused_or_dropped() {
        let resolver = Resolver::new(example(|_, _| ()));
        assert_eq!(
            resolver.handle_query(WALL, &[1, 2, 3], Transport::Udp),
            Decision::Drop
        );
        let mut response = ask("db.net.example.com.", RecordType::A);
        response[2] |= 0x80;
        assert_eq!(
            resolver.handle_query(WALL, &response, Transport::Udp),
            Decision::Drop
        );
        let code = |bytes: &[u8]| match resolver.handle_query(WALL, bytes, Transport::Tcp) {
            Decision::Answer(bytes) => {
                assert_eq!(bytes[..2], [0, 99], "the id is repeated");
                Header::parse(&bytes).unwrap().rcode
            }
            other => panic!("{other:?}"),
        };
        let good = ask("db.net.example.com.", RecordType::A);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(code(&two), 1);
        assert_eq!(code(&good[..good.len() - 3]), 1);
        let mut notify = good.clone();
        notify[2] |= 4 << 3;
        assert_eq!(code(&notify), 4);
    }

    #[test]
    fn reverse_names_are_read_strictly() {
        assert_eq!(
            reverse_address("4.3.2.1.in-addr.arpa."),
            Some("1.2.3.4".parse().unwrap())
        );
        for bad in [
            "3.2.1.in-addr.arpa.",
            "5.4.3.2.1.in-addr.arpa.",
            "256.3.2.1.in-addr.arpa.",
            "+4.3.2.1.in-addr.arpa.",
            "1.ip6.arpa.",
            "xx.ip6.arpa.",
            "example.org.",
        ] {
            assert_eq!(reverse_address(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_answers_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let resolver = Resolver::new(example(|_, _| ()));
            if let Decision::Answer(answer) = resolver.handle_query(WALL, &bytes, Transport::Udp) {
                prop_assert!(Message::from_vec(&answer).is_ok());
                prop_assert_eq!(&answer[..2], &bytes[..2]);
            }
        }

        #[test]
        fn any_name_and_type_get_an_answer_that_can_be_read(
            labels in proptest::collection::vec("[a-zA-Z0-9_-]{1,20}", 0..6),
            suffix in prop_oneof![Just(""), Just("net.example.com."), Just("64.100.in-addr.arpa."), Just("ip6.arpa."), Just("onion.")],
            kind: u16,
        ) {
            let name = format!("{}.{suffix}", labels.join("."));
            let Ok(name) = Name::from_ascii(name.trim_start_matches('.')) else { return Ok(()) };
            let mut message = Message::query();
            message.add_query(Query::query(name, RecordType::from(kind)));
            let query = message.to_vec().unwrap();
            let resolver = Resolver::new(example(|_, _| ()));
            match resolver.handle_query(WALL, &query, Transport::Udp) {
                Decision::Answer(answer) => prop_assert!(Message::from_vec(&answer).is_ok()),
                Decision::Forward { upstreams, query: forwarded } => {
                    prop_assert!(!upstreams.is_empty());
                    prop_assert_eq!(forwarded, query);
                }
                Decision::Drop => prop_assert!(false, "a question was dropped"),
            }
        }
    }
}
