//! The four WireGuard messages.
//!
//! Every message starts with a type byte and three zero bytes, read here as
//! one little-endian `u32`. Three of them belong to the handshake and have a
//! fixed size; the fourth carries data:
//!
//! ```text
//! 1 initiation  148  type 4 · sender 4 · ephemeral 32 · static 32+16 · timestamp 12+16 · mac1 16 · mac2 16
//! 2 response     92  type 4 · sender 4 · receiver 4 · ephemeral 32 · empty 0+16 · mac1 16 · mac2 16
//! 3 cookie       64  type 4 · receiver 4 · nonce 24 · cookie 16+16
//! 4 transport 32+n   type 4 · receiver 4 · counter 8 · content n · tag 16
//! ```
//!
//! All integers are little-endian. Source: the WireGuard whitepaper, sections
//! 5.4.2 to 5.4.7. Nothing here is checked cryptographically; that is the
//! business of the sessions.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;
/// Bytes of an initiation.
pub const INITIATION_LEN: usize = 148;
/// Bytes of a response.
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_LEN: usize = 64;
/// Bytes in front of the content of a transport message.
pub const TRANSPORT_HEADER_LEN: usize = 16;
/// Bytes that a transport message adds to its content: header and tag.
pub const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER_LEN + TAG_LEN;
/// Content is padded to a multiple of this many bytes.
pub const PADDING: usize = 16;

const TYPE_INITIATION: u32 = 1;
const TYPE_RESPONSE: u32 = 2;
const TYPE_COOKIE: u32 = 3;
const TYPE_TRANSPORT: u32 = 4;

/// First message of a handshake, from initiator to responder.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Initiation {
    kind: U32,
    /// Index by which the initiator wants to be addressed.
    pub sender: U32,
    /// The initiator's ephemeral public key, in clear.
    pub ephemeral: [u8; 32],
    /// The initiator's static public key, sealed.
    pub sealed_static: [u8; 48],
    /// A TAI64N timestamp, sealed.
    pub sealed_timestamp: [u8; 28],
    /// Proof that the sender knows the public key of the receiver.
    pub mac1: [u8; 16],
    /// Proof that the sender owns its address; zero without a cookie.
    pub mac2: [u8; 16],
}

/// Second message of a handshake, from responder to initiator.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Response {
    kind: U32,
    /// Index by which the responder wants to be addressed.
    pub sender: U32,
    /// The index from the initiation.
    pub receiver: U32,
    /// The responder's ephemeral public key, in clear.
    pub ephemeral: [u8; 32],
    /// The tag of an empty text: proves the handshake.
    pub sealed_empty: [u8; 16],
    /// Proof that the sender knows the public key of the receiver.
    pub mac1: [u8; 16],
    /// Proof that the sender owns its address; zero without a cookie.
    pub mac2: [u8; 16],
}

/// The answer of a responder under load: come back with this cookie.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CookieReply {
    kind: U32,
    /// The sender index of the message that is being answered.
    pub receiver: U32,
    /// Nonce of the sealed cookie (XChaCha20-Poly1305).
    pub nonce: [u8; 24],
    /// The cookie, sealed.
    pub sealed_cookie: [u8; 32],
}

/// The header in front of the content of a transport message.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TransportHeader {
    kind: U32,
    /// Index the receiver chose for this session.
    pub receiver: U32,
    /// Packet counter and nonce.
    pub counter: U64,
}

impl Initiation {
    /// An initiation with these fields and both macs zero.
    pub fn new(
        sender: u32,
        ephemeral: [u8; 32],
        sealed_static: [u8; 48],
        sealed_timestamp: [u8; 28],
    ) -> Self {
        Self {
            kind: U32::new(TYPE_INITIATION),
            sender: U32::new(sender),
            ephemeral,
            sealed_static,
            sealed_timestamp,
            mac1: [0; 16],
            mac2: [0; 16],
        }
    }
}

impl Response {
    /// A response with these fields and both macs zero.
    pub fn new(sender: u32, receiver: u32, ephemeral: [u8; 32], sealed_empty: [u8; 16]) -> Self {
        Self {
            kind: U32::new(TYPE_RESPONSE),
            sender: U32::new(sender),
            receiver: U32::new(receiver),
            ephemeral,
            sealed_empty,
            mac1: [0; 16],
            mac2: [0; 16],
        }
    }
}

impl CookieReply {
    /// A cookie reply with these fields.
    pub fn new(receiver: u32, nonce: [u8; 24], sealed_cookie: [u8; 32]) -> Self {
        Self {
            kind: U32::new(TYPE_COOKIE),
            receiver: U32::new(receiver),
            nonce,
            sealed_cookie,
        }
    }
}

impl TransportHeader {
    /// The header of packet `counter` of the session `receiver`.
    pub fn new(receiver: u32, counter: u64) -> Self {
        Self {
            kind: U32::new(TYPE_TRANSPORT),
            receiver: U32::new(receiver),
            counter: U64::new(counter),
        }
    }
}

