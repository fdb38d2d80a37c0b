//! Macs and cookies: cheap proofs in front of the expensive ones (whitepaper,
//! sections 5.3, 5.4.4 and 5.4.7).
//!
//! `mac1` shows that the sender knows our public key; it costs us one hash.
//! Under load we also want `mac2`, which shows that the sender gets what is
//! sent to its address: it is keyed with a cookie that we made from that
//! address and sent there. Cookies are not stored; they are recomputed from a
//! secret that changes every two minutes.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use subtle::ConstantTimeEq as _;
use warren_keys::{Entropy, NodePublic};
use warren_wire::wireguard::{CookieReply, Initiation, Response};
use zerocopy::IntoBytes as _;
use zeroize::Zeroizing;

use crate::{COOKIE_LIFETIME, Source};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// `mac1` and `mac2` at the end of initiation and response.
const MACS_LEN: usize = 32;

type Mac = [u8; 16];

/// A handshake message, as far as its MACs are concerned.
pub(crate) trait Macs {
    fn bytes(&self) -> &[u8];
    fn set_mac1(&mut self, mac: Mac);
    fn set_mac2(&mut self, mac: Mac);
}

macro_rules! macs {
    ($message:ty) => {
        impl Macs for $message {
            fn bytes(&self) -> &[u8] {
                self.as_bytes()
            }
            fn set_mac1(&mut self, mac: Mac) {
                self.mac1 = mac;
            }
            fn set_mac2(&mut self, mac: Mac) {
                self.mac2 = mac;
            }
        }
    };
}
macs!(Initiation);
macs!(Response);

/// The result of checking the MACs of a handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// `mac1` is wrong: not meant for us.
    None,
    /// `mac1` is right.
    KnowsOurKey,
    /// Both are right: the sender owns its address.
    OwnsAddress,
}

/// The receiving side: checks macs of messages to us, makes cookies.
pub(crate) struct Checker {
    mac1_key: [u8; 32],
    cookie_key: Zeroizing<[u8; 32]>,
    secret: Zeroizing<[u8; 32]>,
    secret_made: Option<Instant>,
}

impl Checker {
    pub(crate) fn new(own: &NodePublic) -> Self {
        Self {
            mac1_key: labelled(LABEL_MAC1, own),
            cookie_key: Zeroizing::new(labelled(LABEL_COOKIE, own)),
            secret: Zeroizing::new([0; 32]),
            secret_made: None,
        }
    }

    /// Looks at the macs at the end of `message`. A zero `mac2` is not
    /// computed; one made with an old cookie does not count.
    pub(crate) fn check(&self, now: Instant, source: &Source, message: &[u8]) -> Proof {
        let Some((body, macs)) = message.split_last_chunk::<MACS_LEN>() else {
            return Proof::None;
        };
        let (mac1, mac2) = macs.split_at(16);
        if !bool::from(mac(&self.mac1_key, &[body]).as_slice().ct_eq(mac1)) {
            return Proof::None;
        }
        let fresh = self
            .secret_made
            .is_some_and(|made| now.saturating_duration_since(made) < COOKIE_LIFETIME);
        if !fresh || mac2.iter().all(|byte| *byte == 0) {
            return Proof::KnowsOurKey;
        }
        let expected = mac(&self.cookie(source), &[body, mac1]);
        if bool::from(expected.as_slice().ct_eq(mac2)) {
            Proof::OwnsAddress
        } else {
            Proof::KnowsOurKey
        }
    }

    /// The answer to a message without cookie: `receiver` is the sender index
    /// of that message, `mac1` its mac.
    pub(crate) fn reply(
        &mut self,
        now: Instant,
        entropy: &mut dyn Entropy,
        source: &Source,
        receiver: u32,
        mac1: &Mac,
    ) -> CookieReply {
        let stale = self
            .secret_made
            .is_none_or(|made| now.saturating_duration_since(made) >= COOKIE_LIFETIME);
        if stale {
            entropy.fill(self.secret.as_mut_slice());
            self.secret_made = Some(now);
        }
        let mut nonce = [0; 24];
        entropy.fill(&mut nonce);
        let mut sealed = [0; 32];
        sealed[..16].copy_from_slice(&self.cookie(source));
        let (key, short) = xchacha(&self.cookie_key, &nonce);
        let tag = key.seal_in_place_separate_tag(short, Aad::from(mac1), &mut sealed[..16]);
        let tag = tag.unwrap_or_else(|_| unreachable!("16 bytes can be sealed"));
        sealed[16..].copy_from_slice(tag.as_ref());
        CookieReply::new(receiver, nonce, sealed)
    }

