//! PCP (RFC 6887): the successor of NAT-PMP, for IPv4 and IPv6. Only the opcodes
//! ANNOUNCE and MAP, and MAP only for UDP.
//!
//! ```text
//! request   version 2 · opcode u8 · reserved u16 · lifetime u32 · client address 16
//! response  version 2 · 128 + opcode · reserved u8 · result u8 · lifetime u32 ·
//!           epoch u32 · reserved 12
//! MAP       nonce 12 · protocol u8 · reserved 3 · internal port u16 ·
//!           external port u16 · external address 16
//! ```
//!
//! Numbers are big endian, lifetimes and epoch are in seconds. IPv4 addresses are
//! in their IPv6-mapped form on the wire only. Options may follow; they are
//! ignored in responses.
//!
//! The nonce of a mapping is a secret between client and router: a client accepts
//! a response only with its own nonce, from the address that it asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The UDP port of routers, the same as for NAT-PMP.
pub const PORT: u16 = crate::nat_pmp::PORT;
/// Longest message, in bytes.
pub const MAX_LEN: usize = 1100;

const VERSION: u8 = 2;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
const UDP: u8 = 17;
const HEADER_LEN: usize = 24;
const MAP_LEN: usize = 36;

/// The body of a MAP request or response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Chosen at random by the client, the same for the life of the mapping.
    pub nonce: [u8; 12],
    /// The UDP port of the client.
    pub internal_port: u16,
    /// In a request the wanted address and port at the router, where
    /// `0.0.0.0:0` or `[::]:0` is any; in a response the assigned ones.
    pub external: SocketAddr,
}

/// The body of a message, by opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Asks whether the router speaks PCP.
    Announce,
    /// Asks for a mapping to a UDP port of the client, renews or deletes it.
    Map(Mapping),
}

/// A request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Seconds; 0 in an announcement, and to delete a mapping.
    pub lifetime: u32,
    /// The address of the client, as the client knows it.
    pub client: IpAddr,
    /// The body.
    pub body: Body,
}

/// The result code of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultCode {
    /// 0.
    Success,
    /// 1: the router does not speak version 2.
    UnsupportedVersion,
    /// 2: the router does not map for this client.
    NotAuthorized,
    /// 12: another NAT between client and router changed the client's address.
    AddressMismatch,
    /// Any other failure, by its number.
    Failed(u8),
}

impl ResultCode {
    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Success,
            1 => Self::UnsupportedVersion,
            2 => Self::NotAuthorized,
            12 => Self::AddressMismatch,
            other => Self::Failed(other),
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::UnsupportedVersion => 1,
            Self::NotAuthorized => 2,
            Self::AddressMismatch => 12,
            Self::Failed(code) => code,
        }
    }
}

/// The response of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Whether the request succeeded.
    pub result: ResultCode,
    /// After success the lifetime of the mapping in seconds, else the time for
    /// which the same request would fail again.
    pub lifetime: u32,
    /// Seconds since the router lost its mappings.
    pub epoch: u32,
    /// The body.
    pub body: Body,
}

impl Body {
    const fn opcode(&self) -> u8 {
        match self {
            Self::Announce => ANNOUNCE,
            Self::Map(_) => MAP,
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        if let Self::Map(mapping) = self {
            out.extend_from_slice(&mapping.nonce);
            out.extend_from_slice(&[UDP, 0, 0, 0]);
            out.extend_from_slice(&mapping.internal_port.to_be_bytes());
            out.extend_from_slice(&mapping.external.port().to_be_bytes());
            put_address(out, mapping.external.ip());
        }
    }

    fn parse(opcode: u8, bytes: &[u8]) -> Option<Self> {
        match opcode {
            ANNOUNCE => Some(Self::Announce),
            MAP => {
                let (nonce, rest) = bytes.get(..MAP_LEN)?.split_first_chunk::<12>()?;
                let (&[protocol, _, _, _, i0, i1, e0, e1], rest) = rest.split_first_chunk()?;
                if protocol != UDP {
                    return None;
                }
                let ip = take_address(rest.first_chunk::<16>()?);
                Some(Self::Map(Mapping {
                    nonce: *nonce,
                    internal_port: u16::from_be_bytes([i0, i1]),
                    external: SocketAddr::new(ip, u16::from_be_bytes([e0, e1])),
                }))
            }
            _ => None,
        }
    }
}

impl Request {
    /// The bytes of the request.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + MAP_LEN);
        out.extend_from_slice(&[VERSION, self.body.opcode(), 0, 0]);
        out.extend_from_slice(&self.lifetime.to_be_bytes());
        put_address(&mut out, self.client);
        self.body.emit(&mut out);
        out
    }

    /// Reads a request; `None` for other versions, opcodes, protocols and lengths.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (header, rest) = split(datagram)?;
        let [VERSION, opcode, _, _, l0, l1, l2, l3, client @ ..] = header else {
            return None;
        };
        Some(Self {
            lifetime: u32::from_be_bytes([*l0, *l1, *l2, *l3]),
            client: take_address(client),
            body: Body::parse(*opcode, rest)?,
        })
    }
}

