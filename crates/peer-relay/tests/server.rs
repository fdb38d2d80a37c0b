//! Two clients, and senders that are neither, at one server.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use warren_keys::{DiscoPublic, DiscoSecret, NodePublic};
use warren_peer_relay::{
    AllocateError, BIND_LIFETIME, CHALLENGE_KEY_LIFETIME, Limits, STEADY_LIFETIME, Server,
};
use warren_testkit::SeededEntropy;
use warren_wire::disco::{BindRelayEndpoint, Envelope, Message, RelayEndpoint};
use warren_wire::geneve::{HEADER_LEN, Header, Payload, Vni};

const NODE: NodePublic = NodePublic::from_bytes([7; 32]);

fn secret(n: u8) -> DiscoSecret {
    DiscoSecret::generate(&mut SeededEntropy(u64::from(n)))
}

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], n))
}

struct Client {
    secret: DiscoSecret,
    generation: u32,
}

struct Lab {
    now: Instant,
    server: Server,
    entropy: SeededEntropy,
    clients: [Client; 2],
    endpoint: RelayEndpoint,
}

impl Lab {
    fn new() -> Self {
        let now = Instant::now();
        let mut entropy = SeededEntropy(0);
        let mut server = Server::new(now, secret(1), Limits::default(), &mut entropy);
        server.set_addresses(vec![address(40_000)]);
        let clients = [2, 3].map(|n| Client {
            secret: secret(n),
            generation: 0,
        });
        let keys = clients.each_ref().map(|client| client.secret.public());
        let endpoint = server.allocate(now, NODE, keys, &mut entropy).unwrap();
        Self {
            now,
            server,
            entropy,
            clients,
            endpoint,
        }
    }

    fn vni(&self) -> Vni {
        Vni::new(self.endpoint.vni).unwrap()
    }

    fn seal(&mut self, client: usize, message: &Message) -> Vec<u8> {
        let secret = &self.clients[client].secret;
        let shared = secret.shared_with(self.server.public().as_bytes()).unwrap();
        Envelope::seal(&secret.public(), &shared, &[9; 24], message)
    }

    fn body(&self, client: usize) -> BindRelayEndpoint {
        BindRelayEndpoint {
            vni: self.endpoint.vni,
            generation: self.clients[client].generation,
            remote: self.clients[1 - client].secret.public(),
            challenge: [0; 32],
        }
    }

    fn control(&mut self, source: SocketAddr, content: &[u8]) -> Option<Vec<u8>> {
        let vni = self.vni();
        let reply = self
            .server
            .control(self.now, source, vni, content, &mut self.entropy);
        if let Some(reply) = &reply {
            assert!(reply.len() <= content.len() + HEADER_LEN, "amplifies");
        }
        reply
    }

    /// A bind of a new attempt.
    fn bind(&mut self, client: usize) -> Vec<u8> {
        self.clients[client].generation += 1;
        let body = self.body(client);
        self.seal(client, &Message::BindRelayEndpoint(body))
    }

    /// The answer to a challenge.
    fn answer(&mut self, client: usize, challenge: &[u8]) -> Vec<u8> {
        let (header, content) = Header::parse(challenge).unwrap();
        assert_eq!(header.payload, Payload::DiscoControl);
        let envelope = Envelope::parse(content).unwrap();
        assert_eq!(envelope.sender, self.server.public());
        let shared = self.clients[client]
            .secret
            .shared_with(envelope.sender.as_bytes())
            .unwrap();
        let opened = shared.open(envelope.sealed).unwrap();
        let Message::BindRelayEndpointChallenge(body) = Message::parse(&opened).unwrap() else {
            panic!("not a challenge");
        };
        assert_eq!(
            BindRelayEndpoint {
                challenge: [0; 32],
                ..body
            },
            self.body(client)
        );
        self.seal(client, &Message::BindRelayEndpointAnswer(body))
    }

    /// All three messages of a client at `source`. Returns what it sent.
    fn bound(&mut self, client: usize, source: SocketAddr) -> [Vec<u8>; 2] {
        let bind = self.bind(client);
        let challenge = self.control(source, &bind).unwrap();
        let answer = self.answer(client, &challenge);
        assert_eq!(self.control(source, &answer), None);
        [bind, answer]
    }

    fn forward(&mut self, source: SocketAddr) -> Option<SocketAddr> {
        let vni = self.vni();
        self.server.forward(self.now, source, vni, 1, 100)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.on_deadline(self.now);
    }
}

