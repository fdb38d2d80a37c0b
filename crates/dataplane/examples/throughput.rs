//! How fast the data plane is by itself: superpackets in at one node, joined
//! superpackets out at another, in one thread, without system calls.
//!
//! `cargo run --profile lab -p warren-dataplane --example throughput`

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use warren_dataplane::{OutSink, RelaySend, ServiceId, UdpSend};
use warren_dataplane_testkit::{CountingHost, Pair, Recipe, Transport, udp_address};
use warren_tunnel::{PeerIndex, Source};

struct Wire {
    bytes: Vec<u8>,
    batches: Vec<(usize, usize, usize)>,
}

impl OutSink for Wire {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        for send in sends {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&buffer[send.range.clone()]);
            self.batches
                .push((start, self.bytes.len(), send.segment_len));
        }
    }
    fn relay(&mut self, _: &[RelaySend], _: &[u8]) {}
    fn need_session(&mut self, _: PeerIndex) {}
    fn deliver(&mut self, _: ServiceId, _: &[u8]) {}
    fn tun(&mut self, _: &[u8]) {}
}

/// Sends `frames`, each of `payload` bytes, again and again for two seconds.
fn measure(name: &str, frames: &[Vec<u8>], payload: usize) {
    let mut pair = Pair::new();
    let mut wire = Wire {
        bytes: Vec::with_capacity(1 << 20),
        batches: Vec::new(),
    };
    let mut host = CountingHost::default();
    let (mut out_time, mut in_time) = (Duration::ZERO, Duration::ZERO);
    let (mut bytes, mut packets) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let begin = Instant::now();
        for frame in frames {
            pair.outbound
                .packet(&pair.views[0], pair.now, frame, &mut wire);
        }
        pair.outbound.flush(&mut wire);
        let middle = Instant::now();
        for (from, to, segment) in wire.batches.drain(..) {
            let batch = &mut wire.bytes[from..to];
            packets += batch.len().div_ceil(segment) as u64;
            let source = Source::Udp(udp_address(1));
            pair.inbound
                .datagrams(&pair.views[1], pair.now, source, batch, segment, &mut host);
        }
        pair.inbound.flush(&mut host);
        wire.bytes.clear();
        out_time += middle - begin;
        in_time += middle.elapsed();
        bytes += (frames.len() * payload) as u64;
    }
    let gbit = |time: Duration| bytes as f64 * 8.0 / time.as_secs_f64() / 1e9;
    println!(
        "{name:<28} out {:6.2} Gbit/s   in {:6.2} Gbit/s   both {:6.2} Gbit/s   {:5.2} Mpacket/s   {:.1} packets per TUN write",
        gbit(out_time),
        gbit(in_time),
        gbit(out_time + in_time),
        packets as f64 / (out_time + in_time).as_secs_f64() / 1e6,
        packets as f64 / host.frames as f64,
    );
}

fn main() {
    let recipe = |v6: bool, transport: Transport, len: usize| Recipe {
        v6,
        extension: false,
        ports: (1_000, 80),
        id: 1,
        dont_fragment: true,
        transport,
        payload: vec![0x5a; len],
    };
    let tcp = Transport::Tcp {
        sequence: 1,
        flags: 0x10,
        options: 12,
    };
    let four = |frame: Vec<u8>| vec![frame; 4];
    measure(
        "TCP v4 superpackets",
        &four(recipe(false, tcp, 63_840).frame(Some(1_228))),
        63_840,
    );
    measure(
        "TCP v6 superpackets",
        &four(recipe(true, tcp, 62_816).frame(Some(1_208))),
        62_816,
    );
    measure(
        "UDP v4 superpackets",
        &four(recipe(false, Transport::Udp, 60_000).frame(Some(1_200))),
        60_000,
    );
    let single = recipe(false, Transport::Udp, 1_200).frame(None);
    measure("UDP single datagrams", &vec![single; 64], 1_200);
}
