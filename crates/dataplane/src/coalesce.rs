//! Joining packets of one flow into superpackets for the TUN device.
//!
//! The opposite of [`segment`](super::segment): neighbouring TCP segments, or
//! UDP datagrams of one size, become one packet of up to 64 KiB that the
//! kernel takes as a whole. Joining is invisible: cutting the superpacket
//! again gives the packets that went in, so everything that must not be lost
//! is a reason not to join. In particular checksums are verified before a
//! packet is joined, since the kernel trusts those of superpackets.
//!
//! Packets of a flow keep their order. A flow occupies a slot while it is
//! being joined; a packet that does not fit sends off what the slot holds
//! first. [`Coalescer::flush`] at the end of a batch sends off all slots, so
//! nothing waits for a packet that may never come.

use std::net::IpAddr;

use warren_wire::ip::checksum::Sum;
use warren_wire::ip::{
    Fragment, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, Parsed, Protocol, TcpFlags, Version,
};

use super::segment::Plan;
use super::{GsoType, InSink, InboundOffloads, Joined, TunWrite, VNET_HDR_LEN, VnetHdr, checksum};

/// Flows that are joined side by side.
const SLOTS: usize = 16;
/// Longest IP packet.
const MAX_PACKET: usize = 65_535;
/// Most datagrams in a UDP superpacket (UDP_MAX_SEGMENTS of the kernel).
const MAX_DATAGRAMS: usize = 64;
const UDP_HEADER_LEN: usize = 8;
const DONT_FRAGMENT: u8 = 0x40;
/// Superpackets of a kind that are refused one after the other, while their
/// pieces are taken, before no more are made. One may be a matter of its
/// content, which peers choose.
const REFUSALS: u8 = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
struct FlowKey {
    ports: [u16; 2],
    protocol: Protocol,
    src: IpAddr,
    dst: IpAddr,
}

impl FlowKey {
    fn of(parsed: &Parsed) -> Self {
        Self {
            ports: [parsed.src_port, parsed.dst_port],
            protocol: parsed.protocol,
            src: parsed.src,
            dst: parsed.dst,
        }
    }
}

/// The fields of a packet that decide whether it can be joined with others.
#[derive(Clone, Copy)]
struct Candidate {
    version: Version,
    /// Where the transport header begins.
    transport_offset: usize,
    /// Where the payload begins.
    header_len: usize,
    /// Length of the payload, at least 1.
    payload: usize,
    transport: Transport,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp { sequence: u32, push: bool },
    Udp,
}

/// A flow being joined.
struct Open {
    key: FlowKey,
    head: Candidate,
    /// Payload bytes of the first packet; no later one may have more.
    size: usize,
    count: usize,
    /// Sequence number a TCP segment must have to follow.
    next_sequence: u32,
    /// Whether the checksums of the first packet were found good. They are
    /// looked at when a second one comes.
    verified: bool,
    /// When the slot was last used, in packets.
    used: u64,
}

struct Slot {
    /// Space for a virtio header and the longest packet; allocated at first use.
    frame: Box<[u8]>,
    /// Bytes of it that are written.
    len: usize,
    open: Option<Open>,
}

/// Holds superpackets while they grow.
pub(super) struct Coalescer {
    slots: [Slot; SLOTS],
    joining: Joining,
    packets: u64,
}

/// The kinds of packets that are joined, as long as the device takes them.
struct Joining {
    offloads: InboundOffloads,
    /// Superpackets that were refused since one was taken: TCP, UDP.
    refused: [u8; 2],
}

