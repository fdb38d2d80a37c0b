//! Disco: the small messages by which two nodes find a path to each other.
//!
//! A disco packet travels over UDP beside WireGuard, or over DERP:
//!
//! ```text
//!  0   6   magic "TS" U+1F4AC
//!  6  32   disco public key of the sender, in the clear
//! 38  24   random nonce
//! 62   n   NaCl box of the message (16 bytes longer than the message)
//! ```
//!
//! [`Envelope`] is the outside, [`Message`] the inside. The box key is the
//! same in both directions and does not cover the sender's key in the clear,
//! so a captured packet opens at its own author if that key is swapped: a
//! receiver must check what a message *says* (own transaction ids, own keys),
//! not only that it opened.
//!
//! Addresses are 16 bytes of IP, v4-mapped for IPv4, and 2 bytes of port. They
//! are unmapped on reading.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use warren_keys::sealed_box::{self, SharedKey};
use warren_keys::{DiscoPublic, NodePublic};

use crate::stun::unmap;

/// The first bytes of every disco packet.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
/// Magic, sender key and nonce: shorter packets carry nothing.
pub const HEADER_LEN: usize = 62;
/// Bytes of an address with its port.
pub const ENDPOINT_LEN: usize = 18;

/// Behind magic and key: what the demultiplexer of a UDP socket asks for
/// before it takes a datagram for disco.
const MIN_UDP_LEN: usize = 38;
/// The type of [`Message::PortSearch`]. The official client ignores types that it does
/// not know; its own ones are counted up from 1.
const PORT_SEARCH: u8 = 0xf0;
/// Bytes of [`RelayEndpoint`] before its addresses.
const RELAY_ENDPOINT_LEN: usize = 124;

/// Why bytes are not a disco message. The packet is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No magic, or too short for sender and nonce.
    #[error("not a disco packet")]
    NotDisco,
    /// The body is shorter than its type needs.
    #[error("a disco message of type {kind:#04x} is cut short")]
    Truncated {
        /// The message type; 0 when even that is missing.
        kind: u8,
    },
    /// A type that is newer than this program; it must be ignored.
    #[error("a disco message of unknown type {kind:#04x}")]
    UnknownType {
        /// The message type.
        kind: u8,
    },
    /// A version of a known type that this code does not understand.
    #[error("a disco message of type {kind:#04x} in unknown version {version}")]
    UnknownVersion {
        /// The message type.
        kind: u8,
        /// Its version byte.
        version: u8,
    },
}

/// Whether a datagram on a UDP socket is meant for disco.
pub fn looks_like_disco(datagram: &[u8]) -> bool {
    datagram.len() >= MIN_UDP_LEN && datagram.starts_with(&MAGIC)
}

/// Whether a relayed packet is disco; relays queue these apart and answer
/// them when the destination is not there.
pub fn looks_like_relayed_disco(packet: &[u8]) -> bool {
    packet.len() >= HEADER_LEN && packet.starts_with(&MAGIC)
}

/// The outside of a packet: the sender that it claims, and the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The sender that the packet claims. The claim holds only if the box opens
    /// with its key, and even then see the module docs on reflection.
    pub sender: DiscoPublic,
    /// Nonce, tag and ciphertext, for `SharedKey::open`.
    pub sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Splits a packet.
    ///
    /// # Errors
    /// [`ParseError::NotDisco`].
    pub fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        let rest = packet.strip_prefix(&MAGIC).ok_or(ParseError::NotDisco)?;
        let (sender, sealed) = rest.split_first_chunk::<32>().ok_or(ParseError::NotDisco)?;
        if sealed.len() < sealed_box::OVERHEAD {
            return Err(ParseError::NotDisco);
        }
        Ok(Self {
            sender: DiscoPublic::from_bytes(*sender),
            sealed,
        })
    }

    /// Writes a whole packet. `nonce` must be random.
    pub fn seal(
        sender: &DiscoPublic,
        key: &SharedKey,
        nonce: &[u8; sealed_box::NONCE_LEN],
        message: &Message,
    ) -> Vec<u8> {
        let body = message.emit();
        let mut out = Vec::with_capacity(HEADER_LEN + sealed_box::TAG_LEN + body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(sender.as_bytes());
        key.seal(nonce, &body, &mut out);
        out
    }
}

