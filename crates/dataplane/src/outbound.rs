//! From the TUN device to the network.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_keys::NodePublic;
use warren_node_types::{Destination, PathAddr};
use warren_tunnel::{PeerIndex, SealError, Session};
use warren_wire::geneve;
use warren_wire::ip::{IpPacket, Protocol, icmp};
use warren_wire::relay_batch;
use warren_wire::wireguard::{TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, padded};

use super::counters::coarse;
use super::peer_batches::{MAX_RUN, MAX_RUN_BYTES, PeerBatch, PeerBatches};
use super::segment::Plan;
use super::staging::Staging;
use super::{
    DropReason, Drops, OutSink, PeerView, RelaySend, ServiceId, UdpSend, VNET_HDR_LEN, View,
    VnetHdr,
};

/// Bytes of sealed datagrams gathered before they are sent on: about four
/// superpackets, which stay in the second-level cache while they are worked
/// on.
const SLAB: usize = 256 * 1024;
/// Packets and bytes that are enough for one flush.
const ENOUGH_PACKETS: usize = 64;
const ENOUGH_BYTES: usize = 192 * 1024;
/// How often at most a session is asked for, per peer.
const ASK_INTERVAL: Duration = Duration::from_millis(250);

/// Datagrams of one size behind each other in the slab, for one peer.
struct Run {
    peer: PeerIndex,
    key: NodePublic,
    destination: Destination,
    /// Whether relays may be given batches of datagrams.
    batches: bool,
    start: usize,
    len: usize,
    segment_len: usize,
    count: usize,
    /// Whether a smaller datagram was added, which must be the last.
    ended: bool,
}

/// Datagrams of one size, but for a smaller last one, that were written and
/// wait to be sealed together.
struct Batch {
    /// The counter of the first.
    first: u64,
    count: u64,
    len: usize,
    segment_len: usize,
    /// Bytes of the packets, without headers, padding and tags.
    content: usize,
}

impl Batch {
    /// Whether a datagram of `total` bytes may come behind the others.
    #[inline]
    fn takes(&self, total: usize) -> bool {
        let ended = self.len < self.count as usize * self.segment_len;
        self.count == 0 || (!ended && total <= self.segment_len)
    }

    #[inline]
    fn add(&mut self, total: usize, content: usize) {
        self.segment_len = self.segment_len.max(total);
        self.count += 1;
        self.len += total;
        self.content += content;
    }
}

/// Turns packets of the host into sealed datagrams. Owned by one thread; a
/// second instance, on another thread, may work on the same view.
///
/// After a number of [`packet`](Self::packet) calls, at the latest when there
/// is nothing more to read, call [`flush`](Self::flush).
pub struct Outbound {
    slab: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    /// Single packets, by peer, each batch in a block of the slab.
    single: PeerBatches,
    /// Packets taken since the last flush, and bytes made of them.
    taken: usize,
    written: usize,
    udp: Vec<UdpSend>,
    relay: Vec<RelaySend>,
    staging: Staging,
    asked: FxHashMap<PeerIndex, Instant>,
    /// For packets that do not go to the network.
    scratch: Vec<u8>,
    drops: Arc<Drops>,
}

impl Outbound {
    /// An outbound path that counts what it drops in `drops`.
    pub fn new(drops: Arc<Drops>) -> Self {
        Self {
            slab: vec![0; SLAB].into(),
            used: 0,
            runs: Vec::with_capacity(64),
            single: PeerBatches::new(),
            taken: 0,
            written: 0,
            udp: Vec::with_capacity(64),
            relay: Vec::with_capacity(64),
            staging: Staging::default(),
            asked: FxHashMap::default(),
            scratch: Vec::new(),
            drops,
        }
    }

    /// Takes one read from the TUN device: virtio header and packet.
    pub fn packet(&mut self, view: &View, now: Instant, frame: &[u8], sink: &mut dyn OutSink) {
        self.taken += 1;
        if let Err(reason) = self.try_packet(view, now, frame, sink) {
            self.drops.count(reason);
        }
    }

