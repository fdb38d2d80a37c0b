//! The state of all connections and flows, and the way of a packet to one of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_keys::Entropy;
use warren_timers::DeadlineQueue;
use warren_wire::ip::{
    Fragment, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, Protocol, TcpFlags, Version, checksum,
    icmp, tcp, udp,
};

use crate::connection::{Connection, Setup};
use crate::flows::{Arrived, Flows};
use crate::half_open::HalfOpen;
use crate::limits::Pool;
use crate::time_wait::TimeWait;
use crate::{
    Checksum, ConnectionError, ConnectionId, Counters, Event, FlowId, Limits, OpenError, Transmit,
    Tuple,
};

const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
/// Answers (resets, echo replies, datagrams) that may wait to be sent.
const WAITING_ANSWERS: usize = 1024;
/// Echo requests to other addresses that may wait for the application.
const WAITING_ECHOES: usize = 64;
/// Ports of this side for connections that it opens (the range of Linux).
const PORTS: std::ops::Range<u16> = 32_768..61_000;
/// Ports that are tried.
const PORT_TRIES: usize = 256;
/// The time after which a connection is looked at again that wanted to send and had
/// nothing.
const NOTHING_TO_SEND: Duration = Duration::from_millis(10);

/// A TCP/IP stack as one state. See the documentation of the crate.
pub struct Netstack {
    limits: Limits,
    mtu: usize,
    headroom: usize,
    entropy: Box<dyn Entropy>,
    origin: Instant,
    addresses: BTreeSet<IpAddr>,
    last_id: u64,
    pool: Pool,
    connections: FxHashMap<ConnectionId, Box<Connection>>,
    /// Connections, and SYNs that wait, by their ends.
    tuples: BTreeMap<Tuple, ConnectionId>,
    /// Accepted connections by the address of the other side.
    sources: BTreeMap<IpAddr, usize>,
    half_open: HalfOpen,
    time_wait: TimeWait,
    flows: Flows,
    deadlines: DeadlineQueue<ConnectionId>,
    /// Connections that have something to send, in their turn.
    ready: VecDeque<ConnectionId>,
    /// Connections with news.
    changed: VecDeque<ConnectionId>,
    answers: VecDeque<Transmit>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Netstack {
    /// A stack without connections. `mtu` is the length of the longest packet in bytes;
    /// `headroom` the number of zero bytes in front of each [`Transmit::frame`].
    pub fn new(
        now: Instant,
        mtu: u16,
        headroom: usize,
        limits: Limits,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        Self {
            pool: Pool::new(&limits),
            limits,
            mtu: usize::from(mtu),
            headroom,
            entropy,
            origin: now,
            addresses: BTreeSet::new(),
            last_id: 0,
            connections: FxHashMap::default(),
            tuples: BTreeMap::new(),
            sources: BTreeMap::new(),
            half_open: HalfOpen::default(),
            time_wait: TimeWait::default(),
            flows: Flows::default(),
            deadlines: DeadlineQueue::new(),
            ready: VecDeque::new(),
            changed: VecDeque::new(),
            answers: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Sets the addresses of this node, whose echo requests are answered.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses = addresses.into_iter().collect();
    }

    /// The counts so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The number of connections that exist, without SYNs that wait.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The number of SYNs that wait for the application.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// The number of UDP flows.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    // ---- the network ----

    /// Takes a packet: an IP packet, which may be a TCP superpacket.
    pub fn receive(&mut self, now: Instant, packet: &[u8], checksum: Checksum) {
        let Ok(packet) = IpPacket::parse(packet) else {
            self.counters.malformed += 1;
            return;
        };
        let plain = match packet.version {
            Version::V4 => packet.transport_offset >= IPV4_HEADER_LEN,
            Version::V6 => packet.transport_offset == IPV6_HEADER_LEN,
        };
        if packet.fragment != Fragment::Whole || !plain {
            self.counters.unsupported += 1;
            return;
        }
        if !is_unicast(packet.src) || !is_unicast(packet.dst) {
            self.counters.malformed += 1;
            return;
        }
        if packet.is_icmp() {
            self.echo(&packet);
            return;
        }
        let tuple = Tuple {
            local: SocketAddr::new(packet.dst, packet.dst_port),
            remote: SocketAddr::new(packet.src, packet.src_port),
        };
        let has_ports = packet.src_port != 0 && packet.dst_port != 0 && tuple.local != tuple.remote;
        if !has_ports || (checksum == Checksum::Complete && !is_intact(&packet)) {
            self.counters.malformed += 1;
            return;
        }
        match packet.protocol {
            Protocol::TCP => self.segment(now, tuple, &packet),
            Protocol::UDP => self.datagram(now, tuple, &packet),
            _ => self.counters.unsupported += 1,
        }
    }

    /// The next packet to send. The caller sends it or loses it; it need not ask while it
    /// cannot send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.is_queued = false;
            if let Some(sent) = connection.transmit(now) {
                self.settle(now, id);
                return Some(sent);
            }
            // Asking again at once would ask for ever.
            let again = connection.deadline(now, &self.limits);
            self.deadlines
                .update(id, again.map(|at| at.max(now + NOTHING_TO_SEND)));
            self.note_news(id);
            self.remove_if_over(now, id);
        }
        None
    }

