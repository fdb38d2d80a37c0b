//! From the network to the TUN device.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_filter::Pass;
use warren_tunnel::{
    MAX_TRAIN, OpenError, Opened, PeerIndex, REKEY_ON_RECEIVE_TIME, ReplayWindow, Role, Source,
};
use warren_wire::disco::looks_like_relayed_disco;
use warren_wire::ip::{Fragment, IpPacket, Parsed, Protocol, TcpFlags, tsmp};
use warren_wire::relay_train;
use warren_wire::stun::looks_like_stun;
use warren_wire::wireguard::{Message, TRANSPORT_HEADER_LEN, is_transport};

use super::coalesce::Coalescer;
use super::counters::coarse;
use super::outbound::seconds;
use super::sources::LostSessions;
use super::{DropReason, Drops, InSink, PeerView, ServiceId, SessionView, VNET_HDR_LEN, View};

/// How often the source of authenticated traffic is reported while it stays the
/// same.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);
/// Datagrams that come alone through a relay before the peer is told, for the
/// first time, that they could come together.
const TELL_AT: u64 = 32;
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
    /// Tells this session from another one with the same index later.
    created: Instant,
    /// Datagrams that came alone through a relay, and how many there will have
    /// been when the peer is told that they could come together.
    alone: u64,
    tell_at: u64,
}

/// The last authenticated traffic of a peer.
struct Heard {
    from: Source,
    told: Instant,
    asked: Option<Instant>,
}

/// A datagram with tunnel data, or several of the same session, and to whom
/// they belong.
struct Arrival<'v> {
    index: u32,
    slot: &'v SessionView,
    peer: &'v PeerView,
}

impl<'v> Arrival<'v> {
    /// Finds the session of the `datagram`, of which nothing is believed yet.
    #[inline]
    fn new(view: &'v View, now: Instant, datagram: &[u8]) -> Result<Self, DropReason> {
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

/// What the packets of one train have in common, and is done once for them.
struct Course {
    /// The moment, on the coarse clock.
    at: u64,
    /// Whether it was noted where they come from.
    noted: bool,
    packets: u64,
    bytes: u64,
    alike: Option<Alike>,
}

impl Course {
    #[inline]
    fn new(received: &Received<'_>) -> Self {
        Self {
            at: coarse(received.view.origin, received.now),
            noted: false,
            packets: 0,
            bytes: 0,
            alike: None,
        }
    }

    /// Another kind of packet begins.
    #[inline]
    fn next(&mut self, view: &View, peer: &PeerView, alike: Option<Alike>) {
        if let Some(before) = std::mem::replace(&mut self.alike, alike)
            && before.packets > 0
        {
            let filter = view.filter_for(peer);
            filter.count_alike(before.pass, before.packets, before.bytes);
        }
    }

    /// Counts what passed.
    #[inline]
    fn end(mut self, received: &Received<'_>, peer: &PeerView) {
        self.next(received.view, peer, None);
        if self.packets > 0 {
            peer.counters.received(self.packets, self.bytes, self.at);
        }
    }
}

/// Packets of one flow, of which the first was judged for all.
struct Alike {
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    protocol: Protocol,
    pass: Pass,
    /// The service of this process that takes them, instead of the host.
    service: Option<ServiceId>,
    /// Those behind the first.
    packets: u64,
    bytes: u64,
}

impl Alike {
    /// `None` for packets that say nothing about the next one.
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
        // What opens or ends a connection is more than one packet of a flow.
        let plain = match packet.protocol {
            Protocol::TCP => packet.tcp_flags.0 & !TcpFlags::PSH == TcpFlags::ACK,
            protocol => protocol == Protocol::UDP,
        };
        plain && packet.fragment == Fragment::Whole
    }
}

/// What one receive call gave, and what is needed to judge it.
#[derive(Clone, Copy)]
pub struct Received<'a> {
    /// The node as it is now.
    pub view: &'a View,
    /// When it was received.
    pub now: Instant,
    /// The sender.
    pub from: Source,
    /// Length of each datagram but the last, which may be smaller.
    pub segment_len: usize,
}

/// What the first half of the work found out about one piece of a buffer.
#[derive(Clone, Copy)]
struct Piece {
    /// Where it lies in memory, so that it is not taken for another one.
    at: usize,
    /// Its bytes.
    len: usize,
    /// `None`: this is no tunnel data.
    opened: Option<Result<Opened, DropReason>>,
}

