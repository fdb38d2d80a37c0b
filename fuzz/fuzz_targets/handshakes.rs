//! WireGuard handshakes: two honest nodes, and an attacker who repeats, delays
//! and damages what they say, and adds words of its own.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use libfuzzer_sys::fuzz_target;
use warren_fuzz::{Clock, damage, node, steps};
use warren_keys::NodePublic;
use warren_testkit::SeededEntropy;
use warren_tunnel::{Event, Handshakes, PeerIndex, Session, Source};
use warren_wire::wireguard::TRANSPORT_OVERHEAD;

const PEER: PeerIndex = PeerIndex(1);

struct End {
    handshakes: Handshakes,
    /// Sessions that may receive.
    sessions: BTreeMap<u32, Arc<Session>>,
}

impl End {
    fn new(own: u8, other: u8, clock: Clock) -> Self {
        let mut handshakes = Handshakes::new(node(own), Box::new(SeededEntropy(own.into())));
        handshakes.add_peer(clock.now, PEER, node(other).public());
        Self {
            handshakes,
            sessions: BTreeMap::new(),
        }
    }

    fn settle(&mut self, clock: Clock, sent: &mut Vec<Vec<u8>>) {
        self.handshakes.handle_timeout(clock.now, clock.wall);
        let mut count = 0;
        while let Some(event) = self.handshakes.poll_event() {
            count += 1;
            assert!(count < 100, "one input, no end of events");
            match event {
                Event::Send { datagram, .. } => sent.push(datagram),
                Event::NewSession { session, .. } => {
                    let old = self.sessions.insert(session.local_index(), session);
                    assert!(old.is_none(), "an index is used twice");
                }
                Event::SessionExpired { local_index, .. } => {
                    assert!(self.sessions.remove(&local_index).is_some());
                }
                Event::SessionConfirmed { session, .. } => {
                    assert!(self.sessions.contains_key(&session.local_index()));
                }
                Event::SendKeepalive { .. } | Event::HandshakeFailed { .. } => {}
            }
        }
        assert!(self.sessions.len() <= 3, "previous, current and next");
        assert_eq!(self.handshakes.sessions().count(), self.sessions.len());
        if let Some((at, reason)) = self.handshakes.next_deadline() {
            assert!(at > clock.now, "{reason:?} stays due: the shell would spin");
        }
        sent.truncate(64);
    }
}

/// Puts the right `mac1` into a handshake message for `to`: any sender that knows
/// the public key can.
fn put_mac1(datagram: &mut [u8], to: &NodePublic) {
    let at = match (datagram.first(), datagram.len()) {
        (Some(1), 148) => 116,
        (Some(2), 92) => 60,
        _ => return,
    };
    let mut key = blake2::Blake2s256::default();
    blake2::Digest::update(&mut key, b"mac1----");
    blake2::Digest::update(&mut key, to.as_bytes());
    let key: [u8; 32] = blake2::Digest::finalize(key).into();
    let mut mac = blake2::Blake2sMac::<blake2::digest::consts::U16>::new_from_slice(&key)
        .expect("a key of 32 bytes");
    mac.update(&datagram[..at]);
    datagram[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}

fuzz_target!(|bytes: &[u8]| {
    let mut clock = Clock::default();
    let mut ends = [End::new(1, 2, clock), End::new(2, 1, clock)];
    let keys = [node(1).public(), node(2).public()];
    let mut sent = Vec::new();
    for step in steps(bytes) {
        let which = usize::from(step.arg & 1);
        let source = if step.arg & 2 == 0 {
            Source::Udp(([192, 0, 2, step.arg], 41641).into())
        } else {
            Source::Derp {
                region: warren_node_types::RegionId(1),
                key: keys[1 - which],
            }
        };
        let end = &mut ends[which];
        let hs = &mut end.handshakes;
        match step.kind % 8 {
            // The last message arrives, as it is or damaged.
            0 => {
                if let Some(datagram) = sent.last() {
                    let datagram: &Vec<u8> = datagram;
                    let mut datagram = datagram.clone();
                    damage(&mut datagram, step.bytes);
                    if step.arg & 4 != 0 {
                        put_mac1(&mut datagram, &keys[which]);
                    }
                    hs.handle_datagram(clock.now, clock.wall, source, &datagram);
                }
            }
            // An older one does.
            1 => {
                let index = usize::from(step.arg >> 2);
                if let Some(datagram) = sent.get(index) {
                    hs.handle_datagram(clock.now, clock.wall, source, datagram);
                }
            }
            2 => {
                let mut datagram = step.bytes.to_vec();
                put_mac1(&mut datagram, &keys[which]);
                hs.handle_datagram(clock.now, clock.wall, source, &datagram);
            }
            3 => clock.pass(step.arg),
            4 => hs.want_session(clock.now, clock.wall, PEER),
            5 => hs.set_under_load(step.arg & 4 != 0),
            6 => {
                for index in end.sessions.keys() {
                    hs.session_confirmed(clock.now, *index);
                }
            }
            _ => {
                hs.remove_peer(PEER);
                hs.add_peer(clock.now, PEER, keys[1 - which]);
            }
        }
        for end in &mut ends {
            end.settle(clock, &mut sent);
        }
    }

    // Sessions of one handshake, and only those, understand each other.
    let [near, far] = &ends;
    for session in near.sessions.values() {
        let Some(other) = far.sessions.get(&session.remote_index()) else {
            continue;
        };
        if other.remote_index() != session.local_index() {
            continue;
        }
        let mut datagram = [0; TRANSPORT_OVERHEAD];
        session
            .seal_in_place(0, &mut datagram)
            .expect("the buffer is long enough");
        assert!(other.open_in_place(&mut datagram).is_ok());
    }
});
