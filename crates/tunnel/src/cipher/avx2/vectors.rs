//! The kernel against the vectors of Project Wycheproof, in parts: see
//! [`wycheproof`](crate::cipher::wycheproof).

use aws_lc_rs::aead::{Aad, Nonce};
use warren_wire::wireguard::{TAG_LEN, TRANSPORT_HEADER_LEN};

use super::Key;
use super::poly1305::{Accumulator, OneTimeKey};
use crate::Aead;
use crate::cipher::wycheproof::{Vector, vectors};
use crate::cipher::{Cipher, MAX_BATCH, MIN_BATCH};

/// The first 32 bytes of ChaCha20's block 0 (RFC 8439, section 2.6), by the plain
/// rules of section 2.3.
fn one_time_key(key: &[u8; 32], nonce: &[u8]) -> [u64; 4] {
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let mut start = [0; 16];
    for (to, from) in start.iter_mut().zip(b"expand 32-byte k".as_chunks().0) {
        *to = word(from);
    }
    for (to, from) in start[4..].iter_mut().zip(key.as_chunks().0) {
        *to = word(from);
    }
    for (to, from) in start[13..].iter_mut().zip(nonce.as_chunks().0) {
        *to = word(from);
    }
    let mut state = start;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for [(x, y, z, by1), (p, q, r, by2)] in
            [[(a, b, d, 16), (c, d, b, 12)], [(a, b, d, 8), (c, d, b, 7)]]
        {
            state[x] = u32::wrapping_add(state[x], state[y]);
            state[z] = (state[z] ^ state[x]).rotate_left(by1);
            state[p] = u32::wrapping_add(state[p], state[q]);
            state[r] = (state[r] ^ state[p]).rotate_left(by2);
        }
    };
    for _ in 0..10 {
        for column in 0..4 {
            quarter(column, column + 4, column + 8, column + 12);
        }
        for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
            quarter(a, b, c, d);
        }
    }
    let sum = |i: usize| u64::from(state[i].wrapping_add(start[i]));
    [0, 2, 4, 6].map(|i| sum(i) | sum(i + 1) << 32)
}

/// The tag over the blocks of associated data, ciphertext and their lengths.
#[target_feature(enable = "avx2,bmi2")]
fn tag(vector: &Vector) -> [u8; TAG_LEN] {
    let key = OneTimeKey::new(one_time_key(&vector.key, &vector.nonce));
    let mut accumulator = Accumulator::default();
    for text in [&vector.aad, &vector.ciphertext] {
        for part in text.chunks(16) {
            let mut block = [0; 16];
            block[..part.len()].copy_from_slice(part);
            accumulator.block(&key, &block);
        }
    }
    let lengths = [&vector.aad, &vector.ciphertext].map(|text| (text.len() as u64).to_le_bytes());
    accumulator.block(&key, lengths.as_flattened().as_array().unwrap());
    accumulator.tag(&key)
}

fn with_usual_nonce() -> impl Iterator<Item = Vector> {
    vectors()
        .into_iter()
        .filter(|vector| vector.nonce.len() == 12)
}

#[test]
fn kernel_passes_the_edge_cases_of_tags() {
    for vector in with_usual_nonce() {
        if Key::new(&vector.key).is_none() {
            return; // This processor has no AVX2.
        }
        // SAFETY: there is a `Key` only where the features were found.
        let tag = unsafe { tag(&vector) };
        assert_eq!(tag == vector.tag, vector.valid, "vector {}", vector.id);
    }
}

#[test]
fn kernel_passes_all_vectors_without_their_associated_data() {
    for vector in with_usual_nonce().filter(|vector| !vector.message.is_empty()) {
        let Some(mut key) = Key::new(&vector.key) else {
            return; // This processor has no AVX2.
        };
        let id = vector.id;
        let (first, counter) = vector.nonce.split_at(4);
        key.nonce_prefix = u32::from_le_bytes(first.try_into().unwrap());
        let library = Cipher::new(&vector.key, Aead::Portable).library;
        let mut expected = vector.message.clone();
        let nonce = Nonce::try_assume_unique_for_key(&vector.nonce).unwrap();
        library
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut expected)
            .unwrap();
        assert!(expected.starts_with(&vector.ciphertext), "vector {id}");

        for count in [2, MIN_BATCH, 10, MAX_BATCH] {
            let datagram = |content: &[u8]| [&[0; 8], counter, content].concat();
            let plain = datagram(&[&vector.message[..], &[0; TAG_LEN]].concat());
            let stride = plain.len();
            let mut batch = plain.repeat(count);
            assert!(key.seal(&mut batch, stride), "vector {id}");
            assert!(
                batch == datagram(&expected).repeat(count),
                "vector {id}, {count} times"
            );

            // The vector's difference to the right tag, on every second datagram.
            let mut right = u64::MAX >> (64 - count);
            if !vector.valid {
                for (i, datagram) in batch.chunks_exact_mut(stride).enumerate().step_by(2) {
                    // SAFETY: there is a `Key` only where the features were found.
                    let difference = unsafe { tag(&vector) };
                    let difference = difference.iter().zip(vector.tag);
                    for (byte, (a, b)) in datagram[stride - TAG_LEN..].iter_mut().zip(difference) {
                        *byte ^= a ^ b;
                    }
                    right &= !(1 << i);
                }
            }
            assert_eq!(
                key.open(&mut batch, stride),
                Some(right),
                "vector {id}, {count} times"
            );
            for (i, datagram) in batch.chunks_exact(stride).enumerate() {
                let content = &datagram[TRANSPORT_HEADER_LEN..stride - TAG_LEN];
                assert!(
                    right & (1 << i) == 0 || content == vector.message,
                    "vector {id}"
                );
            }
        }
    }
}
