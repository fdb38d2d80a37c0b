//! ChaCha20 of eight blocks at once, one in each lane of sixteen vectors.
//!
//! All sixteen and the two temporaries of a rotation do not fit in sixteen
//! registers. The third row is kept in memory: of every quarter round it is
//! needed last, so that its loads are never waited for. A compiler, left
//! alone, spills whatever comes next and halves the speed.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_load_si256, _mm256_loadu_si256, _mm256_permute2x128_si256,
    _mm256_set1_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

/// The values that the rounds keep in memory.
#[repr(C, align(32))]
pub(super) struct Memory {
    /// Byte orders that rotate words by 16 and by 8 bits.
    rotations: [[u8; 32]; 2],
    /// The third row of the state.
    pub(super) third: [[u32; 8]; 4],
    /// For the steps of Poly1305 between the rounds: the multipliers of both
    /// packets. One pointer to everything saves registers.
    pub(super) multipliers: [[u64; 3]; 2],
}

impl Memory {
    pub(super) const NEW: Self = Self {
        rotations: [rotation([2, 3, 0, 1]), rotation([3, 0, 1, 2])],
        third: [[0; 8]; 4],
        multipliers: [[0; 3]; 2],
    };

    #[inline]
    #[target_feature(enable = "avx2")]
    fn third(&self) -> [__m256i; 4] {
        let [a, b, c, d] = &self.third;
        // SAFETY: each place is 32 bytes long and so aligned.
        unsafe {
            [
                _mm256_load_si256(a.as_ptr().cast()),
                _mm256_load_si256(b.as_ptr().cast()),
                _mm256_load_si256(c.as_ptr().cast()),
                _mm256_load_si256(d.as_ptr().cast()),
            ]
        }
    }
}

/// The byte order of a whole vector from that of one word.
const fn rotation(word: [u8; 4]) -> [u8; 32] {
    let mut all = [0; 32];
    let mut i = 0;
    while i < 32 {
        // Both halves of a vector count from zero.
        all[i] = (i as u8 & 12) + word[i & 3];
        i += 1;
    }
    all
}

/// Two quarter rounds (RFC 8439, section 2.1), one instruction of each in
/// turn. `$memory` points to a [`Memory`] that has no other user meanwhile.
macro_rules! quarter_rounds {
    ($memory:ident, $v:ident, ($a0:literal, $b0:literal, $c0:literal, $d0:literal),
     ($a1:literal, $b1:literal, $c1:literal, $d1:literal)) => {
            std::arch::asm!(
                "vpaddd {a0}, {a0}, {b0}", "vpaddd {a1}, {a1}, {b1}",
                "vpxor {d0}, {d0}, {a0}", "vpxor {d1}, {d1}, {a1}",
                "vpshufb {d0}, {d0}, [{m}]", "vpshufb {d1}, {d1}, [{m}]",
                "vpaddd {c0}, {d0}, [{m} + {at0}]", "vpaddd {c1}, {d1}, [{m} + {at1}]",
                "vpxor {b0}, {b0}, {c0}", "vpxor {b1}, {b1}, {c1}",
                "vpslld {t0}, {b0}, 12", "vpslld {t1}, {b1}, 12",
                "vpsrld {b0}, {b0}, 20", "vpsrld {b1}, {b1}, 20",
                "vpor {b0}, {b0}, {t0}", "vpor {b1}, {b1}, {t1}",
                "vpaddd {a0}, {a0}, {b0}", "vpaddd {a1}, {a1}, {b1}",
                "vpxor {d0}, {d0}, {a0}", "vpxor {d1}, {d1}, {a1}",
                "vpshufb {d0}, {d0}, [{m} + 32]", "vpshufb {d1}, {d1}, [{m} + 32]",
                "vpaddd {c0}, {c0}, {d0}", "vpaddd {c1}, {c1}, {d1}",
                "vmovdqa [{m} + {at0}], {c0}", "vmovdqa [{m} + {at1}], {c1}",
                "vpxor {b0}, {b0}, {c0}", "vpxor {b1}, {b1}, {c1}",
                "vpslld {t0}, {b0}, 7", "vpslld {t1}, {b1}, 7",
                "vpsrld {b0}, {b0}, 25", "vpsrld {b1}, {b1}, 25",
                "vpor {b0}, {b0}, {t0}", "vpor {b1}, {b1}, {t1}",
                m = in(reg) $memory,
                at0 = const 64 + 32 * $c0,
                at1 = const 64 + 32 * $c1,
                a0 = inout(ymm_reg) $v.first[$a0], a1 = inout(ymm_reg) $v.first[$a1],
                b0 = inout(ymm_reg) $v.second[$b0], b1 = inout(ymm_reg) $v.second[$b1],
                d0 = inout(ymm_reg) $v.fourth[$d0], d1 = inout(ymm_reg) $v.fourth[$d1],
                c0 = out(ymm_reg) _, c1 = out(ymm_reg) _,
                t0 = out(ymm_reg) _, t1 = out(ymm_reg) _,
                options(nostack, preserves_flags),
            )
    };
}

