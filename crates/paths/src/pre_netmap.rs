//! Disco packets that arrive through a relay before the netmap names their
//! sender.
//!
//! Two nodes that join at the same time learn of each other at different
//! moments, and the first one sends a CallMeMaybe at once. Without this store it
//! would be lost, and the pair would wait for the next one. Packets are not
//! trusted here: they are handled as if they came in when the peer appears.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_keys::NodePublic;

const MAX: usize = 32;
const MAX_PER_SENDER: usize = 2;
const MAX_LEN: usize = 2048;
const LIFETIME: Duration = Duration::from_secs(5);

pub(crate) struct PreNetmapPacket {
    at: Instant,
    from: NodePublic,
    pub(crate) region: RegionId,
    pub(crate) packet: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct PreNetmap {
    packets: VecDeque<PreNetmapPacket>,
    dropped: u64,
}

impl PreNetmap {
    pub(crate) fn keep(&mut self, at: Instant, region: RegionId, from: NodePublic, packet: &[u8]) {
        if packet.len() > MAX_LEN {
            self.dropped += 1;
            return;
        }
        let before = self.packets.len();
        self.packets.retain(|kept| at < kept.at + LIFETIME);
        let of_sender = self.packets.iter().filter(|kept| kept.from == from).count();
        if of_sender >= MAX_PER_SENDER
            && let Some(oldest) = self.packets.iter().position(|kept| kept.from == from)
        {
            self.packets.remove(oldest);
        } else if self.packets.len() >= MAX {
            self.packets.pop_front();
        }
        self.dropped += u64::try_from(before - self.packets.len()).unwrap_or_default();
        self.packets.push_back(PreNetmapPacket {
            at,
            from,
            region,
            packet: packet.to_vec(),
        });
    }

    /// The packets that `from` sent lately, oldest first.
    pub(crate) fn take(&mut self, now: Instant, from: &NodePublic) -> Vec<PreNetmapPacket> {
        let all = std::mem::take(&mut self.packets);
        let (mut taken, kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|packet| packet.from == *from);
        self.packets = kept.into();
        taken.retain(|packet| now < packet.at + LIFETIME);
        taken
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; 32])
    }

    #[test]
    fn few_packets_are_kept_for_a_short_time() {
        let now = Instant::now();
        let mut pre_netmap = PreNetmap::default();
        for number in 0..5 {
            pre_netmap.keep(now, RegionId(1), node(1), &[number]);
        }
        pre_netmap.keep(now, RegionId(1), node(1), &[0; MAX_LEN + 1]);
        let kept: Vec<_> = pre_netmap
            .take(now, &node(1))
            .into_iter()
            .map(|it| it.packet)
            .collect();
        assert_eq!(kept, [[3], [4]]);
        assert_eq!(pre_netmap.dropped(), 4);

        for sender in 0..60 {
            pre_netmap.keep(now, RegionId(1), node(sender), &[1]);
        }
        assert_eq!(pre_netmap.packets.len(), MAX);
        assert!(pre_netmap.take(now + LIFETIME, &node(59)).is_empty());
        assert_eq!(pre_netmap.packets.len(), MAX - 1);
    }
}
