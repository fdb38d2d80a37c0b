//! A batch gives what its datagrams give one by one, whatever their length,
//! their place in memory and their number; and what is forged in it comes to
//! nothing, alone.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use proptest::prelude::*;
use warren_keys::noise::MessageKey;
use warren_tunnel::{Aead, MAX_BATCH, OpenError, REJECT_AFTER_MESSAGES, Role, Session};

const HEADER: usize = 16;
const TAG: usize = 16;

const ALL: [Aead; 2] = [Aead::Fastest, Aead::Portable];

fn pair(aead: Aead) -> (Session, Session) {
    let (a, b) = (MessageKey::new([3; 32]), MessageKey::new([4; 32]));
    let now = Instant::now();
    (
        Session::with_aead(aead, Role::Initiator, 10, 20, &a, &b, now),
        Session::with_aead(aead, Role::Responder, 20, 10, &b, &a, now),
    )
}

/// Datagrams with content, to be sealed: all of `len` bytes of content but
/// the last.
fn batch(len: usize, count: usize, last: usize) -> Vec<u8> {
    let total = (len + HEADER + TAG) * (count - 1) + last + HEADER + TAG;
    // Each byte depends on its position.
    (0..total)
        .map(|i| (i.wrapping_mul(31) ^ (i >> 8)) as u8)
        .collect()
}

/// Seals and opens a batch at an alignment, beside its datagrams one by one.
fn same_as_one_by_one(len: usize, count: usize, last: usize, align: usize, first: u64) {
    for aead in ALL {
        same_with(aead, len, count, last, align, first);
    }
}

fn same_with(aead: Aead, len: usize, count: usize, last: usize, align: usize, first: u64) {
    let (near, far) = pair(aead);
    let segment_len = len + HEADER + TAG;
    let plain = batch(len, count, last);
    let mut expected = plain.clone();
    for (datagram, counter) in expected.chunks_mut(segment_len).zip(first..) {
        near.seal_in_place(counter, datagram).unwrap();
    }

    let mut buffer = vec![0_u8; plain.len() + 128];
    let start = buffer.as_ptr().align_offset(64) + align;
    let together = &mut buffer[start..start + plain.len()];
    together.copy_from_slice(&plain);
    near.seal_batch(first, together, segment_len).unwrap();
    let context = format!("{aead:?}, {count} of {len}, last {last}, at {align}");
    assert!(together == expected, "sealed otherwise: {context}");

    let opened = far.open_batch(together, segment_len);
    let all = together
        .chunks(segment_len)
        .zip(plain.chunks(segment_len))
        .zip(first..);
    for (i, ((datagram, plain), counter)) in all.enumerate().take(MAX_BATCH) {
        let (number, content) = opened.get(i, datagram).unwrap();
        assert_eq!(number, counter, "{context}");
        let plain = &plain[HEADER..plain.len() - TAG];
        assert!(datagram[content] == *plain, "opened otherwise: {context}");
    }
    let outside = buffer[..start].iter().chain(&buffer[start + plain.len()..]);
    assert!(outside.copied().all(|byte| byte == 0), "{context}");
}

#[test]
fn every_length() {
    for len in 0_usize..=2_100 {
        let last = [len, len / 2, len.saturating_sub(1), 0][len % 4];
        same_as_one_by_one(len, 4 + len % 3, last, len % 64, 0xffff_fffd);
    }
}

#[test]
fn every_alignment() {
    for align in 0..64 {
        for len in [16, 47, 64, 333, 1_280, 1_296] {
            same_as_one_by_one(len, 5, len, align, 7);
        }
    }
}

#[test]
fn every_number_of_datagrams() {
    for count in 1..=130 {
        same_as_one_by_one(16, count, 16, 0, 1);
        same_as_one_by_one(80, count, 80, 3, 1 << 40);
        same_as_one_by_one(272, count, 16, 16, u64::from(u32::MAX) - 60);
    }
}

#[test]
fn short_buffers_are_refused() {
    ALL.into_iter().for_each(short_buffers_are_refused_by);
}

