//! STUN, as far as this system uses it: a request for our own address as the
//! server sees it, and the answer.
//!
//! The format is RFC 8489, the use is narrow. Servers answer only requests
//! that carry `SOFTWARE = "tailnode"` and end in a correct `FINGERPRINT`, so
//! they are useless as reflectors: the answer (32 or 44 bytes) is about as long as
//! the request (40 bytes).
//!
//! [`Request::parse`] is as strict as that rule; [`Response::parse`] is
//! tolerant, because answers may come from any STUN server. Every address that
//! leaves this file is unmapped: `::ffff:a.b.c.d` becomes `a.b.c.d`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a server listens when its map entry names no port.
pub const DEFAULT_PORT: u16 = 3478;
/// Bytes of a request.
pub const REQUEST_LEN: usize = 40;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER_LEN: usize = 20;
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];

const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// The number that XOR-MAPPED-ADDRESS had in a draft; some servers still send it.
const XOR_MAPPED_ADDRESS_DRAFT: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;

/// The software name that every client of this system sends and every server
/// requires.
const SOFTWARE_NAME: &[u8; 8] = b"tailnode";
/// RFC 8489 section 14.7.
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Why a datagram is not the wanted STUN message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than the header, wrong top bits or wrong magic cookie.
    #[error("not a STUN message")]
    NotStun,
    /// Another method or class than the wanted one.
    #[error("a STUN message of another kind")]
    OtherKind,
    /// An attribute or the declared length reaches past the end.
    #[error("a STUN message is cut short")]
    Truncated,
    /// A request without `SOFTWARE = "tailnode"`.
    #[error("a STUN request from a foreign client")]
    ForeignSoftware,
    /// A request whose last attribute is not a correct `FINGERPRINT`.
    #[error("a STUN request without a correct fingerprint")]
    Fingerprint,
    /// A response without an address, or with one of an unknown family.
    #[error("a STUN response without a usable address")]
    NoAddress,
}

/// Matches a response to its request; random, so that other hosts cannot forge
/// the server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// Whether a datagram on a shared socket is STUN: what the demultiplexer asks
/// before anything else.
///
/// The second byte differs from that of a Geneve header, whose first bits are
/// the same.
pub fn looks_like_stun(datagram: &[u8]) -> bool {
    has_header(datagram) && datagram.get(1) == Some(&0x01)
}

fn has_header(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN
        && datagram.first().is_some_and(|byte| byte & 0xc0 == 0)
        && datagram.get(4..8) == Some(&COOKIE)
}

/// A request for the address at which the server sees us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Comes back in the response.
    pub transaction: TransactionId,
}

impl Request {
    /// The 40 bytes on the wire.
    pub fn emit(&self) -> [u8; REQUEST_LEN] {
        let mut out = [0; REQUEST_LEN];
        out[0..2].copy_from_slice(&BINDING_REQUEST);
        out[2..4].copy_from_slice(&20u16.to_be_bytes());
        out[4..8].copy_from_slice(&COOKIE);
        out[8..20].copy_from_slice(&self.transaction.0);
        out[20..22].copy_from_slice(&SOFTWARE.to_be_bytes());
        out[22..24].copy_from_slice(&8u16.to_be_bytes());
        out[24..32].copy_from_slice(SOFTWARE_NAME);
        let fingerprint = crc32fast::hash(&out[..32]) ^ FINGERPRINT_XOR;
        out[32..34].copy_from_slice(&FINGERPRINT.to_be_bytes());
        out[34..36].copy_from_slice(&4u16.to_be_bytes());
        out[36..40].copy_from_slice(&fingerprint.to_be_bytes());
        out
    }

    /// Accepts what a server may answer, and nothing else.
    ///
    /// # Errors
    /// Says which rule was broken; a server stays silent in each case and
    /// counts it.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        let transaction = transaction(datagram)?;
        if datagram.get(..2) != Some(&BINDING_REQUEST) {
            return Err(ParseError::OtherKind);
        }
        let mut ours = false;
        let mut last = None;
        for attribute in Attributes(&datagram[HEADER_LEN..]) {
            let (kind, value) = attribute?;
            ours |= kind == SOFTWARE && value == SOFTWARE_NAME;
            last = Some((kind, value));
        }
        if !ours {
            return Err(ParseError::ForeignSoftware);
        }
        let (Some((FINGERPRINT, value)), Some((covered, _))) =
            (last, datagram.split_last_chunk::<8>())
        else {
            return Err(ParseError::Fingerprint);
        };
        let expected = crc32fast::hash(covered) ^ FINGERPRINT_XOR;
        if value != expected.to_be_bytes() {
            return Err(ParseError::Fingerprint);
        }
        Ok(Self { transaction })
    }
}

/// "I see you at this address."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// From the request.
    pub transaction: TransactionId,
    /// Where the request came from, as the server saw it; never v4-mapped.
    pub mapped: SocketAddr,
}