/// Two rounds, with something else to do in three places.
macro_rules! double_round {
    ($memory:ident, $v:ident, [$($first:expr)?] [$($second:expr)?] [$($third:expr)?]) => {{
        quarter_rounds!($memory, $v, (0, 0, 0, 0), (1, 1, 1, 1));
        quarter_rounds!($memory, $v, (2, 2, 2, 2), (3, 3, 3, 3));
        $($first;)?
        quarter_rounds!($memory, $v, (0, 1, 2, 3), (1, 2, 3, 0));
        $($second;)?
        quarter_rounds!($memory, $v, (2, 3, 0, 1), (3, 0, 1, 2));
        $($third;)?
    }};
}
pub(super) use {double_round, quarter_rounds};

/// Three rows of the state; the other one is in [`Memory`].
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) first: [__m256i; 4],
    pub(super) second: [__m256i; 4],
    pub(super) fourth: [__m256i; 4],
}

/// "expand 32-byte k"
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

impl Rows {
    /// The state before the first round, for a fourth row of block numbers
    /// and nonces.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn start(memory: &mut Memory, key: &[u32; 8], fourth: [__m256i; 4]) -> Self {
        for (row, word) in memory.third.iter_mut().zip(&key[4..]) {
            *row = [*word; 8];
        }
        Self {
            first: CONSTANTS.map(|word| _mm256_set1_epi32(word as i32)),
            second: [key[0], key[1], key[2], key[3]].map(|word| _mm256_set1_epi32(word as i32)),
            fourth,
        }
    }

    /// The key stream after the last round: of every block its two halves.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn finish(
        self,
        memory: &Memory,
        key: &[u32; 8],
        fourth: [__m256i; 4],
    ) -> [[__m256i; 2]; 8] {
        let a = add_words(self.first, &CONSTANTS);
        let b = add_words(self.second, &[key[0], key[1], key[2], key[3]]);
        let low = transpose(a, b);
        let c = add_words(memory.third(), &[key[4], key[5], key[6], key[7]]);
        let d = [
            _mm256_add_epi32(self.fourth[0], fourth[0]),
            _mm256_add_epi32(self.fourth[1], fourth[1]),
            _mm256_add_epi32(self.fourth[2], fourth[2]),
            _mm256_add_epi32(self.fourth[3], fourth[3]),
        ];
        let high = transpose(c, d);
        [
            [low[0], high[0]],
            [low[1], high[1]],
            [low[2], high[2]],
            [low[3], high[3]],
            [low[4], high[4]],
            [low[5], high[5]],
            [low[6], high[6]],
            [low[7], high[7]],
        ]
    }
}

// No closures from here on: some are not inlined, and then sixteen vectors
// take the way over memory.

#[inline]
#[target_feature(enable = "avx2")]
fn add_words(row: [__m256i; 4], words: &[u32; 4]) -> [__m256i; 4] {
    [
        _mm256_add_epi32(row[0], _mm256_set1_epi32(words[0] as i32)),
        _mm256_add_epi32(row[1], _mm256_set1_epi32(words[1] as i32)),
        _mm256_add_epi32(row[2], _mm256_set1_epi32(words[2] as i32)),
        _mm256_add_epi32(row[3], _mm256_set1_epi32(words[3] as i32)),
    ]
}

/// Words of two vectors in turn, of both halves of each.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(a: __m256i, b: __m256i) -> [__m256i; 2] {
    [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)]
}

