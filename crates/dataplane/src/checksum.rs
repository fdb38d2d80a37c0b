//! Sums over payloads, where speed counts.
//!
//! [`Sum`] of `warren-wire` is made for headers. Payloads are summed here, in
//! wide lanes that compilers turn into vector code, and in the byte order of
//! the machine: the ones' complement sum of swapped words is the swapped sum
//! (RFC 1071, section 2 B). Where a payload is also moved, the two are one: each
//! byte is read once.
//!
//! The code is compiled twice, for any processor and for one with AVX2
//! ([`wide`]).

#[cfg(target_arch = "x86_64")]
mod wide;

use warren_wire::ip::checksum::Sum;

const LANES: usize = 8;
const CHUNK: usize = LANES * 4;

/// The ones' complement sum of `bytes` as big-endian 16-bit words, folded; an
/// odd last byte counts as the upper half of a word.
#[inline]
pub(super) fn fold(bytes: &[u8]) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = wide::fold(bytes) {
        return sum;
    }
    fold_with(bytes)
}

/// Copies `from` to `to`, which has the same length, and gives its sum as
/// [`fold`] does.
#[inline]
pub(super) fn copy(from: &[u8], to: &mut [u8]) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = wide::copy(from, to) {
        return sum;
    }
    copy_with(from, to)
}

#[inline(always)]
fn fold_with(bytes: &[u8]) -> u16 {
    let mut lanes = [0u64; LANES];
    let mut chunks = bytes.chunks_exact(CHUNK);
    for chunk in &mut chunks {
        add_chunk(&mut lanes, chunk);
    }
    add_last(&mut lanes, chunks.remainder());
    folded(&lanes)
}

#[inline(always)]
fn copy_with(from: &[u8], to: &mut [u8]) -> u16 {
    let mut lanes = [0u64; LANES];
    let mut chunks = from.chunks_exact(CHUNK);
    let mut places = to.chunks_exact_mut(CHUNK);
    for (chunk, place) in (&mut chunks).zip(&mut places) {
        place.copy_from_slice(chunk);
        add_chunk(&mut lanes, chunk);
    }
    let rest = chunks.remainder();
    let room = places.into_remainder();
    if room.len() == rest.len() {
        room.copy_from_slice(rest);
    }
    add_last(&mut lanes, rest);
    folded(&lanes)
}

#[inline(always)]
fn add_chunk(lanes: &mut [u64; LANES], chunk: &[u8]) {
    for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
        *lane += u64::from(u32::from_ne_bytes(*word));
    }
}

/// Adds the remainder, which is shorter than a chunk.
#[inline(always)]
fn add_last(lanes: &mut [u64; LANES], rest: &[u8]) {
    let mut last = [0u8; CHUNK];
    if let Some(last) = last.get_mut(..rest.len()) {
        last.copy_from_slice(rest);
    }
    add_chunk(lanes, &last);
}

#[inline(always)]
fn folded(lanes: &[u64; LANES]) -> u16 {
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
            prop_assert_eq!(fold_with(&bytes), fold(&bytes));
        }

        #[test]
        fn a_copy_is_the_same_bytes_and_the_same_sum(
            bytes in prop::collection::vec(any::<u8>(), 0..300), skip in 0usize..8,
        ) {
            let from = bytes.get(skip..).unwrap_or_default();
            for copy in [copy, copy_with] {
                let mut to = vec![0xaa; from.len()];
                prop_assert_eq!(copy(from, &mut to), fold_with(from));
                prop_assert_eq!(&to[..], from);
            }
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
