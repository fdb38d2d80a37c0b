//! Memory of the flows this node started, so that their answers pass.
//!
//! UDP and SCTP have no flag that tells an answer from a first packet. When
//! such a packet leaves, its reversed 5-tuple is remembered; when one arrives
//! and its tuple is remembered, it passes without a rule. Both directions
//! refresh the entry.
//!
//! The table is shared by reference between the thread that sends and the one
//! that receives. It is a fixed array of atomics: no lock, no allocation after
//! [`FlowTable::new`]. A flow is known by a keyed 64-bit hash of its tuple
//! (SipHash-1-3 under a secret key), so a stranger can neither aim at an entry
//! nor crowd out a chosen one. A bucket of eight slots keeps the flows used
//! last; an idle flow is forgotten after [`IDLE_SECS`]. Races between the two
//! threads can at worst lose a refresh or forget a flow that its next packet
//! brings back; they cannot invent one.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use warren_keys::Entropy;
use warren_wire::ip::Parsed;

/// Seconds after which a flow without packets is forgotten. The reference has
/// no time limit but room for 512 flows only; an hour with room for many
/// thousands is longer for every busy node.
pub const IDLE_SECS: u32 = 3600;

/// Slots that a flow may lie in.
const WAYS: usize = 8;

/// Default number of flows: 64 Ki, of which untouched memory costs nothing.
const DEFAULT_SLOTS: usize = 1 << 16;

/// A slot: the flow's hash (0 = free) and when it was last used.
#[derive(Debug, Default)]
struct Slot {
    hash: AtomicU64,
    used: AtomicU32,
}

/// Flows whose answers are expected. See the module for its life.
#[derive(Debug)]
pub struct FlowTable {
    key: [u64; 2],
    buckets: Box<[[Slot; WAYS]]>,
}

impl FlowTable {
    /// An empty table with a fresh secret key.
    #[must_use]
    pub fn new(entropy: &mut dyn Entropy) -> Self {
        Self::with_slots(entropy, DEFAULT_SLOTS)
    }

    /// An empty table for about `slots` flows.
    #[must_use]
    pub fn with_slots(entropy: &mut dyn Entropy, slots: usize) -> Self {
        let mut key = [0u8; 16];
        entropy.fill(&mut key);
        let key = u128::from_le_bytes(key);
        let count = (slots / WAYS).max(1).next_power_of_two();
        let mut buckets = Vec::new();
        buckets.resize_with(count, Default::default);
        Self {
            // Both halves of the 128-bit key.
            key: [key as u64, (key >> 64) as u64],
            buckets: buckets.into(),
        }
    }

    /// Remembers that `packet` left, so that its answer may come in. For
    /// packets that do not pass [`crate::Filter::check_out`] (built by the
    /// node itself) the caller does this. `now` counts seconds from any fixed
    /// moment.
    pub fn remember(&self, packet: &Parsed, now: u32) {
        let hash = self.hash(
            packet,
            (packet.dst, packet.dst_port),
            (packet.src, packet.src_port),
        );
        let Some(bucket) = self.bucket(hash) else {
            return;
        };
        if let Some(slot) = find(bucket, hash) {
            touch(slot, now);
            return;
        }
        // Another thread may take the chosen slot meanwhile: then look again.
        for _ in 0..WAYS {
            let Some(slot) = bucket.iter().min_by_key(|slot| keep_rank(slot, now)) else {
                return;
            };
            let old = slot.hash.load(Ordering::Relaxed);
            // The time first: whoever sees the new hash sees a fresh time.
            slot.used.store(now, Ordering::Relaxed);
            if slot
                .hash
                .compare_exchange(old, hash, Ordering::Release, Ordering::Relaxed)
                .is_ok()
            {
                return;
            }
        }
    }

    /// Whether `packet`, which arrived, answers a flow of ours. Refreshes it.
    #[must_use]
    pub fn expects(&self, packet: &Parsed, now: u32) -> bool {
        let hash = self.hash(
            packet,
            (packet.src, packet.src_port),
            (packet.dst, packet.dst_port),
        );
        let Some(slot) = self.bucket(hash).and_then(|bucket| find(bucket, hash)) else {
            return false;
        };
        if age(slot, now) > IDLE_SECS {
            return false;
        }
        touch(slot, now);
        true
    }

    fn bucket(&self, hash: u64) -> Option<&[Slot; WAYS]> {
        // A power of two, so the mask keeps the index inside.
        let index = (hash as usize) & (self.buckets.len() - 1);
        self.buckets.get(index)
    }

    /// The hash of the tuple (remote end, local end, protocol); never 0.
    fn hash(&self, packet: &Parsed, remote: (IpAddr, u16), local: (IpAddr, u16)) -> u64 {
        let [remote_high, remote_low] = halves(remote.0);
        let [local_high, local_low] = halves(local.0);
        let rest = u64::from(remote.1)
            | u64::from(local.1) << 16
            | u64::from(packet.protocol.0) << 32
            | u64::from(remote.0.is_ipv4()) << 40;
        siphash13(
            self.key,
            [remote_high, remote_low, local_high, local_low, rest],
        )
        .max(1)
    }
}

