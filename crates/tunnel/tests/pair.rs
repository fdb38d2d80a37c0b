//! Two of our own ends against each other, under a virtual clock.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use support::{Pair, Refused, secret, source};
use warren_tunnel::{COOKIE_LIFETIME, PeerIndex, Role};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A packet that is full-length, so that padding does not blur it.
fn packet(number: u32) -> Vec<u8> {
    let mut bytes = vec![0x45; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

#[test]
fn the_first_packet_makes_a_session_and_arrives() {
    let mut pair = Pair::new(1);
    pair.send(0, &packet(1));
    pair.run(ms(200));
    assert_eq!(pair.sides[1].received, [packet(1)]);
    assert_eq!(
        pair.sides[0].sending.as_ref().unwrap().role(),
        Role::Initiator
    );
    assert_eq!(
        pair.sides[1].sending.as_ref().unwrap().role(),
        Role::Responder
    );
    pair.send(1, &packet(2));
    pair.run(ms(100));
    assert_eq!(pair.sides[0].received, [packet(2)]);
    assert_eq!(
        (pair.sides[0].sessions_made, pair.sides[1].sessions_made),
        (1, 1)
    );
}

#[test]
fn a_responder_does_not_send_before_it_is_confirmed() {
    let mut pair = Pair::new(2);
    pair.send(0, &packet(1));
    let initiation = pair_take(&mut pair, 0);
    let (now, wall) = (pair.now, pair.wall);
    let responder = &mut pair.sides[1];
    responder.receive(now, wall, source(1), initiation);
    assert!(responder.sending.is_none() && responder.sessions.len() == 1);
    responder.send(now, wall, &packet(9));
    assert!(responder.staged.len() == 1, "it waits");
}

/// Takes the one datagram that a side wants to send, which `send` of the pair
/// has put on its way.
fn pair_take(pair: &mut Pair, side: usize) -> Vec<u8> {
    let (now, wall) = (pair.now, pair.wall);
    let other = secret(2 - side as u8).public();
    let mut fresh = support::Side::new(secret(side as u8 + 1), other, 77, now);
    fresh.send(now, wall, &packet(0));
    fresh.out.remove(0)
}

#[test]
fn sessions_are_renewed_without_losing_a_packet() {
    let mut pair = Pair::new(3);
    let mut sent = [0u32; 2];
    for round in 0..4_000 {
        for (from, count) in sent.iter_mut().enumerate() {
            pair.send(from, &packet(round));
            *count += 1;
        }
        pair.run(ms(100));
    }
    pair.run(ms(500));
    for (to, count) in [(1, sent[0]), (0, sent[1])] {
        let received: BTreeSet<_> = pair.sides[to].received.iter().cloned().collect();
        assert_eq!(received.len(), count as usize, "every packet, to side {to}");
        assert_eq!(
            pair.sides[to].received.len(),
            count as usize,
            "and each once"
        );
        assert_eq!(pair.sides[to].refused, Refused::default());
    }
    // 400 seconds: one session at the start and one per two minutes.
    assert!(
        (4..=8).contains(&pair.sides[0].sessions_made),
        "{}",
        pair.sides[0].sessions_made
    );
}

#[test]
fn one_way_traffic_is_renewed_too_whoever_initiated() {
    for sender in 0..2 {
        let mut pair = Pair::new(4);
        pair.send(0, &packet(u32::MAX));
        pair.run(ms(100));
        for number in 0..4_000 {
            pair.send(sender, &packet(number));
            pair.run(ms(100));
        }
        let receiver = &pair.sides[1 - sender];
        let numbered = receiver
            .received
            .iter()
            .filter(|p| **p != packet(u32::MAX))
            .count();
        assert_eq!(numbered, 4_000, "from side {sender}");
        assert!(
            pair.sides[1 - sender].keepalives > 0,
            "the quiet side shows that it is there"
        );
    }
}

#[test]
fn both_may_start_at_the_same_moment() {
    let mut pair = Pair::new(5);
    for from in 0..2 {
        pair.send(from, &packet(from as u32));
    }
    pair.run(ms(200));
    assert_eq!(pair.sides[1].received, [packet(0)]);
    assert_eq!(pair.sides[0].received, [packet(1)]);
    for number in 10..4_000 {
        for from in 0..2 {
            pair.send(from, &packet(number));
        }
        pair.run(ms(100));
    }
    for side in &pair.sides {
        assert_eq!(side.received.len(), 1 + 3_990);
        assert_eq!(side.refused, Refused::default());
    }
}

#[test]
fn a_restarted_side_is_reached_again() {
    for restarted in 0..2 {
        for sender in 0..2 {
            let mut pair = Pair::new(6);
            pair.send(0, &packet(1));
            pair.run(ms(300));
            pair.restart(restarted);
            // New data every second; at the latest the timer for silence
            // notices.
            for number in 0..30 {
                pair.send(sender, &packet(100 + number));
                pair.run(ms(1_000));
            }
            let received = &pair.sides[1 - sender].received;
            assert_eq!(
                received.last(),
                Some(&packet(129)),
                "{sender} to {restarted} restarted"
            );
        }
    }
}

#[test]
fn an_unreachable_peer_is_given_up_after_ninety_seconds() {
    let mut pair = Pair::new(7);
    pair.loss = 100;
    pair.send(0, &packet(1));
    pair.run(Duration::from_secs(89));
    assert_eq!(pair.sides[0].failed, 0);
    pair.run(Duration::from_secs(8));
    assert_eq!(pair.sides[0].failed, 1);
    let tries = pair.sides[0].handshakes.counters().initiations_sent;
    assert!((16..=18).contains(&tries), "{tries} initiations");
    assert_eq!(
        pair.sides[0].handshakes.next_deadline(),
        None,
        "it is quiet then"
    );
    pair.loss = 0;
    pair.send(0, &packet(2));
    pair.run(ms(6_000));
    assert_eq!(pair.sides[1].received, [packet(2)]);
}

#[test]
fn keys_end_after_three_minutes_of_silence() {
    let mut pair = Pair::new(8);
    pair.send(0, &packet(1));
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.sides[0].sessions.len(), 1);
    pair.run(Duration::from_secs(121));
    for side in &pair.sides {
        assert!(side.sessions.is_empty() && side.sending.is_none());
        assert_eq!(side.sessions_made, 1);
    }
    pair.run(Duration::from_secs(600));
    assert_eq!(pair.sides[0].handshakes.next_deadline(), None);
}

#[test]
fn data_without_an_answer_is_acknowledged_by_a_keepalive() {
    let mut pair = Pair::new(9);
    pair.send(0, &packet(1));
    pair.run(Duration::from_secs(9));
    assert_eq!(pair.sides[1].keepalives, 0);
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.sides[1].keepalives, 1);
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.sides[1].keepalives, 1, "once");
    assert_eq!(
        pair.sides[0].sessions_made, 1,
        "the keepalive was an answer"
    );
}

