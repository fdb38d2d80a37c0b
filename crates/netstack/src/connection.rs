//! One TCP connection: a smoltcp interface with a single socket. Types of smoltcp do not
//! leave this file and `link.rs`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time as smol;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use warren_wire::ip::{IpPacket, Protocol, TcpFlags, checksum};

use crate::acks::{self, Acks};
use crate::limits::Grant;
use crate::link::Link;
use crate::sent::Sent;
use crate::{ConnectionError, Limits, Transmit, Tuple, mss};

const TCP_HEADER_LEN: usize = 20;
/// The interval of probes while data waits. smoltcp stops its timers when a window closes
/// before data is sent again, and the update of the window may be lost.
const PROBE_WITH_DATA: Duration = Duration::from_secs(2);
/// Where the checksum is in a TCP header.
const CHECKSUM: usize = 16;

/// The properties of a new connection.
pub(crate) struct Setup<'s> {
    pub(crate) now: Instant,
    /// The start of the clock that smoltcp sees.
    pub(crate) origin: Instant,
    pub(crate) tuple: Tuple,
    pub(crate) grant: Grant,
    /// The largest payload of a segment that this side takes and sends, in bytes.
    pub(crate) local_mss: u16,
    /// The zero bytes in front of each packet that is sent.
    pub(crate) headroom: usize,
    /// For the initial sequence number.
    pub(crate) seed: u64,
    pub(crate) limits: &'s Limits,
}

/// Changes that concern the application.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl News {
    pub(crate) fn is_some(self) -> bool {
        self.readable || self.writable
    }
}

/// The measure of what changed.
#[derive(Clone, Copy)]
struct Before {
    state: State,
    to_read: usize,
    to_send: usize,
}

/// When something happened last, for the deadlines.
struct Times {
    opened_at: Instant,
    /// When the last segment of the other side came.
    heard_at: Instant,
    /// When data was written after all before had been acknowledged.
    sent_at: Instant,
    released_at: Option<Instant>,
    /// The interval of probes while nothing is sent.
    keep_alive: Duration,
}

pub(crate) struct Connection {
    tuple: Tuple,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    origin: Instant,
    headroom: usize,
    local_mss: u16,
    /// The payload of a segment that both sides take, in bytes.
    segment_len: u16,
    grant: Grant,
    acks: Acks,
    sent: Sent,
    is_incoming: bool,
    times: Times,
    /// The application has nothing to send, and the handshake is not over.
    ends_when_open: bool,
    /// Why it ended, if it did not end in order.
    cause: Option<ConnectionError>,
    /// A segment came in TIME-WAIT, and the last ACK has to be sent again.
    last_ack_is_due: bool,
    last_ack: Option<Vec<u8>>,
    /// Not reported yet.
    pub(crate) news: News,
    /// Whether it waits for its turn to be reported.
    pub(crate) is_reported: bool,
    /// Whether it waits for its turn to send.
    pub(crate) is_queued: bool,
}

impl Connection {
    /// A connection that this side opens.
    pub(crate) fn connect(setup: &Setup<'_>) -> Option<Self> {
        let mut connection = Self::new(setup, false);
        let (local, remote) = (endpoint(setup.tuple.local), endpoint(setup.tuple.remote));
        let socket = connection.sockets.get_mut::<Socket<'_>>(connection.handle);
        socket
            .connect(connection.interface.context(), remote, local)
            .ok()?;
        Some(connection)
    }

    /// A connection that the other side opens with `syn`.
    pub(crate) fn accept(setup: &Setup<'_>, syn: &[u8]) -> Option<Self> {
        let mut connection = Self::new(setup, true);
        let local = endpoint(setup.tuple.local);
        let socket = connection.socket_mut();
        socket.listen(IpListenEndpoint::from(local)).ok()?;
        // smoltcp answers a SYN with a segment of its socket only.
        let _ = connection.receive(setup.now, syn);
        (connection.state() == State::SynReceived).then_some(connection)
    }

