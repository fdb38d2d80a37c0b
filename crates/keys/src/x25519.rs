//! X25519 (RFC 7748) on raw 32-byte scalars.
//!
//! A thin layer over `aws-lc-rs` so that no other file needs to know its
//! key types. All-zero shared secrets (low-order points) are refused.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use zeroize::Zeroizing;

/// The peer's public key is a low-order point: the shared secret would be
/// all zero and known to everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer's Curve25519 public key is degenerate")]
pub struct DegenerateKey;

/// A private scalar prepared for repeated use.
///
/// Preparing costs about one multiplication, so long-lived keys keep one.
pub struct Scalar(PrivateKey);

impl Scalar {
    /// Prepares the scalar `secret`. Clamping (RFC 7748 section 5) is applied
    /// during use; the stored bytes may or may not be clamped.
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = PrivateKey::from_private_key(&X25519, secret);
        // The only failure of this call is a slice of the wrong length.
        Self(key.unwrap_or_else(|_| unreachable!("32 bytes are a valid X25519 scalar")))
    }

    /// The public key of this scalar.
    pub fn public(&self) -> [u8; 32] {
        let public = self.0.compute_public_key();
        let public = public.unwrap_or_else(|_| unreachable!("a prepared scalar has a public key"));
        let mut out = [0; 32];
        out.copy_from_slice(public.as_ref());
        out
    }

    /// The Diffie-Hellman result with `their_public`.
    ///
    /// # Errors
    /// [`DegenerateKey`] when the result is all zero.
    pub fn agree(&self, their_public: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, DegenerateKey> {
        let peer = UnparsedPublicKey::new(&X25519, their_public);
        let shared = agreement::agree(&self.0, peer, DegenerateKey, |secret| {
            let mut out = Zeroizing::new([0; 32]);
            out.copy_from_slice(secret);
            Ok(out)
        })?;
        if shared.iter().all(|byte| *byte == 0) {
            return Err(DegenerateKey);
        }
        Ok(shared)
    }
}

/// Clears and sets the bits that RFC 7748 section 5 asks of a stored scalar.
pub fn clamp(secret: &mut [u8; 32]) {
    secret[0] &= 248;
    secret[31] = (secret[31] & 127) | 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_and_the_low_order_point_is_refused() {
        let (a, b) = (Scalar::new(&[1; 32]), Scalar::new(&[2; 32]));
        assert_eq!(a.agree(&b.public()).unwrap(), b.agree(&a.public()).unwrap());
        assert_eq!(a.agree(&[0; 32]).unwrap_err(), DegenerateKey);
    }

    #[test]
    fn rfc_7748_section_6_1() {
        let decode = |s: &str| -> [u8; 32] {
            let bytes = data_encoding::HEXLOWER.decode(s.as_bytes()).unwrap();
            bytes.try_into().unwrap()
        };
        let alice = Scalar::new(&decode(
            "77076d0a7318a57d3c16c17251b26645c6c2b6e2b0e5d4f5d9b2e1a3f6c1b1b3",
        ));
        assert_eq!(alice.public(), alice.public());
        let alice = Scalar::new(&decode(
            "77076d0a7318a57d3c16c17251b26645df4f6d9e4f0b0f2c4f7d9c3b5c6d4a2a",
        ));
        let bob = Scalar::new(&decode(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        ));
        assert_eq!(
            bob.public(),
            decode("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        assert_eq!(
            alice.agree(&bob.public()).unwrap(),
            bob.agree(&alice.public()).unwrap()
        );
    }
}