impl Response {
    /// The bytes of the response.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + MAP_LEN);
        let kind = RESPONSE | self.body.opcode();
        out.extend_from_slice(&[VERSION, kind, 0, self.result.code()]);
        out.extend_from_slice(&self.lifetime.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&[0; 12]);
        self.body.emit(&mut out);
        out
    }

    /// Reads a response; `None` for other versions, opcodes, protocols and lengths.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (header, rest) = split(datagram)?;
        let [VERSION, kind, _, result, l0, l1, l2, l3, e0, e1, e2, e3, ..] = *header else {
            return None;
        };
        Some(Self {
            result: ResultCode::from_code(result),
            lifetime: u32::from_be_bytes([l0, l1, l2, l3]),
            epoch: u32::from_be_bytes([e0, e1, e2, e3]),
            body: Body::parse(kind.checked_sub(RESPONSE)?, rest)?,
        })
    }
}

/// Header and body, if the length is one that the RFC allows.
fn split(datagram: &[u8]) -> Option<(&[u8; HEADER_LEN], &[u8])> {
    if datagram.len() > MAX_LEN || !datagram.len().is_multiple_of(4) {
        return None;
    }
    datagram.split_first_chunk()
}

fn put_address(out: &mut Vec<u8>, ip: IpAddr) {
    let ip = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
}

fn take_address(bytes: &[u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
}

/// The external address of a request that accepts any, in the family of `client`.
#[must_use]
pub fn any_external(client: IpAddr) -> SocketAddr {
    match client {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn body() -> impl Strategy<Value = Body> {
        let mapping = any::<([u8; 12], u16, u16, IpAddr)>();
        prop_oneof![
            Just(Body::Announce),
            mapping.prop_map(|(nonce, internal_port, port, ip)| Body::Map(Mapping {
                nonce,
                internal_port,
                external: SocketAddr::new(ip.to_canonical(), port),
            })),
        ]
    }

    #[test]
    fn messages_have_the_bytes_of_the_rfc() {
        let client = "10.0.0.2".parse().unwrap();
        let announce = Request {
            lifetime: 0,
            client,
            body: Body::Announce,
        };
        let mut expected = vec![2, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]);
        assert_eq!(announce.emit(), expected);

        let map = Request {
            lifetime: 7200,
            client,
            body: Body::Map(Mapping {
                nonce: [7; 12],
                internal_port: 41641,
                external: any_external(client),
            }),
        };
        let mut expected = vec![2, 1, 0, 0, 0, 0, 0x1c, 0x20];
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]);
        expected.extend([7; 12]);
        expected.extend([17, 0, 0, 0, 0xa2, 0xa9, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(map.emit(), expected);
        assert_eq!(expected.len(), 60);
    }

    #[test]
    fn lengths_and_protocols_outside_of_the_rfc_are_refused() {
        let response = Response {
            result: ResultCode::Success,
            lifetime: 1,
            epoch: 2,
            body: Body::Map(Mapping {
                nonce: [1; 12],
                internal_port: 3,
                external: "198.51.100.1:4".parse().unwrap(),
            }),
        };
        let mut bytes = response.emit();
        for len in 0..bytes.len() {
            assert_eq!(Response::parse(&bytes[..len]), None, "{len}");
        }
        // Options behind it.
        bytes.extend([0; 8]);
        assert_eq!(Response::parse(&bytes), Some(response));
        bytes.push(0);
        assert_eq!(Response::parse(&bytes), None);
        bytes.resize(MAX_LEN, 0);
        assert_eq!(Response::parse(&bytes), Some(response));
        bytes[36] = 6;
        assert_eq!(Response::parse(&bytes), None, "TCP");
        bytes[36] = 17;
        bytes.resize(MAX_LEN + 4, 0);
        assert_eq!(Response::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn emitted_messages_parse_to_themselves(
            body in body(), client: IpAddr, lifetime: u32, epoch: u32, code: u8,
        ) {
            let request = Request { lifetime, client: client.to_canonical(), body };
            prop_assert_eq!(Request::parse(&request.emit()), Some(request));
            let result = ResultCode::from_code(code);
            let response = Response { result, lifetime, epoch, body };
            prop_assert_eq!(Response::parse(&response.emit()), Some(response));
            prop_assert_eq!(Request::parse(&response.emit()), None);
            prop_assert_eq!(Response::parse(&request.emit()), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), version: bool) {
            if let Some(first) = bytes.first_mut().filter(|_| version) {
                *first = VERSION;
            }
            if let Some(request) = Request::parse(&bytes) {
                prop_assert_eq!(Request::parse(&request.emit()), Some(request));
            }
            if let Some(response) = Response::parse(&bytes) {
                prop_assert_eq!(Response::parse(&response.emit()), Some(response));
            }
        }
    }
}
