//! The AVX2 kernel: ChaCha20 of eight blocks in vectors, and between its
//! instructions the Poly1305 of two packets in scalar registers.
//!
//! Packets go through in pairs. A *unit* is one block of key stream for each
//! of a pair, and a *pass* makes the key streams of four units. Units of
//! neighbouring pairs share a pass, so that no lane stays empty at the end of
//! a packet. The blocks that only give one-time keys are made for four pairs
//! at once, one pair before they are needed.
//!
//! Tags are always over ciphertext. When sealing they follow behind what was
//! encrypted; when opening they go ahead of what will be decrypted, in the
//! same place.

// The instructions are chosen by name, and a compiler left alone halves the
// speed; see chacha20.rs and poly1305.rs.
#![allow(unsafe_code)]

mod chacha20;
mod poly1305;
mod schedule;
mod tags;
#[cfg(test)]
mod vectors;

use std::arch::x86_64::{
    __m256i, _mm_set1_epi32, _mm256_add_epi32, _mm256_set_m128i, _mm256_set1_epi32,
    _mm256_setr_epi32,
};

use zeroize::{Zeroize as _, Zeroizing};

use warren_keys::noise::MessageKey;

use chacha20::{Memory, Rows, bytes, double_round, mix, quarter_rounds};
use poly1305::block;
use schedule::{Batch, Schedule, Unit};
use tags::Tags;

/// The bytes that a packet adds to its chain between two double rounds: three blocks.
const STEP: usize = 48;
/// Steps that fit between the twenty rounds of a pass.
const STEPS_PER_PASS: usize = 5;
/// Units of a pass.
const UNITS: usize = 4;
/// Pairs whose one-time keys are made in one pass.
const BATCH: usize = UNITS;
const BLOCK: usize = 64;
/// Where the rounds find the multipliers of a pair.
const FIRST: usize = std::mem::offset_of!(Memory, multipliers);
const SECOND: usize = FIRST + size_of::<[u64; 3]>();

/// A key, and the knowledge that this processor has what it takes.
pub(super) struct Key {
    words: Zeroizing<[u32; 8]>,
    /// The first four bytes of every nonce: zero in WireGuard.
    nonce_prefix: u32,
}

impl Key {
    /// `None` where AVX2 or BMI2 is missing.
    pub(super) fn new(key: &MessageKey) -> Option<Self> {
        let able = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2");
        able.then(|| {
            let mut words = Zeroizing::new([0; 8]);
            for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            Self {
                words,
                nonce_prefix: 0,
            }
        })
    }

    /// Seals datagrams of `stride` bytes. `false`, and nothing done, when
    /// they are not a number that goes in pairs.
    pub(super) fn seal(&self, buffer: &mut [u8], stride: usize) -> bool {
        let Some(mut batch) = Batch::new(buffer, stride) else {
            return false;
        };
        // SAFETY: there is a `Key` only where the features were found.
        unsafe { work::<false>(self, &mut batch) };
        true
    }

    /// Opens datagrams of `stride` bytes: a bit for each that authenticates.
    /// The content of the others must not be used.
    pub(super) fn open(&self, buffer: &mut [u8], stride: usize) -> Option<u64> {
        let mut batch = Batch::new(buffer, stride)?;
        // SAFETY: there is a `Key` only where the features were found.
        Some(unsafe { work::<true>(self, &mut batch) })
    }
}

/// Seals or opens all packets of the batch. The counters stand in their
/// headers. Returns which tags were right, when opening.
#[target_feature(enable = "avx2,bmi2")]
fn work<const OPEN: bool>(key: &Key, batch: &mut Batch<'_>) -> u64 {
    let Key {
        words: key,
        nonce_prefix,
    } = key;
    let prefix = nonce_prefix.cast_signed();
    let len = batch.content_len();
    let mut memory = Memory::NEW;
    let mut tags = Tags::<OPEN>::new();
    let mut schedule = Schedule {
        keys: 0,
        next: Unit { pair: 0, block: 1 },
    };
    loop {
        let mut units = [Unit::default(); UNITS];
        let mut count = 0;
        let four = schedule.next_four(batch);
        let fourth = if let Some(unit) = four {
            one_pair(batch, unit, prefix)
        } else {
            while count < UNITS {
                let Some(unit) = schedule.next(batch) else {
                    break;
                };
                units[count] = unit;
                count += 1;
            }
            if count == 0 {
                break;
            }
            any(batch, &units, prefix)
        };
        let mut rows = Rows::start(&mut memory, key, fourth);
        rounds(&mut rows, &mut memory, &mut tags, batch);
        let stream = rows.finish(&memory, key, fourth);
        let [first, second] = [&stream[..UNITS], &stream[UNITS..]];

        if let Some(unit) = four {
            let from = (unit.block as usize - 1) * BLOCK;
            let to = from + UNITS * BLOCK;
            if OPEN {
                tags.read_before(batch, unit.pair, to);
            }
            for (side, stream) in [first, second].into_iter().enumerate() {
                let start = batch.start(unit.pair, side);
                let text = batch.buffer[start + from..start + to].as_chunks_mut().0;
                for (text, stream) in text.iter_mut().zip(stream) {
                    mix(text, *stream);
                }
            }
            tags.sealed = Unit {
                pair: unit.pair,
                block: unit.block + UNITS as u32 - 1,
            };
            continue;
        }
        for (i, unit) in units.iter().enumerate().take(count) {
            let Some(before) = unit.block.checked_sub(1) else {
                let free = |tags: &Tags<OPEN>| unit.pair < tags.pair + 2 * BATCH;
                tags.catch_up(batch, free);
                tags.store[unit.pair % (2 * BATCH)] = [one_time(first[i]), one_time(second[i])];
                tags.stored = unit.pair + 1;
                continue;
            };
            let from = before as usize * BLOCK;
            let to = len.min(from + BLOCK);
            if OPEN {
                tags.read_before(batch, unit.pair, to);
            }
            for (side, stream) in [first[i], second[i]].into_iter().enumerate() {
                let start = batch.start(unit.pair, side);
                let text = &mut batch.buffer[start + from..start + to];
                if let Ok(text) = text.try_into() {
                    mix(text, stream);
                } else {
                    mix_part(text, &bytes(stream));
                }
            }
            tags.sealed = if to == len {
                Unit {
                    pair: unit.pair + 1,
                    block: 0,
                }
            } else {
                *unit
            };
        }
    }
    let pairs = batch.pairs;
    tags.catch_up(batch, |tags| tags.pair == pairs);
    tags.forget_keys();
    memory.multipliers.as_flattened_mut().zeroize();
    memory.third.as_flattened_mut().zeroize();
    tags.right
}

