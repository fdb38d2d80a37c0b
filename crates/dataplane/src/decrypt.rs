//! The first half of receiving: the session of each datagram, and decryption.
//!
//! Several threads may do this at the same time, each for a [`DecryptedBatch`] of its
//! own. The second half, [`Inbound::finish`](super::Inbound::finish), takes whole
//! batches, one after the other.

use std::time::Instant;

use warren_tunnel::{MAX_BATCH, Opened, Source};
use warren_wire::wireguard::is_transport;

use super::relayed::{Relayed, may_be_relayed};
use super::{DropReason, PeerView, SessionView, View};

/// The session that datagrams claim to belong to, and its peer.
pub(super) struct MatchedSession<'v> {
    pub(super) index: u32,
    pub(super) slot: &'v SessionView,
    pub(super) peer: &'v PeerView,
}

impl<'v> MatchedSession<'v> {
    /// Finds the session of the `datagram`, which is not authenticated yet.
    #[inline]
    pub(super) fn of(view: &'v View, now: Instant, datagram: &[u8]) -> Result<Self, DropReason> {
        let index = datagram.get(4..).and_then(|rest| rest.first_chunk());
        let index = u32::from_le_bytes(*index.ok_or(DropReason::Forged)?);
        let slot = view
            .sessions
            .get(&index)
            .ok_or(DropReason::UnknownSession)?;
        let peer = view.peer(slot.peer).ok_or(DropReason::UnknownSession)?;
        if slot.session.is_expired(now) {
            return Err(DropReason::ExpiredSession);
        }
        Ok(Self { index, slot, peer })
    }
}

/// A datagram without tunnel data, or datagrams of one session behind each other.
pub(super) enum Run<'v> {
    /// Not tunnel data.
    Other,
    /// Tunnel data for which there is no session.
    Refused(DropReason),
    /// Tunnel data of a session, after the attempt to open it.
    Opened(MatchedSession<'v>, Opened),
}

impl<'v> Run<'v> {
    /// Cuts a run off the front of `rest`, which is not empty, and decrypts it.
    #[inline]
    pub(super) fn take<'b>(
        view: &'v View,
        now: Instant,
        rest: &mut &'b mut [u8],
        segment_len: usize,
    ) -> (Self, &'b mut [u8]) {
        let datagrams = datagrams_at_front(rest, segment_len);
        let len = datagrams.max(1).saturating_mul(segment_len);
        let len = len.min(rest.len());
        let (data, behind) = std::mem::take(rest).split_at_mut(len);
        *rest = behind;
        if datagrams == 0 {
            return (Self::Other, data);
        }
        let run = match MatchedSession::of(view, now, data) {
            Ok(matched) => {
                let opened = matched.slot.session.open_batch(data, segment_len);
                Self::Opened(matched, opened)
            }
            Err(reason) => Self::Refused(reason),
        };
        (run, data)
    }
}

/// A run of a [`DecryptedBatch`] with its bytes and their origin.
pub(super) struct DecryptedRun<'b> {
    pub(super) run: Run<'b>,
    pub(super) from: Source,
    pub(super) segment_len: usize,
    pub(super) data: &'b mut [u8],
}

/// The memory of a [`DecryptedBatch`], for the next one. Each thread has one, so that
/// batches cost no allocation.
#[derive(Default)]
pub struct DecryptMemory(Vec<DecryptedRun<'static>>);

impl DecryptMemory {
    /// No memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Received datagrams that were decrypted in place, for
/// [`Inbound::finish`](super::Inbound::finish). It holds their buffers, so nothing else
/// can be delivered in their place.
pub struct DecryptedBatch<'b> {
    pub(super) view: &'b View,
    pub(super) now: Instant,
    pub(super) runs: Vec<DecryptedRun<'b>>,
}

impl<'b> DecryptedBatch<'b> {
    /// An empty batch, received at `now`, to be judged by `view`.
    #[must_use]
    pub fn new(memory: DecryptMemory, view: &'b View, now: Instant) -> Self {
        Self {
            view,
            now,
            runs: memory.0,
        }
    }

    /// Decrypts what one receive call gave, in place: datagrams from `from` behind each
    /// other in `buffer`, each of `segment_len` bytes but the last, which may be
    /// smaller.
    pub fn decrypt(&mut self, from: Source, buffer: &'b mut [u8], segment_len: usize) {
        let segment_len = segment_len.max(1);
        let mut rest = buffer;
        while !rest.is_empty() {
            if may_be_relayed(rest)
                && let Some(relayed) = Relayed::take(from, &mut rest, segment_len)
            {
                self.decrypt(relayed.from, relayed.data, relayed.segment_len);
                continue;
            }
            let (run, data) = Run::take(self.view, self.now, &mut rest, segment_len);
            self.runs.push(DecryptedRun {
                run,
                from,
                segment_len,
                data,
            });
        }
    }

    /// Gives the memory back.
    pub(super) fn into_memory(self) -> DecryptMemory {
        let mut runs = self.runs;
        runs.clear();
        // Empty, but of another lifetime. The standard library collects in place.
        let runs = runs.into_iter().map(|run| DecryptedRun {
            run: Run::Other,
            data: &mut [],
            from: run.from,
            segment_len: run.segment_len,
        });
        DecryptMemory(runs.collect())
    }
}

impl std::fmt::Debug for DecryptedBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecryptedBatch")
            .field("runs", &self.runs.len())
            .finish_non_exhaustive()
    }
}

/// The number of datagrams at the front of `buffer` that carry data of one session, as
/// far as their headers say, and can be opened in one go.
#[inline]
fn datagrams_at_front(buffer: &[u8], segment_len: usize) -> usize {
    // Type and receiver.
    let Some(head) = buffer.first_chunk::<8>() else {
        return 0;
    };
    buffer
        .chunks(segment_len)
        .take(MAX_BATCH)
        .take_while(|datagram| is_transport(datagram) && datagram.starts_with(head))
        .count()
}