fn short_buffers_are_refused_by(aead: Aead) {
    let (near, far) = pair(aead);
    assert!(near.seal_batch(0, &mut [0; 4 * 31], 31).is_err());
    assert!(near.seal_batch(0, &mut [0; 8 * 64 + 31], 64).is_err());
    assert!(near.seal_batch(0, &mut [0; 64], 0).is_err());
    assert!(near.seal_batch(0, &mut [], 64).is_ok());
    for segment_len in [0, 1, 31, 32, 33, 64, usize::MAX] {
        let mut forged = [4, 0, 0, 0].repeat(200);
        let opened = far.open_batch(&mut forged, segment_len);
        assert_eq!(opened.get(0, &forged), Err(OpenError::Forged));
    }
}

#[test]
fn numbers_beyond_the_limit_do_not_open() {
    ALL.into_iter()
        .for_each(numbers_beyond_the_limit_do_not_open_with);
}

fn numbers_beyond_the_limit_do_not_open_with(aead: Aead) {
    let (near, far) = pair(aead);
    let mut datagrams = batch(64, 8, 64);
    near.seal_batch(REJECT_AFTER_MESSAGES - 4, &mut datagrams, 96)
        .unwrap();
    let opened = far.open_batch(&mut datagrams, 96);
    for (i, datagram) in datagrams.chunks(96).enumerate() {
        assert_eq!(opened.get(i, datagram).is_ok(), i < 4);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_batch(
        len in 0_usize..3_000, count in 1_usize..70, last in any::<prop::sample::Index>(),
        align in 0_usize..64, first in 0_u64..1 << 60,
    ) {
        same_as_one_by_one(len, count, last.index(len + 1), align, first);
    }

    #[test]
    fn forged_datagrams_are_refused_alone(
        len in 0_usize..600, count in 4_usize..20,
        aead in prop::sample::select(&ALL[..]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
    ) {
        let (near, far) = pair(aead);
        let segment_len = len + HEADER + TAG;
        let plain = batch(len, count, len);
        let mut datagrams = plain.clone();
        near.seal_batch(100, &mut datagrams, segment_len).unwrap();
        let sealed = datagrams.clone();
        for (place, bit) in flips {
            let place = place.index(datagrams.len());
            // The index is not sealed; reading it is the caller's business.
            if !(4..8).contains(&(place % segment_len)) {
                datagrams[place] ^= 1 << bit;
            }
        }
        let damaged = datagrams.clone();
        let opened = far.open_batch(&mut datagrams, segment_len);
        for i in 0..count {
            let at = i * segment_len..(i + 1) * segment_len;
            let result = opened.get(i, &datagrams[at.clone()]);
            if damaged[at.clone()] == sealed[at.clone()] {
                prop_assert_eq!(result, Ok((100 + i as u64, HEADER..HEADER + len)));
                let content = at.start + HEADER..at.end - TAG;
                prop_assert_eq!(&datagrams[content.clone()], &plain[content]);
            } else {
                prop_assert_eq!(result, Err(OpenError::Forged));
                // The plain text of a forged datagram is not revealed.
                let content = at.start + HEADER..at.end - TAG;
                if len >= 16 {
                    prop_assert_ne!(&datagrams[content.clone()], &plain[content]);
                }
            }
        }
    }

    #[test]
    fn counters_may_come_in_any_order(
        counters in prop::collection::vec(0_u64..1 << 60, 4..12), len in 1_usize..300,
        aead in prop::sample::select(&ALL[..]),
    ) {
        let (near, far) = pair(aead);
        let segment_len = len + HEADER + TAG;
        let plain = batch(len, counters.len(), len);
        let mut datagrams = plain.clone();
        for (datagram, counter) in datagrams.chunks_mut(segment_len).zip(&counters) {
            near.seal_in_place(*counter, datagram).unwrap();
        }
        let opened = far.open_batch(&mut datagrams, segment_len);
        for (i, datagram) in datagrams.chunks(segment_len).enumerate() {
            let (counter, content) = opened.get(i, datagram).unwrap();
            prop_assert_eq!(counter, counters[i]);
            let at = i * segment_len;
            prop_assert_eq!(
                &datagram[content.clone()],
                &plain[at + content.start..at + content.end]
            );
        }
    }
}