/// The twenty rounds, and as many steps of the tags beside them as there are.
#[inline]
#[target_feature(enable = "avx2,bmi2")]
fn rounds<const OPEN: bool>(
    rows: &mut Rows,
    memory: &mut Memory,
    tags: &mut Tags<OPEN>,
    batch: &mut Batch<'_>,
) {
    let mut v = *rows;
    let mut left = STEPS_PER_PASS;
    while left > 0 {
        if tags.steps() == 0 {
            tags.turn(batch);
        }
        let steps = tags.steps().min(left);
        if steps == 0 {
            let m = &raw mut *memory;
            for _ in 0..2 * left {
                // SAFETY: `m` is `memory`.
                unsafe { double_round!(m, v, [] [] []) };
            }
            break;
        }
        let [x, y] = tags.texts(batch, steps);
        let [mut a, mut b] = tags.chains;
        memory.multipliers = [tags.keys[0].multiplier, tags.keys[1].multiplier];
        let m = &raw mut *memory;
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (x.as_ptr(), y.as_ptr());
            // SAFETY: three blocks each, borrowed here, and `memory`.
            unsafe {
                double_round!(
                    m,
                    v,
                    [block!(a, m, FIRST, x, 0)][block!(b, m, SECOND, y, 0)]
                        [block!(a, m, FIRST, x, 16)]
                );
                double_round!(
                    m,
                    v,
                    [block!(b, m, SECOND, y, 16)][block!(a, m, FIRST, x, 32)]
                        [block!(b, m, SECOND, y, 32)]
                );
            }
        }
        tags.chains = [a, b];
        tags.position += steps * STEP;
        left -= steps;
    }
    *rows = v;
}

/// The fourth row for four units of one pair. The first half of the lanes
/// belongs to the first of the pair.
#[inline]
#[target_feature(enable = "avx2")]
fn one_pair(batch: &Batch<'_>, first: Unit, prefix: i32) -> [__m256i; 4] {
    let [a, b] = batch.counters(first.pair);
    let halves =
        |a: u64, b: u64| _mm256_set_m128i(_mm_set1_epi32(b as i32), _mm_set1_epi32(a as i32));
    let offsets = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
    [
        _mm256_add_epi32(_mm256_set1_epi32(first.block as i32), offsets),
        _mm256_set1_epi32(prefix),
        halves(a, b),
        halves(a >> 32, b >> 32),
    ]
}

/// The fourth row for any four units.
#[inline]
#[target_feature(enable = "avx2")]
fn any(batch: &Batch<'_>, units: &[Unit; UNITS], prefix: i32) -> [__m256i; 4] {
    let [n0, n1, n2, n3] = units.map(|unit| batch.counters(unit.pair));
    let [b0, b1, b2, b3] = units.map(|unit| unit.block as i32);
    let row = |shift: u32| {
        let word = |counter: u64| (counter >> shift) as i32;
        _mm256_setr_epi32(
            word(n0[0]),
            word(n1[0]),
            word(n2[0]),
            word(n3[0]),
            word(n0[1]),
            word(n1[1]),
            word(n2[1]),
            word(n3[1]),
        )
    };
    [
        _mm256_setr_epi32(b0, b1, b2, b3, b0, b1, b2, b3),
        _mm256_set1_epi32(prefix),
        row(0),
        row(32),
    ]
}

/// Adds key stream to less than a block: whole quarters first, which is what
/// padded packets end with.
#[inline]
fn mix_part(text: &mut [u8], stream: &[u8; BLOCK]) {
    let (quarters, rest) = text.as_chunks_mut::<16>();
    let (streams, _) = stream.as_chunks::<16>();
    let mut used = 0;
    for (text, stream) in quarters.iter_mut().zip(streams) {
        *text = (u128::from_ne_bytes(*text) ^ u128::from_ne_bytes(*stream)).to_ne_bytes();
        used += 16;
    }
    for (text, stream) in rest.iter_mut().zip(&stream[used..]) {
        *text ^= stream;
    }
}

/// The one-time key in block 0.
#[inline]
#[target_feature(enable = "avx2")]
fn one_time(stream: [__m256i; 2]) -> [u64; 4] {
    let bytes = bytes(stream);
    let (words, _) = bytes.as_chunks();
    [0, 1, 2, 3].map(|i| u64::from_le_bytes(words[i]))
}
