//! The other end is boringtun: an implementation we did not write.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use support::{PEER, Side, secret, source};
use warren_tunnel::{REKEY_JITTER, REKEY_TIMEOUT};
use zeroize::Zeroizing;

const THEM: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// boringtun and our end, joined by function calls.
struct Mixed {
    ours: Side,
    theirs: Tunn,
    received_by_them: Vec<Vec<u8>>,
    now: Instant,
    wall: Duration,
}

impl Mixed {
    fn new(psk: Option<[u8; 32]>, limiter: Option<u64>) -> Self {
        let now = Instant::now();
        let (own, peer) = (secret(3), StaticSecret::from(*secret(4).expose()));
        let their_public = PublicKey::from(&peer);
        let limiter = limiter.map(|limit| Arc::new(RateLimiter::new(&their_public, limit)));
        let our_public = PublicKey::from(*own.public().as_bytes());
        let theirs = Tunn::new(peer, our_public, psk, None, 5, limiter);
        let mut ours = Side::new(own, secret(4).public(), 99, now);
        if let Some(psk) = psk {
            ours.handshakes.set_preshared_key(PEER, Zeroizing::new(psk));
        }
        let wall = Duration::from_secs(1_700_000_000);
        Self {
            ours,
            theirs,
            received_by_them: Vec::new(),
            now,
            wall,
        }
    }

    fn we_send(&mut self, packet: &[u8]) {
        self.ours.send(self.now, self.wall, packet);
        self.settle();
    }

    fn they_send(&mut self, packet: &[u8]) {
        let mut buffer = vec![0; 2048];
        let to_us = match self.theirs.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.to_vec()),
            _ => None,
        };
        self.deliver_to_us(to_us);
        self.settle();
    }

    fn deliver_to_us(&mut self, datagrams: impl IntoIterator<Item = Vec<u8>>) {
        for datagram in datagrams {
            self.ours.receive(self.now, self.wall, source(9), datagram);
        }
    }

    /// Carries datagrams until neither end has any.
    fn settle(&mut self) {
        while !self.ours.out.is_empty() {
            for datagram in std::mem::take(&mut self.ours.out) {
                let mut buffer = vec![0; 2048];
                let mut input = datagram.as_slice();
                loop {
                    match self.theirs.decapsulate(Some(THEM), input, &mut buffer) {
                        TunnResult::WriteToNetwork(bytes) => {
                            let bytes = bytes.to_vec();
                            self.ours.receive(self.now, self.wall, source(9), bytes);
                            input = &[];
                        }
                        TunnResult::WriteToTunnelV4(bytes, _) => {
                            self.received_by_them.push(bytes.to_vec());
                            break;
                        }
                        TunnResult::WriteToTunnelV6(bytes, _) => {
                            self.received_by_them.push(bytes.to_vec());
                            break;
                        }
                        TunnResult::Done => break,
                        TunnResult::Err(error) => panic!("boringtun refuses: {error:?}"),
                    }
                }
            }
        }
    }
}

/// A minimal IPv4 packet, as boringtun looks at lengths and versions.
fn packet(mark: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![mark; len];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    bytes
}

fn exchange(mixed: &mut Mixed) {
    for mark in 0..20 {
        let len = 20 + usize::from(mark) * 63;
        mixed.we_send(&packet(mark, len));
        mixed.they_send(&packet(100 + mark, len));
        assert_eq!(mixed.received_by_them.last(), Some(&packet(mark, len)));
        let got = mixed.ours.received.last().unwrap();
        assert_eq!(
            got[..len],
            packet(100 + mark, len),
            "padding behind is allowed"
        );
    }
    assert_eq!(mixed.ours.refused, support::Refused::default());
}

#[test]
fn we_initiate() {
    let mut mixed = Mixed::new(None, None);
    mixed.we_send(&packet(1, 100));
    assert_eq!(mixed.received_by_them, [packet(1, 100)]);
    exchange(&mut mixed);
    assert_eq!(mixed.ours.handshakes.counters().completed, 1);
}

#[test]
fn they_initiate() {
    let mut mixed = Mixed::new(None, None);
    mixed.they_send(&packet(1, 100));
    assert_eq!(mixed.ours.received.len(), 1);
    exchange(&mut mixed);
    assert_eq!(mixed.ours.handshakes.counters().responses_sent, 1);
}

#[test]
fn with_a_preshared_key() {
    for we_start in [true, false] {
        let mut mixed = Mixed::new(Some([0x77; 32]), None);
        if we_start {
            mixed.we_send(&packet(1, 60));
        } else {
            mixed.they_send(&packet(1, 60));
        }
        exchange(&mut mixed);
    }
}

#[test]
fn they_are_under_load_and_we_bring_their_cookie() {
    let mut mixed = Mixed::new(None, Some(0));
    mixed.we_send(&packet(1, 60));
    assert_eq!(mixed.ours.handshakes.counters().cookies_received, 1);
    assert!(mixed.received_by_them.is_empty());
    mixed.now += REKEY_TIMEOUT + REKEY_JITTER;
    mixed.wall += REKEY_TIMEOUT + REKEY_JITTER;
    mixed.ours.timeout(mixed.now, mixed.wall);
    mixed.settle();
    assert_eq!(mixed.received_by_them, [packet(1, 60)]);
}

#[test]
fn we_are_under_load_and_they_bring_our_cookie() {
    let mut mixed = Mixed::new(None, None);
    mixed.ours.handshakes.set_under_load(true);
    mixed.they_send(&packet(1, 60));
    assert_eq!(mixed.ours.handshakes.counters().cookies_sent, 1);
    assert_eq!(mixed.ours.sessions_made, 0);
    // Their own retry timer runs on the real clock; the retry is forced.
    mixed.now += Duration::from_secs(6);
    let mut buffer = vec![0; 2048];
    let again = match mixed.theirs.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("no initiation: {other:?}"),
    };
    mixed.deliver_to_us([again]);
    mixed.settle();
    assert_eq!(mixed.ours.handshakes.counters().responses_sent, 1);
    mixed.ours.handshakes.set_under_load(false);
    exchange(&mut mixed);
}
