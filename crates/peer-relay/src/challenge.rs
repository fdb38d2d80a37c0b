//! Challenges that a client returns to prove that it receives at its address.
//!
//! A challenge is a MAC (keyed BLAKE2s-256) over
//!
//! ```text
//!  0   4  VNI, big endian
//!  4   4  generation, big endian
//!  8  32  disco key of the client
//! 40  16  source address, v4-mapped for IPv4
//! 56   2  source port, big endian
//! ```
//!
//! Only this server reads it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::Blake2sMac;
use blake2::digest::consts::U32;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use subtle::ConstantTimeEq as _;
use warren_keys::{DiscoPublic, Entropy};
use warren_wire::geneve::Vni;

/// How long challenges are made with one key. They are accepted for as long again.
pub const CHALLENGE_KEY_LIFETIME: Duration = Duration::from_secs(120);

pub(crate) type Challenge = [u8; 32];

/// The attempt that a challenge belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) vni: Vni,
    pub(crate) generation: u32,
    pub(crate) client: DiscoPublic,
    pub(crate) source: SocketAddr,
}

/// The present key and the one before.
pub(crate) struct ChallengeKeys {
    present: [u8; 32],
    previous: Option<[u8; 32]>,
    since: Instant,
}

impl ChallengeKeys {
    pub(crate) fn new(now: Instant, entropy: &mut dyn Entropy) -> Self {
        let mut present = [0; 32];
        entropy.fill(&mut present);
        Self {
            present,
            previous: None,
            since: now,
        }
    }

    /// Changes the key when it is time.
    pub(crate) fn rotate(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        let age = now.saturating_duration_since(self.since);
        if age < CHALLENGE_KEY_LIFETIME {
            return;
        }
        let mut next = [0; 32];
        entropy.fill(&mut next);
        let present = std::mem::replace(&mut self.present, next);
        // Where no message came for long, both keys are too old.
        self.previous = (age < 2 * CHALLENGE_KEY_LIFETIME).then_some(present);
        self.since = now;
    }

    pub(crate) fn make(&self, attempt: &Attempt) -> Challenge {
        mac(&self.present, attempt)
    }

    pub(crate) fn accepts(&self, attempt: &Attempt, challenge: &Challenge) -> bool {
        [Some(&self.present), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .any(|key| bool::from(mac(key, attempt).ct_eq(challenge)))
    }
}

fn mac(key: &[u8; 32], attempt: &Attempt) -> Challenge {
    let mut mac = Blake2sMac::<U32>::new(key.into());
    mac.update(&attempt.vni.get().to_be_bytes());
    mac.update(&attempt.generation.to_be_bytes());
    mac.update(attempt.client.as_bytes());
    let address = match attempt.source.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    mac.update(&address.octets());
    mac.update(&attempt.source.port().to_be_bytes());
    mac.finalize_fixed().into()
}
