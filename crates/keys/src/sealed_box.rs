//! NaCl `crypto_box`: X25519, HSalsa20, XSalsa20-Poly1305.
//!
//! Used by disco packets and by the DERP login. The two peers share one key
//! whichever way a message travels, so [`SharedKey`] is computed once per pair
//! and kept; the Diffie-Hellman costs far more than sealing a ping.
//!
//! A box is `nonce (24) ‖ tag (16) ‖ ciphertext`, with the tag *before* the
//! ciphertext as in the original library.

use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit as _;
use salsa20::XSalsa20;
use salsa20::cipher::{KeyIvInit as _, StreamCipher as _};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, Zeroizing};

use crate::x25519::{DegenerateKey, Scalar};

/// Bytes of the random nonce in front of a box.
pub const NONCE_LEN: usize = 24;
/// Bytes of the Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// Bytes that sealing adds to a message.
pub const OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// The box was not made for us by that sender, or was damaged on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed box does not open with this pair of keys")]
pub struct OpenError;

/// The key that two peers share, for any number of boxes in both directions.
#[derive(Clone)]
pub struct SharedKey([u8; 32]);

impl Drop for SharedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

impl SharedKey {
    /// Derives the pair's key: HSalsa20 of the X25519 result.
    ///
    /// # Errors
    /// [`DegenerateKey`] when `their_public` is a low-order point.
    pub fn new(ours: &Scalar, their_public: &[u8; 32]) -> Result<Self, DegenerateKey> {
        let shared = ours.agree(their_public)?;
        let derived =
            salsa20::hsalsa::<salsa20::cipher::consts::U10>(&(*shared).into(), &Default::default());
        Ok(Self(derived.into()))
    }

    /// Appends `nonce ‖ tag ‖ ciphertext` of `plaintext` to `out`.
    ///
    /// `nonce` must be random and never reused with this pair.
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], plaintext: &[u8], out: &mut Vec<u8>) {
        let (mut cipher, mac_key) = self.start(nonce);
        out.extend_from_slice(nonce);
        let tag_at = out.len();
        out.extend_from_slice(&[0; TAG_LEN]);
        out.extend_from_slice(plaintext);
        let ciphertext = &mut out[tag_at + TAG_LEN..];
        cipher.apply_keystream(ciphertext);
        let tag = Poly1305::new(&(*mac_key).into()).compute_unpadded(ciphertext);
        out[tag_at..tag_at + TAG_LEN].copy_from_slice(tag.as_slice());
    }

    /// Opens `nonce ‖ tag ‖ ciphertext`.
    ///
    /// # Errors
    /// [`OpenError`] when the box is too short or its tag does not match.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(OpenError)?;
        let (tag, ciphertext) = rest.split_first_chunk::<TAG_LEN>().ok_or(OpenError)?;
        let (mut cipher, mac_key) = self.start(nonce);
        let expected = Poly1305::new(&(*mac_key).into()).compute_unpadded(ciphertext);
        if !bool::from(expected.as_slice().ct_eq(tag)) {
            return Err(OpenError);
        }
        let mut plaintext = ciphertext.to_vec();
        cipher.apply_keystream(&mut plaintext);
        Ok(plaintext)
    }

    /// The cipher behind the first 32 keystream bytes, which are the MAC key.
    fn start(&self, nonce: &[u8; NONCE_LEN]) -> (XSalsa20, Zeroizing<[u8; 32]>) {
        let mut cipher = XSalsa20::new(&self.0.into(), &(*nonce).into());
        let mut mac_key = Zeroizing::new([0; 32]);
        cipher.apply_keystream(mac_key.as_mut_slice());
        (cipher, mac_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The oracle is `crypto_box`, an independent implementation.
        #[test]
        fn agrees_with_crypto_box(a: [u8; 32], b: [u8; 32], nonce: [u8; 24], text: Vec<u8>) {
            use crypto_box::aead::Aead as _;
            let (ours, theirs) = (Scalar::new(&a), Scalar::new(&b));
            let key = SharedKey::new(&ours, &theirs.public()).unwrap();
            let mut sealed = Vec::new();
            key.seal(&nonce, &text, &mut sealed);

            let oracle = crypto_box::SalsaBox::new(&ours.public().into(), &b.into());
            prop_assert_eq!(oracle.decrypt(&nonce.into(), &sealed[24..]).unwrap(), text.clone());
            prop_assert_eq!(key.open(&sealed).unwrap(), text);
        }

        #[test]
        fn any_flipped_bit_is_noticed(at in 0usize..60, bit in 0u8..8) {
            let key = SharedKey::new(&Scalar::new(&[7; 32]), &Scalar::new(&[9; 32]).public()).unwrap();
            let mut sealed = Vec::new();
            key.seal(&[3; 24], &[5; 20], &mut sealed);
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(key.open(&sealed), Err(OpenError));
        }
    }

    #[test]
    fn too_short_is_an_error() {
        let key = SharedKey::new(&Scalar::new(&[7; 32]), &Scalar::new(&[9; 32]).public()).unwrap();
        for len in 0..OVERHEAD {
            assert_eq!(key.open(&vec![0; len]), Err(OpenError));
        }
    }
}
