//! One set of transport keys: sealing and opening packets in place.
//!
//! A session is made once by a handshake and never changes, so threads share
//! it behind an `Arc` without a lock. The only thing that moves is the send
//! counter, an atomic from which a batch of packets takes a run of
//! consecutive numbers. The receiving side of the counter, the
//! [`ReplayWindow`](crate::ReplayWindow), belongs to the one thread that opens
//! packets and is not kept here.
//!
//! Nothing here allocates. The nonce is four zero bytes and the counter,
//! little-endian (whitepaper, section 5.4.6).

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warren_keys::noise::MessageKey;
use warren_wire::wireguard::{
    TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, TransportHeader, is_transport,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::cipher::{Aead, Cipher, MAX_BATCH};
use crate::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME};

/// When the responder of a session asks for a new one. The initiator does so
/// long before; this only matters when two handshakes crossed and each side
/// took the other for the initiator.
const RESPONDER_REKEY_AFTER: Duration = Duration::from_secs(170);

/// Which end of the handshake made this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation; renewing is our duty.
    Initiator,
    /// We answered one; we may send only after the peer's first data.
    Responder,
}

/// A transport message could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not a transport message, or one that is too short.
    #[error("not a complete WireGuard transport message")]
    Truncated,
    /// Damaged, forged, or sealed for another session.
    #[error("a transport message does not authenticate")]
    Forged,
}

/// The buffer given to [`Session::seal_in_place`] has no space for header and
/// tag, or is longer than the cipher allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet buffer has no space for header and tag, or is too long")]
pub struct SealError;

/// The transport keys of one handshake.
pub struct Session {
    local_index: u32,
    remote_index: u32,
    created: Instant,
    role: Role,
    send: Cipher,
    receive: Cipher,
    next_counter: AtomicU64,
    takes_batches: AtomicBool,
}

impl Session {
    /// A session from the two keys of a finished handshake, with the fastest
    /// cipher of this processor.
    pub fn new(
        role: Role,
        local_index: u32,
        remote_index: u32,
        send: &MessageKey,
        receive: &MessageKey,
        created: Instant,
    ) -> Self {
        let aead = Aead::Fastest;
        Self::with_aead(
            aead,
            role,
            local_index,
            remote_index,
            send,
            receive,
            created,
        )
    }

    /// Like [`new`](Self::new) with a choice of the cipher.
    pub fn with_aead(
        aead: Aead,
        role: Role,
        local_index: u32,
        remote_index: u32,
        send: &MessageKey,
        receive: &MessageKey,
        created: Instant,
    ) -> Self {
        Self {
            local_index,
            remote_index,
            created,
            role,
            send: Cipher::new(send, aead),
            receive: Cipher::new(receive, aead),
            next_counter: AtomicU64::new(0),
            takes_batches: AtomicBool::new(false),
        }
    }

    /// The index by which the peer addresses this session.
    #[inline]
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The index by which we address the peer's side.
    #[inline]
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// When the handshake ended.
    #[inline]
    pub fn created(&self) -> Instant {
        self.created
    }

