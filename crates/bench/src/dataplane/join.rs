//! From packets to TUN frames: neighbours of one flow become a superpacket.
//!
//! One flow at a time, IPv4 without options. The kernel trusts the checksums
//! of superpackets, and so does this, since the other end is ours: a node must
//! look first.

use warren_host::tun::{MAX_FRAME_LEN, Offloads, VNET_HEADER_LEN};

use super::inet::{checksum, pseudo};
use super::segment::{GSO_TCPV4, GSO_UDP, NEEDS_CSUM, TCP};

const IP_LEN: usize = 20;
const UDP: u8 = 17;
const UDP_LEN: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const MAX_PACKET: usize = 65_535;
const MAX_DATAGRAMS: usize = 64;

/// Where the parts of a packet are, if it may be joined.
#[derive(Clone, Copy)]
struct Shape {
    protocol: u8,
    headers: usize,
    payload: usize,
    sequence: u32,
    push: bool,
}

/// The superpacket that grows at present.
struct Open {
    first: Shape,
    count: usize,
    next_sequence: u32,
    closed: bool,
}

/// Joins packets.
pub struct Joiner {
    frame: Box<[u8]>,
    len: usize,
    open: Option<Open>,
    offloads: Offloads,
}

impl Joiner {
    /// One that makes what a device with `offloads` takes.
    pub fn new(offloads: Offloads) -> Self {
        Self {
            frame: vec![0; MAX_FRAME_LEN].into_boxed_slice(),
            len: 0,
            open: None,
            offloads,
        }
    }

    /// Takes a packet, perhaps with padding behind it.
    pub fn push(&mut self, packet: &[u8], write: &mut impl FnMut(&[u8])) {
        let length = packet
            .get(2..4)
            .map_or(0, |len| usize::from(u16::from_be_bytes([len[0], len[1]])));
        let Some(packet) = packet.get(..length).filter(|packet| packet.len() >= IP_LEN) else {
            return;
        };
        let shape = self.shape(packet);
        if let (Some(open), Some(shape)) = (&mut self.open, shape)
            && fits(open, shape, &self.frame[VNET_HEADER_LEN..self.len], packet)
        {
            let payload = &packet[shape.headers..];
            self.frame[self.len..self.len + payload.len()].copy_from_slice(payload);
            self.len += payload.len();
            open.count += 1;
            open.next_sequence = open.next_sequence.wrapping_add(payload.len() as u32);
            open.closed = shape.push || shape.payload < open.first.payload;
            if shape.push {
                self.frame[VNET_HEADER_LEN + IP_LEN + 13] |= PSH;
            }
            return;
        }
        self.flush(write);
        self.len = VNET_HEADER_LEN + packet.len();
        self.frame[VNET_HEADER_LEN..self.len].copy_from_slice(packet);
        match shape {
            Some(shape) => {
                self.open = Some(Open {
                    first: shape,
                    count: 1,
                    next_sequence: shape.sequence.wrapping_add(shape.payload as u32),
                    closed: shape.push,
                });
            }
            None => self.plain(write),
        }
    }

    /// Writes what is still growing.
    pub fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        match self.open.take() {
            None => {}
            Some(open) if open.count == 1 => self.plain(write),
            Some(open) => {
                self.finish(&open);
                write(&self.frame[..self.len]);
            }
        }
    }

    fn plain(&mut self, write: &mut impl FnMut(&[u8])) {
        self.frame[..VNET_HEADER_LEN].fill(0);
        write(&self.frame[..self.len]);
    }

    fn shape(&self, packet: &[u8]) -> Option<Shape> {
        let protocol = packet[9];
        // A header without options, and no fragment.
        if packet[0] != 0x45 || packet[6] & 0x3f != 0 || packet[7] != 0 {
            return None;
        }
        let (headers, sequence, push) = match protocol {
            TCP if self.offloads.tcp => {
                let tcp = packet.get(IP_LEN..)?;
                let flags = *tcp.get(13)?;
                if flags & !PSH != ACK {
                    return None;
                }
                let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
                (usize::from(tcp[12] >> 4) * 4, sequence, flags & PSH != 0)
            }
            UDP if self.offloads.udp => (UDP_LEN, 0, false),
            _ => return None,
        };
        let headers = IP_LEN + headers;
        let payload = packet.len().checked_sub(headers).filter(|&len| len > 0)?;
        Some(Shape {
            protocol,
            headers,
            payload,
            sequence,
            push,
        })
    }

    /// Headers of the superpacket, and its virtio header for the kernel.
    fn finish(&mut self, open: &Open) {
        let (vnet, packet) = self.frame[..self.len].split_at_mut(VNET_HEADER_LEN);
        let (gso, field) = if open.first.protocol == TCP {
            (GSO_TCPV4, 16)
        } else {
            (GSO_UDP, 6)
        };
        let total = packet.len();
        packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(0, &packet[..IP_LEN]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let transport = total - IP_LEN;
        if gso == GSO_UDP {
            packet[IP_LEN + 4..IP_LEN + 6].copy_from_slice(&(transport as u16).to_be_bytes());
        }
        let sum = pseudo(packet, open.first.protocol, transport);
        packet[IP_LEN + field..IP_LEN + field + 2].copy_from_slice(&sum.to_be_bytes());
        vnet[0] = NEEDS_CSUM;
        vnet[1] = gso;
        let numbers = [open.first.headers, open.first.payload, IP_LEN, field];
        for (to, number) in vnet[2..].chunks_exact_mut(2).zip(numbers) {
            to.copy_from_slice(&(number as u16).to_ne_bytes());
        }
    }
}

