//! The early payload, which a server may send before HTTP/2 begins.
//!
//! It is nine bytes of header and a little JSON, at the very start of the
//! plaintext. A reader looks at nine bytes and either takes the payload or
//! leaves everything for HTTP/2.

use std::ops::Range;

use warren_wire::control::{EARLY_HEADER_LEN, emit_early_header, parse_early_header};

/// Longest JSON that every known client accepts.
pub const MAX_SENT_LEN: usize = 1024;
/// Longest JSON that we accept; servers of today send about 100 bytes.
pub const MAX_ACCEPTED_LEN: usize = 64 * 1024;

/// An early payload is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an early payload of {length} bytes is too long, the limit is {limit}")]
pub struct TooLong {
    /// Its length in bytes.
    pub length: usize,
    /// The limit in bytes.
    pub limit: usize,
}

/// The start of the plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Too few bytes to decide, or the payload is not complete.
    Incomplete,
    /// HTTP/2; every byte belongs to it.
    Absent,
    /// An early payload with its JSON there; HTTP/2 begins where it ends.
    Present(Range<usize>),
}

/// Looks at the start of the server's plaintext.
///
/// # Errors
/// [`TooLong`].
pub fn peek(plaintext: &[u8]) -> Result<Peek, TooLong> {
    let Some(header) = plaintext.first_chunk() else {
        return Ok(Peek::Incomplete);
    };
    let Some(length) = parse_early_header(header) else {
        return Ok(Peek::Absent);
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_ACCEPTED_LEN {
        return Err(TooLong {
            length,
            limit: MAX_ACCEPTED_LEN,
        });
    }
    let json = EARLY_HEADER_LEN..EARLY_HEADER_LEN + length;
    Ok(if plaintext.len() < json.end {
        Peek::Incomplete
    } else {
        Peek::Present(json)
    })
}

/// Puts the header in front of `json`.
///
/// # Errors
/// [`TooLong`].
pub fn encode(json: &[u8]) -> Result<Vec<u8>, TooLong> {
    let too_long = TooLong {
        length: json.len(),
        limit: MAX_SENT_LEN,
    };
    let length = u32::try_from(json.len()).map_err(|_| too_long)?;
    if json.len() > MAX_SENT_LEN {
        return Err(too_long);
    }
    let mut out = emit_early_header(length).to_vec();
    out.extend_from_slice(json);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn payload_is_found_at_every_cut_and_http2_is_left_alone() {
        let mut bytes = encode(b"{}").unwrap();
        bytes.extend_from_slice(b"http2");
        for cut in 0..11 {
            assert_eq!(peek(&bytes[..cut]), Ok(Peek::Incomplete), "{cut}");
        }
        assert_eq!(peek(&bytes), Ok(Peek::Present(9..11)));
        assert_eq!(peek(&[0, 0, 18, 4, 0, 0, 0, 0, 0, 1]), Ok(Peek::Absent));
    }

    #[test]
    fn too_long_is_refused_on_both_sides() {
        assert_eq!(
            encode(&[b' '; 1025]),
            Err(TooLong {
                length: 1025,
                limit: 1024
            })
        );
        let huge = emit_early_header(u32::MAX);
        assert!(matches!(
            peek(&huge),
            Err(TooLong {
                limit: MAX_ACCEPTED_LEN,
                ..
            })
        ));
    }
}
