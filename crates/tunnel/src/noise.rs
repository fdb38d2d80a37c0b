//! The two handshake messages, `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`
//! (whitepaper, sections 5.4.2 and 5.4.3).
//!
//! Pure computation: keys and messages in, messages and keys out. Timers,
//! cookies and replay protection are not known here. The macs of the messages
//! are left zero for [`cookie`](crate::cookie) to fill.

use warren_keys::noise::{MessageKey, SymmetricState};
use warren_keys::x25519::{DegenerateKey, Scalar, clamp};
use warren_keys::{Entropy, NodePublic, NodeSecret};
use warren_wire::wireguard::{Initiation, Response};
use zeroize::Zeroizing;

use crate::timestamp::Tai64N;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A secret both ends mix in; all zero when there is none.
pub(crate) type PresharedKey = Zeroizing<[u8; 32]>;

/// The shared secret of two static keys, computed once per peer.
pub(crate) type StaticShared = Zeroizing<[u8; 32]>;

/// Our own long-lived key.
pub(crate) struct Identity {
    scalar: Scalar,
    public: NodePublic,
}

/// Why a handshake message leads nowhere. All mean: drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid;

impl From<DegenerateKey> for Invalid {
    fn from(_: DegenerateKey) -> Self {
        Self
    }
}

impl From<warren_keys::noise::DecryptError> for Invalid {
    fn from(_: warren_keys::noise::DecryptError) -> Self {
        Self
    }
}

/// The initiator's state between its message and the response.
pub(crate) struct Initiated {
    ephemeral: Scalar,
    state: SymmetricState,
}

/// An initiation whose sender is known by its static key, but not yet proven.
pub(crate) struct Opened {
    /// The sender that the initiation claims.
    pub(crate) sender: NodePublic,
    state: SymmetricState,
}

/// An initiation that authenticated.
pub(crate) struct Proven {
    pub(crate) timestamp: Tai64N,
    their_index: u32,
    their_ephemeral: [u8; 32],
    their_static: NodePublic,
    state: SymmetricState,
}

/// The transport keys of a finished handshake, from our side.
pub(crate) struct TransportKeys {
    pub(crate) send: MessageKey,
    pub(crate) receive: MessageKey,
}

impl Identity {
    pub(crate) fn new(secret: &NodeSecret) -> Self {
        Self {
            scalar: secret.scalar(),
            public: secret.public(),
        }
    }

    pub(crate) fn public(&self) -> NodePublic {
        self.public
    }

    /// The secret shared with a peer's static key.
    pub(crate) fn shared_with(&self, peer: &NodePublic) -> Result<StaticShared, Invalid> {
        Ok(self.scalar.agree(peer.as_bytes())?)
    }

    /// Makes the first message.
    pub(crate) fn initiate(
        &self,
        entropy: &mut dyn Entropy,
        local_index: u32,
        peer: &NodePublic,
        shared: &StaticShared,
        timestamp: Tai64N,
    ) -> Result<(Initiation, Initiated), Invalid> {
        let ephemeral = fresh_ephemeral(entropy);
        let ephemeral_public = ephemeral.public();
        let mut state = start(peer);
        state.mix_chaining_key(&ephemeral_public);
        state.mix_hash(&ephemeral_public);
        let key = state.mix_key(ephemeral.agree(peer.as_bytes())?.as_slice());
        let sealed_static = seal(&mut state, &key, self.public.as_bytes());
        let key = state.mix_key(shared.as_slice());
        let sealed_timestamp = seal(&mut state, &key, &timestamp.0);
        let message = Initiation::new(
            local_index,
            ephemeral_public,
            sealed_static,
            sealed_timestamp,
        );
        Ok((message, Initiated { ephemeral, state }))
    }

    /// Decrypts the sender's key of an initiation: the first of two steps, so that an
    /// unknown sender costs one multiplication and not two.
    pub(crate) fn open(&self, message: &Initiation) -> Result<Opened, Invalid> {
        let mut state = start(&self.public);
        state.mix_chaining_key(&message.ephemeral);
        state.mix_hash(&message.ephemeral);
        let key = state.mix_key(self.scalar.agree(&message.ephemeral)?.as_slice());
        let sender = state.decrypt_and_hash(&key, &message.sealed_static)?;
        let sender = sender.try_into().map_err(|_| Invalid)?;
        Ok(Opened {
            sender: NodePublic::from_bytes(sender),
            state,
        })
    }
}

impl Opened {
    /// Checks that the claimed sender made the message.
    pub(crate) fn prove(
        mut self,
        message: &Initiation,
        shared: &StaticShared,
    ) -> Result<Proven, Invalid> {
        let key = self.state.mix_key(shared.as_slice());
        let timestamp = self
            .state
            .decrypt_and_hash(&key, &message.sealed_timestamp)?;
        Ok(Proven {
            timestamp: Tai64N(timestamp.try_into().map_err(|_| Invalid)?),
            their_index: message.sender.get(),
            their_ephemeral: message.ephemeral,
            their_static: self.sender,
            state: self.state,
        })
    }
}

impl Proven {
    pub(crate) fn their_index(&self) -> u32 {
        self.their_index
    }