/// Whether `packet` goes on where `so_far` ends.
fn fits(open: &Open, shape: Shape, so_far: &[u8], packet: &[u8]) -> bool {
    let first = open.first;
    let same = |at: std::ops::Range<usize>| so_far.get(at.clone()) == packet.get(at);
    let tcp = shape.protocol == TCP;
    !open.closed
        && shape.protocol == first.protocol
        && shape.headers == first.headers
        && shape.payload <= first.payload
        && so_far.len() + shape.payload <= MAX_PACKET
        // Addresses and ports.
        && same(12..24)
        && if tcp {
            // Acknowledgement and options.
            shape.sequence == open.next_sequence
                && same(28..32)
                && same(40..shape.headers)
        } else {
            open.count < MAX_DATAGRAMS
        }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Instant;

    use warren_keys::noise::MessageKey;
    use warren_tunnel::{Role, Session};

    use super::super::batches::{Batches, HEADER_LEN, TAG_LEN};
    use super::super::inet;
    use super::super::segment::cut;
    use super::*;

    const BOTH: Offloads = Offloads {
        tcp: true,
        udp: true,
    };

    fn superpacket(payload: usize, size: u16) -> Vec<u8> {
        let total = 40 + payload;
        let mut packet = vec![0u8; total];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        packet[8] = 64;
        packet[9] = TCP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = checksum(0, &packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[20..24].copy_from_slice(&[0x10, 0x20, 0x30, 0x40]);
        packet[24..28].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
        packet[32] = 0x50;
        packet[33] = ACK | PSH;
        for (i, byte) in packet[40..].iter_mut().enumerate() {
            *byte = (i * 7) as u8;
        }
        let sum = pseudo(&packet, TCP, total - 20);
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![NEEDS_CSUM, GSO_TCPV4];
        for number in [40, size, 20, 16] {
            frame.extend_from_slice(&number.to_ne_bytes());
        }
        frame.extend_from_slice(&packet);
        frame
    }

    /// The packets in `batches`, opened by the other end.
    fn opened(frame: &[u8]) -> Vec<Vec<u8>> {
        let key = |byte: u8| MessageKey::new([byte; 32]);
        let now = Instant::now();
        let sender = Session::new(Role::Initiator, 1, 2, &key(1), &key(2), now);
        let receiver = Session::new(Role::Responder, 2, 1, &key(2), &key(1), now);
        let mut batches = Batches::new();
        cut(frame, &mut batches, &sender);
        let mut packets = Vec::new();
        for (bytes, segment_len) in batches.pieces() {
            for datagram in bytes.chunks(segment_len) {
                let mut datagram = datagram.to_vec();
                assert!(datagram.len() >= HEADER_LEN + TAG_LEN);
                let (_, content) = receiver.open_in_place(&mut datagram).unwrap();
                packets.push(datagram[content].to_vec());
            }
        }
        packets
    }

    #[test]
    fn segments_are_valid_on_the_wire_and_join_to_the_superpacket() {
        let frame = superpacket(5000, 1200);
        let packets = opened(&frame);
        assert_eq!(packets.len(), 5);
        for packet in &packets {
            let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let packet = &packet[..len];
            assert_eq!(checksum(0, &packet[..20]), 0, "IP checksum");
            let start = pseudo(packet, TCP, len - 20);
            assert_eq!(inet::checksum(start, &packet[20..]), 0, "TCP checksum");
        }
        let mut joiner = Joiner::new(BOTH);
        let mut frames = Vec::new();
        for packet in &packets {
            joiner.push(packet, &mut |frame: &[u8]| frames.push(frame.to_vec()));
        }
        joiner.flush(&mut |frame: &[u8]| frames.push(frame.to_vec()));
        assert_eq!(frames, [frame]);
    }

    #[test]
    fn strangers_and_gaps_are_not_joined() {
        let packets = opened(&superpacket(3600, 1200));
        let mut other = packets[1].clone();
        other[21] ^= 1;
        let mut frames = Vec::new();
        let mut joiner = Joiner::new(BOTH);
        for packet in [&packets[0], &packets[2], &other, &packets[1]] {
            joiner.push(packet, &mut |frame: &[u8]| frames.push(frame.to_vec()));
        }
        joiner.flush(&mut |frame: &[u8]| frames.push(frame.to_vec()));
        assert_eq!(frames.len(), 4);
        assert!(frames.iter().all(|frame| frame[1] == 0));
    }
}
