//! The queues of the TUN device, and which of them a packet is written to.
//!
//! With several queues the kernel decides into which one a packet of the host
//! goes: where a packet of the same flow was last written to, in the other
//! direction, and otherwise by a hash of its own. So what is written decides
//! where the answers come out. Everything through one queue would leave the
//! other threads without work, and a flow that began on one thread would move
//! to another with its first answer.
//!
//! [`Queues`] therefore remembers from which queue a flow was read, and writes
//! its other direction to the same: flows stay where the kernel put them. The
//! memory is a small table of hints by a hash of the flow. Where two flows share
//! a place, one of them may move to the other's queue, and then they agree.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use warren_dataplane::VNET_HDR_LEN;
use warren_host::tun::{Offloads, Tun};
use warren_wire::ip::Parsed;

/// Places in the memory of flows: as many as the kernel remembers flows.
const PLACES: usize = 4096;
/// Most queues: what a place can hold, and more than anybody needs.
pub(super) const MAX_QUEUES: usize = 64;

/// All queues of the device, at least one.
pub struct Queues {
    first: Tun,
    more: Vec<Tun>,
    places: Box<[AtomicU8]>,
}

impl Queues {
    /// The device with these queues; `None` without any.
    pub fn new(queues: Vec<Tun>) -> Option<Self> {
        let mut queues = queues.into_iter().take(MAX_QUEUES);
        let first = queues.next()?;
        let more: Vec<_> = queues.collect();
        Some(Self {
            places: places(1 + more.len()),
            first,
            more,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.more.len()
    }

    /// One of them, to wait for.
    pub fn get(&self, queue: usize) -> &Tun {
        let more = queue.checked_sub(1).and_then(|i| self.more.get(i));
        more.unwrap_or(&self.first)
    }

    /// The offloads of the device.
    pub fn offloads(&self) -> Offloads {
        self.first.offloads()
    }

    /// Reads a frame from `queue`.
    ///
    /// # Errors
    /// Those of [`Tun::read`].
    pub fn read(&self, queue: usize, frame: &mut [u8]) -> io::Result<usize> {
        let len = self.get(queue).read(frame)?;
        if !self.more.is_empty()
            && let Some(place) = place(&self.places, frame.get(..len).unwrap_or_default())
            && usize::from(place.load(Relaxed)) != queue
        {
            // At most 64.
            place.store(queue as u8, Relaxed);
        }
        Ok(len)
    }

    /// Writes a frame to the queue of its flow.
    ///
    /// # Errors
    /// Those of [`Tun::write`].
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        if self.more.is_empty() {
            return self.first.write(frame);
        }
        let queue = place(&self.places, frame).map_or(0, |place| place.load(Relaxed));
        self.get(usize::from(queue)).write(frame)
    }
}

/// Flows that were not read yet are spread.
fn places(queues: usize) -> Box<[AtomicU8]> {
    let queues = (0..queues.min(MAX_QUEUES) as u8).cycle();
    queues.take(PLACES).map(AtomicU8::new).collect()
}

/// The place of the flow that `frame` belongs to, the same in both directions.
fn place<'p>(places: &'p [AtomicU8], frame: &[u8]) -> Option<&'p AtomicU8> {
    let parsed = Parsed::parse(frame.get(VNET_HDR_LEN..)?).ok()?;
    let ports = u64::from(parsed.src_port ^ parsed.dst_port) << 16 | u64::from(parsed.protocol.0);
    let flow = fold(parsed.src) ^ fold(parsed.dst) ^ ports << 24;
    // Multiplied by 2^64 over the golden ratio, the upper bits depend on all.
    let hash = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    places.get(hash as usize % PLACES)
}

fn fold(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (bits >> 64) as u64 ^ bits as u64
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use super::*;
    use warren_wire::ip::udp;

    fn frame(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let packet = udp::packet(from, to, b"content").unwrap();
        [&[0; VNET_HDR_LEN][..], &packet].concat()
    }

    fn index(places: &[AtomicU8], from: &str, to: &str) -> usize {
        let place = place(places, &frame(from, to)).unwrap();
        places.iter().position(|p| std::ptr::eq(p, place)).unwrap()
    }

    #[test]
    fn both_directions_of_a_flow_have_one_place() {
        let places = places(4);
        for (a, b) in [
            ("100.64.0.1:4000", "100.64.0.2:80"),
            ("[fd7a:115c:a1e0::1]:4000", "[fd7a:115c:a1e0::2]:80"),
        ] {
            assert_eq!(index(&places, a, b), index(&places, b, a));
        }
    }

    #[test]
    fn flows_between_two_machines_are_spread_evenly() {
        let places = places(4);
        let mut by_queue = [0; 4];
        for port in 0..1_000 {
            for v6 in [false, true] {
                let (a, b) = if v6 {
                    (
                        format!("[fd7a:115c:a1e0::1]:{}", 32_768 + port),
                        "[fd7a:115c:a1e0::2]:443",
                    )
                } else {
                    (format!("100.64.0.1:{}", 32_768 + port), "100.100.3.4:443")
                };
                let place = place(&places, &frame(&a, b)).unwrap();
                by_queue[usize::from(place.load(Relaxed))] += 1;
            }
        }
        assert!(
            by_queue.iter().all(|flows| (350..650).contains(flows)),
            "{by_queue:?}"
        );
    }

    #[test]
    fn frames_without_a_packet_have_no_queue_hint() {
        let places = places(2);
        for frame in [&[][..], &[0; VNET_HDR_LEN], &[0xff; 60]] {
            assert!(place(&places, frame).is_none());
        }
    }
}
