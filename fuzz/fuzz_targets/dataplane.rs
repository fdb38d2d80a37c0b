//! Packets through both halves of the data plane: frames of the host with any
//! virtio header, packets of a peer that seals whatever it likes, and bytes of
//! unauthenticated senders.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_dataplane::VnetHdr;
use warren_dataplane_testkit::{HEADER, PEER, Pair, comparable, expand, sessions, udp_address};
use warren_fuzz::steps;
use warren_tunnel::Source;
use warren_wire::disco::looks_like_relayed_disco;
use warren_wire::ip::{Parsed, Protocol};
use warren_wire::stun::looks_like_stun;
use warren_wire::wireguard::{Message, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, is_transport};

/// The sealed and admitted packets that must reach the host: the
/// packets themselves, in any order.
fn check_joined(pair: &mut Pair, mut expected: Vec<Vec<u8>>) {
    pair.inbound.flush(&mut pair.host);
    let frames = std::mem::take(&mut pair.host.frames);
    let mut got: Vec<_> = frames
        .iter()
        .flat_map(|frame| expand(frame))
        .map(|p| comparable(&p))
        .collect();
    got.sort();
    expected.sort();
    assert_eq!(got, expected, "joining and cutting changed a packet");
}

/// A message of a handshake, by its outside.
fn is_handshake(datagram: &[u8]) -> bool {
    !is_transport(datagram) && Message::parse(datagram).is_ok()
}

fuzz_target!(|bytes: &[u8]| {
    let mut pair = Pair::new();
    let [near, _] = sessions(pair.now);
    let mut expected = Vec::new();
    // Far from the numbers that the outbound half draws from its session.
    let mut counter = 1_000;
    for step in steps(bytes) {
        match step.kind % 7 {
            // The host sends a frame as it is.
            0 => {
                let before = pair.drops.each_ref().map(|drops| drops.total());
                check_joined(&mut pair, std::mem::take(&mut expected));
                pair.send(step.bytes);
                pair.cross();
                let after = pair.drops.each_ref().map(|drops| drops.total());
                let frames = std::mem::take(&mut pair.host.frames);
                let got: Vec<_> = frames.iter().flat_map(|frame| expand(frame)).collect();
                let plain = VnetHdr::parse(step.bytes).filter(|(vnet, _)| *vnet == VnetHdr::PLAIN);
                if let Some((_, packet)) = plain
                    && before == after
                    && let Ok(parsed) = Parsed::parse(packet)
                    && parsed.protocol != Protocol::TSMP
                    && pair.net.delivered.is_empty()
                    && pair.net.tun.is_empty()
                {
                    assert_eq!(got, [&packet[..parsed.total_len]]);
                }
                pair.net.delivered.clear();
                pair.net.tun.clear();
            }
            // The peer seals anything.
            1..=3 => {
                let mut datagram = vec![0; TRANSPORT_HEADER_LEN];
                datagram.extend_from_slice(step.bytes);
                datagram.resize(step.bytes.len() + TRANSPORT_OVERHEAD, 0);
                counter += u64::from(step.arg & 1);
                near.seal_in_place(counter, &mut datagram)
                    .expect("the buffer is long enough");
                let before = pair.drops[1].total();
                let len = datagram.len();
                pair.arrive(Source::Udp(udp_address(1)), datagram, len);
                if pair.drops[1].total() == before
                    && let Ok(parsed) = Parsed::parse(step.bytes)
                    && parsed.protocol != Protocol::TSMP
                {
                    expected.push(comparable(&step.bytes[..parsed.total_len]));
                }
            }
            // A batch of such packets, some twice, one damaged, backwards or
            // not; pieces of it come in one receive call.
            4 => {
                let piece = usize::from(step.arg >> 4).max(1);
                let mut batch = Vec::new();
                for packet in step.bytes.chunks(piece).take(20) {
                    let mut datagram = vec![0; TRANSPORT_HEADER_LEN];
                    datagram.extend_from_slice(packet);
                    datagram.resize(piece + TRANSPORT_OVERHEAD, 0);
                    counter += u64::from(batch.len() as u16 % 3 != 1);
                    near.seal_in_place(counter, &mut datagram)
                        .expect("the buffer is long enough");
                    batch.push((packet, datagram));
                }
                if step.arg & 1 == 1 {
                    batch.reverse();
                }
                if step.arg & 2 == 2
                    && let Some((_, datagram)) = batch.first_mut()
                    && let Some(last) = datagram.last_mut()
                {
                    *last ^= 1;
                }
                for (packet, datagram) in batch {
                    let before = pair.drops[1].total();
                    let len = datagram.len();
                    pair.arrive(Source::Udp(udp_address(1)), datagram, len);
                    if pair.drops[1].total() == before
                        && let Ok(parsed) = Parsed::parse(packet)
                        && parsed.protocol != Protocol::TSMP
                    {
                        expected.push(comparable(&packet[..parsed.total_len]));
                    }
                }
            }
            5 => {
                let segment = usize::from(step.arg).max(1);
                // Datagrams that are not recognised are dropped before they are copied.
                let control = step
                    .bytes
                    .chunks(segment)
                    .filter(|d| {
                        looks_like_relayed_disco(d) || looks_like_stun(d) || is_handshake(d)
                    })
                    .count();
                let before = pair.host.control.len();
                pair.arrive(Source::Udp(udp_address(9)), step.bytes.to_vec(), segment);
                assert_eq!(pair.host.control.len(), before + control);
            }
            _ => {
                let packet = step.bytes;
                pair.outbound
                    .inject(&pair.views[0], pair.now, PEER, packet, &mut pair.net);
                pair.outbound.flush(&mut pair.net);
                pair.net.udp.clear();
                pair.later(Duration::from_millis(step.arg.into()));
            }
        }
    }
    check_joined(&mut pair, expected);
    assert_eq!(HEADER, 10);
});
