//! From the network to the TUN device: the second half, behind decryption.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_filter::Pass;
use warren_tunnel::{
    OpenError, Opened, PeerIndex, REKEY_ON_RECEIVE_TIME, ReplayWindow, Role, Source,
};
use warren_wire::disco::looks_like_relayed_disco;
use warren_wire::geneve::{Header, Payload};
use warren_wire::ip::{Fragment, IpPacket, Parsed, Protocol, TcpFlags, tsmp};
use warren_wire::relay_batch;
use warren_wire::stun::looks_like_stun;
use warren_wire::wireguard::{Message, TRANSPORT_HEADER_LEN};

use super::coalesce::Coalescer;
use super::counters::coarse;
use super::decrypt::{DecryptMemory, DecryptedBatch, MatchedSession, Run};
use super::outbound::seconds;
use super::relayed::{Relayed, may_be_relayed};
use super::sources::LostSessions;
use super::{DropReason, Drops, InSink, PeerView, ServiceId, SessionView, VNET_HDR_LEN, View};

/// How often the source of authenticated traffic is reported while it stays the
/// same.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);
/// Single datagrams through a relay before the peer is notified, for the first time,
/// that it could batch them.
const NOTIFY_AT: u64 = 32;
/// How often at most a session is asked for, per peer.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

// The virtio header of a packet that is written as it is takes the place of
// the end of the transport header.
const _: () = assert!(VNET_HDR_LEN <= TRANSPORT_HEADER_LEN);

/// Which superpackets the TUN device takes. Can change while running: a
/// kernel may refuse one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboundOffloads {
    /// Join TCP segments.
    pub tcp: bool,
    /// Join UDP datagrams.
    pub udp: bool,
}

/// The receiving side of one session.
struct Receiving {
    window: ReplayWindow,
    /// Distinguishes this session from a later one with the same index.
    created: Instant,
    /// Single datagrams that came through a relay.
    single: u64,
    /// The number of them at which the peer is notified that it could batch them.
    notify_at: u64,
}

/// The last authenticated traffic of a peer.
struct Heard {
    from: Source,
    reported: Instant,
    asked: Option<Instant>,
}

/// The counters and the verdict that the packets of one run share.
struct BatchStats {
    /// The moment, on the coarse clock.
    at: u64,
    /// Whether the source was noted.
    noted: bool,
    packets: u64,
    bytes: u64,
    /// The verdict on the flow of the last packet.
    flow: Option<FlowVerdict>,
}

impl BatchStats {
    #[inline]
    fn new(received: &Received<'_>) -> Self {
        Self {
            at: coarse(received.view.origin, received.now),
            noted: false,
            packets: 0,
            bytes: 0,
            flow: None,
        }
    }

    /// Goes on with another flow.
    #[inline]
    fn next_flow(&mut self, view: &View, peer: &PeerView, flow: Option<FlowVerdict>) {
        if let Some(before) = std::mem::replace(&mut self.flow, flow)
            && before.packets > 0
        {
            let filter = view.filter_for(peer);
            filter.count_alike(before.pass, before.packets, before.bytes);
        }
    }

    /// Counts what passed.
    #[inline]
    fn end(mut self, received: &Received<'_>, peer: &PeerView) {
        self.next_flow(received.view, peer, None);
        if self.packets > 0 {
            peer.counters.received(self.packets, self.bytes, self.at);
        }
    }
}

/// The verdict on the first packet of a flow, which holds for those behind it.
struct FlowVerdict {
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    protocol: Protocol,
    pass: Pass,
    /// The service of this process that takes them, instead of the host.
    service: Option<ServiceId>,
    /// Packets behind the first, and their bytes.
    packets: u64,
    bytes: u64,
}

impl FlowVerdict {
    /// `None` for packets whose verdict holds for themselves only.
    #[inline]
    fn new(first: &Parsed, pass: Pass, service: Option<ServiceId>) -> Option<Self> {
        Self::fits(first).then_some(Self {
            ends: (first.src, first.dst),
            ports: (first.src_port, first.dst_port),
            protocol: first.protocol,
            pass,
            service,
            packets: 0,
            bytes: 0,
        })
    }

    #[inline]
    fn takes(&self, packet: &Parsed) -> bool {
        self.protocol == packet.protocol
            && self.ports == (packet.src_port, packet.dst_port)
            && self.ends == (packet.src, packet.dst)
            && Self::fits(packet)
    }

