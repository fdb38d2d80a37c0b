//! Poly1305 of two messages of the same length, side by side.
//!
//! One chain of additions and multiplications waits for itself most of the
//! time. Two of them fill the gaps of each other and of the vector
//! instructions they stand between. A block is written in assembly because
//! carries decide its speed: a compiler keeps them in registers instead of
//! the flag.
//!
//! Numbers are three 64-bit limbs, the third of a few bits. Both halves of
//! the clamped key are below 2⁶⁰, and the upper one is divisible by four, so
//! that a product may be folded at 2¹²⁸ with 5/4 of it (RFC 8439, section
//! 2.5).

use zeroize::Zeroize as _;

/// A one-time key: the multiplier, 5/4 of its upper half, and what is added
/// at the end.
#[derive(Clone, Copy, Default)]
pub(super) struct OneTimeKey {
    pub(super) multiplier: [u64; 3],
    last: u128,
}

impl OneTimeKey {
    /// From the first 32 bytes of a packet's key stream (RFC 8439, section
    /// 2.6), as little-endian words.
    pub(super) fn new(words: [u64; 4]) -> Self {
        let low = words[0] & 0x0fff_fffc_0fff_ffff;
        let high = words[1] & 0x0fff_fffc_0fff_fffc;
        Self {
            multiplier: [low, high, high + (high >> 2)],
            last: u128::from(words[2]) | u128::from(words[3]) << 64,
        }
    }

    /// Forgets it.
    pub(super) fn wipe(&mut self) {
        self.multiplier.zeroize();
        self.last.zeroize();
    }
}

/// Takes the 16 bytes at an offset from a pointer, with the multiplier at an
/// offset from another. Both must be readable; nothing is written but the
/// accumulator.
macro_rules! block {
    ($h:expr, $key:expr, $key_at:expr, $text:expr, $text_at:expr) => {
        std::arch::asm!(
            // The block, and the bit above it.
            "add {h0}, [{text} + {text_at}]",
            "adc {h1}, [{text} + {text_at} + 8]",
            "adc {h2}, 1",
            // h0 times both halves, h1 times the folded upper half.
            "mov rdx, {h0}",
            "mulx {t1}, {t0}, [{key} + {key_at}]",
            "mulx {t3}, {t2}, [{key} + {key_at} + 8]",
            "mov rdx, {h1}",
            "mulx {h1}, {h0}, [{key} + {key_at} + 16]",
            "add {h0}, {t0}",
            "adc {t1}, {h1}",
            "mulx {h1}, {t0}, [{key} + {key_at}]",
            "add {t2}, {t0}",
            "adc {t3}, {h1}",
            // h2 is so small that its products are one limb.
            "mov rdx, {h2}",
            "imul rdx, [{key} + {key_at} + 16]",
            "imul {h2}, [{key} + {key_at}]",
            "add {t2}, rdx",
            "adc {h2}, {t3}",
            "add {t2}, {t1}",
            "adc {h2}, 0",
            // The part above 2¹³⁰ is added at the bottom, five times.
            "mov {t0}, {h2}",
            "shr {t0}, 2",
            "and {h2:e}, 3",
            "lea {t0}, [{t0} + {t0} * 4]",
            "add {h0}, {t0}",
            "adc {t2}, 0",
            "adc {h2}, 0",
            h0 = inout(reg) $h.0[0],
            h1 = inout(reg) $h.0[1] => _,
            h2 = inout(reg) $h.0[2],
            key = in(reg) $key,
            text = in(reg) $text,
            key_at = const $key_at,
            text_at = const $text_at,
            t0 = out(reg) _,
            t1 = out(reg) _,
            t2 = out(reg) $h.0[1],
            t3 = out(reg) _,
            out("rdx") _,
            options(nostack, readonly),
        )
    };
}
pub(super) use block;

/// The state of the MAC after the bytes of one message read so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Accumulator(pub(super) [u64; 3]);

impl Accumulator {
    /// Takes one block of 16 bytes.
    #[inline]
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) fn block(&mut self, key: &OneTimeKey, block: &[u8; 16]) {
        let key = key.multiplier.as_ptr();
        // SAFETY: three words and 16 bytes, both borrowed here.
        unsafe { block!(self, key, 0, block.as_ptr(), 0) }
    }

    /// Takes the `rest` of a ciphertext of `total` bytes without associated
    /// data, and gives the tag (RFC 8439, section 2.8).
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) fn finish(mut self, key: &OneTimeKey, rest: &[u8], total: usize) -> [u8; 16] {
        let (blocks, tail) = rest.as_chunks();
        for block in blocks {
            self.block(key, block);
        }
        if !tail.is_empty() {
            let mut block = [0; 16];
            for (to, from) in block.iter_mut().zip(tail) {
                *to = *from;
            }
            self.block(key, &block);
        }
        self.block(key, &(u128::from(total as u64) << 64).to_le_bytes());
        self.tag(key)
    }

    /// The tag: the state, reduced, plus the second half of the key.
    pub(super) fn tag(self, key: &OneTimeKey) -> [u8; 16] {
        // Less than 2p is left: keep it, or it minus p where that is not
        // negative, without a branch.
        let [h0, h1, h2] = self.0;
        let low = u128::from(h0) | u128::from(h1) << 64;
        let (reduced, carry) = low.overflowing_add(5);
        let subtract = 0_u128.wrapping_sub(u128::from((h2 + u64::from(carry)) >> 2));
        let low = (low & !subtract) | (reduced & subtract);
        low.wrapping_add(key.last).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tag of whole blocks, without the lengths that a packet ends with.
    fn tag(r: u128, s: u128, text: &[[u8; 16]]) -> Option<u128> {
        let able = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2");
        let key = OneTimeKey::new([r as u64, (r >> 64) as u64, s as u64, (s >> 64) as u64]);
        let mut accumulator = Accumulator::default();
        able.then(|| {
            for block in text {
                // SAFETY: the features are there.
                unsafe { accumulator.block(&key, block) };
            }
            u128::from_le_bytes(accumulator.tag(&key))
        })
    }

    fn little(n: u128) -> [u8; 16] {
        n.to_le_bytes()
    }

    #[test]
    fn carries_and_reductions_at_their_edges() {
        // RFC 8439, appendix A.3, test vectors 5 to 11: results around
        // 2¹³⁰ - 5 and carries through every limb.
        const ONES: u128 = u128::MAX;
        let cases: &[(u128, u128, &[u128], u128)] = &[
            (2, 0, &[ONES], 3),
            (2, ONES, &[2], 3),
            (1, 0, &[ONES, ONES - 0xf, 0x11], 5),
            (
                1,
                0,
                &[
                    ONES,
                    u128::from_le_bytes([0xfe; 16]) - 3,
                    u128::from_le_bytes([1; 16]),
                ],
                0,
            ),
            (2, 0, &[ONES - 2], ONES - 5),
            (
                4 << 64 | 1,
                0,
                &[0xb943_5e50_d794_35e3, 0x01_cd79_435e_50d7_9433, 0, 1],
                0x55 << 64 | 0x14,
            ),
            (
                4 << 64 | 1,
                0,
                &[0xb943_5e50_d794_35e3, 0x01_cd79_435e_50d7_9433, 0],
                0x13,
            ),
        ];
        for (r, s, text, expected) in cases {
            let text: Vec<_> = text.iter().copied().map(little).collect();
            assert!(
                tag(*r, *s, &text).is_none_or(|tag| tag == *expected),
                "{r:x} {s:x} {text:x?}"
            );
        }
    }
}
