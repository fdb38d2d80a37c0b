//! Two stacks and a network between them, under a virtual clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_netstack::{Checksum, ConnectionId, Event, Limits, Netstack, Transmit};
use warren_testkit::SeededEntropy;
use warren_wire::ip::{IpPacket, Protocol, Version, checksum};

pub const MTU: u16 = 1280;
/// Space for a header that the stacks leave in front of packets.
pub const HEADROOM: usize = 10;
pub const PORT: u16 = 80;

/// The faults of the network. Probabilities are out of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Network {
    pub loss: u64,
    pub duplication: u64,
    pub reordering: u64,
    /// The time that a packet takes.
    pub delay: Duration,
    /// Superpackets arrive in one piece, as if they had been joined.
    pub joins: bool,
}

pub struct World {
    pub now: Instant,
    pub stacks: [Netstack; 2],
    pub addresses: [IpAddr; 2],
    pub network: Network,
    pub random: SeededEntropy,
    /// By arrival, then by number: the receiver and the packet.
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>, Checksum)>,
    sent: u64,
}

impl World {
    pub fn new(seed: u64, v6: bool, network: Network, limits: Limits) -> Self {
        let now = Instant::now();
        let addresses: [IpAddr; 2] = if v6 {
            ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"].map(|text| text.parse().unwrap())
        } else {
            ["100.64.0.1", "100.64.0.2"].map(|text| text.parse().unwrap())
        };
        let stack = |i: usize| {
            let entropy = Box::new(SeededEntropy(seed * 2 + i as u64));
            let mut stack = Netstack::new(now, MTU, HEADROOM, limits, entropy);
            stack.set_addresses([addresses[i]]);
            stack
        };
        Self {
            now,
            stacks: [stack(0), stack(1)],
            addresses,
            network,
            random: SeededEntropy(seed),
            flying: BTreeMap::new(),
            sent: 0,
        }
    }

    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.addresses[1], PORT)
    }

    fn chance(&mut self, of_thousand: u64) -> bool {
        self.random.below(1000) < of_thousand
    }

    /// Puts everything that the stacks have to send on its way.
    pub fn send_all(&mut self) {
        for from in 0..2 {
            while let Some(sent) = self.stacks[from].poll_transmit(self.now) {
                let packets = if self.network.joins {
                    vec![sent.frame[HEADROOM..].to_vec()]
                } else {
                    cut(&sent)
                };
                for packet in packets {
                    self.throw(1 - from, packet);
                }
            }
        }
    }

    fn throw(&mut self, to: usize, packet: Vec<u8>) {
        let copies = 1 + u64::from(self.chance(self.network.duplication));
        for _ in 0..copies {
            if self.chance(self.network.loss) {
                continue;
            }
            let mut delay = self.network.delay;
            if self.chance(self.network.reordering) {
                delay += Duration::from_micros(self.random.below(20_000));
            }
            self.sent += 1;
            let checksum = if self.network.joins {
                Checksum::Verified
            } else {
                Checksum::Complete
            };
            self.flying.insert(
                (self.now + delay, self.sent),
                (to, packet.clone(), checksum),
            );
        }
    }

    /// Goes on to the next moment at which something happens. `false`: nothing will.
    pub fn step(&mut self) -> bool {
        self.send_all();
        let arrival = self.flying.first_key_value().map(|((at, _), _)| *at);
        let deadlines = self.stacks.iter().filter_map(|stack| stack.next_deadline());
        let next = arrival.into_iter().chain(deadlines.map(|(at, _)| at)).min();
        let Some(next) = next else {
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (to, packet, checksum) = entry.remove();
            self.stacks[to].receive(self.now, &packet, checksum);
        }
        for stack in &mut self.stacks {
            stack.handle_timeout(self.now);
        }
        true
    }

    /// Opens a connection from the first stack to the second.
    pub fn open(&mut self) -> (ConnectionId, ConnectionId) {
        let (local, server) = (self.addresses[0], self.server());
        let client = self.stacks[0].connect(self.now, local, server).unwrap();
        let mut accepted = None;
        while accepted.is_none() || self.stacks[0].is_open(client) != Ok(true) {
            assert!(self.step(), "the connection does not open");
            while let Some(event) = self.stacks[1].poll_event() {
                if let Event::Incoming { id, .. } = event {
                    self.stacks[1].accept(self.now, id).unwrap();
                    accepted = Some(id);
                }
            }
        }
        (client, accepted.unwrap())
    }
}

/// The segments of a superpacket, with complete checksums; a packet as it is.
pub fn cut(sent: &Transmit) -> Vec<Vec<u8>> {
    let packet = &sent.frame[HEADROOM..];
    let Some(segment_len) = sent.segment_len else {
        return vec![packet.to_vec()];
    };
    let parsed = *IpPacket::parse(packet).unwrap().parsed();
    let start = parsed.transport_offset;
    let header_len = start + usize::from(packet[start + 12] >> 4) * 4;
    let sequence = u32::from_be_bytes(packet[start + 4..start + 8].try_into().unwrap());
    let payloads: Vec<&[u8]> = packet[header_len..].chunks(segment_len.into()).collect();
    let count = payloads.len();
    let segments = payloads.into_iter().enumerate().map(|(i, payload)| {
        let mut segment = [&packet[..header_len], payload].concat();
        let total = segment.len();
        let at = sequence.wrapping_add((i * usize::from(segment_len)) as u32);
        segment[start + 4..start + 8].copy_from_slice(&at.to_be_bytes());
        if i + 1 < count {
            // Neither FIN nor PSH before the last.
            segment[start + 13] &= !0x09;
        }
        match parsed.version {
            Version::V4 => {
                segment[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                segment[10..12].fill(0);
                let sum = checksum::checksum(&segment[..start]);
                segment[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Version::V6 => {
                segment[4..6].copy_from_slice(&((total - start) as u16).to_be_bytes());
            }
        }
        segment[start + 16..start + 18].fill(0);
        let sum =
            checksum::transport_checksum(parsed.src, parsed.dst, Protocol::TCP, &segment[start..]);
        segment[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        segment
    });
    segments.collect()
}