    /// Which end of the handshake we were.
    #[inline]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the session is too old to send or receive with.
    #[inline]
    pub fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME
    }

    /// Whether a sender should ask for a new session while it goes on using
    /// this one: by age or number of messages, earlier for the initiator.
    #[inline]
    pub fn wants_rekey(&self, now: Instant) -> bool {
        let limit = match self.role {
            Role::Initiator => REKEY_AFTER_TIME,
            Role::Responder => RESPONDER_REKEY_AFTER,
        };
        now.saturating_duration_since(self.created) >= limit
            || self.next_counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
    }

    /// Packets sealed so far, or reserved for sealing.
    pub fn sent(&self) -> u64 {
        self.next_counter.load(Ordering::Relaxed)
    }

    /// Notes that the peer accepts batched datagrams through relays on this session.
    pub fn note_takes_batches(&self) {
        self.takes_batches.store(true, Ordering::Relaxed);
    }

    /// Whether the peer accepts batched datagrams through relays.
    #[inline]
    pub fn takes_batches(&self) -> bool {
        self.takes_batches.load(Ordering::Relaxed)
    }

    /// Whether so many numbers are left that a batch need not ask for each.
    #[inline]
    pub fn has_plenty(&self) -> bool {
        self.next_counter.load(Ordering::Relaxed) < REKEY_AFTER_MESSAGES
    }

    /// Takes `count` consecutive counters and returns the first; `None` when
    /// the session has no numbers left and must not send any more.
    #[inline]
    pub fn reserve(&self, count: u64) -> Option<u64> {
        let first = self.next_counter.fetch_add(count, Ordering::Relaxed);
        let end = first
            .checked_add(count)
            .filter(|end| *end <= REJECT_AFTER_MESSAGES);
        if end.is_none() {
            // Park the counter at the limit, so that it cannot wrap around.
            self.next_counter
                .store(REJECT_AFTER_MESSAGES, Ordering::Relaxed);
        }
        end.map(|_| first)
    }

    /// Turns `datagram` into a transport message. Its content begins after the first
    /// 16 bytes, and its last 16 bytes are space for the tag; the caller adds the
    /// padding.
    ///
    /// `counter` must come from [`reserve`](Self::reserve) and be used once.
    ///
    /// # Errors
    /// [`SealError`] when the buffer is shorter than header and tag.
    #[inline]
    pub fn seal_in_place(&self, counter: u64, datagram: &mut [u8]) -> Result<(), SealError> {
        let (header, rest) = datagram
            .split_first_chunk_mut::<TRANSPORT_HEADER_LEN>()
            .ok_or(SealError)?;
        let (content, tag_room) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(SealError)?;
        header.copy_from_slice(TransportHeader::new(self.remote_index, counter).as_bytes());
        *tag_room = self.send.seal(counter, content).map_err(|_| SealError)?;
        Ok(())
    }

    /// Like [`seal_in_place`](Self::seal_in_place) for datagrams behind each
    /// other, each of `segment_len` bytes but the last, which may be smaller.
    /// They get consecutive counters from `first`. Faster than one by one.
    ///
    /// # Errors
    /// [`SealError`] when one of the buffers is shorter than header and tag;
    /// then none of them must be sent.
    pub fn seal_batch(
        &self,
        first: u64,
        datagrams: &mut [u8],
        segment_len: usize,
    ) -> Result<(), SealError> {
        if datagrams.len() <= segment_len {
            return match datagrams {
                [] => Ok(()),
                _ => self.seal_in_place(first, datagrams),
            };
        }
        let segment_len = segment_len.max(1);
        let mut counter = first;
        for batch in datagrams.chunks_mut(MAX_BATCH.saturating_mul(segment_len)) {
            for (datagram, i) in batch.chunks_mut(segment_len).zip(0..) {
                let header = datagram.first_chunk_mut().ok_or(SealError)?;
                *header = self.header(counter.wrapping_add(i));
            }
            let together = self.send.seal_together(batch, segment_len);
            counter = counter.wrapping_add(together as u64);
            let rest = batch.get_mut(together * segment_len..).unwrap_or_default();
            for datagram in rest.chunks_mut(segment_len) {
                self.seal_in_place(counter, datagram)?;
                counter = counter.wrapping_add(1);
            }
        }
        Ok(())
    }

    #[inline]
    fn header(&self, counter: u64) -> [u8; TRANSPORT_HEADER_LEN] {
        zerocopy::transmute!(TransportHeader::new(self.remote_index, counter))
    }

    /// Opens the transport message `datagram` and returns its counter and
    /// where in it the content lies. The counter must then be shown to the
    /// session's [`ReplayWindow`](crate::ReplayWindow).
    ///
    /// # Errors
    /// [`OpenError`]; the buffer's content is then worthless.
    #[inline]
    pub fn open_in_place(&self, datagram: &mut [u8]) -> Result<(u64, Range<usize>), OpenError> {
        if !is_transport(datagram) {
            return Err(OpenError::Truncated);
        }
        let (header, sealed) = datagram
            .split_at_mut_checked(TRANSPORT_HEADER_LEN)
            .ok_or(OpenError::Truncated)?;
        let header = TransportHeader::ref_from_bytes(header).map_err(|_| OpenError::Truncated)?;
        let counter = header.counter.get();
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(OpenError::Forged);
        }
        let content = self
            .receive
            .open(counter, sealed)
            .map_err(|_| OpenError::Forged)?;
        debug_assert_eq!(content + TRANSPORT_OVERHEAD, datagram.len());
        Ok((
            counter,
            TRANSPORT_HEADER_LEN..TRANSPORT_HEADER_LEN + content,
        ))
    }

    /// Like [`open_in_place`](Self::open_in_place) for datagrams behind each
    /// other, each of `segment_len` bytes but the last, which may be smaller,
    /// with any counters. Faster than one by one. One that does not
    /// authenticate takes nothing from the others.
    ///
    /// Only the first [`MAX_BATCH`] are looked at.
    pub fn open_batch(&self, datagrams: &mut [u8], segment_len: usize) -> Opened {
        let segment_len = segment_len.max(1);
        let usual = |datagram: &[u8]| {
            is_transport(datagram)
                && counter_of(datagram).is_some_and(|c| c < REJECT_AFTER_MESSAGES)
        };
        let (together, authentic) = if datagrams.chunks(segment_len).take(MAX_BATCH).all(usual) {
            self.receive.open_together(datagrams, segment_len)
        } else {
            (0, 0)
        };
        let mut opened = Opened(authentic);
        let datagrams = datagrams.chunks_mut(segment_len).take(MAX_BATCH);
        for (i, datagram) in datagrams.enumerate().skip(together) {
            opened.0 |= u64::from(self.open_in_place(datagram).is_ok()) << i;
        }
        opened
    }
}