#[test]
fn datagrams_pass_between_bound_clients_only() {
    let mut lab = Lab::new();
    let (a, b, other) = (address(1), address(2), address(3));
    assert_eq!(lab.forward(a), None);
    lab.bound(0, a);
    assert_eq!(lab.forward(a), None, "the other client is not bound");
    lab.bound(1, b);
    assert_eq!(lab.forward(a), Some(b));
    assert_eq!(lab.forward(b), Some(a));
    assert_eq!(lab.forward(other), None);
    // A client that moves.
    lab.bound(0, other);
    assert_eq!(lab.forward(a), None);
    assert_eq!(lab.forward(b), Some(other));
    assert_eq!(lab.server.counters().forwarded_packets, 3);
    assert_eq!(lab.server.counters().unbound, 4);
}

#[test]
fn an_answer_from_another_address_is_refused() {
    let mut lab = Lab::new();
    let bind = lab.bind(0);
    let challenge = lab.control(address(1), &bind).unwrap();
    let answer = lab.answer(0, &challenge);
    lab.control(address(9), &answer);
    assert_eq!(
        lab.server.endpoints()[0]
            .sides
            .iter()
            .filter(|s| s.address.is_some())
            .count(),
        0
    );
    lab.control(address(1), &answer);
    assert_eq!(lab.server.counters().bound, 1);
}

#[test]
fn recorded_messages_do_not_move_a_client_back() {
    let mut lab = Lab::new();
    lab.bound(1, address(2));
    let recorded = lab.bound(0, address(1));
    lab.bound(0, address(5));
    for message in &recorded {
        assert_eq!(lab.control(address(1), message), None);
    }
    assert_eq!(lab.forward(address(2)), Some(address(5)));
    assert_eq!(lab.server.counters().refused, 2);
}

#[test]
fn a_challenge_is_accepted_until_its_key_has_changed_twice() {
    for (age, accepted) in [
        (CHALLENGE_KEY_LIFETIME - Duration::from_secs(1), true),
        (CHALLENGE_KEY_LIFETIME, true),
        (2 * CHALLENGE_KEY_LIFETIME, false),
    ] {
        let mut lab = Lab::new();
        lab.bound(0, address(1));
        lab.bound(1, address(2));
        let bind = lab.bind(0);
        let challenge = lab.control(address(3), &bind).unwrap();
        let answer = lab.answer(0, &challenge);
        // Traffic keeps the endpoint.
        lab.now += age;
        lab.forward(address(1));
        lab.forward(address(2));
        lab.control(address(3), &answer);
        let moved = lab.forward(address(2)) == Some(address(3));
        assert_eq!(moved, accepted, "{age:?}");
    }
}

#[test]
fn endpoints_end_without_binding_and_without_traffic() {
    let mut lab = Lab::new();
    lab.bound(0, address(1));
    lab.pass(BIND_LIFETIME);
    assert!(lab.server.endpoints().is_empty());

    let mut lab = Lab::new();
    lab.bound(0, address(1));
    lab.bound(1, address(2));
    lab.pass(STEADY_LIFETIME - Duration::from_secs(1));
    assert!(lab.forward(address(1)).is_some());
    assert!(lab.forward(address(2)).is_some());
    lab.pass(STEADY_LIFETIME - Duration::from_secs(1));
    assert_eq!(lab.server.endpoints().len(), 1);
    // One client alone does not keep it.
    assert!(lab.forward(address(1)).is_some());
    lab.pass(Duration::from_secs(1));
    assert!(lab.server.endpoints().is_empty());
    assert_eq!(lab.server.next_deadline(), None);
    assert_eq!(lab.server.counters().expired, 1);
}

#[test]
fn a_pair_has_one_endpoint_whichever_client_asks() {
    let mut lab = Lab::new();
    let keys = lab.endpoint.clients;
    let other = NodePublic::from_bytes([8; 32]);
    for keys in [keys, [keys[1], keys[0]]] {
        let again = lab.server.allocate(lab.now, other, keys, &mut lab.entropy);
        assert_eq!(again.as_ref(), Ok(&lab.endpoint));
    }
    lab.server.retain(|node, _| *node != NODE);
    assert!(lab.server.endpoints().is_empty());
    let fresh = lab
        .server
        .allocate(lab.now, other, keys, &mut lab.entropy)
        .unwrap();
    assert!(fresh.lamport_id > lab.endpoint.lamport_id);
    assert_ne!(fresh.vni, lab.endpoint.vni);
}

