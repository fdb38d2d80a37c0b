//! A server that says anything about peers, against a model that knows which are signed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};
use warren_control_types::MapResponse;
use warren_keys::{DiscoSecret, NodeSecret};
use warren_lock::{
    Authority, Checkpoint, DisablementValue, LockSecret, Meta, NodeKeySignature, StateId,
    TrustedKey, Updater,
};
use warren_node_types::TailnetRanges;
use warren_testkit::CountingEntropy;
use warren_tunnel::Aead;

use super::*;
use crate::{EngineConfig, Output};

const WALL: Duration = Duration::from_secs(1_800_000_000);

fn trusted() -> LockSecret {
    LockSecret::from_seed(&[1; 32])
}

fn stranger() -> LockSecret {
    LockSecret::from_seed(&[2; 32])
}

fn key(secret: &LockSecret) -> TrustedKey {
    TrustedKey::new(secret.public(), 1, Meta::default()).unwrap()
}

fn authority(keys: &[&LockSecret]) -> Authority {
    let keys = keys.iter().map(|secret| key(secret)).collect();
    let values = vec![DisablementValue::from_bytes([9; 32])];
    let checkpoint = Checkpoint::new(keys, values, StateId(1, 2)).unwrap();
    Authority::create(checkpoint, &trusted(), 0).unwrap().0
}

fn engine(gate: LockGate, now: Instant) -> Engine {
    let config = EngineConfig {
        node_key: NodeSecret::from_bytes(&[1; 32]),
        disco_key: DiscoSecret::from_bytes(&[2; 32]),
        flow_slots: Some(64),
        aead: Aead::default(),
        ranges: TailnetRanges::DEFAULT,
        lock: gate,
    };
    Engine::new(config, now, Box::new(CountingEntropy::default()))
}

fn node_key(number: u8) -> NodePublic {
    NodeSecret::from_bytes(&[number; 32]).public()
}

/// The bytes that the server sends as the signature of a key.
#[derive(Debug, Clone, Copy)]
enum Given {
    Nothing,
    Garbage,
    Good,
    /// A rotation of the node's earlier key, whose number is two lower.
    Rotated,
    /// Made with a key that is not trusted.
    Forged,
    /// The signature of another node.
    Replayed,
    /// A credential by itself.
    Credential,
    /// A good one with one bit changed.
    Damaged,
}

impl Given {
    fn is_good(self) -> bool {
        matches!(self, Self::Good | Self::Rotated)
    }

    fn bytes(self, key: u8) -> Vec<u8> {
        let own = LockSecret::from_seed(&[100 + key; 32]);
        let direct =
            |number| NodeKeySignature::direct(node_key(number), Some(own.public()), &trusted());
        match self {
            Self::Nothing => Vec::new(),
            Self::Garbage => vec![0xa1, 1, 1],
            Self::Good => direct(key).encode(),
            Self::Rotated => direct(key - 2).rotated(node_key(key), &own).encode(),
            Self::Forged => NodeKeySignature::direct(node_key(key), None, &stranger()).encode(),
            Self::Replayed => direct(key + 1).encode(),
            Self::Credential => {
                NodeKeySignature::credential(stranger().public(), &trusted()).encode()
            }
            Self::Damaged => {
                let mut bytes = direct(key).encode();
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                bytes
            }
        }
    }
}

fn given() -> impl Strategy<Value = Given> {
    prop_oneof![
        3 => Just(Given::Good),
        1 => Just(Given::Rotated),
        1 => Just(Given::Nothing),
        1 => Just(Given::Garbage),
        1 => Just(Given::Forged),
        1 => Just(Given::Replayed),
        1 => Just(Given::Credential),
        1 => Just(Given::Damaged),
    ]
}

fn peer(id: u8, key: u8, given: Given) -> Value {
    let encoded = warren_control_types::Encoded(given.bytes(key));
    json!({
        "ID": id,
        "Key": node_key(key).to_string(),
        "KeySignature": encoded,
        "Addresses": [format!("100.64.0.{id}/32")],
        "AllowedIPs": [format!("100.64.0.{id}/32")],
        // The server's word for "may be reached without a signature".
        "UnsignedPeerAPIOnly": id.is_multiple_of(2),
    })
}