#[test]
fn load_is_survived_by_cookies() {
    let mut pair = Pair::new(10);
    pair.sides[1].handshakes.set_under_load(true);
    pair.send(0, &packet(1));
    pair.run(ms(4_000));
    assert!(pair.sides[1].received.is_empty());
    assert_eq!(pair.sides[1].handshakes.counters().cookies_sent, 1);
    assert_eq!(pair.sides[0].handshakes.counters().cookies_received, 1);
    pair.run(ms(3_000));
    assert_eq!(
        pair.sides[1].received,
        [packet(1)],
        "the retry carries the cookie"
    );
    assert!(COOKIE_LIFETIME > ms(7_000));
}

#[test]
fn strangers_without_our_key_make_no_load() {
    let mut pair = Pair::new(12);
    let initiation = pair_take(&mut pair, 0);
    let (now, wall) = (pair.now, pair.wall);
    let side = &mut pair.sides[1];
    let mut forged = initiation.clone();
    forged[50] ^= 1;
    for _ in 0..2_000 {
        side.receive(now, wall, source(1), forged.clone());
    }
    assert_eq!(side.handshakes.counters().bad_mac, 2_000);
    side.receive(now, wall, source(1), initiation);
    assert_eq!(side.handshakes.counters().responses_sent, 1);
    assert_eq!(side.handshakes.counters().cookies_sent, 0);
}

#[test]
fn replayed_and_forged_handshakes_are_dropped_and_counted() {
    let mut pair = Pair::new(11);
    let initiation = pair_take(&mut pair, 0);
    let (now, wall) = (pair.now, pair.wall);
    let side = &mut pair.sides[1];
    side.receive(now, wall, source(1), initiation.clone());
    assert_eq!(side.handshakes.counters().responses_sent, 1);
    side.receive(now + ms(100), wall, source(1), initiation.clone());
    assert_eq!(side.handshakes.counters().replayed, 1);
    for at in [8, 50, 100, 120] {
        let mut damaged = initiation.clone();
        damaged[at] ^= 1;
        side.receive(now, wall, source(1), damaged);
    }
    assert_eq!(side.handshakes.counters().bad_mac, 4);
    side.receive(now, wall, source(1), initiation[..147].to_vec());
    side.receive(now, wall, source(1), vec![]);
    assert_eq!(side.handshakes.counters().malformed, 2);
    side.handshakes.remove_peer(PeerIndex(0));
    side.receive(now, wall, source(1), initiation);
    assert_eq!(side.handshakes.counters().unknown_peer, 1);
    assert_eq!(side.handshakes.counters().responses_sent, 1);
}