    #[inline]
    fn fits(packet: &Parsed) -> bool {
        // Packets that open or end a connection are judged one by one.
        let plain = match packet.protocol {
            Protocol::TCP => packet.tcp_flags.0 & !TcpFlags::PSH == TcpFlags::ACK,
            protocol => protocol == Protocol::UDP,
        };
        plain && packet.fragment == Fragment::Whole
    }
}

/// The origin of the datagrams of one receive call, and what is needed to judge them.
#[derive(Clone, Copy)]
struct Received<'a> {
    view: &'a View,
    now: Instant,
    from: Source,
    /// Length of each datagram but the last, which may be smaller.
    segment_len: usize,
}

/// Turns received datagrams into packets for the host. It owns the replay windows, so
/// there is one for all threads that receive.
///
/// One thread takes what arrives with [`datagrams`](Self::datagrams). Several
/// share the work: each decrypts a [`DecryptedBatch`] of its own, and
/// then, one after the other in the order in which the batches were received,
/// they give them to [`finish`](Self::finish). The result is the same.
///
/// After a number of calls, at the latest when there is nothing more to read,
/// or before another thread goes on, call [`flush`](Self::flush).
pub struct Inbound {
    sessions: FxHashMap<u32, Receiving>,
    heard: FxHashMap<PeerIndex, Heard>,
    lost: LostSessions,
    coalescer: Coalescer,
    drops: Arc<Drops>,
}

impl Inbound {
    /// An inbound path for a TUN device with these abilities, that counts what
    /// it drops in `drops`.
    pub fn new(offloads: InboundOffloads, drops: Arc<Drops>) -> Self {
        Self {
            sessions: FxHashMap::default(),
            heard: FxHashMap::default(),
            lost: LostSessions::default(),
            coalescer: Coalescer::new(offloads),
            drops,
        }
    }

    /// Call after taking a new view: forgets sessions and peers that are gone.
    pub fn on_view_change(&mut self, view: &View) {
        self.sessions
            .retain(|index, _| view.sessions.contains_key(index));
        self.heard.retain(|index, _| view.peer(*index).is_some());
        self.lost.on_view_change(view);
    }

    /// Takes what one receive call gave: datagrams from `from` behind each
    /// other in `buffer`, each of `segment_len` bytes but the last, which may
    /// be smaller. The buffer's content is worked on in place.
    pub fn datagrams(
        &mut self,
        view: &View,
        now: Instant,
        from: Source,
        buffer: &mut [u8],
        segment_len: usize,
        sink: &mut dyn InSink,
    ) {
        let segment_len = segment_len.max(1);
        let received = Received {
            view,
            now,
            from,
            segment_len,
        };
        let mut rest = buffer;
        while !rest.is_empty() {
            if may_be_relayed(rest)
                && let Some(relayed) = Relayed::take(from, &mut rest, segment_len)
            {
                self.datagrams(
                    view,
                    now,
                    relayed.from,
                    relayed.data,
                    relayed.segment_len,
                    sink,
                );
                continue;
            }
            // Opened and delivered run by run: what was decrypted is still in the
            // cache.
            let (run, data) = Run::take(view, now, &mut rest, segment_len);
            self.run(&received, &run, data, sink);
        }
    }

    /// Takes a batch that was decrypted by the view in force, and gives its memory
    /// back.
    pub fn finish(&mut self, batch: DecryptedBatch<'_>, sink: &mut dyn InSink) -> DecryptMemory {
        let mut batch = batch;
        for decrypted in &mut batch.runs {
            let received = Received {
                view: batch.view,
                now: batch.now,
                from: decrypted.from,
                segment_len: decrypted.segment_len,
            };
            self.run(&received, &decrypted.run, decrypted.data, sink);
        }
        batch.into_memory()
    }

    #[inline]
    fn run(
        &mut self,
        received: &Received<'_>,
        run: &Run<'_>,
        data: &mut [u8],
        sink: &mut dyn InSink,
    ) {
        match run {
            Run::Other => self.no_data(received.from, data, sink),
            Run::Refused(reason) => self.refuse(received, *reason, data, sink),
            Run::Opened(matched, opened) => self.opened_run(received, matched, *opened, data, sink),
        }
    }

    /// Writes out what is still being joined.
    #[inline]
    pub fn flush(&mut self, sink: &mut dyn InSink) {
        self.coalescer.flush(sink);
    }

    /// Takes a datagram without tunnel data.
    fn no_data(&self, from: Source, datagram: &[u8], sink: &mut dyn InSink) {
        if concerns_engine(datagram) {
            sink.control(from, datagram);
        } else {
            // Unrecognised datagrams are dropped before they are copied.
            self.drops.count(DropReason::Unrecognised);
        }
    }

