//! Memory of the flows this node started, so that their answers pass.
//!
//! A packet that leaves is remembered by what its answer will look like; one
//! that arrives and is remembered passes without a rule. Both directions
//! refresh an entry. The kinds of entries, and how long they live without packets:
//!
//! | entry | known by | idle |
//! |---|---|---|
//! | TCP | addresses and ports | [`TCP_IDLE_SECS`] |
//! | UDP, SCTP | addresses and ports | [`IDLE_SECS`] |
//! | echo request | addresses and identifier | [`IDLE_SECS`] |
//! | other protocols, fragments, IPv6 with extension headers | addresses | [`IDLE_SECS`] |
//! | a first fragment that came in | addresses | [`FRAGMENT_SECS`] |
//!
//! The last two rows let nothing in by themselves: one relates ICMP errors to
//! packets that have no ports, the other lets later fragments follow
//! the first one.
//!
//! The table is shared by reference between the threads that send and those
//! that receive. It is a fixed array of atomics: no lock, no allocation after
//! [`FlowTable::new`]. A flow is known by a keyed 64-bit hash of its tuple
//! (SipHash-1-3 under a secret key), so a sender can neither aim at an entry nor
//! crowd out a chosen one. It may lie in eight places; `flows/bucket.rs` decides
//! which flow is replaced when they are full: first those that are over, then those
//! that rules let in anyway, then those never answered, and connections
//! last. Races between threads can at worst lose a refresh, replace another flow than
//! intended, or forget a flow that its next packet brings back; they cannot
//! invent one.
//!
//! Only packets that leave make entries, but for a first fragment that came in
//! as part of an answer.
//!
//! A table that has just been made does not know the connections that outlived
//! the daemon before it, and a host that only receives would never bring them
//! back. For the first [`GRACE_SECS`] what looks like an answer passes, as it
//! always does in the reference; each acknowledgement that leaves meanwhile
//! makes its connection known.

mod bucket;
mod sync;

use std::net::IpAddr;

use warren_keys::Entropy;
use warren_wire::ip::icmp::{Icmp, Quoted};
use warren_wire::ip::{Fragment, IPV6_HEADER_LEN, IpPacket, Parsed, Protocol, TcpFlags, Version};

use bucket::{Bucket, Note, Slot, WAYS, flow_hash};

/// Seconds after which a flow without packets is forgotten. The official client has
/// no time limit but keeps 512 flows only; an hour and many thousands of flows are
/// longer for every busy node.
pub const IDLE_SECS: u32 = 3600;

/// The same for TCP, whose connections may be silent for days: what Linux
/// grants an established connection. The table's size forgets them earlier on
/// a node with very many flows; then they come back with the next packet from
/// here.
pub const TCP_IDLE_SECS: u32 = 5 * 86_400;

/// How long later fragments may follow the first: the time that hosts keep
/// fragments (RFC 8200 section 4.5).
pub const FRAGMENT_SECS: u32 = 60;

/// For how many seconds from its making a table lets in what looks like an
/// answer. Longer than the longest pause between retransmissions of TCP
/// (RFC 6298 section 2.5 allows 60 s, Linux uses 120 s).
pub const GRACE_SECS: u32 = 180;

/// Default number of flows: 64 Ki, of which untouched memory costs nothing.
const DEFAULT_SLOTS: usize = 1 << 16;

/// The kind of an entry.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A flow with ports, or with an echo identifier in their place.
    Flow(Protocol),
    /// Something left between these addresses.
    Pair,
    /// A first fragment came in between these addresses.
    Fragments,
}