/// One message of the server.
#[derive(Debug, Clone)]
enum Step {
    Peers(Vec<(u8, u8, Given)>),
    Changed(u8, u8, Given),
    Patched(u8, u8, Given),
    Online(u8, bool),
    Removed(u8),
    /// The trusted key is replaced by the other one, or comes back.
    Chain(bool),
}

fn step() -> impl Strategy<Value = Step> {
    // Keys with gaps for their earlier and other ones.
    let (id, key) = (10u8..16, (10u8..40).prop_map(|key| key * 2));
    prop_oneof![
        1 => prop::collection::vec((id.clone(), key.clone(), given()), 1..6).prop_map(Step::Peers),
        4 => (id.clone(), key.clone(), given()).prop_map(|(id, key, given)| Step::Changed(id, key, given)),
        3 => (id.clone(), key, given()).prop_map(|(id, key, given)| Step::Patched(id, key, given)),
        2 => (id.clone(), any::<bool>()).prop_map(|(id, online)| Step::Online(id, online)),
        1 => id.prop_map(Step::Removed),
        1 => any::<bool>().prop_map(Step::Chain),
    ]
}

fn message(step: &Step) -> Option<MapResponse> {
    let mut message = match step {
        Step::Peers(peers) => {
            let peers = peers.iter().map(|(id, key, given)| peer(*id, *key, *given));
            json!({ "Peers": peers.collect::<Vec<_>>() })
        }
        Step::Changed(id, key, given) => json!({ "PeersChanged": [peer(*id, *key, *given)] }),
        Step::Patched(id, key, given) => json!({ "PeersChangedPatch": [{
            "NodeID": id,
            "Key": node_key(*key).to_string(),
            "KeySignature": warren_control_types::Encoded(given.bytes(*key)),
        }] }),
        Step::Online(id, online) => json!({ "OnlineChange": { id.to_string(): online } }),
        Step::Removed(id) => json!({ "PeersRemoved": [id] }),
        Step::Chain(_) => return None,
    };
    message["KeepAlive"] = json!(false);
    Some(serde_json::from_value(message).unwrap())
}

fn first_message() -> MapResponse {
    let own = json!({ "ID": 1, "Key": node_key(1).to_string(), "Addresses": ["100.64.0.1/32"] });
    serde_json::from_value(json!({ "Node": own })).unwrap()
}

/// Applies the changes that leave the engine to a map that knows nothing else.
fn follow(shown: &mut BTreeMap<NodeId, Node>, engine: &mut Engine) {
    while let Some(output) = engine.poll_output() {
        let Output::Netmap(changes) = output else {
            continue;
        };
        for (id, delta) in changes.peers {
            let now = engine.netmap().peers.get(&id).cloned();
            let before = match delta {
                PeerDelta::Added => None,
                PeerDelta::Changed(before) | PeerDelta::Removed(before) => Some(*before),
            };
            assert_eq!(
                shown.get(&id),
                before.as_ref(),
                "the change begins where the map was"
            );
            match now {
                Some(now) => drop(shown.insert(id, now)),
                None => drop(shown.remove(&id)),
            }
        }
    }
}

/// The peers of the model that the lock admits.
fn admitted(all: &BTreeMap<NodeId, Node>, authority: &Authority) -> BTreeSet<NodeId> {
    let mut rotations = RotationTracker::default();
    let signed: Vec<&Node> = all
        .values()
        .filter(|node| {
            let outcome = authority.authorize(node.key, &node.key_signature);
            outcome.is_ok_and(|authorization| {
                rotations.add(node.key, &authorization);
                true
            })
        })
        .collect();
    let replaced = rotations.obsolete();
    let kept = signed
        .into_iter()
        .filter(|node| !replaced.contains(&node.key));
    kept.map(|node| node.id).collect()
}

