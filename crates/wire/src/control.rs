//! Frames of the control channel ("ts2021"), before and around its encryption.
//!
//! A connection begins with one [`Initiation`] from the client, answered by a
//! [`Response`] or by an error frame with a readable text. Everything after
//! that is record frames. Inside the first record the server may put an early
//! payload; its first five bytes differ from the start of HTTP/2.
//!
//! ```text
//! initiation  version:u16 01 length:u16=96  ephemeral:32 static:48 tag:16    101 bytes
//! response    02 length:u16=48  ephemeral:32 tag:16                           51 bytes
//! error       03 length:u16     UTF-8 text
//! record      04 length:u16     ciphertext and tag
//! early       ff ff ff 'T' 'S' length:u32  JSON                  (inside a record)
//! ```
//!
//! All numbers are big endian. Keys and ciphertexts are opaque here.

/// Bytes of an [`Initiation`].
pub const INITIATION_LEN: usize = 101;
/// Bytes of a [`Response`], header included.
pub const RESPONSE_LEN: usize = 51;
/// Bytes in front of every frame but the initiation.
pub const HEADER_LEN: usize = 3;
/// Longest frame, header included.
pub const MAX_FRAME_LEN: usize = 4096;
/// Bytes by which a record is longer than its plaintext, without the header.
pub const TAG_LEN: usize = 16;
/// Longest plaintext of one record.
pub const MAX_PLAINTEXT_LEN: usize = MAX_FRAME_LEN - HEADER_LEN - TAG_LEN;
/// Bytes in front of the JSON of an early payload; as many as an HTTP/2 frame
/// header has, so that a reader can look before it decides.
pub const EARLY_HEADER_LEN: usize = 9;

const INITIATION_PAYLOAD_LEN: u16 = 96;
const RESPONSE_PAYLOAD_LEN: u16 = 48;
const EARLY_MAGIC: [u8; 5] = [0xff, 0xff, 0xff, b'T', b'S'];

/// Bytes are not a frame of the control channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A fixed-size message has another size.
    #[error("a control handshake message has {actual} bytes instead of {expected}")]
    Size {
        /// The bytes that it must have.
        expected: usize,
        /// The bytes that it has.
        actual: usize,
    },
    /// The type byte is not one that is allowed here.
    #[error("unexpected control frame type {0}")]
    Kind(u8),
    /// The length field contradicts the type, or the limit of 4096 bytes.
    #[error("a control frame of type {kind} announces {length} bytes, more or less than it may")]
    Length {
        /// The type byte.
        kind: u8,
        /// The length field.
        length: u16,
    },
}

/// The type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The answer to an initiation.
    Response = 2,
    /// A refusal, in words.
    Error = 3,
    /// Encrypted data.
    Record = 4,
}

/// Header of every frame but the initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The type of the frame.
    pub kind: FrameKind,
    /// The number of bytes behind the header.
    pub length: u16,
}

impl FrameHeader {
    /// Reads the first three bytes of `bytes`; `None` if there are fewer.
    ///
    /// # Errors
    /// An unknown type, or a length that is not possible for the type.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&[type_byte, high, low]) = bytes.first_chunk() else {
            return Ok(None);
        };
        let length = u16::from_be_bytes([high, low]);
        let fits = usize::from(length) <= MAX_FRAME_LEN - HEADER_LEN;
        let (kind, good) = match type_byte {
            2 => (FrameKind::Response, length == RESPONSE_PAYLOAD_LEN),
            3 => (FrameKind::Error, fits),
            4 => (FrameKind::Record, fits && usize::from(length) >= TAG_LEN),
            other => return Err(FrameError::Kind(other)),
        };
        if !good {
            return Err(FrameError::Length {
                kind: type_byte,
                length,
            });
        }
        Ok(Some(Self { kind, length }))
    }

    /// The header as bytes.
    pub fn emit(self) -> [u8; HEADER_LEN] {
        let [high, low] = self.length.to_be_bytes();
        [self.kind as u8, high, low]
    }

    /// Bytes of the whole frame.
    pub fn frame_len(self) -> usize {
        HEADER_LEN + usize::from(self.length)
    }
}

/// First message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// Capability version of the client.
    pub version: u16,
    /// Its ephemeral public key.
    pub ephemeral: [u8; 32],
    /// Its machine key, sealed.
    pub sealed_static: [u8; 48],
    /// An empty payload, sealed.
    pub sealed_payload: [u8; 16],
}

impl Initiation {
    /// Reads a whole initiation.
    ///
    /// # Errors
    /// Wrong size, type or length field.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let size = FrameError::Size {
            expected: INITIATION_LEN,
            actual: bytes.len(),
        };
        let bytes: &[u8; INITIATION_LEN] = bytes.try_into().map_err(|_| size)?;
        let &[v1, v0, kind, l1, l0, ..] = bytes;
        let length = u16::from_be_bytes([l1, l0]);
        if kind != 1 {
            return Err(FrameError::Kind(kind));
        }
        if length != INITIATION_PAYLOAD_LEN {
            return Err(FrameError::Length { kind, length });
        }
        let mut out = Self {
            version: u16::from_be_bytes([v1, v0]),
            ephemeral: [0; 32],
            sealed_static: [0; 48],
            sealed_payload: [0; 16],
        };
        out.ephemeral.copy_from_slice(&bytes[5..37]);
        out.sealed_static.copy_from_slice(&bytes[37..85]);
        out.sealed_payload.copy_from_slice(&bytes[85..]);
        Ok(out)
    }

    /// The message as bytes.
    pub fn emit(&self) -> [u8; INITIATION_LEN] {
        let mut out = [0; INITIATION_LEN];
        out[..2].copy_from_slice(&self.version.to_be_bytes());
        out[2] = 1;
        out[3..5].copy_from_slice(&INITIATION_PAYLOAD_LEN.to_be_bytes());
        out[5..37].copy_from_slice(&self.ephemeral);
        out[37..85].copy_from_slice(&self.sealed_static);
        out[85..].copy_from_slice(&self.sealed_payload);
        out
    }
}

/// Answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The server's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// An empty payload, sealed.
    pub sealed_payload: [u8; 16],
}

impl Response {
    /// Reads a whole response, header included.
    ///
    /// # Errors
    /// Wrong size, type or length field.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        match FrameHeader::parse(bytes)? {
            Some(header) if header.kind != FrameKind::Response => {
                return Err(FrameError::Kind(header.kind as u8));
            }
            _ => {}
        }
        let size = FrameError::Size {
            expected: RESPONSE_LEN,
            actual: bytes.len(),
        };
        let bytes: &[u8; RESPONSE_LEN] = bytes.try_into().map_err(|_| size)?;
        let mut out = Self {
            ephemeral: [0; 32],
            sealed_payload: [0; 16],
        };
        out.ephemeral.copy_from_slice(&bytes[3..35]);
        out.sealed_payload.copy_from_slice(&bytes[35..]);
        Ok(out)
    }

    /// The message as bytes, header included.
    pub fn emit(&self) -> [u8; RESPONSE_LEN] {
        let mut out = [0; RESPONSE_LEN];
        let header = FrameHeader {
            kind: FrameKind::Response,
            length: RESPONSE_PAYLOAD_LEN,
        };
        out[..3].copy_from_slice(&header.emit());
        out[3..35].copy_from_slice(&self.ephemeral);
        out[35..].copy_from_slice(&self.sealed_payload);
        out
    }
}

/// The length of the JSON in an early payload that starts with `header`;
/// `None` if these nine bytes are something else and belong to HTTP/2.
pub fn parse_early_header(header: &[u8; EARLY_HEADER_LEN]) -> Option<u32> {
    let &[a, b, c, d, e, length @ ..] = header;
    ([a, b, c, d, e] == EARLY_MAGIC).then(|| u32::from_be_bytes(length))
}

/// The nine bytes in front of an early payload of `length` bytes.
pub fn emit_early_header(length: u32) -> [u8; EARLY_HEADER_LEN] {
    let mut out = [0; EARLY_HEADER_LEN];
    out[..5].copy_from_slice(&EARLY_MAGIC);
    out[5..].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_that_cannot_be() {
        assert_eq!(FrameHeader::parse(&[4, 0]), Ok(None));
        assert_eq!(FrameHeader::parse(&[1, 0, 96]), Err(FrameError::Kind(1)));
        assert_eq!(FrameHeader::parse(&[9, 0, 0]), Err(FrameError::Kind(9)));
        let wrong = |kind, length| Err(FrameError::Length { kind, length });
        assert_eq!(FrameHeader::parse(&[2, 0, 47]), wrong(2, 47));
        assert_eq!(FrameHeader::parse(&[4, 0x0f, 0xfe]), wrong(4, 4094));
        assert_eq!(FrameHeader::parse(&[4, 0, 15]), wrong(4, 15));
        assert_eq!(FrameHeader::parse(&[3, 0x0f, 0xfe]), wrong(3, 4094));
        let longest = FrameHeader {
            kind: FrameKind::Record,
            length: 4093,
        };
        assert_eq!(FrameHeader::parse(&[4, 0x0f, 0xfd]), Ok(Some(longest)));
        assert_eq!(longest.frame_len(), MAX_FRAME_LEN);
        assert_eq!(MAX_PLAINTEXT_LEN, 4077);
    }

    #[test]
    fn an_initiation_has_one_size_and_one_type() {
        let good = Initiation {
            version: 119,
            ephemeral: [1; 32],
            sealed_static: [2; 48],
            sealed_payload: [3; 16],
        };
        let bytes = good.emit();
        assert_eq!(Initiation::parse(&bytes), Ok(good));
        assert_eq!(
            Initiation::parse(&bytes[..100]),
            Err(FrameError::Size {
                expected: 101,
                actual: 100
            })
        );
        let mut other = bytes;
        other[2] = 2;
        assert_eq!(Initiation::parse(&other), Err(FrameError::Kind(2)));
        let mut other = bytes;
        other[4] = 95;
        assert_eq!(
            Initiation::parse(&other),
            Err(FrameError::Length {
                kind: 1,
                length: 95
            })
        );
    }

    #[test]
    fn http2_is_not_an_early_payload() {
        assert_eq!(parse_early_header(&emit_early_header(90)), Some(90));
        assert_eq!(parse_early_header(&[0, 0, 18, 4, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            if let Ok(Some(header)) = FrameHeader::parse(&bytes) {
                prop_assert_eq!(&header.emit()[..], &bytes[..3]);
            }
            if let Ok(message) = Initiation::parse(&bytes) {
                prop_assert_eq!(&message.emit()[..], &bytes);
            }
            let _ = Response::parse(&bytes);
        }

        #[test]
        fn handshake_messages_round_trip(
            version: u16, ephemeral: [u8; 32], head: [u8; 32], tail: [u8; 16], tag: [u8; 16],
        ) {
            let mut sealed_static = [0; 48];
            sealed_static[..32].copy_from_slice(&head);
            sealed_static[32..].copy_from_slice(&tail);
            let initiation = Initiation { version, ephemeral, sealed_static, sealed_payload: tag };
            prop_assert_eq!(Initiation::parse(&initiation.emit()).unwrap(), initiation);
            let response = Response { ephemeral, sealed_payload: tag };
            prop_assert_eq!(Response::parse(&response.emit()).unwrap(), response);
        }
    }
}
