//! Several datagrams in one packet of a relay, between two nodes of this kind.
//!
//! A relay handles every packet by itself: its queues count packets, and its
//! work goes by their number. Two nodes that both know this form put tunnel
//! datagrams of one length behind each other into one packet, which the relay
//! passes on like any other. It is ours; no other program knows it.
//!
//! ```text
//! magic "WRTR" · length of each datagram but the last u16 · zero u16 · datagrams
//! ```
//!
//! Integers are big endian. The first byte is none of WireGuard's, disco's or
//! STUN's. There are at least two datagrams; the last may be shorter. Each datagram
//! is authenticated by itself, as without a batch.
//!
//! **Negotiation.** A node that gets single packets through a relay announces that it
//! takes batches, with a [`NOTE`] inside the tunnel: content of a transport message
//! that is not an IP packet, which WireGuard's receivers drop. The note counts for
//! that session only: the next program of the peer, or an older version of it, may
//! not understand batches.

use crate::wireguard::TRANSPORT_OVERHEAD;

/// Content of a transport message: "I take batches through relays". The first
/// four bits, where IP has its version, are zero.
pub const NOTE: [u8; 5] = [0x00, b'W', b'R', b'T', 0x01];

/// Bytes in front of the datagrams.
pub const HEADER_LEN: usize = 8;
/// Most bytes of datagrams in one batch: with all headers it fits into one
/// record of TLS, and a relay that drops it does not drop much.
pub const MAX_BYTES: usize = 16 * 1024 - 128;

const MAGIC: [u8; 4] = *b"WRTR";

/// Whether the content of a transport message is the [`NOTE`], with padding
/// behind it.
#[must_use]
#[inline]
pub fn is_note(content: &[u8]) -> bool {
    content.starts_with(&NOTE)
}

/// The header in front of datagrams of `segment_len` bytes; `None` where that length
/// does not fit in its field.
#[must_use]
pub fn header(segment_len: usize) -> Option<[u8; HEADER_LEN]> {
    let [high, low] = u16::try_from(segment_len).ok()?.to_be_bytes();
    let [a, b, c, d] = MAGIC;
    Some([a, b, c, d, high, low, 0, 0])
}

/// The datagrams of a packet that is a batch, and the length of each but the
/// last, which may be smaller.
#[must_use]
#[inline]
pub fn split(packet: &mut [u8]) -> Option<(usize, &mut [u8])> {
    let (header, datagrams) = packet.split_first_chunk_mut::<HEADER_LEN>()?;
    let [a, b, c, d, high, low, 0, 0] = *header else {
        return None;
    };
    let segment_len = usize::from(u16::from_be_bytes([high, low]));
    let fits =
        [a, b, c, d] == MAGIC && segment_len >= TRANSPORT_OVERHEAD && datagrams.len() > segment_len;
    fits.then_some((segment_len, datagrams))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::disco::looks_like_relayed_disco;
    use crate::ip::Parsed;
    use crate::stun::looks_like_stun;
    use crate::wireguard::Message;

    proptest! {
        #[test]
        fn joined_datagrams_come_apart_as_they_were(
            segment_len in TRANSPORT_OVERHEAD..2000, more in 1usize..5000,
        ) {
            let datagrams: Vec<u8> = (0..segment_len + more).map(|i| i as u8).collect();
            let mut packet = [&header(segment_len).unwrap()[..], &datagrams].concat();
            let (length, split) = split(&mut packet).unwrap();
            prop_assert_eq!((length, &split[..]), (segment_len, &datagrams[..]));
        }

        #[test]
        fn any_bytes_are_taken_quietly(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(split(&mut bytes), None);
        }
    }

    #[test]
    fn a_batch_of_one_or_of_nothing_is_none() {
        for (segment_len, bytes) in [(100, 100), (100, 0), (31, 100), (0, 100)] {
            let mut packet = header(segment_len).unwrap().to_vec();
            packet.resize(HEADER_LEN + bytes, 0);
            assert_eq!(split(&mut packet), None, "{segment_len} {bytes}");
        }
        assert_eq!(header(65_536), None);
    }

    #[test]
    fn other_parsers_do_not_recognise_a_relay_batch() {
        let packet = [&header(100).unwrap()[..], &[0; 200]].concat();
        assert!(!looks_like_relayed_disco(&packet) && !looks_like_stun(&packet));
        assert!(Message::parse(&packet).is_err());
        let mut note = NOTE.to_vec();
        note.resize(64, 0);
        assert!(is_note(&note) && Parsed::parse(&note).is_err());
    }
}