    fn new(setup: &Setup<'_>, is_incoming: bool) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = setup.seed;
        let now = clock(setup.origin, setup.now);
        let mut interface = Interface::new(config, &mut Link::new(None, 0), now);
        let address = address(setup.tuple.local.ip());
        interface.update_ip_addrs(|addresses| {
            let prefix_len = if address.version() == smoltcp::wire::IpVersion::Ipv4 {
                32
            } else {
                128
            };
            // An empty list has space for one.
            let _ = addresses.push(IpCidr::new(address, prefix_len));
        });
        let buffer = || SocketBuffer::new(vec![0; setup.grant.buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(duration(setup.limits.keep_alive)));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            tuple: setup.tuple,
            interface,
            sockets,
            handle,
            origin: setup.origin,
            headroom: setup.headroom,
            local_mss: setup.local_mss,
            segment_len: setup.local_mss.min(mss::DEFAULT),
            grant: setup.grant,
            acks: Acks::default(),
            sent: Sent::default(),
            is_incoming,
            times: Times {
                opened_at: setup.now,
                heard_at: setup.now,
                sent_at: setup.now,
                released_at: None,
                keep_alive: setup.limits.keep_alive,
            },
            ends_when_open: false,
            cause: None,
            last_ack_is_due: false,
            last_ack: None,
            news: News::default(),
            is_reported: false,
            is_queued: false,
        }
    }

    pub(crate) fn tuple(&self) -> Tuple {
        self.tuple
    }

    pub(crate) fn grant(&self) -> Grant {
        self.grant
    }

    pub(crate) fn is_incoming(&self) -> bool {
        self.is_incoming
    }

    // ---- the network ----

    /// Takes a packet of the other side, whose checksums are good. Returns the answer
    /// that smoltcp gives at once.
    pub(crate) fn receive(&mut self, now: Instant, packet: &[u8]) -> Option<Transmit> {
        let before = self.measure();
        self.times.heard_at = now;
        self.sent.received(packet);
        let is_syn =
            IpPacket::parse(packet).is_ok_and(|packet| packet.tcp_flags.has(TcpFlags::SYN));
        let mut corrected = Vec::new();
        let mut packet = packet;
        let opening = matches!(before.state, State::Listen | State::SynSent);
        if is_syn {
            corrected.extend_from_slice(packet);
            let size = mss::limit(&mut corrected, self.local_mss);
            if opening {
                self.segment_len = size;
            }
            packet = &corrected;
        }
        let expanded = self.acks.expand(packet, self.segment_len);
        // After three of these smoltcp stops its timer to send a segment again, and a FIN
        // without data would never be sent again.
        let only_fin_waits = matches!(
            before.state,
            State::FinWait1 | State::LastAck | State::Closing
        ) && before.to_send == 0;
        if expanded.is_duplicate && only_fin_waits {
            return None;
        }
        if !expanded.before.is_empty() {
            let mut piece = packet.to_vec();
            for number in expanded.before {
                acks::set_number(&mut piece, number);
                // An ACK that is in order has no answer.
                let _ = self.process(now, &piece);
            }
        }
        let answer = self.process(now, packet);
        let has_data = self.socket().send_queue() > 0;
        for _ in 0..if has_data { expanded.behind } else { 0 } {
            let _ = self.process(now, packet);
        }
        self.last_ack_is_due |= self.state() == State::TimeWait;
        self.note_changes(now, before);
        answer.map(|frame| self.finished(frame))
    }

    /// Gives a packet to smoltcp.
    fn process(&mut self, now: Instant, packet: &[u8]) -> Option<Vec<u8>> {
        let mut link = Link::new(Some(packet), self.headroom);
        let at = clock(self.origin, now);
        self.interface
            .poll_ingress_single(at, &mut link, &mut self.sockets);
        link.into_sent()
    }

    /// The next packet to send, if there is one.
    pub(crate) fn transmit(&mut self, now: Instant) -> Option<Transmit> {
        let before = self.measure();
        let mut link = Link::new(None, self.headroom);
        let at = clock(self.origin, now);
        self.interface.poll_egress(at, &mut link, &mut self.sockets);
        self.note_changes(now, before);
        let sent = link.into_sent().map(|frame| self.finished(frame));
        if self.state() == State::TimeWait {
            self.last_ack_is_due = false;
            if let Some(sent) = &sent {
                self.last_ack = Some(sent.frame.clone());
            }
        }
        sent
    }

    /// Whether there is something to send now.
    pub(crate) fn wants_transmit(&mut self, now: Instant) -> bool {
        if self.state() == State::TimeWait && !self.last_ack_is_due {
            return false;
        }
        let at = clock(self.origin, now);
        let due = self.interface.poll_at(at, &self.sockets);
        due.is_some_and(|due| due <= at)
    }