/// Matches a pong to its ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

/// A disco message. The type byte of each variant is in its doc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// 0x01. "Do you receive this?"
    Ping(Ping),
    /// 0x02. "Yes, and you come from there."
    Pong(Pong),
    /// 0x03, over DERP only. "I am at these addresses; ping them all now, so
    /// that your NAT lets my pings in." An empty list is legal.
    CallMeMaybe(Vec<SocketAddr>),
    /// 0x04. To a UDP relay: "this is my address".
    BindRelayEndpoint(BindRelayEndpoint),
    /// 0x05. From a UDP relay: "prove that you receive there".
    BindRelayEndpointChallenge(BindRelayEndpoint),
    /// 0x06. To a UDP relay: the challenge, returned.
    BindRelayEndpointAnswer(BindRelayEndpoint),
    /// 0x07, over DERP only. "Meet me at this UDP relay."
    CallMeMaybeVia(RelayEndpoint),
    /// 0x08, over DERP only. "Allocate an endpoint on your UDP relay for us two."
    AllocateRelayEndpointRequest(AllocateRelayEndpointRequest),
    /// 0x09, over DERP only. "It is allocated."
    AllocateRelayEndpointResponse(AllocateRelayEndpointResponse),
    /// 0xf0, over DERP only and only between Warren nodes: one step of the agreement
    /// on a port search.
    PortSearch(PortSearch),
}

/// Body of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Comes back in the pong.
    pub tx: TxId,
    /// The sender. Very old senders leave it out.
    pub sender: Option<PingSender>,
}

/// The optional tail of a ping. Padding cannot exist without the key, because
/// the key is recognised by length alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingSender {
    /// The node key: several nodes may share one disco key.
    pub node: NodePublic,
    /// Zero bytes behind the key, to probe for a path MTU.
    pub padding: u16,
}

/// Body of a pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// From the ping.
    pub tx: TxId,
    /// Where the ping came from, as its receiver saw it.
    pub source: SocketAddr,
}

/// The common body of the three messages that bind an endpoint on a UDP relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindRelayEndpoint {
    /// Geneve network identifier of the endpoint.
    pub vni: u32,
    /// Chosen by the client, a different one for each attempt.
    pub generation: u32,
    /// The other client of the endpoint.
    pub remote: DiscoPublic,
    /// Zero in the first message; chosen by the relay in the second.
    pub challenge: [u8; 32],
}

/// An endpoint on a UDP relay that two nodes may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayEndpoint {
    /// The relay's disco key.
    pub server: DiscoPublic,
    /// The two nodes, lexicographically sorted.
    pub clients: [DiscoPublic; 2],
    /// Order of allocation; comparable only for the same `server`.
    pub lamport_id: u64,
    /// Geneve network identifier.
    pub vni: u32,
    /// Time left to bind, in nanoseconds.
    pub bind_lifetime: u64,
    /// Time it lives without traffic, in nanoseconds.
    pub steady_lifetime: u64,
    /// The relay's addresses; at least one, else the message is refused.
    pub addresses: Vec<SocketAddr>,
}

/// Body of 0x08.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocateRelayEndpointRequest {
    /// The two nodes that will meet; one of them is the sender.
    pub clients: [DiscoPublic; 2],
    /// Chosen by the sender, returned in the response.
    pub generation: u32,
}

/// Body of 0x09.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocateRelayEndpointResponse {
    /// From the request.
    pub generation: u32,
    /// The allocated endpoint.
    pub endpoint: RelayEndpoint,
}

/// Body of 0xf0, 24 bytes: the id (4), the step (1), a code (1), an address (18).
///
/// A node behind a NAT that maps each destination to another, random port offers the
/// search; a peer whose own port is the same for all destinations accepts it or refuses.
/// Then the node behind the NAT sends from many sockets to the address of the peer, and
/// the peer sends to random ports of the NAT, until one datagram arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSearch {
    /// Chosen with the offer, returned in the answer.
    pub id: u32,
    /// The step.
    pub step: PortSearchStep,
}