impl Coalescer {
    pub(super) fn new(offloads: InboundOffloads) -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot {
                frame: Box::default(),
                len: 0,
                open: None,
            }),
            joining: Joining {
                offloads,
                refused: [0; 2],
            },
            packets: 0,
        }
    }

    /// Takes a packet for the TUN device. `frame` is the packet with
    /// [`VNET_HDR_LEN`] free bytes in front, `parsed` its parsed headers.
    #[inline]
    pub(super) fn push(&mut self, frame: &mut [u8], parsed: &Parsed, sink: &mut dyn InSink) {
        self.packets += 1;
        let packet = frame.get(VNET_HDR_LEN..).unwrap_or_default();
        let has_ports = parsed.fragment == Fragment::Whole
            && matches!(parsed.protocol, Protocol::TCP | Protocol::UDP);
        if !has_ports {
            // It may belong to any flow between the two, as fragments do.
            for slot in &mut self.slots {
                let same = slot
                    .open
                    .as_ref()
                    .is_some_and(|o| o.key.src == parsed.src && o.key.dst == parsed.dst);
                if same {
                    slot.send(&mut self.joining, sink);
                }
            }
            return write_plain(frame, sink);
        }
        let key = FlowKey::of(parsed);
        let candidate = Candidate::new(packet, parsed, self.joining.offloads);
        let mine = self
            .slots
            .iter()
            .position(|s| s.open.as_ref().is_some_and(|o| o.key == key));
        if let Some(slot) = mine.and_then(|i| self.slots.get_mut(i)) {
            if let Some(candidate) = &candidate
                && slot.join(packet, candidate, self.packets)
            {
                if slot.is_complete(candidate) {
                    slot.send(&mut self.joining, sink);
                }
                return;
            }
            slot.send(&mut self.joining, sink);
        }
        match candidate {
            // A pushed segment is the last of what its sender had: the next
            // one could not follow it.
            Some(c) if !c.ends_superpacket() => {
                let slot = mine.unwrap_or_else(|| self.vacancy());
                if let Some(slot) = self.slots.get_mut(slot) {
                    slot.send(&mut self.joining, sink);
                    slot.begin(packet, key, c, self.packets);
                }
            }
            Some(_) | None => write_plain(frame, sink),
        }
    }

    /// Sends off everything.
    #[inline]
    pub(super) fn flush(&mut self, sink: &mut dyn InSink) {
        for slot in &mut self.slots {
            slot.send(&mut self.joining, sink);
        }
    }

    /// A free slot, or the one that was not used for the longest time.
    fn vacancy(&self) -> usize {
        let age = |slot: &Slot| slot.open.as_ref().map_or(0, |open| open.used);
        let oldest = self
            .slots
            .iter()
            .enumerate()
            .min_by_key(|(_, slot)| age(slot));
        oldest.map_or(0, |(i, _)| i)
    }
}

fn write_plain(frame: &mut [u8], sink: &mut dyn InSink) {
    if let Some(header) = frame.first_chunk_mut() {
        *header = VnetHdr::PLAIN.to_bytes();
        // A packet that is not wanted in its plainest form is lost.
        let _ = sink.tun_write(frame);
    }
}

impl Candidate {
    /// `None` for packets that are never joined: options in the IP header,
    /// TCP flags besides ACK and PSH, no payload, no checksum.
    #[inline]
    fn new(packet: &[u8], parsed: &Parsed, offloads: InboundOffloads) -> Option<Self> {
        let plain_header = match parsed.version {
            Version::V4 => IPV4_HEADER_LEN,
            Version::V6 => IPV6_HEADER_LEN,
        };
        let offset = parsed.transport_offset;
        if offset != plain_header || packet.len() != parsed.total_len {
            return None;
        }
        let segment = packet.get(offset..)?;
        let (transport_len, transport) = if parsed.protocol == Protocol::TCP {
            let header: &[u8; 20] = segment.first_chunk()?;
            let flags = header[13];
            let only_ack = flags & !TcpFlags::PSH == TcpFlags::ACK && header[12] & 0x0f == 0;
            if !offloads.tcp || !only_ack {
                return None;
            }
            let len = usize::from(header[12] >> 4) * 4;
            if len < 20 {
                return None;
            }
            let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (
                len,
                Transport::Tcp {
                    sequence,
                    push: flags & TcpFlags::PSH != 0,
                },
            )
        } else {
            let header: &[u8; UDP_HEADER_LEN] = segment.first_chunk()?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            if !offloads.udp || len != segment.len() || header[6..] == [0, 0] {
                return None;
            }
            (UDP_HEADER_LEN, Transport::Udp)
        };
        let payload = segment
            .len()
            .checked_sub(transport_len)
            .filter(|len| *len > 0)?;
        Some(Self {
            version: parsed.version,
            transport_offset: offset,
            header_len: offset + transport_len,
            payload,
            transport,
        })
    }

    fn ends_superpacket(&self) -> bool {
        matches!(self.transport, Transport::Tcp { push: true, .. })
    }

    /// Whether IP and transport checksum of a packet are right that has these
    /// `headers`, and a payload with this sum.
    #[inline]
    fn checksums_hold(&self, headers: &[u8], payload_sum: u16, key: &FlowKey) -> bool {
        let Some((ip, transport)) = headers.split_at_checked(self.transport_offset) else {
            return false;
        };
        if self.version == Version::V4 && Sum::new().bytes(ip).finish() != 0 {
            return false;
        }
        let len = transport.len() + self.payload;
        Sum::pseudo_header(key.src, key.dst, key.protocol, len)
            .bytes(transport)
            .word(payload_sum)
            .finish()
            == 0
    }
}