    /// When to look at it again.
    pub(crate) fn deadline(&mut self, now: Instant, limits: &Limits) -> Option<Instant> {
        let ends = self.ends_at(limits);
        if self.state() == State::TimeWait {
            return ends;
        }
        let at = clock(self.origin, now);
        let due = self.interface.poll_at(at, &self.sockets);
        let due = due.map(|due| {
            let micros = (due - at).total_micros();
            if due <= at {
                now
            } else {
                now + Duration::from_micros(micros)
            }
        });
        [ends, due].into_iter().flatten().min()
    }

    /// Ends it if the other side was silent for too long; whether it did.
    pub(crate) fn end_if_overdue(&mut self, now: Instant, limits: &Limits) -> bool {
        let overdue = self.ends_at(limits).is_some_and(|ends| ends <= now);
        if overdue {
            self.abort(now, Some(ConnectionError::TimedOut));
        }
        overdue
    }

    /// When it ends without a sign of the other side.
    fn ends_at(&self, limits: &Limits) -> Option<Instant> {
        let state = self.state();
        Some(match (state, self.times.released_at) {
            (State::Closed, _) => return None,
            (State::Listen | State::SynSent | State::SynReceived, _) => {
                self.times.opened_at + limits.opening
            }
            (_, Some(released_at)) => {
                (self.times.heard_at + limits.released).min(released_at + limits.released_total)
            }
            (_, None) if self.socket().send_queue() > 0 => {
                self.times.heard_at.max(self.times.sent_at) + limits.unanswered
            }
            (State::Established | State::CloseWait, None) => self.times.heard_at + limits.idle,
            (_, None) => self.times.heard_at + limits.half_closed,
        })
    }

    // ---- the application ----

    /// Whether it is open: the handshake is over.
    pub(crate) fn is_open(&self) -> Result<bool, ConnectionError> {
        match self.state() {
            State::Listen | State::SynSent | State::SynReceived => Ok(false),
            State::Closed => Err(self.cause.unwrap_or(ConnectionError::Closed)),
            _ => Ok(true),
        }
    }