/// Flows whose answers are expected. See the module for its life.
#[derive(Debug)]
pub struct FlowTable {
    key: [u64; 2],
    buckets: Box<[Bucket]>,
    grace: u32,
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
            grace: GRACE_SECS,
        }
    }

    /// The table without its time of grace: for a start from which no
    /// connection can be older.
    #[must_use]
    pub fn without_grace(mut self) -> Self {
        self.grace = 0;
        self
    }

    /// Remembers that `packet` left, so that its answer may come in. For
    /// packets that do not pass [`crate::Filter::check_out`] (built by the
    /// node itself) the caller does this. `now` counts seconds from the making
    /// of the table.
    pub fn remember(&self, packet: &IpPacket<'_>, now: u32) {
        self.remember_or_spare(packet, now, || false);
    }

    /// The same. `is_spare` is asked about a new flow: whether its answers come
    /// in as well if it is forgotten.
    pub(crate) fn remember_or_spare(
        &self,
        packet: &IpPacket<'_>,
        now: u32,
        is_spare: impl FnOnce() -> bool,
    ) {
        let ends = (packet.dst, packet.src);
        if packet.is_later_fragment() {
            return self.remember_pair(ends, now);
        }
        let kind = match packet.protocol {
            protocol if protocol.has_ports() => {
                Some((Kind::Flow(protocol), (packet.dst_port, packet.src_port)))
            }
            _ => match packet.icmp() {
                Some(Icmp::EchoRequest(echo)) => {
                    Some((Kind::Flow(packet.protocol), (echo.ident, 0)))
                }
                _ => None,
            },
        };
        if let Some((kind, ports)) = kind {
            let hash = self.hash(kind, ends, ports);
            self.remember_flow(hash, packet, now, is_spare);
        }
        let behind_extensions =
            packet.version == Version::V6 && packet.transport_offset > IPV6_HEADER_LEN;
        if kind.is_none() || behind_extensions || packet.fragment != Fragment::Whole {
            self.remember_pair(ends, now);
        }
    }

    #[inline]
    fn remember_flow(&self, hash: u64, packet: &Parsed, now: u32, is_spare: impl FnOnce() -> bool) {
        let Some(bucket) = self.bucket(hash) else {
            return;
        };
        let flags = packet.tcp_flags;
        if let Some(slot) = bucket.find(hash) {
            slot.touch(now);
            // Zero for other protocols.
            if flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST) != 0 {
                if flags.opens() {
                    slot.reopened();
                }
                slot.add(ended_bits(flags, Note::DONE_HERE));
            }
            return;
        }
        // A refusal is not answered.
        if flags.has(TcpFlags::RST) {
            return;
        }
        let mut state = 0;
        if packet.protocol == Protocol::TCP {
            state |= Note::TCP;
        }
        // The end that opened it: presumably the other one where a rule lets it.
        let mut opener = packet.src;
        if is_spare() {
            state |= Note::SPARE;
            opener = packet.dst;
        }
        bucket.put(hash, Note::new(state, self.tag(opener)), now);
    }

    /// Something left that is known by its addresses only. Lets nothing in by
    /// itself, so anything else is worth more.
    fn remember_pair(&self, ends: (IpAddr, IpAddr), now: u32) {
        let hash = self.hash(Kind::Pair, ends, (0, 0));
        self.store(hash, Note::SPARE, ends.0, now);
    }

    /// Whether `packet`, which arrived, answers a flow of ours. Refreshes it.
    // Not inlined: it is asked after the rules, and its hashing would take registers
    // from their check, which most packets need alone.
    #[must_use]
    #[inline(never)]
    pub fn expects(&self, packet: &IpPacket<'_>, now: u32) -> bool {
        let ends = (packet.src, packet.dst);
        let (ports, idle) = match packet.protocol {
            Protocol::TCP => ((packet.src_port, packet.dst_port), TCP_IDLE_SECS),
            Protocol::UDP | Protocol::SCTP => ((packet.src_port, packet.dst_port), IDLE_SECS),
            _ => match packet.icmp() {
                Some(Icmp::EchoReply(echo)) => ((echo.ident, 0), IDLE_SECS),
                _ => return false,
            },
        };
        let hash = self.hash(Kind::Flow(packet.protocol), ends, ports);
        let Some(slot) = self.find(hash, now, idle) else {
            return false;
        };
        slot.answered(ended_bits(packet.tcp_flags, Note::DONE_THERE));
        true
    }

    /// Whether an ICMP error that arrived for `receiver` is about a packet that
    /// left from there. `quoted`: what the error quotes of it.
    #[must_use]
    pub fn caused(&self, receiver: IpAddr, quoted: &[u8], now: u32) -> bool {
        let Some(cause) = Quoted::parse(quoted).filter(|cause| cause.src == receiver) else {
            return false;
        };
        if self.is_new(now) {
            return true;
        }
        let ends = (cause.dst, cause.src);
        let kind = Kind::Flow(cause.protocol);
        if let (Some(from), Some(to)) = (cause.src_port, cause.dst_port) {
            return self.knows(kind, ends, (to, from), now, TCP_IDLE_SECS);
        }
        // Without ports: an echo request, or known by addresses only.
        quoted_ident(quoted, cause.protocol)
            .is_some_and(|ident| self.knows(kind, ends, (ident, 0), now, IDLE_SECS))
            || self.knows(Kind::Pair, ends, (0, 0), now, IDLE_SECS)
    }

    /// Whether the table was made so recently that connections from before are
    /// not known yet.
    #[must_use]
    pub fn is_new(&self, now: u32) -> bool {
        now < self.grace
    }

    /// A first fragment came in and may go on, though no rule says so.
    #[cold]
    pub(crate) fn remember_first_fragment(&self, packet: &Parsed, now: u32) {
        let hash = self.hash(Kind::Fragments, (packet.src, packet.dst), (0, 0));
        self.store(hash, Note::FRAGMENT, packet.src, now);
    }

    /// Whether a first fragment between the same addresses came in lately.
    // Not inlined: fragments are rare, and the check of the rules is not.
    #[inline(never)]
    pub(crate) fn expects_later_fragment(&self, packet: &Parsed, now: u32) -> bool {
        let ends = (packet.src, packet.dst);
        self.knows(Kind::Fragments, ends, (0, 0), now, FRAGMENT_SECS)
    }

    /// Remembers what has no life of its own. `opener`: whose place it takes.
    fn store(&self, hash: u64, state: u32, opener: IpAddr, now: u32) {
        let Some(bucket) = self.bucket(hash) else {
            return;
        };
        match bucket.find(hash) {
            Some(slot) => slot.touch(now),
            None => bucket.put(hash, Note::new(state, self.tag(opener)), now),
        }
    }

    /// The entry of a flow, if it is not idle for too long. Refreshes it.
    #[inline]
    fn find(&self, hash: u64, now: u32, idle: u32) -> Option<&Slot> {
        let slot = self.bucket(hash)?.find_live(hash, now, idle)?;
        slot.touch(now);
        Some(slot)
    }

    /// Whether it is remembered and not idle for too long. Refreshes it.
    fn knows(
        &self,
        kind: Kind,
        ends: (IpAddr, IpAddr),
        ports: (u16, u16),
        now: u32,
        idle: u32,
    ) -> bool {
        self.find(self.hash(kind, ends, ports), now, idle).is_some()
    }

    fn bucket(&self, hash: u64) -> Option<&Bucket> {
        // A power of two, so the mask keeps the index inside.
        let index = (hash as usize) & (self.buckets.len() - 1);
        self.buckets.get(index)
    }

    /// The hash of a flow, a pair or fragments. `ends` and `ports`: the remote
    /// one first.
    fn hash(&self, kind: Kind, ends: (IpAddr, IpAddr), ports: (u16, u16)) -> u64 {
        let [remote_high, remote_low] = halves(ends.0);
        let [local_high, local_low] = halves(ends.1);
        let kind = match kind {
            Kind::Flow(protocol) => u64::from(protocol.0),
            Kind::Pair => 0x100,
            Kind::Fragments => 0x200,
        };
        let rest = u64::from(ports.0)
            | u64::from(ports.1) << 16
            | kind << 32
            | u64::from(ends.0.is_ipv4()) << 48;
        flow_hash(siphash13(
            self.key,
            [remote_high, remote_low, local_high, local_low, rest],
        ))
    }

    /// The tag under which the flows of an address are counted.
    // Not inlined: only a packet that makes a new entry needs it.
    #[cold]
    #[inline(never)]
    fn tag(&self, address: IpAddr) -> u64 {
        let [high, low] = halves(address);
        siphash13(self.key, [high, low, 0, 0, 0x300 << 32])
    }
}

