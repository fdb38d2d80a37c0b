//! Questions to MagicDNS, from any program on the machine, and the same bytes as an
//! answer to a look-up of our own.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use warren_control_types::Netmap;
use warren_dns::lookup::addresses;
use warren_dns::message::{self, Header};
use warren_dns::{Decision, Options, Resolver, ResolverConfig, Transport};
use warren_fuzz::{WALL, first_map};

static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| {
    let mut map = Netmap::default();
    map.apply(first_map(), WALL).expect("a whole map");
    let own = map.self_node.as_ref().expect("the map has it");
    let options = Options {
        accept_dns: true,
        key_expired: false,
    };
    Resolver::new(ResolverConfig::from_netmap(
        &map.dns_config,
        own,
        map.peers.values(),
        options,
    ))
});

fuzz_target!(|query: &[u8]| {
    let asked = Header::parse(query);
    let _ = addresses(query);
    for transport in [Transport::Udp, Transport::Tcp] {
        match RESOLVER.handle_query(WALL, query, transport) {
            Decision::Drop => assert!(asked.is_none_or(|header| header.response)),
            Decision::Forward {
                upstreams,
                query: passed,
            } => {
                assert!(!upstreams.is_empty());
                assert_eq!(passed.len(), query.len());
                assert_eq!(message::question(&passed), message::question(query));
                assert!(message::edns_payload(&passed).is_none_or(|n| n <= message::MAX_PAYLOAD));
            }
            Decision::Answer(answer) => {
                let header = Header::parse(&answer).expect("an answer has a header");
                let asked = asked.expect("a question had one");
                assert!(header.response && header.id == asked.id);
                if transport == Transport::Udp {
                    let limit = message::edns_payload(query)
                        .unwrap_or(0)
                        .max(message::MIN_PAYLOAD);
                    assert!(answer.len() <= usize::from(limit));
                }
                if header.questions == 1 {
                    assert_eq!(message::question(&answer), message::question(query));
                }
            }
        }
    }
});