proptest! {
    // Each case verifies hundreds of signatures.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// After messages of any content and order, exactly the signed peers exist for the node,
    /// and the changes that it reports lead from one state to the next.
    #[test]
    fn only_signed_peers_exist_whatever_the_server_sends(
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let now = Instant::now();
        let both = [authority(&[&trusted()]), authority(&[&trusted(), &stranger()])];
        let mut chain = 0;
        let mut node = engine(LockGate::On(Arc::new(both[0].clone())), now);
        let mut plain = engine(LockGate::Off, now);
        let mut shown = BTreeMap::new();
        for engine in [&mut node, &mut plain] {
            engine.apply_map(now, WALL, first_message()).unwrap();
        }
        for step in &steps {
            match (message(step), step) {
                (Some(message), _) => {
                    node.apply_map(now, WALL, message.clone()).unwrap();
                    plain.apply_map(now, WALL, message).unwrap();
                }
                (None, Step::Chain(other)) => {
                    chain = usize::from(*other);
                    node.set_lock(now, WALL, LockGate::On(Arc::new(both[chain].clone())));
                }
                (None, _) => unreachable!("every other step is a message"),
            }
            follow(&mut shown, &mut node);
            prop_assert_eq!(&shown, &node.netmap().peers);
            let all = &plain.netmap().peers;
            let expected = admitted(all, &both[chain]);
            let seen: BTreeSet<NodeId> = shown.keys().copied().collect();
            prop_assert_eq!(&seen, &expected);
            let hidden: BTreeSet<NodeId> = node.hidden_peers().map(|peer| peer.node.id).collect();
            prop_assert_eq!(hidden.len() + seen.len(), all.len());
            prop_assert!(hidden.is_disjoint(&seen));
            for id in hidden {
                let address = format!("100.64.0.{}", id.0).parse().unwrap();
                prop_assert!(node.peer_at(address).is_none());
            }
        }
        // The lock is turned off: all of them come back.
        node.set_lock(now, WALL, LockGate::Off);
        follow(&mut shown, &mut node);
        prop_assert_eq!(&shown, &plain.netmap().peers);
        // A chain that cannot be read admits none, also from the kept netmap.
        let mut closed = engine(LockGate::Closed, now);
        closed.restore_netmap(now, WALL, plain.netmap().clone(), None);
        prop_assert!(closed.netmap().peers.is_empty());
        let mut kept = engine(LockGate::On(Arc::new(both[0].clone())), now);
        kept.restore_netmap(now, WALL, plain.netmap().clone(), None);
        let seen: BTreeSet<NodeId> = kept.netmap().peers.keys().copied().collect();
        prop_assert_eq!(seen, admitted(&plain.netmap().peers, &both[0]));
    }

    #[test]
    fn given_signatures_are_what_they_are_called(key in (10u8..40).prop_map(|key| key * 2), given in given()) {
        let outcome = authority(&[&trusted()]).authorize(node_key(key), &given.bytes(key));
        prop_assert_eq!(outcome.is_ok(), given.is_good());
    }
}

#[test]
fn node_knows_whether_others_accept_it() {
    let now = Instant::now();
    let chain = authority(&[&trusted()]);
    let mut node = engine(LockGate::On(Arc::new(chain.clone())), now);
    assert!(node.own_authorization().is_none());
    node.apply_map(now, WALL, first_message()).unwrap();
    assert_eq!(node.own_authorization(), Some(Err(Unauthorized::Unsigned)));
    let signature = NodeKeySignature::direct(node_key(1), None, &trusted()).encode();
    let mut message = first_message();
    message.node.as_mut().unwrap().key_signature = signature;
    node.apply_map(now, WALL, message).unwrap();
    assert!(matches!(node.own_authorization(), Some(Ok(_))));
    // Its signer is not trusted any more.
    let mut next = authority(&[&trusted(), &stranger()]);
    let trusted = trusted();
    let mut updater = Updater::new(&next, &trusted);
    updater.remove_key(trusted.id()).unwrap();
    let updates = updater.finish().unwrap();
    next.inform(&updates, 0).unwrap();
    node.set_lock(now, WALL, LockGate::On(Arc::new(next)));
    assert!(matches!(
        node.own_authorization(),
        Some(Err(Unauthorized::NotTrusted(_)))
    ));
}