/// How a TCP segment ends its connection: with `done`, with both bits, or not.
fn ended_bits(flags: TcpFlags, done: u32) -> u32 {
    if flags.has(TcpFlags::RST) {
        Note::CLOSED
    } else if flags.has(TcpFlags::FIN) {
        done
    } else {
        0
    }
}

/// The identifier of an echo request that an ICMP error quotes.
fn quoted_ident(quoted: &[u8], protocol: Protocol) -> Option<u16> {
    let (request, header_len) = match (quoted.first()? >> 4, protocol) {
        (4, Protocol::ICMPV4) => (8, usize::from(quoted.first()? & 0x0f) * 4),
        (6, Protocol::ICMPV6) => (128, IPV6_HEADER_LEN),
        _ => return None,
    };
    let message: &[u8; 6] = quoted.get(header_len..)?.first_chunk()?;
    (message[0] == request).then(|| u16::from_be_bytes([message[4], message[5]]))
}

fn halves(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

/// SipHash-1-3 (Aumasson, Bernstein) over five words.
#[inline(always)]
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
    use warren_testkit::FixedEntropy;
    use warren_wire::ip::{IpPacket, udp};

    fn flow(src: &str, dst: &str) -> Vec<u8> {
        udp::packet(src.parse().unwrap(), dst.parse().unwrap(), b"x").unwrap()
    }

    fn remember(table: &FlowTable, src: &str, dst: &str, now: u32) {
        table.remember(&IpPacket::parse(&flow(src, dst)).unwrap(), now);
    }

    fn expects(table: &FlowTable, src: &str, dst: &str, now: u32) -> bool {
        table.expects(&IpPacket::parse(&flow(src, dst)).unwrap(), now)
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
        let table = FlowTable::new(&mut FixedEntropy(7));
        remember(&table, "100.64.0.1:1000", "100.64.0.2:53", 10);
        assert!(expects(&table, "100.64.0.2:53", "100.64.0.1:1000", 11));
        for (src, dst) in [
            ("100.64.0.1:1000", "100.64.0.2:53"),
            ("100.64.0.2:54", "100.64.0.1:1000"),
            ("100.64.0.3:53", "100.64.0.1:1000"),
            ("100.64.0.2:53", "100.64.0.1:1001"),
            ("[::6440:2]:53", "[::6440:1]:1000"),
        ] {
            assert!(!expects(&table, src, dst, 11), "{src} {dst}");
        }
    }

    #[test]
    fn an_idle_flow_is_forgotten_and_an_active_one_is_not() {
        let table = FlowTable::new(&mut FixedEntropy(7));
        let (here, there) = ("[fd7a::1]:1000", "[fd7a::2]:53");
        remember(&table, here, there, 10);
        assert!(expects(&table, there, here, 10 + IDLE_SECS));
        assert!(expects(&table, there, here, 10 + 2 * IDLE_SECS));
        assert!(!expects(&table, there, here, 11 + 3 * IDLE_SECS));
        remember(&table, here, there, 11 + 3 * IDLE_SECS);
        assert!(expects(&table, there, here, 12 + 3 * IDLE_SECS));
    }

    #[test]
    fn a_full_bucket_gives_up_the_longest_idle_flow() {
        let table = FlowTable::with_slots(&mut FixedEntropy(7), WAYS);
        let port = |n: u32| format!("100.64.0.1:{}", 1000 + n);
        let server = "100.64.0.2:53";
        for n in 0..WAYS as u32 {
            remember(&table, &port(n), server, n);
        }
        // Refreshed by its answer: number 0 is now the youngest.
        assert!(expects(&table, server, &port(0), 100));
        remember(&table, &port(50), server, 101);
        assert!(expects(&table, server, &port(50), 102));
        assert!(expects(&table, server, &port(0), 102));
        assert!(!expects(&table, server, &port(1), 102));
        assert!(expects(&table, server, &port(2), 102));
    }
}
