//! The Geneve header in front of datagrams through a peer relay (RFC 8926,
//! without options).
//!
//! ```text
//! 0  version (2 bits, 0) · length of options (6 bits, 0)
//! 1  control (1 bit) · critical options (1 bit, 0) · reserved (6 bits)
//! 2  protocol u16: 0x7A11 disco, 0x7A12 WireGuard
//! 4  VNI (24 bits) · reserved (8 bits)
//! ```
//!
//! The relay forwards between two nodes by the VNI and passes the header on
//! unchanged. The control bit marks the messages between a node and the relay
//! itself. The header is neither sealed nor authenticated.

use std::fmt;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

const CONTROL: u8 = 0x80;
const DISCO: u16 = 0x7a11;
const WIREGUARD: u16 = 0x7a12;

/// A virtual network identifier: 1 to 2^24 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The smallest one.
    pub const MIN: Self = Self(1);
    /// The largest one.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// `None` for 0 and for numbers of more than 24 bits.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number > Self::MAX.0 {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The protocol behind the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// A disco message between the two nodes.
    Disco,
    /// A disco message between a node and the relay (the control bit is set).
    DiscoControl,
    /// A WireGuard message between the two nodes.
    WireGuard,
}

/// A header that can be written and was checked when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The protocol that follows.
    pub payload: Payload,
    /// The pair of nodes that the relay forwards between.
    pub vni: Vni,
}

impl Header {
    /// The bytes of the header.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let (flags, protocol) = match self.payload {
            Payload::Disco => (0, DISCO),
            Payload::DiscoControl => (CONTROL, DISCO),
            Payload::WireGuard => (0, WIREGUARD),
        };
        let [high, low] = protocol.to_be_bytes();
        let [_, a, b, c] = self.vni.0.to_be_bytes();
        [0, flags, high, low, a, b, c, 0]
    }

    /// Splits a datagram into its header and what follows. `None` if it does
    /// not begin with a header of this kind.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let [0, flags, high, low, a, b, c, 0] = *header else {
            return None;
        };
        let payload = match (flags, u16::from_be_bytes([high, low])) {
            (0, DISCO) => Payload::Disco,
            (CONTROL, DISCO) => Payload::DiscoControl,
            (0, WIREGUARD) => Payload::WireGuard,
            _ => return None,
        };
        let vni = Vni::new(u32::from_be_bytes([0, a, b, c]))?;
        Some((Self { payload, vni }, rest))
    }

    /// The header and `content` in one datagram.
    #[must_use]
    pub fn wrap(self, content: &[u8]) -> Vec<u8> {
        [&self.to_bytes(), content].concat()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{disco, stun, wireguard};
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let payload = prop_oneof![
            Just(Payload::Disco),
            Just(Payload::DiscoControl),
            Just(Payload::WireGuard)
        ];
        (payload, 1..=Vni::MAX.get()).prop_map(|(payload, vni)| Header {
            payload,
            vni: Vni::new(vni).unwrap(),
        })
    }

    #[test]
    fn a_header_has_the_documented_bytes() {
        let vni = Vni::new(0x01_02_03).unwrap();
        let bytes = |payload| Header { payload, vni }.to_bytes();
        assert_eq!(bytes(Payload::WireGuard), [0, 0, 0x7a, 0x12, 1, 2, 3, 0]);
        assert_eq!(bytes(Payload::Disco), [0, 0, 0x7a, 0x11, 1, 2, 3, 0]);
        assert_eq!(
            bytes(Payload::DiscoControl),
            [0, 0x80, 0x7a, 0x11, 1, 2, 3, 0]
        );
        assert_eq!((Vni::new(0), Vni::new(1 << 24)), (None, None));
    }

    proptest! {
        #[test]
        fn written_headers_are_read_back(header in header(), content: Vec<u8>) {
            let datagram = header.wrap(&content);
            prop_assert_eq!(Header::parse(&datagram), Some((header, &content[..])));
            prop_assert!(!stun::looks_like_stun(&datagram));
            prop_assert!(!disco::looks_like_disco(&datagram));
            prop_assert!(!wireguard::is_transport(&datagram));
        }

        #[test]
        fn only_written_headers_are_read(datagram: Vec<u8>, mut near in header().prop_map(Header::to_bytes), at in 0..HEADER_LEN, byte: u8) {
            near[at] = byte;
            for bytes in [&datagram[..], &near] {
                if let Some((header, rest)) = Header::parse(bytes) {
                    prop_assert_eq!(header.wrap(rest), bytes);
                }
            }
        }
    }
}