impl Response {
    /// The response to `request`, which arrived from `source`. A v4-mapped
    /// source (seen on dual-stack sockets) is answered as IPv4.
    pub fn to(request: &Request, source: SocketAddr) -> Self {
        Self {
            transaction: request.transaction,
            mapped: unmap(source),
        }
    }

    /// The bytes on the wire: 32 for IPv4, 44 for IPv6.
    pub fn emit(&self) -> Vec<u8> {
        let key = xor_key(&self.transaction);
        let mut address = [0u8; 16];
        let (family, len) = match unmap(self.mapped).ip() {
            IpAddr::V4(ip) => {
                address[..4].copy_from_slice(&ip.octets());
                (1u8, 4usize)
            }
            IpAddr::V6(ip) => {
                address = ip.octets();
                (2, 16)
            }
        };
        // 4 bytes of attribute header, 4 in front of the address.
        let value_len: u16 = if len == 4 { 8 } else { 20 };
        let mut out = Vec::with_capacity(HEADER_LEN + 8 + len);
        out.extend_from_slice(&BINDING_SUCCESS);
        out.extend_from_slice(&(value_len + 4).to_be_bytes());
        out.extend_from_slice(&COOKIE);
        out.extend_from_slice(&self.transaction.0);
        out.extend_from_slice(&XOR_MAPPED_ADDRESS.to_be_bytes());
        out.extend_from_slice(&value_len.to_be_bytes());
        out.extend_from_slice(&[0, family]);
        out.extend_from_slice(&(self.mapped.port() ^ 0x2112).to_be_bytes());
        out.extend(
            address
                .iter()
                .zip(key)
                .take(len)
                .map(|(byte, mask)| byte ^ mask),
        );
        out
    }

    /// Reads a response of any server.
    ///
    /// XOR-MAPPED-ADDRESS wins over MAPPED-ADDRESS, which middleboxes like to
    /// rewrite. Bytes behind the declared length are ignored.
    ///
    /// # Errors
    /// [`ParseError`]; the datagram is dropped.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        let transaction = transaction(datagram)?;
        if datagram.get(..2) != Some(&BINDING_SUCCESS) {
            return Err(ParseError::OtherKind);
        }
        let declared = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
        let attributes = datagram
            .get(HEADER_LEN..HEADER_LEN + declared)
            .ok_or(ParseError::Truncated)?;
        let mut plain = None;
        for attribute in Attributes(attributes) {
            match attribute? {
                (XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_DRAFT, value) => {
                    let mapped = address(value, 0x2112, &xor_key(&transaction))?;
                    return Ok(Self {
                        transaction,
                        mapped,
                    });
                }
                (MAPPED_ADDRESS, value) if plain.is_none() => {
                    plain = Some(address(value, 0, &[0; 16])?);
                }
                (_, _) => {}
            }
        }
        let mapped = plain.ok_or(ParseError::NoAddress)?;
        Ok(Self {
            transaction,
            mapped,
        })
    }
}

/// `::ffff:a.b.c.d` as `a.b.c.d`; every other address as it is, without an
/// IPv6 scope or flow label, which mean nothing to anyone else.
pub fn unmap(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn transaction(datagram: &[u8]) -> Result<TransactionId, ParseError> {
    if !has_header(datagram) {
        return Err(ParseError::NotStun);
    }
    let id = datagram.get(8..20).and_then(|id| id.try_into().ok());
    id.map(TransactionId).ok_or(ParseError::NotStun)
}

fn xor_key(transaction: &TransactionId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&COOKIE);
    key[4..].copy_from_slice(&transaction.0);
    key
}

/// The value of an address attribute: zero, family, port, address.
fn address(value: &[u8], port_xor: u16, key: &[u8; 16]) -> Result<SocketAddr, ParseError> {
    let [_, family, port_high, port_low, address @ ..] = value else {
        return Err(ParseError::Truncated);
    };
    let port = u16::from_be_bytes([*port_high, *port_low]) ^ port_xor;
    let mut ip = [0u8; 16];
    let len = match family {
        1 => 4,
        2 => 16,
        _ => return Err(ParseError::NoAddress),
    };
    let address = address.get(..len).ok_or(ParseError::Truncated)?;
    for (out, (byte, mask)) in ip.iter_mut().zip(address.iter().zip(key)) {
        *out = byte ^ mask;
    }
    let ip = match len {
        4 => Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into(),
        _ => IpAddr::from(Ipv6Addr::from(ip)),
    };
    Ok(unmap(SocketAddr::new(ip, port)))
}