    /// Makes the second message, and with it the session's keys.
    pub(crate) fn respond(
        mut self,
        entropy: &mut dyn Entropy,
        local_index: u32,
        psk: &PresharedKey,
    ) -> Result<(Response, TransportKeys), Invalid> {
        let ephemeral = fresh_ephemeral(entropy);
        let ephemeral_public = ephemeral.public();
        let state = &mut self.state;
        state.mix_chaining_key(&ephemeral_public);
        state.mix_hash(&ephemeral_public);
        state.mix_chaining_key(ephemeral.agree(&self.their_ephemeral)?.as_slice());
        state.mix_chaining_key(ephemeral.agree(self.their_static.as_bytes())?.as_slice());
        let key = state.mix_key_and_hash(psk);
        let sealed_empty = seal(state, &key, &[]);
        let (receive, send) = state.split();
        let message = Response::new(
            local_index,
            self.their_index,
            ephemeral_public,
            sealed_empty,
        );
        Ok((message, TransportKeys { send, receive }))
    }
}

impl Initiated {
    /// Reads the second message. The state is left as it was, so that a forged
    /// response does not end the handshake.
    pub(crate) fn finish(
        &self,
        identity: &Identity,
        message: &Response,
        psk: &PresharedKey,
    ) -> Result<TransportKeys, Invalid> {
        let mut state = self.state.clone();
        state.mix_chaining_key(&message.ephemeral);
        state.mix_hash(&message.ephemeral);
        state.mix_chaining_key(self.ephemeral.agree(&message.ephemeral)?.as_slice());
        state.mix_chaining_key(identity.scalar.agree(&message.ephemeral)?.as_slice());
        let key = state.mix_key_and_hash(psk);
        state.decrypt_and_hash(&key, &message.sealed_empty)?;
        let (send, receive) = state.split();
        Ok(TransportKeys { send, receive })
    }
}

fn start(responder: &NodePublic) -> SymmetricState {
    let mut state = SymmetricState::new(CONSTRUCTION);
    state.mix_hash(IDENTIFIER);
    state.mix_hash(responder.as_bytes());
    state
}

fn fresh_ephemeral(entropy: &mut dyn Entropy) -> Scalar {
    let mut secret = Zeroizing::new([0; 32]);
    entropy.fill(secret.as_mut_slice());
    clamp(&mut secret);
    Scalar::new(&secret)
}

/// Seals into an array; `N` is the length of the plaintext and a tag.
fn seal<const N: usize>(state: &mut SymmetricState, key: &MessageKey, text: &[u8]) -> [u8; N] {
    let mut out = Vec::with_capacity(N);
    state.encrypt_and_hash(key, text, &mut out);
    out.try_into()
        .unwrap_or_else(|_| unreachable!("a sealed text is 16 bytes longer"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use warren_testkit::CountingEntropy;

    use super::*;

    fn identities() -> [Identity; 2] {
        [1, 2].map(|n| Identity::new(&NodeSecret::from_bytes(&[n; 32])))
    }

    fn stamp() -> Tai64N {
        Tai64N::from_unix(Duration::from_secs(77))
    }

    #[test]
    fn both_ends_get_the_same_keys_and_the_psk_counts() {
        let [alice, bob] = identities();
        let shared = alice.shared_with(&bob.public()).unwrap();
        let mut entropy = CountingEntropy(0);
        let (init, pending) = alice
            .initiate(&mut entropy, 11, &bob.public(), &shared, stamp())
            .unwrap();

        let opened = bob.open(&init).unwrap();
        assert_eq!(opened.sender, alice.public());
        let proven = opened
            .prove(&init, &bob.shared_with(&alice.public()).unwrap())
            .unwrap();
        assert_eq!((proven.timestamp, proven.their_index()), (stamp(), 11));
        let psk = Zeroizing::new([9; 32]);
        let (response, theirs) = proven.respond(&mut entropy, 22, &psk).unwrap();

        let wrong = pending.finish(&alice, &response, &Zeroizing::new([0; 32]));
        assert_eq!(wrong.err(), Some(Invalid));
        let ours = pending.finish(&alice, &response, &psk).unwrap();
        assert_eq!(*ours.send, *theirs.receive);
        assert_eq!(*ours.receive, *theirs.send);
        assert_ne!(*ours.send, *ours.receive);
    }

    #[test]
    fn a_changed_byte_anywhere_ends_it() {
        use zerocopy::{FromBytes as _, IntoBytes as _};
        let [alice, bob] = identities();
        let shared = alice.shared_with(&bob.public()).unwrap();
        let (init, _) = alice
            .initiate(&mut CountingEntropy(0), 11, &bob.public(), &shared, stamp())
            .unwrap();
        for at in (8..116).step_by(7) {
            let mut bytes = init.as_bytes().to_vec();
            bytes[at] ^= 0x40;
            let damaged = Initiation::ref_from_bytes(&bytes).unwrap();
            let result = bob
                .open(damaged)
                .and_then(|opened| opened.prove(damaged, &shared));
            assert!(result.is_err(), "byte {at}");
        }
    }
}