fn find(bucket: &[Slot; WAYS], hash: u64) -> Option<&Slot> {
    bucket
        .iter()
        .find(|slot| slot.hash.load(Ordering::Acquire) == hash)
}

fn age(slot: &Slot, now: u32) -> u32 {
    // The other thread's clock reading may be a second ahead of ours.
    now.saturating_sub(slot.used.load(Ordering::Relaxed))
}

/// Stores the time only when it changed: the line stays shared otherwise.
fn touch(slot: &Slot, now: u32) {
    if slot.used.load(Ordering::Relaxed) < now {
        slot.used.store(now, Ordering::Relaxed);
    }
}

/// Lowest is replaced first: free slots, then the longest idle.
fn keep_rank(slot: &Slot, now: u32) -> (bool, u32) {
    let taken = slot.hash.load(Ordering::Relaxed) != 0;
    (taken, u32::MAX - age(slot, now))
}

fn halves(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

/// SipHash-1-3 (Aumasson, Bernstein) over five words.
fn siphash13(key: [u64; 2], words: [u64; 5]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The length in bytes goes into the top byte of the last word.
    let last = (words.len() as u64 * 8) << 56;
    for word in words.into_iter().chain([last]) {
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use warren_wire::ip::{IpPacket, udp};

    struct Fixed(u8);

    impl Entropy for Fixed {
        fn fill(&mut self, out: &mut [u8]) {
            out.fill(self.0);
        }
    }

    fn flow(src: &str, dst: &str) -> Parsed {
        let bytes = udp::packet(src.parse().unwrap(), dst.parse().unwrap(), b"x").unwrap();
        *IpPacket::parse(&bytes).unwrap().parsed()
    }

    #[test]
    fn siphash_agrees_with_the_standard_library() {
        use std::hash::{BuildHasher, Hasher};
        // The standard library's default hasher is SipHash-1-3 with a zero key.
        let mut hasher =
            std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default().build_hasher();
        let words = [1u64, u64::MAX, 3, 0x0123_4567_89ab_cdef, 5];
        for word in words {
            hasher.write(&word.to_le_bytes());
        }
        assert_eq!(siphash13([0, 0], words), hasher.finish());
    }

    #[test]
    fn only_the_exact_answer_is_expected() {
        let table = FlowTable::new(&mut Fixed(7));
        table.remember(&flow("100.64.0.1:1000", "100.64.0.2:53"), 10);
        assert!(table.expects(&flow("100.64.0.2:53", "100.64.0.1:1000"), 11));
        for (src, dst) in [
            ("100.64.0.1:1000", "100.64.0.2:53"),
            ("100.64.0.2:54", "100.64.0.1:1000"),
            ("100.64.0.3:53", "100.64.0.1:1000"),
            ("100.64.0.2:53", "100.64.0.1:1001"),
            ("[::6440:2]:53", "[::6440:1]:1000"),
        ] {
            assert!(!table.expects(&flow(src, dst), 11), "{src} {dst}");
        }
    }

    #[test]
    fn an_idle_flow_is_forgotten_and_an_active_one_is_not() {
        let table = FlowTable::new(&mut Fixed(7));
        let answer = flow("[fd7a::2]:53", "[fd7a::1]:1000");
        table.remember(&flow("[fd7a::1]:1000", "[fd7a::2]:53"), 10);
        assert!(table.expects(&answer, 10 + IDLE_SECS));
        assert!(table.expects(&answer, 10 + 2 * IDLE_SECS));
        assert!(!table.expects(&answer, 11 + 3 * IDLE_SECS));
        table.remember(&flow("[fd7a::1]:1000", "[fd7a::2]:53"), 11 + 3 * IDLE_SECS);
        assert!(table.expects(&answer, 12 + 3 * IDLE_SECS));
    }

    #[test]
    fn a_full_bucket_gives_up_the_longest_idle_flow() {
        let table = FlowTable::with_slots(&mut Fixed(7), WAYS);
        let port = |n: u32| format!("100.64.0.1:{}", 1000 + n);
        for n in 0..WAYS as u32 {
            table.remember(&flow(&port(n), "100.64.0.2:53"), n);
        }
        // Refreshed by its answer: number 0 is now the youngest.
        assert!(table.expects(&flow("100.64.0.2:53", &port(0)), 100));
        table.remember(&flow(&port(50), "100.64.0.2:53"), 101);
        assert!(table.expects(&flow("100.64.0.2:53", &port(50)), 102));
        assert!(table.expects(&flow("100.64.0.2:53", &port(0)), 102));
        assert!(!table.expects(&flow("100.64.0.2:53", &port(1)), 102));
        assert!(table.expects(&flow("100.64.0.2:53", &port(2)), 102));
    }
}