    /// The next event for the application.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(id) = self.changed.pop_front() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.is_reported = false;
                let news = std::mem::take(&mut connection.news);
                return Some(Event::Connection {
                    id,
                    readable: news.readable,
                    writable: news.writable,
                });
            }
        }
        None
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and the reason.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        [
            (self.deadlines.next_deadline(), "connection"),
            (self.half_open.next_deadline(), "half-open connection"),
            (self.time_wait.next_deadline(), "time-wait"),
            (self.flows.next_deadline(), "flow"),
        ]
        .into_iter()
        .filter_map(|(at, reason)| at.map(|at| (at, reason)))
        .min()
    }

    /// Does what is due. A call that comes early does nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.deadlines.pop_due(now) {
            if let Some(connection) = self.connections.get_mut(&id) {
                if connection.end_if_overdue(now, &self.limits) {
                    self.counters.connections_timed_out += 1;
                }
                self.settle(now, id);
            }
        }
        while let Some(waiting) = self.half_open.pop_due(now) {
            self.tuples.remove(&waiting.tuple);
            self.counters.half_open_dropped += 1;
        }
        self.time_wait.end_due(now);
        while let Some(id) = self.flows.pop_due(now) {
            self.end_flow(id);
        }
    }

    // ---- connections ----

    /// Opens a connection from `local` to `remote`. [`Event::Connection`] reports when it
    /// is open or has failed: see [`is_open`](Self::is_open).
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn connect(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
    ) -> Result<ConnectionId, OpenError> {
        if local.is_ipv4() != remote.is_ipv4()
            || !is_unicast(local)
            || !is_unicast(remote.ip())
            || remote.port() == 0
        {
            return Err(OpenError::Unusable);
        }
        if self.connections.len() >= self.limits.connections {
            self.counters.connections_refused += 1;
            return Err(OpenError::TooMany);
        }
        let is_free = |stack: &Self, tuple: &Tuple| {
            tuple.local != tuple.remote
                && !stack.tuples.contains_key(tuple)
                && !stack.time_wait.contains(tuple)
        };
        let tuple = self
            .free_port(local, remote, is_free)
            .ok_or(OpenError::PortInUse)?;
        let id = ConnectionId(self.next_id());
        let grant = self.pool.take();
        let seed = self.random();
        let setup = self.setup(now, tuple, grant, seed);
        let Some(connection) = Connection::connect(&setup) else {
            self.pool.give_back(grant);
            return Err(OpenError::Unusable);
        };
        self.counters.connected += 1;
        self.add(now, id, connection);
        Ok(id)
    }

    /// Accepts an [incoming](Event::Incoming) connection.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] if the other side, or a limit, has withdrawn it.
    pub fn accept(&mut self, now: Instant, id: ConnectionId) -> Result<(), ConnectionError> {
        let waiting = self.half_open.remove(id).ok_or(ConnectionError::Closed)?;
        let tuple = waiting.tuple;
        self.tuples.remove(&tuple);
        let of_source = self.sources.get(&tuple.remote.ip()).copied().unwrap_or(0);
        if self.connections.len() >= self.limits.connections
            || of_source >= self.limits.connections_per_source
        {
            self.counters.connections_refused += 1;
            self.reset(&waiting.syn);
            return Err(ConnectionError::Closed);
        }
        let grant = self.pool.take();
        let seed = self.random();
        let setup = self.setup(now, tuple, grant, seed);
        let Some(connection) = Connection::accept(&setup, &waiting.syn) else {
            self.pool.give_back(grant);
            return Err(ConnectionError::Closed);
        };
        *self.sources.entry(tuple.remote.ip()).or_default() += 1;
        self.counters.accepted += 1;
        self.add(now, id, connection);
        Ok(())
    }

    /// Refuses an [incoming](Event::Incoming) connection with a reset.
    pub fn refuse(&mut self, id: ConnectionId) {
        if let Some(waiting) = self.half_open.remove(id) {
            self.tuples.remove(&waiting.tuple);
            self.reset(&waiting.syn);
        }
    }

    /// Drops an [incoming](Event::Incoming) connection without an answer, as if its
    /// destination did not exist.
    pub fn ignore(&mut self, id: ConnectionId) {
        if let Some(waiting) = self.half_open.remove(id) {
            self.tuples.remove(&waiting.tuple);
        }
    }

    /// Whether the handshake is over.
    ///
    /// # Errors
    /// [`ConnectionError`], with the reason of the end.
    pub fn is_open(&self, id: ConnectionId) -> Result<bool, ConnectionError> {
        let connection = self.connections.get(&id).ok_or(ConnectionError::Closed)?;
        connection.is_open()
    }

    /// Both ends of a connection.
    pub fn tuple(&self, id: ConnectionId) -> Option<Tuple> {
        self.connections
            .get(&id)
            .map(|connection| connection.tuple())
    }

    /// Reads what has come into `out`: `Some(0)` at the end of the other side's data,
    /// `None` while there is nothing; an event follows then.
    ///
    /// # Errors
    /// [`ConnectionError`] after an end out of order.
    pub fn read(
        &mut self,
        now: Instant,
        id: ConnectionId,
        out: &mut [u8],
    ) -> Result<Option<usize>, ConnectionError> {
        let connection = self
            .connections
            .get_mut(&id)
            .ok_or(ConnectionError::Closed)?;
        let read = connection.read(out)?;
        if read.is_some_and(|read| read > 0) {
            // The window grew.
            self.settle(now, id);
        }
        Ok(read)
    }

    /// Takes bytes to send, and returns how many: `None` while there is no space; an
    /// event follows then.
    ///
    /// # Errors
    /// [`ConnectionError`] when nothing can be sent any more.
    pub fn write(
        &mut self,
        now: Instant,
        id: ConnectionId,
        data: &[u8],
    ) -> Result<Option<usize>, ConnectionError> {
        let connection = self
            .connections
            .get_mut(&id)
            .ok_or(ConnectionError::Closed)?;
        let written = connection.write(now, data)?;
        if written.is_some() {
            self.settle(now, id);
        }
        Ok(written)
    }

    /// Ends the data of this side; the other side may go on.
    pub fn shut_down(&mut self, now: Instant, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.shut_down(now);
            self.settle(now, id);
        }
    }

    /// Gives a connection, or one that waits to be accepted, back. Written bytes are
    /// still sent.
    pub fn release(&mut self, now: Instant, id: ConnectionId) {
        self.refuse(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.release(now);
            self.settle(now, id);
        }
    }

    /// Gives a connection back and resets it.
    pub fn abort(&mut self, now: Instant, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.abort(now, None);
        }
        self.release(now, id);
    }

    // ---- flows ----

    /// Opens a UDP flow to `remote`, from `local` or, if its port is zero, from a free
    /// port.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_flow(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<FlowId, OpenError> {
        if local.is_ipv4() != remote.is_ipv4()
            || !is_unicast(local.ip())
            || !is_unicast(remote.ip())
            || remote.port() == 0
        {
            return Err(OpenError::Unusable);
        }
        let tuple = if local.port() == 0 {
            let is_free = |stack: &Self, tuple: &Tuple| !stack.flows.is_used(tuple);
            self.free_port(local.ip(), remote, is_free)
                .ok_or(OpenError::PortInUse)?
        } else {
            Tuple { local, remote }
        };
        if self.flows.is_used(&tuple) {
            return Err(OpenError::PortInUse);
        }
        self.make_room_for_flow();
        let id = FlowId(self.next_id());
        self.flows.open(now, &self.limits, tuple, id)?;
        Ok(id)
    }

    /// Both ends of a flow; `None` when it has ended.
    pub fn flow_tuple(&self, id: FlowId) -> Option<Tuple> {
        self.flows.tuple(id)
    }

    /// The next datagram of a flow; `None` while none waits, and an event follows then.
    pub fn read_datagram(&mut self, id: FlowId) -> Option<Vec<u8>> {
        self.flows.read(id)
    }

    /// Sends a datagram. `false`: the flow has ended, or the datagram is longer than the
    /// MTU allows.
    pub fn send_datagram(&mut self, now: Instant, id: FlowId, payload: &[u8]) -> bool {
        let Some(tuple) = self.flows.tuple(id) else {
            return false;
        };
        let header = if tuple.local.is_ipv4() {
            IPV4_HEADER_LEN
        } else {
            IPV6_HEADER_LEN
        };
        if header + UDP_HEADER_LEN + payload.len() > self.mtu {
            return false;
        }
        self.flows.touch(now, &self.limits, id);
        match udp::packet(tuple.local, tuple.remote, payload) {
            Ok(packet) => {
                self.answer(&packet);
                true
            }
            Err(_) => false,
        }
    }

    /// Gives a flow back.
    pub fn close_flow(&mut self, id: FlowId) {
        self.flows.close(id);
    }

    // ---- echo ----

    /// Answers an echo request that an [`Event::Echo`] reported.
    pub fn answer_echo(&mut self, mut request: Vec<u8>) {
        if icmp::reply_in_place(&mut request) {
            self.answer(&request);
        }
    }

    fn echo(&mut self, packet: &IpPacket<'_>) {
        if !matches!(packet.icmp(), Some(icmp::Icmp::EchoRequest(_))) {
            return;
        }
        let request = packet.bytes().to_vec();
        if self.addresses.contains(&packet.dst) {
            self.answer_echo(request);
        } else if self.events.len() < WAITING_ECHOES {
            self.events.push_back(Event::Echo(request));
        } else {
            self.counters.answers_dropped += 1;
        }
    }

    // ---- inside ----

    fn segment(&mut self, now: Instant, tuple: Tuple, packet: &IpPacket<'_>) {
        let flags = packet.tcp_flags;
        if let Some(id) = self.tuples.get(&tuple).copied() {
            if let Some(connection) = self.connections.get_mut(&id) {
                if let Some(answer) = connection.receive(now, packet.bytes()) {
                    self.push_answer(answer);
                }
                self.settle(now, id);
            } else if flags.has(TcpFlags::RST) {
                self.ignore(id);
            }
            // A SYN that is repeated waits already.
            return;
        }
        let opens = flags.opens() && flags.0 & (TcpFlags::RST | TcpFlags::FIN) == 0;
        if let Some(last_ack) = self.time_wait.get(&tuple) {
            if !opens {
                if !flags.has(TcpFlags::RST) {
                    let frame = last_ack.to_vec();
                    self.push_answer(Transmit {
                        frame,
                        segment_len: None,
                    });
                }
                return;
            }
            self.time_wait.remove(&tuple);
        }
        if opens {
            self.incoming(now, tuple, packet);
        } else if !flags.has(TcpFlags::RST) {
            self.counters.resets += 1;
            self.reset(packet.bytes());
        }
    }

    fn incoming(&mut self, now: Instant, tuple: Tuple, packet: &IpPacket<'_>) {
        // A SYN without data is kept (RFC 7413 sends the data again), so its length is
        // bounded.
        let header_len = packet.transport().get(12);
        let header_len = header_len.map_or(0, |byte| usize::from(byte >> 4) * 4);
        if packet.transport().len() != header_len.max(TCP_HEADER_LEN) {
            self.counters.unsupported += 1;
            return;
        }
        let source = tuple.remote.ip();
        if self.half_open.of_source(source) >= self.limits.half_open_per_source {
            self.counters.half_open_dropped += 1;
            return;
        }
        while self.half_open.len() >= self.limits.half_open.max(1) {
            let Some(oldest) = self.half_open.remove_oldest() else {
                break;
            };
            self.tuples.remove(&oldest.tuple);
            self.counters.half_open_dropped += 1;
        }
        let id = ConnectionId(self.next_id());
        let ends = now + self.limits.opening;
        self.half_open
            .insert(id, tuple, packet.bytes().to_vec(), ends);
        self.tuples.insert(tuple, id);
        self.events.push_back(Event::Incoming { id, tuple });
    }

    fn datagram(&mut self, now: Instant, tuple: Tuple, packet: &IpPacket<'_>) {
        let Some(payload) = packet.udp_payload() else {
            self.counters.malformed += 1;
            return;
        };
        // A datagram that is refused must not end the flow of another source.
        if !self.flows.is_used(&tuple) && self.flows.admits(&self.limits, &tuple, payload.len()) {
            self.make_room_for_flow();
        }
        let id = FlowId(self.next_id());
        match self.flows.arrive(now, &self.limits, tuple, id, payload) {
            Arrived::Queued(event) => self.events.extend(event),
            Arrived::Dropped => self.counters.datagrams_dropped += 1,
            Arrived::Refused => self.counters.flows_evicted += 1,
        }
    }

    fn make_room_for_flow(&mut self) {
        while self.flows.len() >= self.limits.flows.max(1) {
            let Some(id) = self.flows.longest_idle() else {
                return;
            };
            self.counters.flows_evicted += 1;
            self.end_flow(id);
        }
    }

    fn end_flow(&mut self, id: FlowId) {
        if self.flows.close(id) {
            self.events.push_back(Event::Flow(id));
        }
    }

    fn setup(
        &self,
        now: Instant,
        tuple: Tuple,
        grant: crate::limits::Grant,
        seed: u64,
    ) -> Setup<'_> {
        let headers = TCP_HEADER_LEN
            + if tuple.local.is_ipv4() {
                IPV4_HEADER_LEN
            } else {
                IPV6_HEADER_LEN
            };
        let local_mss = self.mtu.saturating_sub(headers);
        Setup {
            now,
            origin: self.origin,
            tuple,
            grant,
            local_mss: u16::try_from(local_mss).unwrap_or(u16::MAX),
            headroom: self.headroom,
            seed,
            limits: &self.limits,
        }
    }

    fn add(&mut self, now: Instant, id: ConnectionId, connection: Connection) {
        self.tuples.insert(connection.tuple(), id);
        self.connections.insert(id, Box::new(connection));
        self.settle(now, id);
    }

    /// Draws the consequences of what happened to a connection.
    fn settle(&mut self, now: Instant, id: ConnectionId) {
        self.note_news(id);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_closed() && self.tuples.get(&connection.tuple()) == Some(&id) {
            self.tuples.remove(&connection.tuple());
        }
        if connection.wants_transmit(now) {
            if !connection.is_queued {
                connection.is_queued = true;
                self.ready.push_back(id);
            }
            // It is looked at when it has sent.
            self.deadlines.remove(&id);
            return;
        }
        let deadline = connection.deadline(now, &self.limits);
        self.deadlines.update(id, deadline);
        self.remove_if_over(now, id);
    }

    fn note_news(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.news.is_some() && !connection.is_reported {
            connection.is_reported = true;
            self.changed.push_back(id);
        }
    }

    fn remove_if_over(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if !connection.is_over(now) {
            return;
        }
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        self.deadlines.remove(&id);
        let tuple = connection.tuple();
        if self.tuples.get(&tuple) == Some(&id) {
            self.tuples.remove(&tuple);
        }
        self.pool.give_back(connection.grant());
        let source = tuple.remote.ip();
        if connection.is_incoming()
            && let Some(count) = self.sources.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
        if let Some(last_ack) = connection.into_last_ack() {
            let ends = now + self.limits.time_wait;
            self.time_wait
                .insert(ends, tuple, last_ack, self.limits.time_waits);
        }
    }

    /// Sends a reset for this packet.
    fn reset(&mut self, packet: &[u8]) {
        let reset = IpPacket::parse(packet).ok();
        if let Some(reset) = reset.and_then(|packet| tcp::reset_for(&packet)) {
            self.answer(&reset);
        }
    }

    fn answer(&mut self, packet: &[u8]) {
        let mut frame = vec![0; self.headroom];
        frame.extend_from_slice(packet);
        self.push_answer(Transmit {
            frame,
            segment_len: None,
        });
    }

    fn push_answer(&mut self, answer: Transmit) {
        if self.answers.len() < WAITING_ANSWERS {
            self.answers.push_back(answer);
        } else {
            self.counters.answers_dropped += 1;
        }
    }

    fn free_port(
        &mut self,
        local: IpAddr,
        remote: SocketAddr,
        is_free: impl Fn(&Self, &Tuple) -> bool,
    ) -> Option<Tuple> {
        let count = u64::from(PORTS.end - PORTS.start);
        (0..PORT_TRIES).find_map(|_| {
            // Below the count, which fits.
            let port = PORTS.start + (self.random() % count) as u16;
            let local = SocketAddr::new(local, port);
            let tuple = Tuple { local, remote };
            is_free(self, &tuple).then_some(tuple)
        })
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

impl std::fmt::Debug for Netstack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netstack")
            .field("connections", &self.connections.len())
            .field("half_open", &self.half_open.len())
            .field("flows", &self.flows.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Whether an address can be one end of a connection through the tunnel.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast())
                // 240.0.0.0/4 and 0.0.0.0/8 name no host.
                && v4.octets()[0] < 240
                && v4.octets()[0] != 0
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

/// Whether the transport checksum is good.
fn is_intact(packet: &IpPacket<'_>) -> bool {
    let transport = packet.transport();
    // UDP over IPv4 may have none (RFC 768).
    let has_none = packet.protocol == Protocol::UDP
        && packet.version == Version::V4
        && transport.get(6..8) == Some(&[0, 0]);
    has_none
        || checksum::transport_checksum(packet.src, packet.dst, packet.protocol, transport) == 0
}
