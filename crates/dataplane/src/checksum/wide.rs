//! The sums compiled for AVX2, which baseline x86-64 lacks: about three times
//! as fast.

// A function compiled for more than the baseline may only be called where the
// processor was asked.
#![allow(unsafe_code)]

use super::{copy_with, fold_with};

/// [`fold_with`]; `None` where AVX2 is missing.
#[inline]
pub(super) fn fold(bytes: &[u8]) -> Option<u16> {
    // SAFETY: the feature was found.
    is_x86_feature_detected!("avx2").then(|| unsafe { fold_avx2(bytes) })
}

/// [`copy_with`]; `None` where AVX2 is missing.
#[inline]
pub(super) fn copy(from: &[u8], to: &mut [u8]) -> Option<u16> {
    // SAFETY: the feature was found.
    is_x86_feature_detected!("avx2").then(|| unsafe { copy_avx2(from, to) })
}

#[target_feature(enable = "avx2")]
fn fold_avx2(bytes: &[u8]) -> u16 {
    fold_with(bytes)
}

#[target_feature(enable = "avx2")]
fn copy_avx2(from: &[u8], to: &mut [u8]) -> u16 {
    copy_with(from, to)
}