impl Slot {
    #[inline]
    fn begin(&mut self, packet: &[u8], key: FlowKey, head: Candidate, used: u64) {
        if self.frame.is_empty() {
            self.frame = vec![0; VNET_HDR_LEN + MAX_PACKET].into();
        }
        // The length field of a packet limits its length.
        let Some((vnet, room)) = self.frame.split_first_chunk_mut() else {
            return;
        };
        let Some(place) = room.get_mut(..packet.len()) else {
            return;
        };
        *vnet = VnetHdr::PLAIN.to_bytes();
        place.copy_from_slice(packet);
        self.len = VNET_HDR_LEN + packet.len();
        let next_sequence = match head.transport {
            // A payload is shorter than 64 KiB.
            Transport::Tcp { sequence, .. } => sequence.wrapping_add(head.payload as u32),
            Transport::Udp => 0,
        };
        self.open = Some(Open {
            key,
            head,
            size: head.payload,
            count: 1,
            next_sequence,
            verified: false,
            used,
        });
    }

    /// Appends `packet` if it follows what the slot holds.
    #[inline]
    fn join(&mut self, packet: &[u8], new: &Candidate, used: u64) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let Some((frame, room)) = self.frame.split_at_mut_checked(self.len) else {
            return false;
        };
        let held = frame.get(VNET_HDR_LEN..).unwrap_or_default();
        let follows = new.payload <= open.size
            && held.len() + new.payload <= MAX_PACKET
            && new.header_len == open.head.header_len
            && same_ip_header(held, packet, new.version, open.count)
            && match new.transport {
                Transport::Tcp { sequence, .. } => {
                    sequence == open.next_sequence
                        && same_tcp_header(held, packet, new.transport_offset, new.header_len)
                }
                Transport::Udp => open.count < MAX_DATAGRAMS,
            };
        if !follows {
            return false;
        }
        if !open.verified {
            // Only the head is in the slot so far.
            let Some((headers, payload)) = held.split_at_checked(open.head.header_len) else {
                return false;
            };
            let sum = checksum::fold(payload);
            if !open.head.checksums_hold(headers, sum, &open.key) {
                return false;
            }
            open.verified = true;
        }
        let Some((headers, payload)) = packet.split_at_checked(new.header_len) else {
            return false;
        };
        let Some(place) = room.get_mut(..payload.len()) else {
            return false;
        };
        // A wrong payload stays behind the end and is overwritten.
        let sum = checksum::copy(payload, place);
        if !new.checksums_hold(headers, sum, &open.key) {
            return false;
        }
        self.len += payload.len();
        open.count += 1;
        open.used = used;
        if let Transport::Tcp { push, .. } = new.transport {
            open.next_sequence = open.next_sequence.wrapping_add(new.payload as u32);
            if push {
                let flags = VNET_HDR_LEN + new.transport_offset + 13;
                if let Some(flags) = self.frame.get_mut(flags) {
                    *flags |= TcpFlags::PSH;
                }
            }
        }
        true
    }

    /// Whether nothing can follow after `last` was joined.
    #[inline]
    fn is_complete(&self, last: &Candidate) -> bool {
        let Some(open) = &self.open else { return false };
        last.payload < open.size
            || last.ends_superpacket()
            || self.len + open.size > VNET_HDR_LEN + MAX_PACKET
            || (open.head.transport == Transport::Udp && open.count == MAX_DATAGRAMS)
    }

    /// Writes out what the slot holds.
    #[inline]
    fn send(&mut self, joining: &mut Joining, sink: &mut dyn InSink) {
        let Some(open) = self.open.take() else { return };
        let frame = self.frame.get_mut(..self.len).unwrap_or_default();
        if open.count <= 1 {
            let _ = sink.tun_write(frame);
            return;
        }
        open.finish(frame);
        let kind = open.kind();
        if joining.takes(kind) {
            let written = sink.tun_write(frame);
            joining.written(kind, written, frame, sink);
        } else {
            // Begun before the kind was given up.
            write_in_pieces(frame, sink);
        }
    }
}

impl Joining {
    fn takes(&self, kind: Joined) -> bool {
        match kind {
            Joined::Tcp => self.offloads.tcp,
            Joined::Udp => self.offloads.udp,
        }
    }

    /// Learns from what became of a superpacket.
    #[inline]
    fn written(&mut self, kind: Joined, written: TunWrite, frame: &[u8], sink: &mut dyn InSink) {
        let [tcp, udp] = &mut self.refused;
        let refused = match kind {
            Joined::Tcp => tcp,
            Joined::Udp => udp,
        };
        match written {
            TunWrite::Taken => *refused = 0,
            TunWrite::Lost => {}
            TunWrite::Refused => {
                // While the device is down it takes nothing, and that says
                // nothing about kinds.
                if !write_in_pieces(frame, sink) {
                    return;
                }
                *refused += 1;
                if *refused >= REFUSALS {
                    *refused = 0;
                    match kind {
                        Joined::Tcp => self.offloads.tcp = false,
                        Joined::Udp => self.offloads.udp = false,
                    }
                    sink.joining_ends(kind);
                }
            }
        }
    }
}