#[test]
fn requests_are_refused_at_the_limits() {
    let now = Instant::now();
    let mut entropy = SeededEntropy(0);
    let limits = Limits {
        endpoints: 3,
        per_node: 2,
    };
    let mut server = Server::new(now, secret(1), limits, &mut entropy);
    let key = |n| secret(n).public();
    let nodes = [1, 2].map(|n| NodePublic::from_bytes([n; 32]));
    let mut allocate = |server: &mut Server, node: usize, keys: [DiscoPublic; 2]| {
        server.allocate(now, nodes[node], keys, &mut entropy).err()
    };
    let keys = [key(2), key(3)];
    assert_eq!(
        allocate(&mut server, 0, keys),
        Some(AllocateError::NoAddress)
    );
    server.set_addresses(vec![address(1)]);
    for keys in [
        [key(2), key(2)],
        [key(2), server.public()],
        [key(2), DiscoPublic::from_bytes([0; 32])],
    ] {
        assert_eq!(allocate(&mut server, 0, keys), Some(AllocateError::Clients));
    }
    assert_eq!(allocate(&mut server, 0, keys), None);
    assert_eq!(allocate(&mut server, 0, [key(2), key(4)]), None);
    assert_eq!(
        allocate(&mut server, 0, [key(2), key(5)]),
        Some(AllocateError::NodeFull)
    );
    assert_eq!(allocate(&mut server, 0, keys), None, "it exists");
    assert_eq!(allocate(&mut server, 1, [key(2), key(5)]), None);
    assert_eq!(
        allocate(&mut server, 1, [key(2), key(6)]),
        Some(AllocateError::Full)
    );
    server.on_deadline(now + BIND_LIFETIME);
    assert_eq!(allocate(&mut server, 1, [key(2), key(6)]), None);
}

proptest! {
    /// Each byte of a bind and of an answer is protected, and its source too.
    #[test]
    fn changed_control_messages_are_refused(at in 0usize..200, bit in 0u8..8, answer: bool) {
        let mut lab = Lab::new();
        let bind = lab.bind(0);
        let message = if answer {
            let challenge = lab.control(address(1), &bind).unwrap();
            lab.answer(0, &challenge)
        } else {
            bind
        };
        let mut changed = message.clone();
        let at = at % changed.len();
        changed[at] ^= 1 << bit;
        let before = lab.server.counters();
        prop_assert_eq!(lab.control(address(1), &changed), None);
        prop_assert_eq!(lab.server.counters().refused, before.refused + 1);
        prop_assert_eq!(lab.server.counters().bound, 0);
    }

    /// Whatever is sent in which order: datagrams pass only between addresses that the
    /// clients have bound last, and messages of senders without keys change nothing.
    #[test]
    fn only_bound_addresses_are_served(
        steps in proptest::collection::vec((0u8..6, 0usize..2, 1u16..6), 1..60),
    ) {
        let mut lab = Lab::new();
        let mut bound: [Option<SocketAddr>; 2] = [None; 2];
        let mut recorded: Vec<Vec<u8>> = Vec::new();
        let mut pending: Option<(usize, u32, SocketAddr, Vec<u8>)> = None;
        for (step, client, port) in steps {
            let source = address(port);
            match step {
                0 => {
                    let sent = lab.bound(client, source);
                    recorded.extend(sent);
                    bound[client] = Some(source);
                    pending = None;
                }
                1 => {
                    let bind = lab.bind(client);
                    let challenge = lab.control(source, &bind).unwrap();
                    let answer = lab.answer(client, &challenge);
                    let generation = lab.clients[client].generation;
                    pending = Some((client, generation, source, answer));
                }
                2 => if let Some((client, generation, expected, answer)) = pending.take() {
                    lab.control(source, &answer);
                    if source == expected && generation == lab.clients[client].generation {
                        bound[client] = Some(source);
                    }
                },
                3 => for message in &recorded {
                    prop_assert_eq!(lab.control(source, message), None);
                },
                4 => {
                    let junk = SeededEntropy(u64::from(port)).next_u64().to_be_bytes();
                    prop_assert_eq!(lab.control(source, &junk), None);
                }
                _ => {}
            }
            for port in 1..6 {
                let from = address(port);
                let expected = match bound {
                    [Some(a), Some(b)] if from == a => Some(b),
                    [Some(a), Some(b)] if from == b => Some(a),
                    _ => None,
                };
                prop_assert_eq!(lab.forward(from), expected);
            }
        }
    }
}