/// Which datagrams of a batch authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened(u64);

impl Opened {
    /// Counter and content of datagram `i` of the batch, which is given again.
    /// The counter must then be shown to the session's
    /// [`ReplayWindow`](crate::ReplayWindow).
    ///
    /// # Errors
    /// [`OpenError::Forged`]; the buffer's content is then worthless.
    #[inline]
    pub fn get(self, i: usize, datagram: &[u8]) -> Result<(u64, Range<usize>), OpenError> {
        if i >= MAX_BATCH || self.0 & (1 << i) == 0 {
            return Err(OpenError::Forged);
        }
        let counter = counter_of(datagram).ok_or(OpenError::Truncated)?;
        let end = datagram.len().saturating_sub(TAG_LEN);
        Ok((counter, TRANSPORT_HEADER_LEN..end))
    }
}

#[inline]
fn counter_of(datagram: &[u8]) -> Option<u64> {
    let header = TransportHeader::ref_from_prefix(datagram).ok()?.0;
    Some(header.counter.get())
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    fn pair() -> (Session, Session) {
        let (a, b) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
        let now = Instant::now();
        (
            Session::new(Role::Initiator, 10, 20, &a, &b, now),
            Session::new(Role::Responder, 20, 10, &b, &a, now),
        )
    }

    #[test]
    fn counters_end_before_the_limit_and_never_wrap() {
        let (session, _) = pair();
        session
            .next_counter
            .store(REJECT_AFTER_MESSAGES - 3, Ordering::Relaxed);
        assert!(session.wants_rekey(session.created()));
        assert_eq!(session.reserve(2), Some(REJECT_AFTER_MESSAGES - 3));
        assert_eq!(session.reserve(2), None);
        assert_eq!(session.reserve(1), None);
        assert_eq!(session.reserve(u64::MAX), None);
        assert_eq!(session.reserve(1), None);
    }

    #[test]
    fn age_limits_follow_the_role() {
        let (initiator, responder) = pair();
        let at = |s: u64| initiator.created() + Duration::from_secs(s);
        assert!(!initiator.wants_rekey(at(119)) && initiator.wants_rekey(at(120)));
        assert!(!responder.wants_rekey(at(165)) && responder.wants_rekey(at(170)));
        assert!(!initiator.is_expired(at(179)) && initiator.is_expired(at(180)));
    }

    #[test]
    fn the_nonce_is_the_little_endian_counter() {
        let (a, _) = pair();
        let mut datagram = [0; 32];
        a.seal_in_place(0x0102, &mut datagram).unwrap();
        let key = UnboundKey::new(&CHACHA20_POLY1305, &[1; 32]).unwrap();
        let nonce = Nonce::assume_unique_for_key([0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        LessSafeKey::new(key)
            .open_in_place(nonce, Aad::empty(), &mut datagram[16..])
            .unwrap();
        assert_eq!(a.seal_in_place(1, &mut [0; 31]), Err(SealError));
    }

    proptest! {
        #[test]
        fn sealed_packets_open_and_damaged_ones_do_not(
            content in prop::collection::vec(any::<u8>(), 0..300), counter in 0u64..1 << 60,
            flip in any::<prop::sample::Index>(), cut in 1usize..40,
        ) {
            let (a, b) = pair();
            let mut datagram = vec![0; 16];
            datagram.extend_from_slice(&content);
            datagram.extend_from_slice(&[0; 16]);
            a.seal_in_place(counter, &mut datagram).unwrap();
            let sealed = datagram.clone();
            let (number, range) = b.open_in_place(&mut datagram).unwrap();
            prop_assert_eq!(number, counter);
            prop_assert_eq!(&datagram[range], &content[..]);

            // Any bit counts, except those of the receiver index, which only
            // finds the session.
            let mut damaged = sealed.clone();
            let bit = flip.index(damaged.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            if !(4..8).contains(&(bit / 8)) {
                prop_assert!(b.open_in_place(&mut damaged).is_err());
            }
            let mut short = sealed[..sealed.len().saturating_sub(cut)].to_vec();
            prop_assert!(b.open_in_place(&mut short).is_err());
        }

        #[test]
        fn any_bytes_are_refused_quietly(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let (_, b) = pair();
            prop_assert!(b.open_in_place(&mut bytes).is_err());
        }
    }
}