    /// Whether so much has gathered that it should be [flushed](Self::flush)
    /// before more is read.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.taken >= ENOUGH_PACKETS || self.written >= ENOUGH_BYTES
    }

    /// Sends a packet that the node itself made to `peer`: an IP packet with
    /// finished checksums, or a [note](relay_batch::NOTE). The filter does not
    /// apply.
    pub fn inject(
        &mut self,
        view: &View,
        now: Instant,
        peer: PeerIndex,
        packet: &[u8],
        sink: &mut dyn OutSink,
    ) {
        let sent = || -> Result<(), DropReason> {
            let peer = view.peer(peer).ok_or(DropReason::NoRoute)?;
            if relay_batch::is_note(packet) {
                self.send_sealed(view, now, peer, packet, sink);
                return Ok(());
            }
            let packet = IpPacket::parse(packet).map_err(|_| DropReason::Malformed)?;
            // Nodes' own messages need no memory to be answered.
            if packet.protocol != Protocol::TSMP {
                view.flows.remember(&packet, seconds(view, now));
            }
            let plan = Plan::new(&VnetHdr::PLAIN, &packet).ok_or(DropReason::Malformed)?;
            if !self.send(view, now, peer, &plan, sink) {
                let frame = [&VnetHdr::PLAIN.to_bytes(), packet.bytes()].concat();
                self.stage(now, peer, frame.into(), sink);
            }
            Ok(())
        }();
        if let Err(reason) = sent {
            self.drops.count(reason);
        }
    }

    /// Sends an empty packet to `peer`, if there is a session and a path.
    pub fn send_keepalive(
        &mut self,
        view: &View,
        now: Instant,
        peer: PeerIndex,
        sink: &mut dyn OutSink,
    ) {
        if let Some(peer) = view.peer(peer) {
            self.send_sealed(view, now, peer, &[], sink);
        }
    }

    /// Sends `peer` a packet that does not come from the host, if there is a session
    /// and a path.
    fn send_sealed(
        &mut self,
        view: &View,
        now: Instant,
        peer: &PeerView,
        content: &[u8],
        sink: &mut dyn OutSink,
    ) {
        let Some(session) = usable(peer, now) else {
            return;
        };
        let Some(counter) = session.reserve(1) else {
            return;
        };
        let front = front_len(peer.destination);
        let total = front + padded(content.len()) + TRANSPORT_OVERHEAD;
        self.make_room(total, sink);
        let Some(slot) = self.slab.get_mut(self.used..self.used + total) else {
            return;
        };
        let body = &mut slot[front + TRANSPORT_HEADER_LEN..total - TAG_LEN];
        let (packet, padding) = body.split_at_mut(content.len());
        packet.copy_from_slice(content);
        padding.fill(0);
        if seal_run(session, counter, slot, total, peer.destination).is_ok() {
            self.append(peer, session, total);
            peer.counters.sent_keepalive(coarse(view.origin, now));
        }
    }

    /// Call after taking a new view: packets that waited for what it brings
    /// are sent.
    pub fn on_view_change(&mut self, view: &View, now: Instant, sink: &mut dyn OutSink) {
        let mut from = PeerIndex(0);
        while let Some(index) = self.staging.next_peer(from) {
            from = PeerIndex(index.0.saturating_add(1));
            match view.peer(index) {
                None => {
                    self.staging.clear(index);
                    self.asked.remove(&index);
                }
                Some(peer) if usable(peer, now).is_some() => {
                    self.asked.remove(&index);
                    while let Some(frame) = self.staging.pop(index) {
                        // Both were parsed before they were kept.
                        let Some((vnet, packet)) = VnetHdr::parse(&frame) else {
                            continue;
                        };
                        let Ok(packet) = IpPacket::parse(packet) else {
                            continue;
                        };
                        // The netmap may have given the address, or the index,
                        // to another peer meanwhile.
                        if view.routes.lookup(packet.dst) != Some(index) {
                            self.drops.count(DropReason::NoRoute);
                            continue;
                        }
                        let Some(plan) = Plan::new(&vnet, &packet) else {
                            continue;
                        };
                        if !self.send(view, now, peer, &plan, sink) {
                            // A session without numbers: the next one will do.
                            self.staging.put_back(index, frame);
                            break;
                        }
                    }
                }
                Some(_) => {}
            }
            if index.0 == u32::MAX {
                break;
            }
        }
    }

    /// Throws away what waits for `peer`: its handshake failed.
    pub fn drop_staged(&mut self, peer: PeerIndex) {
        for _ in 0..self.staging.clear(peer) {
            self.drops.count(DropReason::StagingFull);
        }
    }

    /// Hands everything gathered to the sink.
    pub fn flush(&mut self, sink: &mut dyn OutSink) {
        self.taken = 0;
        let mut single = std::mem::take(&mut self.single);
        for batch in single.drain() {
            self.seal_peer_batch(batch);
        }
        self.single = single;
        self.written = 0;
        if self.runs.is_empty() {
            self.used = 0;
            return;
        }
        self.udp.clear();
        self.relay.clear();
        for run in self.runs.drain(..) {
            let range = run.start..run.start + run.len;
            let segment_len = run.segment_len;
            for path in run.destination.paths() {
                let range = range.clone();
                match path {
                    PathAddr::Udp(to) | PathAddr::PeerRelay { server: to, .. } => {
                        self.udp.push(UdpSend {
                            to,
                            range,
                            segment_len,
                        });
                    }
                    PathAddr::Derp(region) => self.relay.push(RelaySend {
                        region,
                        to: run.key,
                        range,
                        segment_len,
                        skip: front_len(run.destination),
                        batches: run.batches,
                    }),
                }
            }
        }
        let sealed = self.slab.get(..self.used).unwrap_or_default();
        if !self.udp.is_empty() {
            sink.udp(&self.udp, sealed);
        }
        if !self.relay.is_empty() {
            sink.relay(&self.relay, sealed);
        }
        self.used = 0;
    }

    #[inline]
    fn try_packet(
        &mut self,
        view: &View,
        now: Instant,
        frame: &[u8],
        sink: &mut dyn OutSink,
    ) -> Result<(), DropReason> {
        let (vnet, packet) = VnetHdr::parse(frame).ok_or(DropReason::Malformed)?;
        let packet = IpPacket::parse(packet).map_err(|_| DropReason::Malformed)?;
        let plan = Plan::new(&vnet, &packet).ok_or(DropReason::Malformed)?;
        if packet.protocol == Protocol::TSMP {
            return Err(DropReason::Internal);
        }
        if let Some(service) = view.intercepts.for_host(packet.parsed()) {
            self.deliver(service, &plan, &packet, sink);
            return Ok(());
        }
        let peer = view
            .routes
            .lookup(packet.dst)
            .and_then(|index| view.peer(index));
        let peer = peer.ok_or(DropReason::NoRoute)?;
        let filter = view.filter_for(peer);
        if !filter
            .check_out(&view.flows, &packet, seconds(view, now))
            .is_accept()
        {
            return Err(DropReason::FilteredOut);
        }
        if front_len(peer.destination) + plan.len(0) + TRANSPORT_OVERHEAD > MAX_RUN_BYTES {
            return Err(DropReason::Malformed);
        }
        if !self.send(view, now, peer, &plan, sink) {
            // Bytes behind the packet's own length are not kept.
            let keep = VNET_HDR_LEN + packet.bytes().len();
            let frame = frame.get(..keep).unwrap_or(frame);
            self.stage(now, peer, frame.into(), sink);
        }
        Ok(())
    }

    /// Seals all segments of `plan`. `false` when there is no session to seal
    /// with or no path to send on.
    #[inline]
    fn send(
        &mut self,
        view: &View,
        now: Instant,
        peer: &PeerView,
        plan: &Plan<'_>,
        sink: &mut dyn OutSink,
    ) -> bool {
        let Some(session) = usable(peer, now) else {
            return false;
        };
        let count = plan.count();
        if count == 1 && session.has_plenty() {
            self.gather(view, now, peer, session, plan, sink);
            if session.wants_rekey(now) {
                self.ask(now, peer.index, sink);
            }
            return true;
        }
        if let Some(batch) = self.single.take(peer.index) {
            self.seal_peer_batch(batch);
        }
        let Some(first) = session.reserve(count as u64) else {
            return false;
        };
        let mtu = usize::from(view.tunnel_mtu);
        let front = front_len(peer.destination);
        let mut bytes = 0;
        let mut batch = Batch {
            first,
            count: 0,
            len: 0,
            segment_len: 0,
            content: 0,
        };
        for i in 0..count {
            let len = plan.len(i);
            // Padding hides lengths a little, but never beyond the MTU.
            let content = padded(len).min(mtu.max(len));
            let total = front + content + TRANSPORT_OVERHEAD;
            let room = self.used + batch.len + total <= self.slab.len();
            if !batch.takes(total) || !room {
                bytes += self.seal(session, peer, &mut batch);
                self.make_room(total, sink);
            }
            let start = self.used + batch.len;
            let Some(datagram) = self.slab.get_mut(start..start + total) else {
                batch.first += 1;
                continue;
            };
            let body = &mut datagram[front + TRANSPORT_HEADER_LEN..total - TAG_LEN];
            let (packet, padding) = body.split_at_mut(len);
            plan.write(i, packet);
            padding.fill(0);
            batch.add(total, len);
            self.written += total;
        }
        bytes += self.seal(session, peer, &mut batch);
        peer.counters
            .sent(count as u64, bytes, coarse(view.origin, now));
        if session.wants_rekey(now) {
            self.ask(now, peer.index, sink);
        }
        true
    }

    /// Seals what was written behind the end of the slab's used part, and
    /// gives the bytes of its packets. The batch is then empty.
    #[inline]
    fn seal(&mut self, session: &Session, peer: &PeerView, batch: &mut Batch) -> u64 {
        let written = self.slab.get_mut(self.used..self.used + batch.len);
        let written = written.unwrap_or_default();
        let sealed = seal_run(
            session,
            batch.first,
            written,
            batch.segment_len,
            peer.destination,
        );
        let bytes = if sealed.is_ok() {
            let mut left = batch.len;
            while left > 0 {
                let total = left.min(batch.segment_len);
                self.append(peer, session, total);
                left -= total;
            }
            batch.content as u64
        } else {
            0
        };
        *batch = Batch {
            first: batch.first + batch.count,
            count: 0,
            len: 0,
            segment_len: 0,
            content: 0,
        };
        bytes
    }

    /// Puts a single packet behind others for the same peer, so that they are sealed
    /// and sent together.
    #[inline]
    fn gather(
        &mut self,
        view: &View,
        now: Instant,
        peer: &PeerView,
        session: &Arc<Session>,
        plan: &Plan<'_>,
        sink: &mut dyn OutSink,
    ) {
        let len = plan.len(0);
        let content = padded(len).min(usize::from(view.tunnel_mtu).max(len));
        let front = front_len(peer.destination);
        let total = front + content + TRANSPORT_OVERHEAD;
        self.written += total;
        let slab = self.slab.len();
        let at = match self
            .single
            .append(peer, session, total, &mut self.used, slab)
        {
            Some(at) => at,
            None => {
                if let Some(batch) = self.single.take(peer.index) {
                    self.seal_peer_batch(batch);
                }
                self.make_room(total, sink);
                self.single
                    .begin(peer, session, total, &mut self.used, slab)
            }
        };
        // Within the block of the batch.
        let Some(datagram) = self.slab.get_mut(at..at + total) else {
            return;
        };
        let body = &mut datagram[front + TRANSPORT_HEADER_LEN..total - TAG_LEN];
        let (packet, padding) = body.split_at_mut(len);
        plan.write(0, packet);
        padding.fill(0);
        peer.counters.sent(1, len as u64, coarse(view.origin, now));
    }

    /// Seals the packets of a batch, and makes a run of it.
    #[inline]
    fn seal_peer_batch(&mut self, batch: PeerBatch) {
        if batch.block_end() == self.used {
            self.used = batch.start + batch.len;
        }
        let written = self.slab.get_mut(batch.start..batch.start + batch.len);
        let sealed = batch
            .session
            .reserve(batch.count as u64)
            .is_some_and(|first| {
                let written = written.unwrap_or_default();
                let (segment_len, destination) = (batch.segment_len, batch.destination);
                seal_run(&batch.session, first, written, segment_len, destination).is_ok()
            });
        if !sealed {
            for _ in 0..batch.count {
                self.drops.count(DropReason::ExpiredSession);
            }
            return;
        }
        self.runs.push(Run {
            peer: batch.peer,
            key: batch.key,
            destination: batch.destination,
            batches: batch.session.takes_batches(),
            start: batch.start,
            len: batch.len,
            segment_len: batch.segment_len,
            count: batch.count,
            // Nothing comes behind it.
            ended: true,
        });
    }

    /// Makes sure that `total` bytes fit behind what is used.
    #[inline]
    fn make_room(&mut self, total: usize, sink: &mut dyn OutSink) {
        if self.used + total > self.slab.len() {
            self.flush(sink);
        }
    }

    /// Adds the datagram of `total` bytes at the end of the slab to the last
    /// run, or starts a new one.
    #[inline]
    fn append(&mut self, peer: &PeerView, session: &Session, total: usize) {
        let start = self.used;
        self.used += total;
        if let Some(run) = self.runs.last_mut() {
            let fits = run.peer == peer.index
                && run.destination == peer.destination
                && run.start + run.len == start
                && !run.ended
                && total <= run.segment_len
                && run.count < MAX_RUN
                && run.len + total <= MAX_RUN_BYTES;
            if fits {
                run.len += total;
                run.count += 1;
                run.ended = total < run.segment_len;
                return;
            }
        }
        self.runs.push(Run {
            peer: peer.index,
            key: peer.key,
            destination: peer.destination,
            batches: session.takes_batches(),
            start,
            len: total,
            segment_len: total,
            count: 1,
            ended: false,
        });
    }

    fn stage(&mut self, now: Instant, peer: &PeerView, frame: Box<[u8]>, sink: &mut dyn OutSink) {
        for _ in 0..self.staging.push(peer.index, frame) {
            self.drops.count(DropReason::StagingFull);
        }
        // With a good session only the path is missing, and that is known.
        if peer.session.as_ref().is_none_or(|s| s.wants_rekey(now)) {
            self.ask(now, peer.index, sink);
        }
    }

    fn ask(&mut self, now: Instant, peer: PeerIndex, sink: &mut dyn OutSink) {
        let recently = self
            .asked
            .get(&peer)
            .is_some_and(|at| now.saturating_duration_since(*at) < ASK_INTERVAL);
        if !recently {
            self.asked.insert(peer, now);
            sink.need_session(peer);
        }
    }

    /// Gives packets to a service of this process. Echo requests are answered here.
    fn deliver(
        &mut self,
        service: ServiceId,
        plan: &Plan<'_>,
        packet: &IpPacket<'_>,
        sink: &mut dyn OutSink,
    ) {
        let echo = matches!(packet.icmp(), Some(icmp::Icmp::EchoRequest(_)));
        for i in 0..plan.count() {
            self.scratch.clear();
            self.scratch.resize(VNET_HDR_LEN + plan.len(i), 0);
            let (_, body) = self.scratch.split_at_mut(VNET_HDR_LEN);
            plan.write(i, body);
            if !echo {
                sink.deliver(service, body);
            } else if icmp::reply_in_place(body) {
                sink.tun(&self.scratch);
            }
        }
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound")
            .field("used", &self.used)
            .field("runs", &self.runs.len())
            .finish_non_exhaustive()
    }
}

