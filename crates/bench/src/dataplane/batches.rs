//! Datagrams on their way out, kept so that the kernel gets them as batches.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use warren_host::poll::{Watch, wait};
use warren_host::udp::{Datagrams, MAX_PAYLOAD_V4, MAX_SEGMENTS, UdpSocket};
use warren_tunnel::Session;

/// Header and tag of a WireGuard data message.
pub const HEADER_LEN: usize = 16;
/// The Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// WireGuard pads content to that (whitepaper, section 5.4.6).
pub const PADDING: usize = 16;
/// Batches in one batch.
const BATCHES: usize = 64;
/// Space for the largest superpacket and its headers and tags, on top of what is
/// waiting.
const ROOM: usize = 1 << 20;
const ONE_MORE: usize = 128 * 1024;
/// How long a full socket is waited for.
const FULL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Default)]
struct Batch {
    start: usize,
    len: usize,
    segment_len: usize,
    segments: usize,
    /// A shorter datagram ends a batch.
    closed: bool,
    /// The counter of its first datagram; the others follow.
    first: u64,
    /// How much of it is sealed: whole datagrams.
    sealed: usize,
}

/// A send buffer.
pub struct Batches {
    buffer: Box<[u8]>,
    used: usize,
    batches: [Batch; BATCHES],
    count: usize,
}

impl Batches {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; ROOM].into_boxed_slice(),
            used: 0,
            batches: [Batch::default(); BATCHES],
            count: 0,
        }
    }

    /// Whether it should be sent before more is read.
    pub fn is_full(&self) -> bool {
        // A superpacket needs up to two batches.
        self.count + 2 > BATCHES || self.used + ONE_MORE > self.buffer.len()
    }

    /// Adds one packet of `len` bytes, which `write` puts down, to be sealed
    /// with `counter`, the one after that of the packet before.
    pub fn push(&mut self, counter: u64, len: usize, write: impl FnOnce(&mut [u8])) {
        let padded = len.next_multiple_of(PADDING);
        let total = HEADER_LEN + padded + TAG_LEN;
        let Some(datagram) = self.buffer.get_mut(self.used..self.used + total) else {
            return;
        };
        let content = &mut datagram[HEADER_LEN..HEADER_LEN + padded];
        write(&mut content[..len]);
        content[len..].fill(0);
        let last = self.count.checked_sub(1).map(|i| &mut self.batches[i]);
        match last {
            Some(batch)
                if !batch.closed
                    && total <= batch.segment_len
                    && batch.segments < MAX_SEGMENTS
                    && batch.len + total <= MAX_PAYLOAD_V4 =>
            {
                batch.len += total;
                batch.segments += 1;
                batch.closed = total < batch.segment_len;
            }
            _ => {
                let Some(batch) = self.batches.get_mut(self.count) else {
                    return;
                };
                *batch = Batch {
                    start: self.used,
                    len: total,
                    segment_len: total,
                    segments: 1,
                    closed: false,
                    first: counter,
                    sealed: 0,
                };
                self.count += 1;
            }
        }
        self.used += total;
    }

    /// Seals what was added since the last time, while it is in the cache.
    pub fn seal(&mut self, session: &Session) {
        for batch in &mut self.batches[..self.count] {
            if batch.sealed == batch.len {
                continue;
            }
            let bytes = &mut self.buffer[batch.start + batch.sealed..batch.start + batch.len];
            let counter = batch.first + (batch.sealed / batch.segment_len) as u64;
            // `push` reserved space for header and tag of every datagram.
            let sealed = session.seal_batch(counter, bytes, batch.segment_len);
            debug_assert!(sealed.is_ok());
            batch.sealed = batch.len;
        }
    }

    /// The waiting batches, with the length of their datagrams.
    #[cfg(test)]
    pub fn pieces(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.batches[..self.count].iter().map(|batch| {
            let bytes = &self.buffer[batch.start..batch.start + batch.len];
            (bytes, batch.segment_len)
        })
    }

    /// Sends everything, sealed before; what a socket that stays full does not take is lost.
    pub fn send(&mut self, socket: &UdpSocket, to: SocketAddr) {
        let nothing = Datagrams {
            to: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            payload: &[],
            segment_len: 0,
        };
        let mut batch = [nothing; BATCHES];
        for (entry, batch) in batch.iter_mut().zip(&self.batches[..self.count]) {
            *entry = Datagrams {
                to,
                payload: &self.buffer[batch.start..batch.start + batch.len],
                segment_len: batch.segment_len,
            };
        }
        let mut rest = &mut batch[..self.count];
        while !rest.is_empty() {
            // A datagram that the system refuses is lost.
            let outcome = socket.send_batch(rest, |_, _| {});
            rest = &mut rest[outcome.done..];
            if let Some(first) = rest.first_mut() {
                first.payload = &first.payload[outcome.offset..];
                if !matches!(wait(&mut [Watch::writable(socket)], Some(FULL)), Ok(1..)) {
                    break;
                }
            }
        }
        self.used = 0;
        self.count = 0;
    }
}
