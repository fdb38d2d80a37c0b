//! The tags of a batch, which follow behind its encryption or go ahead of its
//! decryption.

use subtle::ConstantTimeEq as _;
use warren_wire::wireguard::TAG_LEN as TAG;
use zeroize::Zeroize as _;

use super::poly1305::{Accumulator, OneTimeKey};
use super::schedule::{Batch, Unit};
use super::{BATCH, BLOCK, STEP};

/// The tags of one pair after the other.
pub(super) struct Tags<const OPEN: bool> {
    /// The pair that is being read, and how far.
    pub(super) pair: usize,
    pub(super) position: usize,
    /// How far it can be read in whole steps.
    pub(super) readable: usize,
    pub(super) loaded: bool,
    pub(super) chains: [Accumulator; 2],
    pub(super) keys: [OneTimeKey; 2],
    /// One-time keys of two batches, and of how many pairs there have been
    /// some.
    pub(super) store: [[[u64; 4]; 2]; 2 * BATCH],
    pub(super) stored: usize,
    /// Up to where ciphertext stands in the buffer, when sealing.
    pub(super) sealed: Unit,
    /// Packets whose tag was right, when opening.
    pub(super) right: u64,
}

impl<const OPEN: bool> Tags<OPEN> {
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            pair: 0,
            position: 0,
            readable: 0,
            loaded: false,
            chains: [Accumulator::default(); 2],
            keys: [OneTimeKey::default(); 2],
            store: [[[0; 4]; 2]; 2 * BATCH],
            stored: 0,
            sealed: Unit::default(),
            right: 0,
        }
    }

    #[inline]
    pub(super) fn steps(&self) -> usize {
        self.readable.saturating_sub(self.position) / STEP
    }

    /// Ends a pair that was read, begins the next one, or finds out how much
    /// more can be read.
    // Not inlined: it runs once for a pair of packets, inside loops that keep their
    // chains in registers.
    #[inline(never)]
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) fn turn(&mut self, batch: &mut Batch<'_>) {
        let len = batch.content_len();
        if self.loaded && self.ciphertext(len) == len && self.position + STEP > len {
            self.finish(batch);
        }
        if !self.loaded && self.pair < self.stored {
            self.keys = self.store[self.pair % (2 * BATCH)].map(OneTimeKey::new);
            self.chains = [Accumulator::default(); 2];
            self.position = 0;
            self.loaded = true;
        }
        self.readable = if self.loaded { self.ciphertext(len) } else { 0 };
    }

    /// How much ciphertext of the pair stands in the buffer.
    #[inline]
    pub(super) fn ciphertext(&self, len: usize) -> usize {
        if OPEN || self.pair < self.sealed.pair {
            len
        } else if self.pair == self.sealed.pair {
            self.sealed.block as usize * BLOCK
        } else {
            0
        }
    }

    #[target_feature(enable = "avx2,bmi2")]
    pub(super) fn finish(&mut self, batch: &mut Batch<'_>) {
        let len = batch.content_len();
        for side in 0..2 {
            let start = batch.start(self.pair, side);
            let rest = &batch.buffer[start + self.position..start + len];
            let tag = self.chains[side].finish(&self.keys[side], rest, len);
            let place = &mut batch.buffer[start + len..start + len + TAG];
            if OPEN {
                let right = u64::from(place.ct_eq(tag.as_slice()).unwrap_u8());
                self.right |= right << (2 * self.pair + side);
            } else {
                place.copy_from_slice(&tag);
            }
        }
        self.pair += 1;
        self.loaded = false;
    }

    /// Goes on until `done`, without a key stream beside it.
    #[inline]
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) fn catch_up(&mut self, batch: &mut Batch<'_>, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            if self.steps() == 0 {
                self.turn(batch);
                continue;
            }
            let [mut a, mut b] = self.chains;
            let [x, y] = self.texts(batch, 1);
            for (x, y) in x
                .as_flattened()
                .as_chunks()
                .0
                .iter()
                .zip(y.as_flattened().as_chunks().0)
            {
                a.block(&self.keys[0], x);
                b.block(&self.keys[1], y);
            }
            self.chains = [a, b];
            self.position += STEP;
        }
    }

    /// The ciphertexts that the next steps read.
    #[inline]
    pub(super) fn texts<'t>(&self, batch: &'t Batch<'_>, steps: usize) -> [&'t [[u8; STEP]]; 2] {
        [0, 1].map(|side| {
            let start = batch.start(self.pair, side) + self.position;
            batch.buffer[start..start + steps * STEP].as_chunks().0
        })
    }

    /// Reads everything before `position` of a pair, which is about to be
    /// decrypted.
    #[inline]
    #[target_feature(enable = "avx2,bmi2")]
    pub(super) fn read_before(&mut self, batch: &mut Batch<'_>, pair: usize, position: usize) {
        self.catch_up(batch, |tags| {
            tags.pair > pair || tags.pair == pair && tags.loaded && tags.position >= position
        });
    }

    /// Wipes the one-time keys.
    pub(super) fn forget_keys(&mut self) {
        self.store.as_flattened_mut().as_flattened_mut().zeroize();
        self.keys.iter_mut().for_each(OneTimeKey::wipe);
    }
}