/// The session to send with, if there is also a path.
#[inline]
fn usable(peer: &PeerView, now: Instant) -> Option<&Arc<Session>> {
    let session = peer
        .session
        .as_ref()
        .filter(|session| !session.is_expired(now))?;
    (peer.destination != Destination::None).then_some(session)
}

/// Bytes in front of each datagram: space for the Geneve header where packets take a
/// peer relay.
#[inline]
fn front_len(destination: Destination) -> usize {
    match destination.vni() {
        Some(_) => geneve::HEADER_LEN,
        None => 0,
    }
}

/// Seals datagrams behind each other, each of `segment_len` bytes but the last,
/// which may be smaller, and writes the Geneve headers in front of them where
/// packets take a peer relay.
#[inline]
fn seal_run(
    session: &Session,
    first: u64,
    datagrams: &mut [u8],
    segment_len: usize,
    destination: Destination,
) -> Result<(), SealError> {
    match destination.vni() {
        None => session.seal_batch(first, datagrams, segment_len),
        Some(vni) => {
            let payload = geneve::Payload::WireGuard;
            let header = geneve::Header { payload, vni }.to_bytes();
            for (datagram, counter) in datagrams.chunks_mut(segment_len.max(1)).zip(first..) {
                let (front, sealed) = datagram.split_first_chunk_mut().ok_or(SealError)?;
                *front = header;
                session.seal_in_place(counter, sealed)?;
            }
            Ok(())
        }
    }
}

/// The clock of the filter's flow memory.
#[inline]
pub(super) fn seconds(view: &View, now: Instant) -> u32 {
    let seconds = now.saturating_duration_since(view.origin).as_secs();
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