/// Writes the packets that a superpacket stands for one by one. Returns
/// whether the device took them.
#[cold]
fn write_in_pieces(frame: &[u8], sink: &mut dyn InSink) -> bool {
    let Some((vnet, packet)) = VnetHdr::parse(frame) else {
        return false;
    };
    let Ok(packet) = IpPacket::parse(packet) else {
        return false;
    };
    let Some(plan) = Plan::new(&vnet, &packet) else {
        return false;
    };
    let mut piece = Vec::new();
    let mut taken = true;
    for i in 0..plan.count() {
        piece.clear();
        piece.resize(VNET_HDR_LEN + plan.len(i), 0);
        let (_, packet) = piece.split_at_mut(VNET_HDR_LEN);
        plan.write(i, packet);
        taken &= sink.tun_write(&piece) == TunWrite::Taken;
    }
    taken
}

impl Open {
    fn kind(&self) -> Joined {
        match self.head.transport {
            Transport::Tcp { .. } => Joined::Tcp,
            Transport::Udp => Joined::Udp,
        }
    }

    /// Writes the length and checksum of the whole superpacket into the headers.
    fn finish(&self, frame: &mut [u8]) {
        let Some((vnet, packet)) = frame.split_first_chunk_mut::<VNET_HDR_LEN>() else {
            return;
        };
        let Candidate {
            version,
            transport_offset,
            header_len,
            ..
        } = self.head;
        let total = packet.len();
        let transport_len = total - transport_offset;
        let (gso, field) = match (self.head.transport, version) {
            (Transport::Tcp { .. }, Version::V4) => (GsoType::TcpV4, 16),
            (Transport::Tcp { .. }, Version::V6) => (GsoType::TcpV6, 16),
            (Transport::Udp, _) => (GsoType::Udp, 6),
        };
        // All below 64 KiB: the packet as a whole is.
        *vnet = VnetHdr {
            checksum: Some((transport_offset as u16, field)),
            gso,
            gso_size: self.size as u16,
            hdr_len: header_len as u16,
        }
        .to_bytes();
        match version {
            Version::V4 => {
                put(packet, 2, (total as u16).to_be_bytes());
                put(packet, 10, [0, 0]);
                let header = packet.get(..IPV4_HEADER_LEN).unwrap_or_default();
                put(packet, 10, Sum::new().bytes(header).finish().to_be_bytes());
            }
            Version::V6 => {
                put(packet, 4, ((total - IPV6_HEADER_LEN) as u16).to_be_bytes());
            }
        }
        if self.head.transport == Transport::Udp {
            put(
                packet,
                transport_offset + 4,
                (transport_len as u16).to_be_bytes(),
            );
        }
        // The kernel adds the rest: the field holds the pseudo header's sum.
        let FlowKey {
            src, dst, protocol, ..
        } = self.key;
        let pseudo = Sum::pseudo_header(src, dst, protocol, transport_len).folded();
        put(
            packet,
            transport_offset + usize::from(field),
            pseudo.to_be_bytes(),
        );
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(at..at + N) {
        field.copy_from_slice(&value);
    }
}

/// Whether everything in the IP header but lengths and checksum is equal, so
/// that cutting restores it. `count` packets are already held.
#[inline]
fn same_ip_header(held: &[u8], packet: &[u8], version: Version, count: usize) -> bool {
    match version {
        Version::V4 => {
            let (Some(a), Some(b)) = (
                held.first_chunk::<IPV4_HEADER_LEN>(),
                packet.first_chunk::<IPV4_HEADER_LEN>(),
            ) else {
                return false;
            };
            // Cutting counts identifications up. Where fragmenting is allowed
            // they matter and must do the same; elsewhere they mean nothing
            // (RFC 6864, section 4.1).
            let id = |h: &[u8; IPV4_HEADER_LEN]| u16::from_be_bytes([h[4], h[5]]);
            let atomic = a[6] & DONT_FRAGMENT != 0;
            a[..2] == b[..2]
                && a[6..9] == b[6..9]
                && (atomic || id(b) == id(a).wrapping_add(count as u16))
        }
        Version::V6 => held.get(..4) == packet.get(..4) && held.get(7) == packet.get(7),
    }
}

/// Whether the fields that all segments of a superpacket share are equal:
/// acknowledgement, header length, window, urgent pointer, options.
#[inline]
fn same_tcp_header(held: &[u8], packet: &[u8], offset: usize, header_len: usize) -> bool {
    let (Some(a), Some(b)) = (held.get(offset..header_len), packet.get(offset..header_len)) else {
        return false;
    };
    let shared = |h: &[u8]| -> Option<([u8; 5], [u8; 2])> {
        Some((*h.get(8..)?.first_chunk()?, *h.get(14..)?.first_chunk()?))
    };
    shared(a) == shared(b) && a.get(18..) == b.get(18..)
}
