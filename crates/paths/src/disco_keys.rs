//! Our disco key, and the keys shared with peers.
//!
//! A shared key costs a Diffie-Hellman, so it is made on first use and kept
//! until no peer has that disco key any more. Keys are only ever made for peers
//! of the netmap: a packet of an unknown sender costs a map lookup and no
//! cryptography.

use std::collections::BTreeMap;

use warren_keys::sealed_box::{NONCE_LEN, SharedKey};
use warren_keys::{DiscoPublic, DiscoSecret, Entropy};
use warren_wire::disco::{Envelope, Message};

pub(crate) struct DiscoKeys {
    secret: DiscoSecret,
    public: DiscoPublic,
    /// `None` for a degenerate peer key, so that it is tried only once.
    shared: BTreeMap<DiscoPublic, Option<SharedKey>>,
}

impl DiscoKeys {
    pub(crate) fn new(secret: DiscoSecret) -> Self {
        let public = secret.public();
        Self {
            secret,
            public,
            shared: BTreeMap::new(),
        }
    }

    pub(crate) fn public(&self) -> &DiscoPublic {
        &self.public
    }

    pub(crate) fn forget(&mut self, peer: &DiscoPublic) {
        self.shared.remove(peer);
    }

    /// A packet for `peer`; `None` if its key is degenerate.
    pub(crate) fn seal(
        &mut self,
        entropy: &mut dyn Entropy,
        peer: &DiscoPublic,
        message: &Message,
    ) -> Option<Vec<u8>> {
        let public = self.public;
        let key = self.key(peer)?;
        let mut nonce = [0; NONCE_LEN];
        entropy.fill(&mut nonce);
        Some(Envelope::seal(&public, key, &nonce, message))
    }

    /// The plaintext of a packet of `envelope.sender`, which must be a peer.
    pub(crate) fn open(&mut self, envelope: &Envelope<'_>) -> Option<Vec<u8>> {
        self.key(&envelope.sender)?.open(envelope.sealed).ok()
    }

    fn key(&mut self, peer: &DiscoPublic) -> Option<&SharedKey> {
        let secret = &self.secret;
        let key = self.shared.entry(*peer);
        key.or_insert_with(|| secret.shared_with(peer.as_bytes()).ok())
            .as_ref()
    }
}