#[test]
fn data_frames_that_are_cut_flipped_or_repeated_are_dropped_and_counted() {
    let mut pair = Pair::new(12);
    pair.send(0, &packet(1));
    pair.run(ms(200));
    let (now, wall) = (pair.now, pair.wall);
    pair.sides[0].send(now, wall, &packet(2));
    let good = pair.sides[0].out.pop().unwrap();
    let side = &mut pair.sides[1];
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    let mut elsewhere = good.clone();
    elsewhere[4] ^= 1;
    side.receive(now, wall, source(1), flipped);
    side.receive(now, wall, source(1), good[..good.len() - 1].to_vec());
    side.receive(now, wall, source(1), elsewhere);
    side.receive(now, wall, source(1), good.clone());
    side.receive(now, wall, source(1), good);
    assert_eq!(
        side.refused,
        Refused {
            unknown: 1,
            forged: 2,
            replayed: 1,
            expired: 0
        }
    );
    assert_eq!(side.received, [packet(1), packet(2)]);
}

#[test]
fn a_wall_clock_that_jumps_back_does_not_lock_us_out() {
    let mut pair = Pair::new(13);
    pair.send(0, &packet(1));
    pair.run(ms(200));
    pair.wall -= Duration::from_secs(86_400);
    for number in 0..1_300 {
        pair.send(0, &packet(number));
        pair.run(ms(100));
    }
    assert_eq!(pair.sides[0].sessions_made, 2);
    assert_eq!(pair.sides[1].handshakes.counters().replayed, 0);
}

/// A day back, and over a restart: only what was kept helps.
#[test]
fn a_clock_that_was_set_back_over_a_restart_needs_the_kept_timestamp() {
    for kept in [false, true] {
        let mut pair = Pair::new(14);
        pair.send(0, &packet(1));
        pair.run(ms(200));
        let floor = pair.sides[0].handshakes.last_timestamp();
        pair.restart(0);
        if kept {
            pair.sides[0].handshakes.resume_timestamps(floor);
        }
        pair.wall -= Duration::from_secs(86_400);
        for number in 0..60 {
            pair.send(0, &packet(number));
            pair.run(ms(100));
        }
        let refused = pair.sides[1].handshakes.counters().replayed;
        if kept {
            assert_eq!(refused, 0);
            assert_eq!(pair.sides[1].received.last(), Some(&packet(59)));
        } else {
            assert!(refused > 0);
            assert_eq!(pair.sides[1].received.last(), Some(&packet(1)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the network loses and reorders, packets arrive at most once
    /// and intact, and when it recovers, so does the tunnel.
    #[test]
    fn loss_and_reordering_are_survived(
        seed: u64, loss in 0u64..60, latency in 1u64..3_000, steps in 50u32..400,
    ) {
        let mut pair = Pair::new(seed);
        pair.loss = loss;
        pair.latency = latency;
        for number in 0..steps {
            let from = pair.random.below(2) as usize;
            pair.send(from, &packet(number));
            let pause = pair.random.below(1_500);
            pair.run(ms(pause));
        }
        pair.loss = 0;
        pair.latency = 10;
        pair.run(Duration::from_secs(12));
        for number in 1_000..1_020 {
            for from in 0..2 {
                pair.send(from, &packet(number));
            }
            pair.run(ms(1_000));
        }
        for side in &pair.sides {
            let distinct: BTreeSet<_> = side.received.iter().collect();
            prop_assert_eq!(distinct.len(), side.received.len());
            let numbers = side.received.iter().map(|p| {
                u32::from_be_bytes(p[..4].try_into().unwrap())
            });
            for (number, bytes) in numbers.zip(&side.received) {
                prop_assert!(number < steps || (1_000..1_020).contains(&number));
                prop_assert_eq!(bytes, &packet(number));
            }
            prop_assert_eq!(side.received.last(), Some(&packet(1_019)));
            prop_assert_eq!(side.refused.forged, 0);
        }
    }
}