    fn cookie(&self, source: &Source) -> Mac {
        match source {
            Source::Udp(address) => self.address_cookie(address, &[]),
            Source::PeerRelay { server, vni } => {
                self.address_cookie(server, &vni.get().to_be_bytes())
            }
            // The relay has proven the key; the region is only the way.
            Source::Derp { key, .. } => mac(&*self.secret, &[key.as_bytes()]),
        }
    }

    /// A cookie for a UDP address; `extra` separates the nodes behind a relay.
    fn address_cookie(&self, address: &SocketAddr, extra: &[u8]) -> Mac {
        let port = address.port().to_be_bytes();
        match address.ip() {
            IpAddr::V4(ip) => mac(&*self.secret, &[&ip.octets(), &port, extra]),
            IpAddr::V6(ip) => mac(&*self.secret, &[&ip.octets(), &port, extra]),
        }
    }
}

/// The sending side, one per peer: fills macs, keeps the peer's cookie.
pub(crate) struct Maker {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    cookie: Option<(Zeroizing<Mac>, Instant)>,
    /// `mac1` of the last message sent: what a cookie reply is bound to.
    last_mac1: Option<Mac>,
}

impl Maker {
    pub(crate) fn new(peer: &NodePublic) -> Self {
        Self {
            mac1_key: labelled(LABEL_MAC1, peer),
            cookie_key: labelled(LABEL_COOKIE, peer),
            cookie: None,
            last_mac1: None,
        }
    }

    /// Fills both macs of `message`.
    pub(crate) fn sign(&mut self, now: Instant, message: &mut impl Macs) {
        let body_len = message.bytes().len() - MACS_LEN;
        let mac1 = mac(&self.mac1_key, &[&message.bytes()[..body_len]]);
        message.set_mac1(mac1);
        self.last_mac1 = Some(mac1);
        let fresh = self
            .cookie
            .as_ref()
            .filter(|(_, received)| now.saturating_duration_since(*received) < COOKIE_LIFETIME);
        if let Some((cookie, _)) = fresh {
            let mac2 = mac(cookie.as_slice(), &[&message.bytes()[..body_len + 16]]);
            message.set_mac2(mac2);
        }
    }

    /// Takes the cookie out of a reply to the last message. `false` when it
    /// does not authenticate.
    pub(crate) fn take(&mut self, now: Instant, reply: &CookieReply) -> bool {
        let Some(mac1) = self.last_mac1 else {
            return false;
        };
        let mut sealed = reply.sealed_cookie;
        let (key, short) = xchacha(&self.cookie_key, &reply.nonce);
        match key.open_in_place(short, Aad::from(mac1), &mut sealed) {
            Ok(cookie) => {
                let mut kept = Zeroizing::new([0; 16]);
                kept.copy_from_slice(cookie);
                self.cookie = Some((kept, now));
                // One answer per message: a repeated reply changes nothing.
                self.last_mac1 = None;
                true
            }
            Err(_) => false,
        }
    }

    /// Forgets the cookie.
    pub(crate) fn forget(&mut self) {
        self.cookie = None;
        self.last_mac1 = None;
    }
}

fn labelled(label: &[u8], key: &NodePublic) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    blake2::Digest::update(&mut hasher, label);
    blake2::Digest::update(&mut hasher, key.as_bytes());
    hasher.finalize().into()
}