/// The half of the receiving path that many threads may do at the same time:
/// decrypting. It remembers what it found until [`Inbound::finish`] takes it,
/// in the same order.
///
/// One for each thread, used for one batch after the other, so that its memory
/// is there already.
#[derive(Default)]
pub struct Opening {
    pieces: Vec<Piece>,
    /// How many were taken.
    taken: usize,
}

impl Opening {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decrypts datagrams behind each other in `buffer`, in place. What
    /// becomes of them is decided by [`Inbound::finish`], which must be given
    /// the same `received` and the same buffer.
    pub fn open(&mut self, received: &Received<'_>, buffer: &mut [u8]) {
        if self.taken == self.pieces.len() {
            self.pieces.clear();
            self.taken = 0;
        }
        let segment_len = received.segment_len.max(1);
        let mut rest = buffer;
        while !rest.is_empty() {
            let (datagrams, piece) = next_piece(rest, segment_len);
            let (piece, behind) = rest.split_at_mut(piece);
            rest = behind;
            let opened = (datagrams > 0).then(|| {
                let arrival = Arrival::new(received.view, received.now, piece)?;
                Ok(arrival.slot.session.open_train(piece, segment_len))
            });
            self.pieces.push(Piece {
                at: piece.as_ptr().addr(),
                len: piece.len(),
                opened,
            });
        }
    }

    /// The result for the next piece.
    #[inline]
    fn take(&mut self) -> Option<Piece> {
        let piece = self.pieces.get(self.taken).copied();
        self.taken += usize::from(piece.is_some());
        piece
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening")
            .field("pieces", &(self.pieces.len() - self.taken))
            .finish_non_exhaustive()
    }
}