    /// Drops all datagrams of a run for the same reason.
    fn refuse(
        &mut self,
        received: &Received<'_>,
        reason: DropReason,
        datagrams: &[u8],
        sink: &mut dyn InSink,
    ) {
        for _ in datagrams.chunks(received.segment_len) {
            self.drops.count(reason);
        }
        if reason == DropReason::UnknownSession {
            self.lost
                .note(received.view, received.now, received.from, sink);
        }
    }

    /// Takes datagrams of one session after an attempt to open them.
    #[inline]
    fn opened_run(
        &mut self,
        received: &Received<'_>,
        matched: &MatchedSession<'_>,
        opened: Opened,
        datagrams: &mut [u8],
        sink: &mut dyn InSink,
    ) {
        let segment_len = received.segment_len;
        let mut stats = BatchStats::new(received);
        for (i, datagram) in datagrams.chunks_mut(segment_len).enumerate() {
            let opened = opened.get(i, datagram);
            let result = self.opened(received, matched, opened, datagram, &mut stats, sink);
            if let Err(reason) = result {
                self.drops.count(reason);
            }
        }
        let alone = stats.packets > 0 && datagrams.len() <= segment_len;
        stats.end(received, matched.peer);
        if alone && matches!(received.from, Source::Derp { .. }) {
            self.note_single(matched, sink);
        }
    }

    /// Notifies a peer that sends single datagrams through a relay that it could batch
    /// them. Notes get lost, and some peers do not understand them: they are repeated,
    /// but ever less often.
    fn note_single(&mut self, matched: &MatchedSession<'_>, sink: &mut dyn InSink) {
        let Some(receiving) = self.sessions.get_mut(&matched.index) else {
            return;
        };
        receiving.single += 1;
        if receiving.single == receiving.notify_at {
            receiving.notify_at = receiving.notify_at.saturating_mul(4);
            sink.out(matched.peer.index, &relay_batch::NOTE);
        }
    }

    /// Takes a datagram after an attempt to open it.
    #[inline]
    fn opened(
        &mut self,
        received: &Received<'_>,
        matched: &MatchedSession<'_>,
        opened: Result<(u64, Range<usize>), OpenError>,
        datagram: &mut [u8],
        stats: &mut BatchStats,
        sink: &mut dyn InSink,
    ) -> Result<(), DropReason> {
        let MatchedSession { index, slot, peer } = *matched;
        let Received {
            view, now, from, ..
        } = *received;
        let (counter, content) = opened.map_err(|error| match error {
            OpenError::Truncated | OpenError::Forged => DropReason::Forged,
        })?;
        self.accept(index, slot, counter, sink)?;
        if !stats.noted {
            stats.noted = true;
            self.note_source(now, slot, from, sink);
        }
        if content.is_empty() {
            peer.counters.received_keepalive(stats.at);
            return Ok(());
        }
        let packet = datagram.get(content).unwrap_or_default();
        let packet = match IpPacket::parse(packet) {
            Ok(packet) => packet,
            Err(_) if relay_batch::is_note(packet) => {
                slot.session.note_takes_batches();
                return Ok(());
            }
            Err(_) => return Err(DropReason::MalformedInner),
        };
        let parsed = *packet.parsed();
        stats.packets += 1;
        stats.bytes += parsed.total_len as u64;
        let service = if let Some(flow) = stats.flow.as_mut().filter(|f| f.takes(&parsed)) {
            flow.packets += 1;
            flow.bytes += parsed.total_len as u64;
            flow.service
        } else {
            if !view.allows_source(peer, parsed.src) {
                return Err(DropReason::WrongSource);
            }
            if parsed.protocol == Protocol::TSMP {
                between_nodes(view, peer, &packet, sink);
                return Ok(());
            }
            let service = view.intercepts.for_peer(&parsed);
            let open_to_all = service.is_some_and(|service| service.open_to_all);
            let service = service.map(|service| service.id);
            let pass = judge(view, now, peer, &packet, open_to_all, sink)?;
            let flow = pass.and_then(|pass| FlowVerdict::new(&parsed, pass, service));
            stats.next_flow(view, peer, flow);
            service
        };
        if let Some(service) = service {
            sink.deliver(service, packet.bytes());
            return Ok(());
        }
        self.deliver(datagram, &parsed, sink);
        Ok(())
    }

