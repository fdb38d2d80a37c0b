//! Programs on the hosts: numbered UDP datagrams to a peer, which sends each
//! one back.
//!
//! Every datagram names its sender and its receiver, so that a host that gets it
//! can check whether it is the receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_wire::ip::{IpPacket, udp};

use crate::time::{SimTime, millis};

const MAGIC: [u8; 4] = *b"SIM1";
const HEADER: usize = 21;
/// The port of the echo program on every host.
const ECHO_PORT: u16 = 7;
/// The first of the ports that flows send from.
const FIRST_FLOW_PORT: u16 = 20_000;

/// The properties of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSpec {
    /// Time between two datagrams.
    pub interval: Duration,
    /// Bytes of UDP payload, at least 21.
    pub size: usize,
    /// Inside IPv6 instead of IPv4.
    pub v6: bool,
}

impl FlowSpec {
    /// A datagram of 100 bytes every `interval`.
    pub const fn every(interval: Duration) -> Self {
        Self {
            interval,
            size: 100,
            v6: false,
        }
    }
}

impl Default for FlowSpec {
    fn default() -> Self {
        Self::every(millis(20))
    }
}

/// One datagram, as the programs write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowDatagram {
    pub(crate) is_reply: bool,
    pub(crate) flow: u32,
    pub(crate) sequence: u32,
    /// The node that asks.
    pub(crate) from: u32,
    /// The node that replies.
    pub(crate) to: u32,
}

impl FlowDatagram {
    fn emit(&self, size: usize) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(u8::from(self.is_reply));
        for word in [self.flow, self.sequence, self.from, self.to] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.resize(size.max(HEADER), 0x55);
        out
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (magic, rest) = payload.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first()?;
        let (words, _) = rest.split_first_chunk::<16>()?;
        let word = |at: usize| {
            words
                .get(at..at + 4)?
                .first_chunk()
                .map(|bytes| u32::from_be_bytes(*bytes))
        };
        (*magic == MAGIC).then_some(Self {
            is_reply: *kind == 1,
            flow: word(0)?,
            sequence: word(4)?,
            from: word(8)?,
            to: word(12)?,
        })
    }
}

/// The reply of the echo program to a packet.
pub(crate) fn echo(packet: &IpPacket<'_>) -> Option<Vec<u8>> {
    let payload = packet.udp_payload()?;
    let message = FlowDatagram {
        is_reply: true,
        ..FlowDatagram::parse(payload)?
    };
    let from = SocketAddr::new(packet.dst, ECHO_PORT);
    let to = SocketAddr::new(packet.src, packet.src_port);
    udp::packet(from, to, &message.emit(payload.len())).ok()
}

/// The results of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowReport {
    /// The number of datagrams sent.
    pub sent: u32,
    /// The number of datagrams that reached the peer.
    pub reached: u32,
    /// The number of datagrams that came back.
    pub answered: u32,
    /// The time from the start of the flow until the first came back.
    pub first_answer: Option<Duration>,
    /// The numbers without a reply, of the datagrams sent at least 2 s ago.
    pub lost: Vec<u32>,
    /// The longest round trip of all replies.
    pub slowest: Duration,
    /// The longest time without a reply since the first one.
    pub longest_silence: Duration,
}

pub(crate) struct Flow {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) spec: FlowSpec,
    pub(crate) is_running: bool,
    began: SimTime,
    sent_at: Vec<SimTime>,
    reached: BTreeSet<u32>,
    answered: BTreeMap<u32, SimTime>,
    last_answer: Option<SimTime>,
    longest_silence: Duration,
}

impl Flow {
    pub(crate) fn new(now: SimTime, from: usize, to: usize, spec: FlowSpec) -> Self {
        Self {
            from,
            to,
            spec,
            is_running: true,
            began: now,
            sent_at: Vec::new(),
            reached: BTreeSet::new(),
            answered: BTreeMap::new(),
            last_answer: None,
            longest_silence: Duration::ZERO,
        }
    }

    /// The next datagram of flow number `id`, as an IP packet.
    pub(crate) fn next(
        &mut self,
        now: SimTime,
        id: u32,
        from: IpAddr,
        to: IpAddr,
    ) -> Option<Vec<u8>> {
        let message = FlowDatagram {
            is_reply: false,
            flow: id,
            sequence: u32::try_from(self.sent_at.len()).ok()?,
            from: u32::try_from(self.from).ok()?,
            to: u32::try_from(self.to).ok()?,
        };
        self.sent_at.push(now);
        let port = FIRST_FLOW_PORT.wrapping_add(id as u16);
        let (from, to) = (SocketAddr::new(from, port), SocketAddr::new(to, ECHO_PORT));
        udp::packet(from, to, &message.emit(self.spec.size)).ok()
    }

    /// A datagram reached the peer; `false` if it did so before.
    pub(crate) fn note_reached(&mut self, sequence: u32) -> bool {
        self.reached.insert(sequence)
    }

    /// A datagram came back; `false` if it did so before.
    pub(crate) fn note_answered(&mut self, now: SimTime, sequence: u32) -> bool {
        if let Some(last) = self.last_answer {
            self.longest_silence = self.longest_silence.max(now.saturating_sub(last));
        }
        self.last_answer = Some(now);
        self.answered.insert(sequence, now).is_none()
    }

    pub(crate) fn report(&self, now: SimTime) -> FlowReport {
        let sent = |sequence: u32| self.sent_at.get(sequence as usize).copied();
        let trips = self
            .answered
            .iter()
            .filter_map(|(n, at)| Some(at.saturating_sub(sent(*n)?)));
        let due = self
            .sent_at
            .iter()
            .take_while(|at| **at + Duration::from_secs(2) <= now);
        let due = u32::try_from(due.count()).unwrap_or(u32::MAX);
        FlowReport {
            sent: u32::try_from(self.sent_at.len()).unwrap_or(u32::MAX),
            reached: u32::try_from(self.reached.len()).unwrap_or(u32::MAX),
            answered: u32::try_from(self.answered.len()).unwrap_or(u32::MAX),
            first_answer: self
                .answered
                .values()
                .min()
                .map(|at| at.saturating_sub(self.began)),
            lost: (0..due)
                .filter(|n| !self.answered.contains_key(n))
                .collect(),
            slowest: trips.max().unwrap_or_default(),
            longest_silence: self.longest_silence,
        }
    }

    /// When number `sequence` was sent, since the start of the simulation.
    pub(crate) fn sent_at(&self, sequence: u32) -> Option<SimTime> {
        self.sent_at.get(sequence as usize).copied()
    }
}