/// Turns received datagrams into packets for the host. The replay windows are
/// in here: whoever has it, receives.
///
/// One thread takes what arrives with [`datagrams`](Self::datagrams). Several
/// share the work: each decrypts a batch of its own with an [`Opening`], and
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
            let (datagrams, piece) = next_piece(rest, segment_len);
            let (piece, behind) = rest.split_at_mut(piece);
            rest = behind;
            if datagrams == 0 {
                self.no_data(from, piece, sink);
                continue;
            }
            match Arrival::new(view, now, piece) {
                Ok(arrival) => {
                    // Opened and delivered piece by piece: what was decrypted
                    // is still in the cache.
                    let opened = arrival.slot.session.open_train(piece, segment_len);
                    self.train(&received, &arrival, opened, piece, sink);
                }
                Err(reason) => self.refuse(&received, reason, piece, sink),
            }
        }
    }

    /// The other half of [`Opening::open`]: takes the `buffer` whose turn it
    /// is, of which `opening` knows what can be believed. `received` must be
    /// as it was there, with the very same view.
    pub fn finish(
        &mut self,
        received: &Received<'_>,
        buffer: &mut [u8],
        opening: &mut Opening,
        sink: &mut dyn InSink,
    ) {
        let mut rest = buffer;
        while !rest.is_empty() {
            // Datagrams that were not opened are not delivered.
            let next = opening.take();
            let same = next.filter(|next| next.at == rest.as_ptr().addr());
            let Some((next, (piece, behind))) =
                same.and_then(|next| Some((next, rest.split_at_mut_checked(next.len)?)))
            else {
                opening.taken = opening.pieces.len();
                return;
            };
            rest = behind;
            let Some(opened) = next.opened else {
                self.no_data(received.from, piece, sink);
                continue;
            };
            let arrival = opened.and_then(|opened| {
                let arrival = Arrival::new(received.view, received.now, piece)?;
                Ok((arrival, opened))
            });
            match arrival {
                Ok((arrival, opened)) => self.train(received, &arrival, opened, piece, sink),
                Err(reason) => self.refuse(received, reason, piece, sink),
            }
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

    /// Drops all of a piece for the same reason.
    fn refuse(
        &mut self,
        received: &Received<'_>,
        reason: DropReason,
        datagrams: &[u8],
        sink: &mut dyn InSink,
    ) {
        for _ in datagrams.chunks(received.segment_len.max(1)) {
            self.drops.count(reason);
        }
        if reason == DropReason::UnknownSession {
            self.lost
                .note(received.view, received.now, received.from, sink);
        }
    }

    /// Takes datagrams of one session after an attempt to open them.
    #[inline]
    fn train(
        &mut self,
        received: &Received<'_>,
        arrival: &Arrival<'_>,
        opened: Opened,
        datagrams: &mut [u8],
        sink: &mut dyn InSink,
    ) {
        let segment_len = received.segment_len.max(1);
        let mut course = Course::new(received);
        for (i, datagram) in datagrams.chunks_mut(segment_len).enumerate() {
            let opened = opened.get(i, datagram);
            if let Err(reason) = self.opened(received, arrival, opened, datagram, &mut course, sink)
            {
                self.drops.count(reason);
            }
        }
        let alone = course.packets > 0 && datagrams.len() <= segment_len;
        course.end(received, arrival.peer);
        if alone && matches!(received.from, Source::Derp { .. }) {
            self.came_alone(arrival, sink);
        }
    }

    /// Tells a peer that sends much through a relay that its datagrams could come
    /// together. Notes get lost, and some peers do not understand them: told
    /// again, but ever less often.
    fn came_alone(&mut self, arrival: &Arrival<'_>, sink: &mut dyn InSink) {
        let Some(receiving) = self.sessions.get_mut(&arrival.index) else {
            return;
        };
        receiving.alone += 1;
        if receiving.alone == receiving.tell_at {
            receiving.tell_at = receiving.tell_at.saturating_mul(4);
            sink.out(arrival.peer.index, &relay_train::NOTE);
        }
    }

    /// Takes a datagram after an attempt to open it.
    #[inline]
    fn opened(
        &mut self,
        received: &Received<'_>,
        arrival: &Arrival<'_>,
        opened: Result<(u64, Range<usize>), OpenError>,
        datagram: &mut [u8],
        course: &mut Course,
        sink: &mut dyn InSink,
    ) -> Result<(), DropReason> {
        let Arrival { index, slot, peer } = *arrival;
        let Received {
            view, now, from, ..
        } = *received;
        let (counter, content) = opened.map_err(|error| match error {
            OpenError::Truncated | OpenError::Forged => DropReason::Forged,
        })?;
        self.accept(index, slot, counter, sink)?;
        if !course.noted {
            course.noted = true;
            self.note_source(now, slot, from, sink);
        }
        if content.is_empty() {
            peer.counters.received_keepalive(course.at);
            return Ok(());
        }
        let packet = datagram.get(content).unwrap_or_default();
        let packet = match IpPacket::parse(packet) {
            Ok(packet) => packet,
            Err(_) if relay_train::is_note(packet) => {
                slot.session.note_takes_trains();
                return Ok(());
            }
            Err(_) => return Err(DropReason::MalformedInner),
        };
        let parsed = *packet.parsed();
        course.packets += 1;
        course.bytes += parsed.total_len as u64;
        let service = if let Some(alike) = course.alike.as_mut().filter(|a| a.takes(&parsed)) {
            alike.packets += 1;
            alike.bytes += parsed.total_len as u64;
            alike.service
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
            let alike = pass.and_then(|pass| Alike::new(&parsed, pass, service));
            course.next(view, peer, alike);
            service
        };
        if let Some(service) = service {
            sink.deliver(service, packet.bytes());
            return Ok(());
        }
        self.deliver(datagram, &parsed, sink);
        Ok(())
    }

    /// Shows the counter of an authenticated packet to its replay window.
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
                    alone: 0,
                    tell_at: TELL_AT,
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

    /// Tells where authenticated traffic comes from, and asks for a successor
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
                told: now,
                asked: None,
            }
        });
        if heard.from != from || since(heard.told) >= HEARD_INTERVAL {
            heard.from = from;
            heard.told = now;
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

/// What at the front of `buffer` is worked on in one go: how many datagrams
/// with data of one session, as far as their headers say, and how many bytes.
/// With 0 datagrams of that kind it is a single one without data.
#[inline]
fn next_piece(buffer: &[u8], segment_len: usize) -> (usize, usize) {
    let datagrams = train_at_front(buffer, segment_len);
    let len = datagrams.max(1).saturating_mul(segment_len);
    (datagrams, len.min(buffer.len()))
}

/// How many datagrams at the front of `buffer` carry data of one session, as
/// far as their headers say. No more than are opened in one go.
#[inline]
fn train_at_front(buffer: &[u8], segment_len: usize) -> usize {
    // Type and receiver.
    let Some(head) = buffer.first_chunk::<8>() else {
        return 0;
    };
    buffer
        .chunks(segment_len)
        .take(MAX_TRAIN)
        .take_while(|datagram| is_transport(datagram) && datagram.starts_with(head))
        .count()
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

/// Whether a datagram that is no tunnel data has the outside of a message that
/// the engine understands.
fn concerns_engine(datagram: &[u8]) -> bool {
    looks_like_relayed_disco(datagram)
        || looks_like_stun(datagram)
        || Message::parse(datagram).is_ok()
}