/// Walks type, length, value; values are padded to 4 bytes. A last value
/// without its padding is accepted.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let [kind_high, kind_low, len_high, len_low, rest @ ..] = rest else {
            return Some(Err(ParseError::Truncated));
        };
        let len = usize::from(u16::from_be_bytes([*len_high, *len_low]));
        let Some(value) = rest.get(..len) else {
            return Some(Err(ParseError::Truncated));
        };
        self.0 = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((u16::from_be_bytes([*kind_high, *kind_low]), value)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn request() -> Request {
        Request {
            transaction: TransactionId(*b"abcdefghijkl"),
        }
    }

    #[test]
    fn request_has_the_layout_that_servers_demand() {
        let bytes = request().emit();
        assert_eq!(bytes[..8], [0, 1, 0, 20, 0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(bytes[20..32], *b"\x80\x22\x00\x08tailnode");
        assert_eq!(bytes[32..36], [0x80, 0x28, 0, 4]);
        assert!(looks_like_stun(&bytes));
        assert_eq!(Request::parse(&bytes), Ok(request()));
    }

    #[test]
    fn strange_requests_get_no_answer() {
        let good = request().emit();
        let cases: [(&str, Vec<u8>, ParseError); 6] = [
            ("short", good[..19].to_vec(), ParseError::NotStun),
            ("cut attribute", good[..38].to_vec(), ParseError::Truncated),
            (
                "no fingerprint",
                good[..32].to_vec(),
                ParseError::Fingerprint,
            ),
            (
                "no software",
                good[..20].to_vec(),
                ParseError::ForeignSoftware,
            ),
            (
                "flipped id",
                {
                    let mut b = good.to_vec();
                    b[9] ^= 1;
                    b
                },
                ParseError::Fingerprint,
            ),
            (
                "response",
                {
                    let mut b = good.to_vec();
                    b[0] = 1;
                    b
                },
                ParseError::OtherKind,
            ),
        ];
        for (what, bytes, error) in cases {
            assert_eq!(Request::parse(&bytes), Err(error), "{what}");
        }
    }

    #[test]
    fn a_mapped_source_is_answered_as_ipv4() {
        let response = Response::to(&request(), "[::ffff:192.0.2.7]:41641".parse().unwrap());
        let bytes = response.emit();
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[20..26], [0, 0x20, 0, 8, 0, 1]);
        assert_eq!(
            Response::parse(&bytes).unwrap().mapped,
            "192.0.2.7:41641".parse().unwrap()
        );
    }

    /// RFC 5769 section 2.2: the sample IPv4 response.
    #[test]
    fn rfc_5769_sample_response() {
        let bytes = data_encoding::HEXLOWER
            .decode(
                b"0101003c2112a442b7e7a701bc34d686fa87dfae\
                  8022000b7465737420766563746f7220\
                  002000080001a147e112a643\
                  000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7\
                  80280004c07d4c96",
            )
            .unwrap();
        let response = Response::parse(&bytes).unwrap();
        assert_eq!(response.mapped, "192.0.2.1:32853".parse().unwrap());
    }

    #[test]
    fn tolerated_and_refused_responses() {
        let transaction = request().transaction;
        let build = |declared: u16, attributes: &[u8]| {
            let mut out = vec![1, 1];
            out.extend_from_slice(&declared.to_be_bytes());
            out.extend_from_slice(&COOKIE);
            out.extend_from_slice(&transaction.0);
            out.extend_from_slice(attributes);
            out
        };
        let plain = [0, 1, 0, 8, 0, 1, 0x12, 0x34, 10, 0, 0, 1];
        let parse = |bytes: &[u8]| Response::parse(bytes).map(|response| response.mapped);
        assert_eq!(
            parse(&build(12, &plain)),
            Ok("10.0.0.1:4660".parse().unwrap())
        );
        let mut trailing = build(12, &plain);
        trailing.extend_from_slice(b"junk behind the message");
        assert_eq!(parse(&trailing), Ok("10.0.0.1:4660".parse().unwrap()));
        assert_eq!(parse(&build(13, &plain)), Err(ParseError::Truncated));
        assert_eq!(parse(&build(0, &[])), Err(ParseError::NoAddress));
        let family_3 = [0, 1, 0, 8, 0, 3, 0x12, 0x34, 10, 0, 0, 1];
        assert_eq!(parse(&build(12, &family_3)), Err(ParseError::NoAddress));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes);
            let _ = Response::parse(&bytes);
        }

        #[test]
        fn any_bytes_behind_a_header_are_survived(kind in 0u8..2, body: Vec<u8>, len: u16) {
            let mut bytes = vec![kind, 1];
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(&COOKIE);
            bytes.extend_from_slice(&body);
            let _ = Request::parse(&bytes);
            let _ = Response::parse(&bytes);
        }

        #[test]
        fn responses_come_back(id: [u8; 12], ip: IpAddr, port: u16) {
            let mapped = unmap(SocketAddr::new(ip, port));
            let response = Response { transaction: TransactionId(id), mapped };
            prop_assert_eq!(Response::parse(&response.emit()), Ok(response));
            let request = Request { transaction: TransactionId(id) };
            prop_assert_eq!(Request::parse(&request.emit()), Ok(request));
        }
    }
}
