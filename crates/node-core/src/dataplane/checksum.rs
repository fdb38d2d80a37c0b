//! Sums over payloads, where speed counts.
//!
//! [`Sum`] of the wire room is made for headers. Payloads are summed here, in
//! wide lanes that compilers turn into vector code, and in the byte order of
//! the machine: the ones' complement sum of swapped words is the swapped sum
//! (RFC 1071, section 2 B).

use warren_wire::ip::checksum::Sum;

const LANES: usize = 8;
const CHUNK: usize = LANES * 4;

/// The ones' complement sum of `bytes` as big-endian 16-bit words, folded; an
/// odd last byte counts as the upper half of a word.
#[inline]
pub(super) fn fold(bytes: &[u8]) -> u16 {
    let mut lanes = [0u64; LANES];
    let mut chunks = bytes.chunks_exact(CHUNK);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut last = [0u8; CHUNK];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    for (lane, word) in lanes.iter_mut().zip(last.as_chunks::<4>().0) {
        *lane += u64::from(u32::from_ne_bytes(*word));
    }
    let mut sum: u64 = lanes.iter().sum();
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    // Folded to 16 bits above.
    (sum as u16).to_be()
}

/// Adds a payload to a sum that so far covers an even number of bytes.
#[inline]
pub(super) fn add(sum: Sum, payload: &[u8]) -> Sum {
    sum.word(fold(payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let plain = Sum::new().bytes(&bytes).finish();
            prop_assert_eq!(add(Sum::new(), &bytes).finish(), plain);
        }
    }

    #[test]
    fn a_full_packet_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(
            add(Sum::new(), &bytes).finish(),
            Sum::new().bytes(&bytes).finish()
        );
    }
}