/// The same with pairs of words.
#[inline]
#[target_feature(enable = "avx2")]
fn fours(a: __m256i, b: __m256i) -> [__m256i; 2] {
    [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)]
}

/// From vectors of the same word of eight blocks to eight words of one block
/// each.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(a: [__m256i; 4], b: [__m256i; 4]) -> [__m256i; 8] {
    let [t0, t1] = pairs(a[0], a[1]);
    let [t2, t3] = pairs(a[2], a[3]);
    let [t4, t5] = pairs(b[0], b[1]);
    let [t6, t7] = pairs(b[2], b[3]);
    let [u0, u1] = fours(t0, t2);
    let [u2, u3] = fours(t1, t3);
    let [u4, u5] = fours(t4, t6);
    let [u6, u7] = fours(t5, t7);
    [
        _mm256_permute2x128_si256(u0, u4, 0x20),
        _mm256_permute2x128_si256(u1, u5, 0x20),
        _mm256_permute2x128_si256(u2, u6, 0x20),
        _mm256_permute2x128_si256(u3, u7, 0x20),
        _mm256_permute2x128_si256(u0, u4, 0x31),
        _mm256_permute2x128_si256(u1, u5, 0x31),
        _mm256_permute2x128_si256(u2, u6, 0x31),
        _mm256_permute2x128_si256(u3, u7, 0x31),
    ]
}

/// Adds a block of key stream to 64 bytes of text.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn mix(text: &mut [u8; 64], stream: [__m256i; 2]) {
    for (text, stream) in text.as_chunks_mut::<32>().0.iter_mut().zip(stream) {
        // SAFETY: reads and writes the 32 bytes of `text`; any alignment.
        unsafe {
            let mixed = _mm256_xor_si256(_mm256_loadu_si256(text.as_ptr().cast()), stream);
            _mm256_storeu_si256(text.as_mut_ptr().cast(), mixed);
        }
    }
}

/// A block of key stream as bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn bytes(stream: [__m256i; 2]) -> [u8; 64] {
    let mut bytes = [0; 64];
    mix(&mut bytes, stream);
    bytes
}

#[cfg(test)]
mod tests {
    use std::arch::x86_64::_mm256_setr_epi32;

    use super::*;

    #[target_feature(enable = "avx2,bmi2")]
    fn blocks(key: &[u32; 8], nonce: [u32; 3]) -> [[u8; 64]; 8] {
        let mut memory = Memory::NEW;
        let word = |word: u32| _mm256_set1_epi32(word as i32);
        let numbers = _mm256_setr_epi32(1, 0, 0, 0, 0, 0, 0, 1);
        let fourth = [numbers, word(nonce[0]), word(nonce[1]), word(nonce[2])];
        let mut rows = Rows::start(&mut memory, key, fourth);
        let m = &raw mut memory;
        for _ in 0..10 {
            // SAFETY: `m` is `memory`.
            unsafe { double_round!(m, rows, [] [] []) };
        }
        rows.finish(&memory, key, fourth)
            .map(|stream| bytes(stream))
    }

    #[test]
    fn the_block_of_the_rfc() {
        // RFC 8439, section 2.3.2.
        let key =
            std::array::from_fn(|i| u32::from_le_bytes([0, 1, 2, 3].map(|j| 4 * i as u8 + j)));
        let expected = [
            0xe4e7_f110,
            0x1559_3bd1,
            0x1fdd_0f50,
            0xc471_20a3,
            0xc7f4_d1c7,
            0x0368_c033,
            0x9aaa_2204,
            0x4e6c_d4c3,
            0x4664_82d2,
            0x09aa_9f07,
            0x05d7_c214,
            0xa202_8bd9,
            0xd19c_12b5,
            0xb94e_16de,
            0xe883_d0cb,
            0x4e3c_50a2_u32,
        ];
        let expected = expected.map(u32::to_le_bytes);
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
            // SAFETY: the features are there.
            let blocks = unsafe { blocks(&key, [0x0900_0000, 0x4a00_0000, 0]) };
            assert_eq!(blocks[0], expected.as_flattened());
            assert_eq!(blocks[7], blocks[0]);
            assert_eq!(blocks[6], blocks[1]);
            assert_ne!(blocks[1], blocks[0]);
        }
    }
}