/// Keyed BLAKE2s with 16 bytes of output. `key` has 16 or 32 bytes.
fn mac(key: &[u8], parts: &[&[u8]]) -> Mac {
    let mac = Blake2sMac::<U16>::new_from_slice(key);
    let mut mac = mac.unwrap_or_else(|_| unreachable!("BLAKE2s keys have up to 32 bytes"));
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

/// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha, section 2.3): a subkey from
/// the first 16 bytes of the nonce, the last 8 as nonce of the inner cipher.
fn xchacha(key: &[u8; 32], nonce: &[u8; 24]) -> (LessSafeKey, Nonce) {
    let (mut input, mut short) = ([0; 16], [0; 12]);
    input.copy_from_slice(&nonce[..16]);
    short[4..].copy_from_slice(&nonce[16..]);
    let subkey = Zeroizing::new(hchacha20(key, &input));
    let key = UnboundKey::new(&CHACHA20_POLY1305, subkey.as_slice());
    let key = key.unwrap_or_else(|_| unreachable!("32 bytes are a ChaCha20 key"));
    (LessSafeKey::new(key), Nonce::assume_unique_for_key(short))
}

/// HChaCha20 (draft-irtf-cfrg-xchacha, section 2.2).
fn hchacha20(key: &[u8; 32], input: &[u8; 16]) -> [u8; 32] {
    let mut state = [0u32; 16];
    state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    let words = key.chunks_exact(4).chain(input.chunks_exact(4));
    for (word, bytes) in state[4..].iter_mut().zip(words) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    for _ in 0..10 {
        for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
            quarter_round(&mut state, a, b, c, d);
        }
        for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
            quarter_round(&mut state, a, b, c, d);
        }
    }
    let mut out = [0; 32];
    let words = state[..4].iter().chain(&state[12..]);
    for (bytes, word) in out.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    out
}

fn quarter_round(s: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    s[a] = s[a].wrapping_add(s[b]);
    s[d] = (s[d] ^ s[a]).rotate_left(16);
    s[c] = s[c].wrapping_add(s[d]);
    s[b] = (s[b] ^ s[c]).rotate_left(12);
    s[a] = s[a].wrapping_add(s[b]);
    s[d] = (s[d] ^ s[a]).rotate_left(8);
    s[c] = s[c].wrapping_add(s[d]);
    s[b] = (s[b] ^ s[c]).rotate_left(7);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use warren_keys::NodeSecret;
    use warren_testkit::FixedEntropy;

    use super::*;

    /// draft-irtf-cfrg-xchacha-03, section 2.2.1.
    #[test]
    fn hchacha20_vector() {
        let key: [u8; 32] = std::array::from_fn(|i| i as u8);
        let nonce = [
            0, 0, 0, 9, 0, 0, 0, 0x4a, 0, 0, 0, 0, 0x31, 0x41, 0x59, 0x27,
        ];
        let expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc";
        assert_eq!(
            data_encoding::HEXLOWER.encode(&hchacha20(&key, &nonce)),
            expected
        );
    }

    #[test]
    fn a_cookie_proves_the_address_until_it_is_too_old() {
        let own = NodeSecret::from_bytes(&[1; 32]).public();
        let (mut checker, mut maker) = (Checker::new(&own), Maker::new(&own));
        let now = Instant::now();
        let from = Source::Udp("192.0.2.1:1000".parse().unwrap());
        let elsewhere = Source::Udp("192.0.2.1:1001".parse().unwrap());
        let mut message = Initiation::new(7, [1; 32], [2; 48], [3; 28]);
        assert_eq!(checker.check(now, &from, message.as_bytes()), Proof::None);
        maker.sign(now, &mut message);
        assert_eq!(
            checker.check(now, &from, message.as_bytes()),
            Proof::KnowsOurKey
        );

        let reply = checker.reply(now, &mut FixedEntropy(0x5a), &from, 7, &message.mac1);
        let mut forged = reply.clone();
        forged.sealed_cookie[3] ^= 1;
        assert!(!maker.take(now, &forged));
        assert!(maker.take(now, &reply));
        assert!(!maker.take(now, &reply), "a reply counts once");
        maker.sign(now, &mut message);
        assert_eq!(
            checker.check(now, &from, message.as_bytes()),
            Proof::OwnsAddress
        );
        assert_eq!(
            checker.check(now, &elsewhere, message.as_bytes()),
            Proof::KnowsOurKey
        );
        let later = now + COOKIE_LIFETIME;
        assert_eq!(
            checker.check(later, &from, message.as_bytes()),
            Proof::KnowsOurKey
        );
        let mut next = Initiation::new(8, [1; 32], [2; 48], [3; 28]);
        maker.sign(later, &mut next);
        assert_eq!(next.mac2, [0; 16], "an old cookie is not used");
        assert_eq!(checker.check(now, &from, &[0; 31]), Proof::None);
    }
}