/// A step of the agreement on a port search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSearchStep {
    /// Step 0. The sender is behind a NAT that maps to random ports.
    Offer {
        /// The outside address of that NAT. The port in the message is 0.
        outside: IpAddr,
        /// Whether the sender itself has packets for the receiver. The code in the
        /// message is 1 if so, else 0.
        needed: bool,
    },
    /// Step 1. The search begins; the sender can be reached there by the peers that it
    /// has sent to.
    Accept {
        /// The outside address and port of the sender.
        target: SocketAddr,
    },
    /// Step 2, from either side. There is no search, or none any more; the code in the
    /// message is the reason.
    Refuse(PortSearchRefusal),
}

/// The reason why a node takes no part in a port search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortSearchRefusal {
    /// Code 0, and every code that is not known: no reason is given.
    Unspecified,
    /// Code 1. Its user switched port searches off.
    SwitchedOff,
    /// Code 2. Its own NAT maps each destination to another port.
    PortVaries,
    /// Code 3. It is busy with another search, or had one with this peer just now.
    Busy,
    /// Code 4. Neither side has packets for the other.
    NotNeeded,
    /// Code 5. It does not know its own outside address.
    NoAddress,
    /// Code 6. It was in the search and left it before the end, because of another path, a
    /// change of its network, or a setting.
    Ended,
    /// Code 7. It made all its guesses, and none led to a path.
    NotFound,
}

impl PortSearchRefusal {
    /// All reasons, by their codes.
    const ALL: [Self; 8] = [
        Self::Unspecified,
        Self::SwitchedOff,
        Self::PortVaries,
        Self::Busy,
        Self::NotNeeded,
        Self::NoAddress,
        Self::Ended,
        Self::NotFound,
    ];

    fn from_code(code: u8) -> Self {
        let known = Self::ALL.get(usize::from(code));
        known.copied().unwrap_or(Self::Unspecified)
    }

    fn code(self) -> u8 {
        let at = Self::ALL.iter().position(|reason| *reason == self);
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
    }
}

impl Message {
    /// The type byte.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Ping(_) => 0x01,
            Self::Pong(_) => 0x02,
            Self::CallMeMaybe(_) => 0x03,
            Self::BindRelayEndpoint(_) => 0x04,
            Self::BindRelayEndpointChallenge(_) => 0x05,
            Self::BindRelayEndpointAnswer(_) => 0x06,
            Self::CallMeMaybeVia(_) => 0x07,
            Self::AllocateRelayEndpointRequest(_) => 0x08,
            Self::AllocateRelayEndpointResponse(_) => 0x09,
            Self::PortSearch(_) => PORT_SEARCH,
        }
    }

    /// The bytes to seal: type, version 0, body.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![self.kind(), 0];
        match self {
            Self::Ping(ping) => {
                out.extend_from_slice(&ping.tx.0);
                if let Some(sender) = &ping.sender {
                    out.extend_from_slice(sender.node.as_bytes());
                    out.resize(out.len() + usize::from(sender.padding), 0);
                }
            }
            Self::Pong(pong) => {
                out.extend_from_slice(&pong.tx.0);
                put_endpoint(&mut out, pong.source);
            }
            Self::CallMeMaybe(endpoints) => {
                for endpoint in endpoints {
                    put_endpoint(&mut out, *endpoint);
                }
            }
            Self::BindRelayEndpoint(bind)
            | Self::BindRelayEndpointChallenge(bind)
            | Self::BindRelayEndpointAnswer(bind) => {
                out.extend_from_slice(&bind.vni.to_be_bytes());
                out.extend_from_slice(&bind.generation.to_be_bytes());
                out.extend_from_slice(bind.remote.as_bytes());
                out.extend_from_slice(&bind.challenge);
            }
            Self::CallMeMaybeVia(endpoint) => endpoint.emit(&mut out),
            Self::AllocateRelayEndpointRequest(request) => {
                out.extend_from_slice(request.clients[0].as_bytes());
                out.extend_from_slice(request.clients[1].as_bytes());
                out.extend_from_slice(&request.generation.to_be_bytes());
            }
            Self::AllocateRelayEndpointResponse(response) => {
                out.extend_from_slice(&response.generation.to_be_bytes());
                response.endpoint.emit(&mut out);
            }
            Self::PortSearch(search) => search.emit(&mut out),
        }
        out
    }

    /// Reads an opened box. Unknown bytes behind a body are accepted.
    ///
    /// # Errors
    /// [`ParseError`]; the message is dropped.
    pub fn parse(opened: &[u8]) -> Result<Self, ParseError> {
        let [kind, version, body @ ..] = opened else {
            return Err(ParseError::Truncated { kind: 0 });
        };
        let (kind, version) = (*kind, *version);
        let mut body = Reader { kind, rest: body };
        match kind {
            0x01 => {
                let tx = TxId(body.take()?);
                let sender = match body.take() {
                    Ok(node) => Some(PingSender {
                        node: NodePublic::from_bytes(node),
                        // A UDP payload is shorter than 64 KiB.
                        padding: u16::try_from(body.rest.len()).unwrap_or(u16::MAX),
                    }),
                    Err(_) => None,
                };
                Ok(Self::Ping(Ping { tx, sender }))
            }
            0x02 => Ok(Self::Pong(Pong {
                tx: TxId(body.take()?),
                source: body.endpoint()?,
            })),
            0x03 => {
                // A version or length of the future reads as "call me", with
                // no address, not as an error.
                let usable = version == 0 && body.rest.len().is_multiple_of(ENDPOINT_LEN);
                let endpoints = if usable {
                    body.endpoints()?
                } else {
                    Vec::new()
                };
                Ok(Self::CallMeMaybe(endpoints))
            }
            0x04 => Ok(Self::BindRelayEndpoint(body.bind()?)),
            0x05 => Ok(Self::BindRelayEndpointChallenge(body.bind()?)),
            0x06 => Ok(Self::BindRelayEndpointAnswer(body.bind()?)),
            0x07..=0x09 | PORT_SEARCH if version != 0 => {
                Err(ParseError::UnknownVersion { kind, version })
            }
            0x07 => Ok(Self::CallMeMaybeVia(body.relay_endpoint()?)),
            0x08 => Ok(Self::AllocateRelayEndpointRequest(
                AllocateRelayEndpointRequest {
                    clients: [body.disco_key()?, body.disco_key()?],
                    generation: body.u32()?,
                },
            )),
            0x09 => Ok(Self::AllocateRelayEndpointResponse(
                AllocateRelayEndpointResponse {
                    generation: body.u32()?,
                    endpoint: body.relay_endpoint()?,
                },
            )),
            PORT_SEARCH => Ok(Self::PortSearch(body.port_search(version)?)),
            _ => Err(ParseError::UnknownType { kind }),
        }
    }
}

