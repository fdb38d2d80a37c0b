//! Tunnel data that relays deliver, on its way to the threads that receive.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use warren_dial::derp::DerpSender;
use warren_host::wake::Waker;
use warren_keys::NodePublic;
use warren_node_types::RegionId;
use warren_tunnel::Source;

/// Reads of relay connections that may wait between the relays' tasks and the threads.
const INBOX_READS: usize = 32;

/// The open connections to relays, which the threads send to.
pub type RelayPorts = ArcSwap<BTreeMap<RegionId, DerpSender>>;

/// Tunnel data that came through a relay with one read.
pub struct RelayedPackets {
    region: RegionId,
    /// The packets, one after the other.
    bytes: Vec<u8>,
    packets: Vec<Relayed>,
}

/// A packet of a [`RelayedPackets`].
#[derive(Clone, Copy)]
struct Relayed {
    from: NodePublic,
    /// Its length in bytes.
    len: usize,
    /// Length of each datagram in it but the last, which may be smaller.
    segment_len: usize,
}

impl RelayedPackets {
    /// No packets yet, of the relay in `region`.
    #[must_use]
    pub fn new(region: RegionId) -> Self {
        Self {
            region,
            bytes: Vec::new(),
            packets: Vec::new(),
        }
    }

    /// Whether there are no packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The bytes of all packets.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a packet: datagrams of `segment_len` bytes behind each other, the last of
    /// which may be smaller.
    pub fn push(&mut self, from: NodePublic, datagrams: &[u8], segment_len: usize) {
        self.bytes.extend_from_slice(datagrams);
        self.packets.push(Relayed {
            from,
            len: datagrams.len(),
            segment_len,
        });
    }

    /// Gives each packet to `each`: its sender, the length of its datagrams, and the
    /// datagrams.
    pub(crate) fn for_each<'b>(&'b mut self, mut each: impl FnMut(Source, usize, &'b mut [u8])) {
        let region = self.region;
        let mut rest = self.bytes.as_mut_slice();
        for packet in &self.packets {
            let Some((datagrams, more)) = rest.split_at_mut_checked(packet.len) else {
                break;
            };
            rest = more;
            let key = packet.from;
            each(Source::Derp { region, key }, packet.segment_len, datagrams);
        }
    }
}

/// Both ends of the queue between the relays' tasks and the threads that receive.
///
/// # Errors
/// When the system has no descriptors left.
pub fn relay_queue() -> io::Result<(RelayFeed, RelayInbox)> {
    let (packets, received) = mpsc::channel(INBOX_READS);
    let waker = Arc::new(Waker::new()?);
    let feed = RelayFeed {
        packets,
        waker: Arc::clone(&waker),
    };
    let packets = received;
    Ok((feed, RelayInbox { packets, waker }))
}

/// The end of the relays' tasks.
#[derive(Clone)]
pub struct RelayFeed {
    packets: mpsc::Sender<RelayedPackets>,
    waker: Arc<Waker>,
}

impl RelayFeed {
    /// Queues packets. While the queue is full it waits, which slows the relay down.
    /// `false`: the threads have ended.
    pub async fn send(&self, packets: RelayedPackets) -> bool {
        let queued = self.packets.send(packets).await.is_ok();
        self.waker.wake();
        queued
    }
}

/// The end of the threads.
pub struct RelayInbox {
    packets: mpsc::Receiver<RelayedPackets>,
    /// Wakes the thread that receives, for packets of relays and for all else.
    pub(crate) waker: Arc<Waker>,
}

impl RelayInbox {
    /// The packets of the next read, if there was one.
    pub(crate) fn try_receive(&mut self) -> Option<RelayedPackets> {
        self.packets.try_recv().ok()
    }
}
