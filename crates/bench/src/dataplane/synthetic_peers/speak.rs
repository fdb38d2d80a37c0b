//! Traffic of the peers to the node: sealed UDP datagrams, in turns, or one of
//! them much more than the others.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::batches::{HEADER_LEN, PADDING, TAG_LEN};
use super::super::inet::{checksum, pseudo};
use super::super::load::paced;
use super::super::stamp::{self, Stamp};
use super::Line;

const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;
/// The port from which all of them speak.
const FROM_PORT: u16 = 7;
/// Datagrams of the flood that leave together.
const TOGETHER: usize = 32;

/// Source and destination inside the tunnel.
pub struct Post {
    /// The node under test.
    pub to: Ipv4Addr,
    /// The peers, in their order.
    pub own: Vec<Ipv4Addr>,
}

/// A length that holds a stamp and fits into the tunnel.
pub fn size(wanted: u64) -> Option<usize> {
    let size = usize::try_from(wanted).ok()?;
    (stamp::LEN..=1200).contains(&size).then_some(size)
}

/// The length of a sealed datagram with `size` bytes of payload.
fn sealed(size: usize) -> usize {
    (IP_LEN + UDP_LEN + size).next_multiple_of(PADDING) + HEADER_LEN + TAG_LEN
}

impl Post {
    /// All in turns, together `rate` bytes of payload per second.
    pub fn send(&self, lines: &[Line], port: u16, rate: u64, size: usize, span: Duration) -> Value {
        let mut datagram = vec![0; sealed(size)];
        let per_second = (rate / size as u64).max(1);
        paced(per_second, size, span, |number| {
            // A remainder of the number of peers.
            let from = (number % lines.len() as u64) as usize;
            self.one(lines, from, port, number, size, &mut datagram)
        })
    }

    /// The first as fast as it can, the others `per_second` each.
    pub fn flood(
        &self,
        lines: &[Line],
        port: u16,
        size: usize,
        span: Duration,
        per_second: u64,
    ) -> Value {
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| self.batches(lines, port, size, span));
            let count = lines.len().saturating_sub(1) as u64;
            let mut datagram = vec![0; sealed(size)];
            let others = match count {
                0 => Value::Null,
                _ => paced(count * per_second, size, span, |number| {
                    let from = 1 + (number % count) as usize;
                    self.one(lines, from, port, number, size, &mut datagram)
                }),
            };
            let flood = flood.join().unwrap_or_default();
            json!({
                "flood": flood,
                "others": others["datagrams"].as_u64().unwrap_or_default(),
                "skipped": others["skipped"].as_u64().unwrap_or_default(),
            })
        })
    }

    /// Batches of the first peer; gives how many datagrams left.
    fn batches(&self, lines: &[Line], port: u16, size: usize, span: Duration) -> u64 {
        let len = sealed(size);
        let mut batch = vec![0; len * TOGETHER];
        let (start, mut sent) = (Instant::now(), 0u64);
        while start.elapsed() < span {
            let way = lines[0].way().clone();
            let Some((session, to)) = way else { break };
            let Some(counter) = session.reserve(TOGETHER as u64) else {
                break;
            };
            for (datagram, number) in batch.chunks_exact_mut(len).zip(sent..) {
                self.write(datagram, 0, port, number, size);
            }
            if session.seal_batch(counter, &mut batch, len).is_ok()
                && lines[0].socket.send_gso(to, &batch, len).is_ok()
            {
                sent += TOGETHER as u64;
            }
        }
        sent
    }

    fn one(
        &self,
        lines: &[Line],
        from: usize,
        port: u16,
        number: u64,
        size: usize,
        datagram: &mut [u8],
    ) -> bool {
        let line = &lines[from];
        let way = line.way().clone();
        let Some((session, to)) = way else {
            return false;
        };
        let Some(counter) = session.reserve(1) else {
            return false;
        };
        self.write(datagram, from, port, number, size);
        session.seal_in_place(counter, datagram).is_ok()
            && line.socket.send_to(to, datagram).is_ok()
    }

    /// An IPv4 packet with UDP, with space for header and tag around it.
    fn write(&self, datagram: &mut [u8], from: usize, port: u16, number: u64, size: usize) {
        let content = &mut datagram[HEADER_LEN..];
        let len = IP_LEN + UDP_LEN + size;
        let transport = UDP_LEN + size;
        let packet = &mut content[..len];
        packet[..IP_LEN + UDP_LEN].fill(0);
        packet[0] = 0x45;
        // Lengths fit: see `size`.
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[8] = 64;
        packet[9] = UDP;
        packet[12..16].copy_from_slice(&self.own[from].octets());
        packet[16..20].copy_from_slice(&self.to.octets());
        let sum = checksum(0, &packet[..IP_LEN]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[20..22].copy_from_slice(&FROM_PORT.to_be_bytes());
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet[24..26].copy_from_slice(&(transport as u16).to_be_bytes());
        Stamp::now(number, from as u32).write(&mut packet[IP_LEN + UDP_LEN..]);
        let start = pseudo(packet, UDP, transport);
        let sum = match checksum(start, &packet[IP_LEN..]) {
            // UDP has no zero checksum.
            0 => 0xffff,
            sum => sum,
        };
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
        content[len..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_good_checksums_and_its_stamp() {
        let post = Post {
            to: Ipv4Addr::new(100, 64, 0, 1),
            own: vec![Ipv4Addr::new(100, 64, 0, 2), Ipv4Addr::new(100, 64, 0, 3)],
        };
        let mut datagram = vec![0xff; sealed(201)];
        post.write(&mut datagram, 1, 9000, 77, 201);
        let packet = &datagram[HEADER_LEN..HEADER_LEN + 229];
        assert_eq!(checksum(0, &packet[..IP_LEN]), 0);
        let start = pseudo(packet, UDP, 209);
        assert_eq!(checksum(start, &packet[IP_LEN..]), 0);
        assert_eq!(packet[15], 3, "the second peer's address");
        let stamp = Stamp::read(&packet[28..]).map(|stamp| (stamp.number, stamp.from));
        assert_eq!(stamp, Some((77, 1)));
        assert!(
            datagram[HEADER_LEN + 229..]
                .iter()
                .all(|byte| *byte == 0 || *byte == 0xff)
        );
    }

    #[test]
    fn sizes_hold_a_stamp_and_fit() {
        assert_eq!(size(200), Some(200));
        assert_eq!(size(3), None);
        assert_eq!(size(1201), None);
    }
}
