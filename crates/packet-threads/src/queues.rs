//! The queues of the device, and which of them a packet is written to.
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
//! an entry, one of them may move to the other's queue, and then they agree.

use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use rustix::io::Errno;
use warren_dataplane::{GsoType, TunWrite, VNET_HDR_LEN, VnetHdr};
use warren_host::device::{BatchEnd, Device};
use warren_wire::ip::Parsed;

use super::Shared;

/// Entries in the memory of flows: as many as the kernel remembers flows.
const ENTRIES: usize = 4096;
/// Most queues: what an entry can hold, and more than any machine needs.
pub(super) const MAX_QUEUES: usize = 64;

/// A device with the memory of its flows.
pub(super) struct Queues<D> {
    device: D,
    /// The queue of each flow; empty for a device with one queue.
    flows: Box<[AtomicU8]>,
}

impl<D: Device> Queues<D> {
    pub(super) fn new(device: D) -> Self {
        let queues = device.queues();
        let flows = if queues > 1 {
            spread(queues)
        } else {
            Box::default()
        };
        Self { device, flows }
    }

    pub(super) fn device(&self) -> &D {
        &self.device
    }

    /// Reads a batch of frames from `queue`: see [`Device::read_batch`].
    #[inline]
    pub(super) fn read(
        &self,
        queue: usize,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<BatchEnd> {
        self.device.read_batch(queue, buffer, |frame| {
            if let Some(entry) = entry(&self.flows, frame)
                && usize::from(entry.load(Relaxed)) != queue
            {
                // At most 64.
                entry.store(queue as u8, Relaxed);
            }
            each(frame)
        })
    }

    /// Writes a frame to the queue of its flow, from any thread.
    pub(super) fn write(&self, shared: &Shared, frame: &[u8]) -> TunWrite {
        let queue = entry(&self.flows, frame).map_or(0, |entry| entry.load(Relaxed));
        let Err(error) = self.device.write(usize::from(queue), frame) else {
            return TunWrite::Taken;
        };
        // EIO while the device is down, EINVAL for what the kernel cannot
        // parse: that packet is lost, the next may not be.
        let errno = Errno::from_io_error(&error);
        let refused = matches!(errno, Some(Errno::INVAL | Errno::IO));
        let comes_again =
            refused && VnetHdr::parse(frame).is_some_and(|(vnet, _)| vnet.gso != GsoType::None);
        if !comes_again {
            shared.count_send_failure();
        }
        tracing::trace!(%error, "cannot write to the tunnel device");
        if refused {
            TunWrite::Refused
        } else {
            TunWrite::Lost
        }
    }
}

/// Flows that were not read yet are spread.
fn spread(queues: usize) -> Box<[AtomicU8]> {
    let queues = (0..queues.min(MAX_QUEUES) as u8).cycle();
    queues.take(ENTRIES).map(AtomicU8::new).collect()
}

/// The entry of the flow that `frame` belongs to, the same in both directions; `None`
/// where there is no memory, or no packet.
#[inline]
fn entry<'f>(flows: &'f [AtomicU8], frame: &[u8]) -> Option<&'f AtomicU8> {
    if flows.is_empty() {
        return None;
    }
    let parsed = Parsed::parse(frame.get(VNET_HDR_LEN..)?).ok()?;
    let ports = u64::from(parsed.src_port ^ parsed.dst_port) << 16 | u64::from(parsed.protocol.0);
    let flow = fold(parsed.src) ^ fold(parsed.dst) ^ ports << 24;
    // Multiplied by 2^64 over the golden ratio, the upper bits depend on all.
    let hash = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    flows.get(hash as usize % ENTRIES)
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

    fn index(flows: &[AtomicU8], from: &str, to: &str) -> usize {
        let entry = entry(flows, &frame(from, to)).unwrap();
        flows.iter().position(|e| std::ptr::eq(e, entry)).unwrap()
    }

    #[test]
    fn both_directions_of_a_flow_have_one_entry() {
        let flows = spread(4);
        for (a, b) in [
            ("100.64.0.1:4000", "100.64.0.2:80"),
            ("[fd7a:115c:a1e0::1]:4000", "[fd7a:115c:a1e0::2]:80"),
        ] {
            assert_eq!(index(&flows, a, b), index(&flows, b, a));
        }
    }

    #[test]
    fn flows_between_two_machines_are_spread_evenly() {
        let flows = spread(4);
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
                let entry = entry(&flows, &frame(&a, b)).unwrap();
                by_queue[usize::from(entry.load(Relaxed))] += 1;
            }
        }
        assert!(
            by_queue.iter().all(|flows| (350..650).contains(flows)),
            "{by_queue:?}"
        );
    }

    #[test]
    fn frames_without_a_packet_have_no_queue_hint() {
        let flows = spread(2);
        for frame in [&[][..], &[0; VNET_HDR_LEN], &[0xff; 60]] {
            assert!(entry(&flows, frame).is_none());
        }
    }
}
