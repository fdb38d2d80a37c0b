//! The symmetric half of a Noise handshake with BLAKE2s and ChaCha20-Poly1305.
//!
//! Two protocols of this system are Noise IK: the control channel
//! (`Noise_IK_25519_ChaChaPoly_BLAKE2s`) and WireGuard
//! (`Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`). They share the state kept here:
//! the chaining key, the transcript hash, and the rules that mix into them
//! (Noise specification, revision 34, section 5.2). Which keys are mixed, and
//! in which order, is defined by each protocol.
//!
//! In both protocols every handshake cipher key is used exactly once, with the
//! all-zero nonce, so the state does not carry a cipher key between calls.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use blake2::{Blake2s256, Digest as _};
use hmac::{KeyInit as _, Mac as _, SimpleHmac};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;

/// A handshake message did not authenticate: wrong key, or damaged bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a handshake message does not authenticate")]
pub struct DecryptError;

/// A cipher key for one message; wiped on drop.
pub type MessageKey = Zeroizing<[u8; 32]>;

/// Chaining key and transcript hash of a handshake in progress.
#[derive(Clone)]
pub struct SymmetricState {
    chaining_key: [u8; 32],
    hash: [u8; 32],
}

impl Drop for SymmetricState {
    fn drop(&mut self) {
        self.chaining_key.zeroize();
        self.hash.zeroize();
    }
}

impl std::fmt::Debug for SymmetricState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SymmetricState(..)")
    }
}

impl SymmetricState {
    /// Starts from the protocol name. Both names in use are longer than 32
    /// bytes and therefore hashed.
    pub fn new(protocol_name: &[u8]) -> Self {
        debug_assert!(
            protocol_name.len() > 32,
            "short names are padded, not hashed"
        );
        let hash: [u8; 32] = Blake2s256::digest(protocol_name).into();
        Self {
            chaining_key: hash,
            hash,
        }
    }

    /// `h = HASH(h ‖ data)`.
    pub fn mix_hash(&mut self, data: &[u8]) {
        let mut hasher = Blake2s256::new();
        hasher.update(self.hash);
        hasher.update(data);
        self.hash = hasher.finalize().into();
    }

    /// `ck, k = HKDF(ck, input)`; returns `k`.
    pub fn mix_key(&mut self, input: &[u8]) -> MessageKey {
        let [chaining_key, key] = hkdf(&self.chaining_key, input);
        self.chaining_key = *chaining_key;
        key
    }

    /// `ck = HKDF1(ck, input)`, for the places where WireGuard mixes a public
    /// ephemeral key into the chaining key and derives no cipher key.
    pub fn mix_chaining_key(&mut self, input: &[u8]) {
        let [chaining_key] = hkdf(&self.chaining_key, input);
        self.chaining_key = *chaining_key;
    }

    /// `ck, temp, k = HKDF(ck, psk); h = HASH(h ‖ temp)`; returns `k`.
    pub fn mix_key_and_hash(&mut self, psk: &[u8; 32]) -> MessageKey {
        let [chaining_key, temp, key] = hkdf(&self.chaining_key, psk);
        self.chaining_key = *chaining_key;
        self.mix_hash(temp.as_slice());
        key
    }

    /// Appends ciphertext and tag of `plaintext` to `out`, and mixes them into
    /// the hash.
    pub fn encrypt_and_hash(&mut self, key: &MessageKey, plaintext: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = cipher(key).seal_in_place_separate_tag(
            zero_nonce(),
            Aad::from(self.hash),
            &mut out[start..],
        );
        // Sealing fails only beyond 256 GiB of plaintext.
        let tag = tag.unwrap_or_else(|_| unreachable!("handshake payloads are short"));
        out.extend_from_slice(tag.as_ref());
        let sealed = out[start..].to_vec();
        self.mix_hash(&sealed);
    }

    /// Opens `sealed` (ciphertext and tag) and mixes it into the hash.
    ///
    /// # Errors
    /// [`DecryptError`]; the state must then be thrown away.
    pub fn decrypt_and_hash(
        &mut self,
        key: &MessageKey,
        sealed: &[u8],
    ) -> Result<Vec<u8>, DecryptError> {
        let mut buffer = sealed.to_vec();
        let plaintext = cipher(key)
            .open_in_place(zero_nonce(), Aad::from(self.hash), &mut buffer)
            .map_err(|_| DecryptError)?
            .len();
        buffer.truncate(plaintext);
        self.mix_hash(sealed);
        Ok(buffer)
    }

    /// The two transport keys: initiator to responder, then back.
    pub fn split(&self) -> (MessageKey, MessageKey) {
        let [first, second] = hkdf(&self.chaining_key, &[]);
        (first, second)
    }

    /// The transcript hash, for channel binding.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

/// HKDF with HMAC-BLAKE2s (RFC 5869 with an empty `info`), `N` blocks of it.
fn hkdf<const N: usize>(salt: &[u8; 32], input: &[u8]) -> [MessageKey; N] {
    let secret = Zeroizing::new(hmac(salt, &[input]));
    let mut out: [MessageKey; N] = std::array::from_fn(|_| Zeroizing::new([0; 32]));
    for block in 0..N {
        let number = [u8::try_from(block + 1).unwrap_or_else(|_| unreachable!("few blocks"))];
        let value = match block.checked_sub(1) {
            None => hmac(&secret, &[&number]),
            Some(previous) => hmac(&secret, &[out[previous].as_slice(), &number]),
        };
        *out[block] = value;
    }
    out
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mac = SimpleHmac::<Blake2s256>::new_from_slice(key);
    let mut mac = mac.unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn cipher(key: &MessageKey) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_slice());
    LessSafeKey::new(key.unwrap_or_else(|_| unreachable!("32 bytes are a ChaCha20 key")))
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tampered_transcript_does_not_open() {
        let mut a = SymmetricState::new(b"Noise_IK_25519_ChaChaPoly_BLAKE2s");
        let mut b = a.clone();
        let (key_a, key_b) = (a.mix_key(b"shared"), b.mix_key(b"shared"));
        b.mix_hash(b"something else");
        let mut sealed = Vec::new();
        a.encrypt_and_hash(&key_a, b"text", &mut sealed);
        assert_eq!(b.decrypt_and_hash(&key_b, &sealed), Err(DecryptError));
    }
}