impl PortSearch {
    fn emit(&self, out: &mut Vec<u8>) {
        let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let (step, code, address) = match self.step {
            PortSearchStep::Offer { outside, needed } => {
                (0, u8::from(needed), SocketAddr::new(outside, 0))
            }
            PortSearchStep::Accept { target } => (1, 0, target),
            PortSearchStep::Refuse(reason) => (2, reason.code(), nowhere),
        };
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&[step, code]);
        put_endpoint(out, address);
    }
}

impl RelayEndpoint {
    fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.server.as_bytes());
        out.extend_from_slice(self.clients[0].as_bytes());
        out.extend_from_slice(self.clients[1].as_bytes());
        out.extend_from_slice(&self.lamport_id.to_be_bytes());
        out.extend_from_slice(&self.vni.to_be_bytes());
        out.extend_from_slice(&self.bind_lifetime.to_be_bytes());
        out.extend_from_slice(&self.steady_lifetime.to_be_bytes());
        for address in &self.addresses {
            put_endpoint(out, *address);
        }
    }
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&endpoint.port().to_be_bytes());
}

/// Takes fields from the front of a body.
struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let truncated = ParseError::Truncated { kind: self.kind };
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, ParseError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, ParseError> {
        self.take().map(u64::from_be_bytes)
    }

    fn disco_key(&mut self) -> Result<DiscoPublic, ParseError> {
        self.take().map(DiscoPublic::from_bytes)
    }

    fn endpoint(&mut self) -> Result<SocketAddr, ParseError> {
        let ip = Ipv6Addr::from(self.take::<16>()?);
        let port = u16::from_be_bytes(self.take()?);
        Ok(unmap(SocketAddr::new(ip.into(), port)))
    }

    /// All the rest as addresses.
    fn endpoints(&mut self) -> Result<Vec<SocketAddr>, ParseError> {
        let mut out = Vec::with_capacity(self.rest.len() / ENDPOINT_LEN);
        while !self.rest.is_empty() {
            out.push(self.endpoint()?);
        }
        Ok(out)
    }

    fn port_search(&mut self, version: u8) -> Result<PortSearch, ParseError> {
        let id = self.u32()?;
        let [step, code] = self.take()?;
        let address = self.endpoint()?;
        let step = match step {
            0 => PortSearchStep::Offer {
                outside: address.ip(),
                needed: code == 1,
            },
            1 => PortSearchStep::Accept { target: address },
            2 => PortSearchStep::Refuse(PortSearchRefusal::from_code(code)),
            // A step of the future is as good as a version of the future.
            _ => {
                let kind = self.kind;
                return Err(ParseError::UnknownVersion { kind, version });
            }
        };
        Ok(PortSearch { id, step })
    }

    fn bind(&mut self) -> Result<BindRelayEndpoint, ParseError> {
        Ok(BindRelayEndpoint {
            vni: self.u32()?,
            generation: self.u32()?,
            remote: self.disco_key()?,
            challenge: self.take()?,
        })
    }

    fn relay_endpoint(&mut self) -> Result<RelayEndpoint, ParseError> {
        let addresses = self.rest.len().checked_sub(RELAY_ENDPOINT_LEN);
        if !addresses.is_some_and(|len| len > 0 && len.is_multiple_of(ENDPOINT_LEN)) {
            return Err(ParseError::Truncated { kind: self.kind });
        }
        Ok(RelayEndpoint {
            server: self.disco_key()?,
            clients: [self.disco_key()?, self.disco_key()?],
            lamport_id: self.u64()?,
            vni: self.u32()?,
            bind_lifetime: self.u64()?,
            steady_lifetime: self.u64()?,
            addresses: self.endpoints()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use warren_keys::DiscoSecret;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| unmap(SocketAddr::new(ip, port)))
    }

    fn disco_key() -> impl Strategy<Value = DiscoPublic> {
        any::<[u8; 32]>().prop_map(DiscoPublic::from_bytes)
    }

    prop_compose! {
        fn bind()(vni: u32, generation: u32, remote in disco_key(), challenge: [u8; 32])
            -> BindRelayEndpoint
        {
            BindRelayEndpoint { vni, generation, remote, challenge }
        }
    }

    prop_compose! {
        fn relay_endpoint()(
            server in disco_key(),
            clients in [disco_key(), disco_key()],
            lamport_id: u64, vni: u32, bind_lifetime: u64, steady_lifetime: u64,
            addresses in prop::collection::vec(address(), 1..5),
        ) -> RelayEndpoint {
            RelayEndpoint {
                server, clients, lamport_id, vni, bind_lifetime, steady_lifetime, addresses,
            }
        }
    }

    fn port_search_step() -> impl Strategy<Value = PortSearchStep> {
        prop_oneof![
            (address(), any::<bool>()).prop_map(|(outside, needed)| PortSearchStep::Offer {
                outside: outside.ip(),
                needed,
            }),
            address().prop_map(|target| PortSearchStep::Accept { target }),
            (0u8..9).prop_map(|code| PortSearchStep::Refuse(PortSearchRefusal::from_code(code))),
        ]
    }

    fn message() -> impl Strategy<Value = Message> {
        let ping =
            (any::<[u8; 12]>(), any::<Option<([u8; 32], u16)>>()).prop_map(|(tx, sender)| {
                let sender = sender.map(|(node, padding)| PingSender {
                    node: NodePublic::from_bytes(node),
                    padding: padding % 9000,
                });
                Message::Ping(Ping {
                    tx: TxId(tx),
                    sender,
                })
            });
        let pong = (any::<[u8; 12]>(), address()).prop_map(|(tx, source)| {
            Message::Pong(Pong {
                tx: TxId(tx),
                source,
            })
        });
        prop_oneof![
            ping,
            pong,
            prop::collection::vec(address(), 0..9).prop_map(Message::CallMeMaybe),
            bind().prop_map(Message::BindRelayEndpoint),
            bind().prop_map(Message::BindRelayEndpointChallenge),
            bind().prop_map(Message::BindRelayEndpointAnswer),
            relay_endpoint().prop_map(Message::CallMeMaybeVia),
            ([disco_key(), disco_key()], any::<u32>()).prop_map(|(clients, generation)| {
                Message::AllocateRelayEndpointRequest(AllocateRelayEndpointRequest {
                    clients,
                    generation,
                })
            }),
            (any::<u32>(), port_search_step())
                .prop_map(|(id, step)| Message::PortSearch(PortSearch { id, step })),
            (any::<u32>(), relay_endpoint()).prop_map(|(generation, endpoint)| {
                Message::AllocateRelayEndpointResponse(AllocateRelayEndpointResponse {
                    generation,
                    endpoint,
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back(message in message()) {
            prop_assert_eq!(Message::parse(&message.emit()), Ok(message));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Envelope::parse(&bytes);
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn any_body_of_any_type_is_survived(
            kind in prop_oneof![0u8..12, Just(PORT_SEARCH)], version in 0u8..2, body: Vec<u8>,
        ) {
            let mut bytes = vec![kind, version];
            bytes.extend_from_slice(&body);
            let _ = Message::parse(&bytes);
        }

        /// Every prefix of a message is a shorter message or an error.
        #[test]
        fn truncation_is_survived(message in message(), cut in 0usize..400) {
            let bytes = message.emit();
            let _ = Message::parse(&bytes[..cut.min(bytes.len())]);
        }
    }

    #[test]
    fn a_packet_opens_at_its_receiver_only() {
        let [a, b, c] = [1, 2, 3].map(|byte| DiscoSecret::from_bytes(&[byte; 32]));
        let key = a.shared_with(b.public().as_bytes()).unwrap();
        let message = Message::Ping(Ping {
            tx: TxId([7; 12]),
            sender: Some(PingSender {
                node: NodePublic::from_bytes([9; 32]),
                padding: 0,
            }),
        });
        let packet = Envelope::seal(&a.public(), &key, &[5; 24], &message);
        assert_eq!(packet.len(), 124);
        assert!(looks_like_disco(&packet) && looks_like_relayed_disco(&packet));

        let envelope = Envelope::parse(&packet).unwrap();
        assert_eq!(envelope.sender, a.public());
        let open = |secret: &DiscoSecret| {
            secret
                .shared_with(envelope.sender.as_bytes())
                .unwrap()
                .open(envelope.sealed)
        };
        assert_eq!(Message::parse(&open(&b).unwrap()), Ok(message));
        assert!(open(&c).is_err());
    }

    #[test]
    fn layouts_and_tolerance() {
        let pong = [
            &[2, 0],
            &[7; 12][..],
            &[0; 10],
            &[0xff, 0xff, 192, 0, 2, 1, 0xa2, 0xa9],
        ];
        let expected = Message::Pong(Pong {
            tx: TxId([7; 12]),
            source: "192.0.2.1:41641".parse().unwrap(),
        });
        assert_eq!(Message::parse(&pong.concat()), Ok(expected.clone()));
        let longer = [&pong.concat()[..], b"of the future"].concat();
        assert_eq!(Message::parse(&longer), Ok(expected));

        let empty = Ok(Message::CallMeMaybe(Vec::new()));
        assert_eq!(Message::parse(&[3, 1, 0, 0]), empty, "version 1");
        assert_eq!(Message::parse(&[3, 0, 0, 0]), empty, "odd length");
        assert_eq!(Message::parse(&[3, 0]), empty, "no address");

        let keyless = [&[1, 0], &[7; 12 + 31][..]].concat();
        let ping = Ping {
            tx: TxId([7; 12]),
            sender: None,
        };
        assert_eq!(Message::parse(&keyless), Ok(Message::Ping(ping)));

        assert_eq!(
            Message::parse(&[0x0a, 0]),
            Err(ParseError::UnknownType { kind: 0x0a })
        );
        assert_eq!(
            Message::parse(&[1, 0, 1]),
            Err(ParseError::Truncated { kind: 1 })
        );
        assert_eq!(Message::parse(&[1]), Err(ParseError::Truncated { kind: 0 }));
        let later = ParseError::UnknownVersion {
            kind: 7,
            version: 1,
        };
        assert_eq!(Message::parse(&[7, 1]), Err(later));
        let no_address = [&[7, 0], &[0; RELAY_ENDPOINT_LEN][..]].concat();
        assert_eq!(
            Message::parse(&no_address),
            Err(ParseError::Truncated { kind: 7 })
        );
    }
}