    /// Reads what has come: `Some(0)` at the end, `None` while nothing is there.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>, ConnectionError> {
        let cause = self.cause;
        let state = self.state();
        let socket = self.socket_mut();
        if socket.can_recv() {
            return Ok(Some(socket.recv_slice(out).unwrap_or(0)));
        }
        match (state, cause) {
            (State::CloseWait | State::LastAck | State::Closing | State::TimeWait, _)
            | (State::Closed, None) => Ok(Some(0)),
            (State::Closed, Some(cause)) => Err(cause),
            _ => Ok(None),
        }
    }

    /// Takes bytes to send: `None` while there is no space.
    pub(crate) fn write(
        &mut self,
        now: Instant,
        data: &[u8],
    ) -> Result<Option<usize>, ConnectionError> {
        let closed = self.cause.unwrap_or(ConnectionError::Closed);
        let was_empty = self.socket().send_queue() == 0;
        let socket = self.socket_mut();
        if socket.may_send() {
            let taken = socket.send_slice(data).map_err(|_| closed)?;
            if taken > 0 {
                socket.set_keep_alive(Some(duration(PROBE_WITH_DATA)));
            }
            if was_empty && taken > 0 {
                self.times.sent_at = now;
            }
            return Ok((taken > 0 || data.is_empty()).then_some(taken));
        }
        match self.state() {
            State::Listen | State::SynSent | State::SynReceived => Ok(None),
            _ => Err(closed),
        }
    }

    /// Sends the end behind what was written.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        if matches!(self.state(), State::SynSent | State::SynReceived) {
            // smoltcp would forget that its SYN needs an acknowledgment.
            self.ends_when_open = true;
            return;
        }
        if self.socket().send_queue() == 0 {
            self.times.sent_at = now;
        }
        self.socket_mut().close();
    }

    /// The application does not use it any more. Written bytes are still sent; unread
    /// ones lead to a reset.
    pub(crate) fn release(&mut self, now: Instant) {
        self.times.released_at = Some(now);
        match self.state() {
            State::Listen | State::SynSent => self.abort(now, None),
            _ if self.socket().recv_queue() > 0 => self.abort(now, None),
            _ => self.shut_down(now),
        }
    }

    /// Ends it at once, with a reset for the other side.
    pub(crate) fn abort(&mut self, now: Instant, cause: Option<ConnectionError>) {
        let before = self.measure();
        if before.state != State::Closed {
            self.cause = self.cause.or(cause).or(Some(ConnectionError::Closed));
            self.socket_mut().abort();
            self.note_changes(now, before);
        }
    }

    /// Whether its pair of addresses may be used by another connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.state() == State::Closed
    }

    /// Whether nothing is left to do, for the application and for the network.
    pub(crate) fn is_over(&mut self, now: Instant) -> bool {
        self.times.released_at.is_some()
            && match self.state() {
                State::Closed => !self.wants_transmit(now),
                State::TimeWait => !self.last_ack_is_due,
                _ => false,
            }
    }

    /// The ACK with which it ended, if the other side may need it again.
    pub(crate) fn into_last_ack(self) -> Option<Vec<u8>> {
        let is_waiting = self.state() == State::TimeWait;
        self.last_ack.filter(|_| is_waiting)
    }

    // ---- inside ----

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn state(&self) -> State {
        self.socket().state()
    }

    fn measure(&self) -> Before {
        let socket = self.socket();
        Before {
            state: socket.state(),
            to_read: socket.recv_queue(),
            to_send: socket.send_queue(),
        }
    }

    /// Draws the consequences of a state that smoltcp changed.
    fn note_changes(&mut self, now: Instant, before: Before) {
        // A reset in SYN-RECEIVED makes smoltcp listen again.
        if before.state == State::SynReceived && self.state() == State::Listen {
            self.socket_mut().abort();
        }
        let is_open = matches!(self.state(), State::Established | State::CloseWait);
        if self.ends_when_open && is_open {
            self.ends_when_open = false;
            self.shut_down(now);
        }
        let state = self.state();
        if self.times.released_at.is_some()
            && self.socket().recv_queue() > 0
            && state != State::Closed
        {
            // Nothing reads it any more (RFC 2525, section 2.17).
            self.cause = self.cause.or(Some(ConnectionError::Closed));
            self.socket_mut().abort();
        }
        if state == State::Closed && before.state != State::Closed {
            self.cause = self.cause.or(match before.state {
                State::SynSent => Some(ConnectionError::Refused),
                State::LastAck | State::Closing | State::TimeWait => None,
                _ => Some(ConnectionError::Reset),
            });
        }
        let after = self.measure();
        if after.to_send == 0 && before.to_send > 0 {
            let keep_alive = self.times.keep_alive;
            self.socket_mut().set_keep_alive(Some(duration(keep_alive)));
        }
        let changed = after.state != before.state;
        if after.to_send < before.to_send && after.to_send > 0 {
            self.times.sent_at = now;
        }
        self.news.readable |= changed || after.to_read > before.to_read;
        self.news.writable |= changed || after.to_send < before.to_send;
    }

    /// A frame of smoltcp with the options and checksums that the network needs.
    fn finished(&mut self, mut frame: Vec<u8>) -> Transmit {
        let packet = frame.get_mut(self.headroom..).unwrap_or_default();
        self.sent.correct(packet);
        let segment_len = finish(packet, self.local_mss, self.segment_len);
        Transmit { frame, segment_len }
    }
}

/// Corrects the segment size of a SYN, and completes the checksum unless the packet is
/// longer than one segment: then the length of the segments is returned.
fn finish(packet: &mut [u8], local_mss: u16, segment_len: u16) -> Option<u16> {
    let parsed = *IpPacket::parse(packet).ok()?.parsed();
    let start = parsed.transport_offset;
    if parsed.tcp_flags.has(TcpFlags::SYN) {
        mss::limit(packet, local_mss);
    }
    let segment = packet.get_mut(start..)?;
    let header_len = usize::from(*segment.get(12)? >> 4) * 4;
    let payload = segment.len().saturating_sub(header_len.max(TCP_HEADER_LEN));
    if payload > usize::from(segment_len) {
        return Some(segment_len);
    }
    segment.get_mut(CHECKSUM..CHECKSUM + 2)?.fill(0);
    let sum = checksum::transport_checksum(parsed.src, parsed.dst, Protocol::TCP, segment);
    let field = segment.get_mut(CHECKSUM..CHECKSUM + 2)?;
    field.copy_from_slice(&sum.to_be_bytes());
    None
}

/// The clock of smoltcp. It begins after its zero, which smoltcp takes for "at once".
fn clock(origin: Instant, now: Instant) -> smol::Instant {
    let since = now.saturating_duration_since(origin) + Duration::from_secs(1);
    smol::Instant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn duration(duration: Duration) -> smol::Duration {
    smol::Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn address(address: IpAddr) -> IpAddress {
    IpAddress::from(address)
}

fn endpoint(address: SocketAddr) -> IpEndpoint {
    IpEndpoint::from(address)
}
