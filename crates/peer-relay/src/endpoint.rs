//! One endpoint: the two clients, and where each of them is.

use std::net::SocketAddr;
use std::time::Instant;

use warren_keys::sealed_box::SharedKey;
use warren_keys::{DiscoPublic, NodePublic};

use crate::{BIND_LIFETIME, STEADY_LIFETIME};

/// A client of an endpoint.
pub(crate) struct Side {
    pub(crate) key: DiscoPublic,
    /// Seals and opens its control messages.
    pub(crate) shared: SharedKey,
    /// The attempt that was answered with a challenge last.
    pub(crate) in_progress: Option<u32>,
    /// The attempt that bound its address last.
    pub(crate) completed: Option<u32>,
    pub(crate) bound: Option<Bound>,
}

/// The address that a client has proved to receive at.
#[derive(Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) address: SocketAddr,
    pub(crate) last_seen: Instant,
    /// Datagrams and bytes that came from there.
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

pub(crate) struct Endpoint {
    pub(crate) sides: [Side; 2],
    pub(crate) lamport_id: u64,
    pub(crate) allocated: Instant,
    /// The node that asked for it.
    pub(crate) requester: NodePublic,
}

impl Endpoint {
    /// When it ends, if nothing comes before.
    pub(crate) fn expires(&self) -> Instant {
        let [a, b] = &self.sides;
        match (a.bound, b.bound) {
            (Some(a), Some(b)) => a.last_seen.min(b.last_seen) + STEADY_LIFETIME,
            _ => self.allocated + BIND_LIFETIME,
        }
    }

    /// The number of the side with that key.
    pub(crate) fn side_of(&self, key: &DiscoPublic) -> Option<usize> {
        self.sides.iter().position(|side| side.key == *key)
    }

    /// The address that a datagram from `source` goes to. Counts it.
    pub(crate) fn forward(
        &mut self,
        now: Instant,
        source: SocketAddr,
        packets: u64,
        bytes: u64,
    ) -> Option<SocketAddr> {
        let [a, b] = &mut self.sides;
        let (a, b) = (a.bound.as_mut()?, b.bound.as_mut()?);
        let (from, to) = if a.address == source {
            (a, b)
        } else if b.address == source {
            (b, a)
        } else {
            return None;
        };
        from.last_seen = now;
        from.packets += packets;
        from.bytes += bytes;
        Some(to.address)
    }
}

impl Side {
    /// Whether `generation` comes after the attempt that bound the address last, in serial
    /// number arithmetic (RFC 1982): a client counts its attempts.
    pub(crate) fn is_later(&self, generation: u32) -> bool {
        self.completed
            .is_none_or(|completed| (generation.wrapping_sub(completed) as i32) > 0)
    }
}