/// A received WireGuard message, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A request for a session.
    Initiation(&'a Initiation),
    /// Our wish for a session is granted.
    Response(&'a Response),
    /// Our message is refused until it comes with a cookie.
    Cookie(&'a CookieReply),
    /// Data of a session.
    Transport {
        /// Receiver index and counter.
        header: &'a TransportHeader,
        /// Ciphertext and tag, at least [`TAG_LEN`] bytes.
        sealed: &'a [u8],
    },
}

/// A datagram is not a WireGuard message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The first four bytes name no known type.
    #[error("not a WireGuard message: unknown type")]
    Type,
    /// The length does not fit the type.
    #[error("WireGuard message of {len} bytes: wrong length for its type")]
    Length {
        /// Length of the datagram in bytes.
        len: usize,
    },
}

impl<'a> Message<'a> {
    /// Reads the datagram.
    ///
    /// # Errors
    /// [`MessageError`] when type or length are wrong; the datagram is not
    /// WireGuard, or was damaged.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        let length = MessageError::Length {
            len: datagram.len(),
        };
        let (kind, _) = U32::read_from_prefix(datagram).map_err(|_| length)?;
        match kind.get() {
            TYPE_INITIATION => Initiation::ref_from_bytes(datagram)
                .map(Self::Initiation)
                .map_err(|_| length),
            TYPE_RESPONSE => Response::ref_from_bytes(datagram)
                .map(Self::Response)
                .map_err(|_| length),
            TYPE_COOKIE => CookieReply::ref_from_bytes(datagram)
                .map(Self::Cookie)
                .map_err(|_| length),
            TYPE_TRANSPORT => {
                let (header, sealed) =
                    TransportHeader::ref_from_prefix(datagram).map_err(|_| length)?;
                if sealed.len() < TAG_LEN {
                    return Err(length);
                }
                Ok(Self::Transport { header, sealed })
            }
            _ => Err(MessageError::Type),
        }
    }
}

/// Whether the datagram can only be a transport message: the check that the
/// receiving thread makes first.
#[inline]
pub fn is_transport(datagram: &[u8]) -> bool {
    datagram.len() >= TRANSPORT_OVERHEAD && datagram.starts_with(&TYPE_TRANSPORT.to_le_bytes())
}

/// Length of `content` bytes after padding.
#[inline]
pub const fn padded(content: usize) -> usize {
    content.next_multiple_of(PADDING)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_those_of_the_whitepaper() {
        assert_eq!(size_of::<Initiation>(), INITIATION_LEN);
        assert_eq!(size_of::<Response>(), RESPONSE_LEN);
        assert_eq!(size_of::<CookieReply>(), COOKIE_LEN);
        assert_eq!(size_of::<TransportHeader>(), TRANSPORT_HEADER_LEN);
    }

    #[test]
    fn fields_are_little_endian() {
        let header = TransportHeader::new(0x0102_0304, 0x1112_1314_1516_1718);
        assert_eq!(
            header.as_bytes(),
            [
                4, 0, 0, 0, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11
            ]
        );
    }

    #[test]
    fn wrong_lengths_and_types_are_told_apart() {
        for (kind, len) in [(1u8, 147), (1, 149), (2, 91), (3, 65), (4, 31)] {
            let mut bytes = vec![0; len];
            bytes[0] = kind;
            assert_eq!(Message::parse(&bytes), Err(MessageError::Length { len }));
            assert!(!is_transport(&bytes));
        }
        assert_eq!(Message::parse(&[]), Err(MessageError::Length { len: 0 }));
        assert_eq!(Message::parse(&[5; 148]), Err(MessageError::Type));
        assert_eq!(Message::parse(&[1, 0, 0, 1]), Err(MessageError::Type));
        assert_eq!(padded(0), 0);
        assert_eq!(padded(1), 16);
        assert_eq!(padded(1280), 1280);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(
            kind in 0u8..6,
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                prop::collection::vec(any::<u8>(), 148),
                prop::collection::vec(any::<u8>(), 92),
                prop::collection::vec(any::<u8>(), 64),
            ],
        ) {
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            match Message::parse(&bytes) {
                Ok(Message::Initiation(m)) => prop_assert_eq!(m.as_bytes(), &bytes[..]),
                Ok(Message::Response(m)) => prop_assert_eq!(m.as_bytes(), &bytes[..]),
                Ok(Message::Cookie(m)) => prop_assert_eq!(m.as_bytes(), &bytes[..]),
                Ok(Message::Transport { header, sealed }) => {
                    prop_assert!(is_transport(&bytes));
                    prop_assert_eq!([header.as_bytes(), sealed].concat(), bytes);
                }
                Err(_) => prop_assert!(!is_transport(&bytes)),
            }
        }

        #[test]
        fn emitted_messages_parse_back(
            sender: u32, receiver: u32, ephemeral: [u8; 32], tag: [u8; 16], counter: u64,
        ) {
            let initiation = Initiation::new(sender, ephemeral, [7; 48], [8; 28]);
            prop_assert_eq!(
                Message::parse(initiation.as_bytes()), Ok(Message::Initiation(&initiation))
            );
            let response = Response::new(sender, receiver, ephemeral, tag);
            prop_assert_eq!(Message::parse(response.as_bytes()), Ok(Message::Response(&response)));
            let cookie = CookieReply::new(receiver, [1; 24], ephemeral);
            prop_assert_eq!(Message::parse(cookie.as_bytes()), Ok(Message::Cookie(&cookie)));
            let header = TransportHeader::new(receiver, counter);
            let datagram = [header.as_bytes(), &tag].concat();
            prop_assert_eq!(
                Message::parse(&datagram),
                Ok(Message::Transport { header: &header, sealed: &tag })
            );
        }
    }
}