    /// Checks the counter of an authenticated packet against its replay window.
    #[inline]
    fn accept(
        &mut self,
        index: u32,
        slot: &SessionView,
        counter: u64,
        sink: &mut dyn InSink,
    ) -> Result<(), DropReason> {
        let created = slot.session.created();
        let known = self
            .sessions
            .get_mut(&index)
            .filter(|r| r.created == created);
        let fresh = match known {
            Some(receiving) => receiving.window.accept(counter),
            None => {
                let mut window = ReplayWindow::new();
                let fresh = window.accept(counter);
                let receiving = Receiving {
                    window,
                    created,
                    single: 0,
                    notify_at: NOTIFY_AT,
                };
                self.sessions.insert(index, receiving);
                sink.confirmed(index);
                fresh
            }
        };
        if fresh {
            Ok(())
        } else {
            Err(DropReason::Replayed)
        }
    }

    /// Reports the source of authenticated traffic, and asks for a successor
    /// of a session that is about to end.
    #[inline]
    fn note_source(
        &mut self,
        now: Instant,
        slot: &SessionView,
        from: Source,
        sink: &mut dyn InSink,
    ) {
        let since = |at: Instant| now.saturating_duration_since(at);
        let heard = self.heard.entry(slot.peer).or_insert_with(|| {
            sink.heard(slot.peer, from);
            Heard {
                from,
                reported: now,
                asked: None,
            }
        });
        if heard.from != from || since(heard.reported) >= HEARD_INTERVAL {
            heard.from = from;
            heard.reported = now;
            sink.heard(slot.peer, from);
        }
        let ending = slot.session.role() == Role::Initiator
            && since(slot.session.created()) >= REKEY_ON_RECEIVE_TIME;
        if ending && heard.asked.is_none_or(|at| since(at) >= ASK_INTERVAL) {
            heard.asked = Some(now);
            sink.need_session(slot.peer);
        }
    }

    #[inline]
    fn deliver(&mut self, datagram: &mut [u8], parsed: &Parsed, sink: &mut dyn InSink) {
        let start = TRANSPORT_HEADER_LEN - VNET_HDR_LEN;
        let end = TRANSPORT_HEADER_LEN + parsed.total_len;
        // The packet was parsed from these bytes.
        if let Some(frame) = datagram.get_mut(start..end) {
            self.coalescer.push(frame, parsed, sink);
        }
    }
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbound")
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}

/// Consumes a message from node to node.
fn between_nodes(view: &View, peer: &PeerView, packet: &IpPacket<'_>, sink: &mut dyn InSink) {
    match packet.tsmp() {
        Some(tsmp::Message::Ping(_)) => {
            if let Some(pong) = tsmp::pong_for(packet, view.peer_api_port) {
                sink.out(peer.index, &pong);
            }
        }
        Some(tsmp::Message::Pong {
            data,
            peer_api_port,
        }) => {
            sink.pong(peer.index, data, peer_api_port);
        }
        Some(tsmp::Message::DiscoAdvertisement(key)) => sink.disco_advertised(peer.index, key),
        // A refusal concerns the program that waits for the connection; the host
        // finds out by itself.
        Some(tsmp::Message::Reject(_)) | None => {}
    }
}

/// Asks the filter, and notifies the sender of a refused connection. `None` for a new
/// connection to a service that is `open_to_all`, which needs no rule.
#[inline]
fn judge(
    view: &View,
    now: Instant,
    peer: &PeerView,
    packet: &IpPacket<'_>,
    open_to_all: bool,
    sink: &mut dyn InSink,
) -> Result<Option<Pass>, DropReason> {
    if open_to_all && packet.opens_tcp() {
        return Ok(None);
    }
    let filter = view.filter_for(peer);
    match filter.admit_in(&view.flows, packet, seconds(view, now)) {
        Ok(pass) => Ok(Some(pass)),
        Err(reason) => {
            if let Some(refusal) = filter.rejection(packet, reason) {
                sink.out(peer.index, &refusal);
            }
            Err(DropReason::FilteredIn)
        }
    }
}

/// Whether a datagram without tunnel data looks like a message that the engine
/// understands. Those of peer relays keep their Geneve header.
fn concerns_engine(datagram: &[u8]) -> bool {
    if let Some((header, content)) = Header::parse(datagram) {
        return match header.payload {
            Payload::Disco | Payload::DiscoControl => looks_like_relayed_disco(content),
            Payload::WireGuard => Message::parse(content).is_ok(),
        };
    }
    looks_like_relayed_disco(datagram)
        || looks_like_stun(datagram)
        || Message::parse(datagram).is_ok()
}
