//! A whole node that starts from its disk while the server is away.

use std::borrow::Cow;

use serde_json::json;
use warren_control_types::{Netmap, UserProfile};
use warren_keys::NodeSecret;
use warren_lock::NodeKeySignature;

use super::*;
use crate::node::{
    Account, KeptNetmap, LocalNetwork, Node, NodeConfig, NodeInput, NodeOutput, NodeSettings,
    StoredLogin,
};

fn node_key(number: u8) -> NodePublic {
    NodeSecret::from_bytes(&[number; 32]).public()
}

/// The netmap of a run before, with peers 2 and 3, of which 2 is signed.
fn netmap() -> Netmap {
    let node = |number: u8, signature: Vec<u8>| {
        json!({
            "ID": number,
            "Name": format!("n{number}.example."),
            "Key": node_key(number).to_string(),
            "KeySignature": Encoded(signature),
            "Addresses": [format!("100.64.0.{number}/32")],
            "AllowedIPs": [format!("100.64.0.{number}/32")],
            "MachineAuthorized": true,
        })
    };
    let signed = NodeKeySignature::direct(node_key(2), None, &secret(1)).encode();
    let message = json!({
        "Node": node(1, Vec::new()),
        "Peers": [node(2, signed), node(3, Vec::new())],
    });
    let mut netmap = Netmap::default();
    netmap
        .apply(serde_json::from_value(message).unwrap(), WALL)
        .unwrap();
    netmap
}

fn start(lock: KeptLock, now: Instant) -> Node {
    let account = Account {
        node_key: NodeSecret::from_bytes(&[1; 32]),
        old_node_key: None,
        user_profile: UserProfile::default(),
        node_id: Default::default(),
    };
    let config = NodeConfig {
        stored: StoredLogin {
            account: Some(account),
            lock_key: Some(secret(5)),
            ..StoredLogin::default()
        },
        lock,
        clock_floor: Duration::ZERO,
        settings: NodeSettings {
            want_running: true,
            server: SERVER.to_owned(),
            ..NodeSettings::default()
        },
        network: LocalNetwork::default(),
        flow_slots: Some(64),
        aead: warren_tunnel::Aead::default(),
        ranges: warren_node_types::TailnetRanges::DEFAULT,
        ephemeral: false,
    };
    let mut node = Node::new(config, now, Box::new(SeededEntropy(3)));
    let kept = KeptNetmap {
        clock: None,
        netmap: Cow::Owned(netmap()),
    };
    node.start(now, WALL, Some(kept));
    node
}

fn peers(node: &Node) -> Vec<i64> {
    node.netmap().peers.keys().map(|id| id.0).collect()
}

fn stored(chain: &Authority) -> KeptLock {
    KeptLock::On(StoredChain {
        messages: chain.stored().cloned().collect(),
        oldest: chain.oldest(),
        server: SERVER.to_owned(),
    })
}

#[test]
fn kept_netmap_has_only_signed_peers_and_a_node_that_is_not_signed_says_so() {
    let now = Instant::now();
    assert_eq!(peers(&start(KeptLock::Off, now)), [2, 3]);
    let closed = KeptLock::Unreadable("damaged".to_owned());
    assert!(peers(&start(closed, now)).is_empty());

    let mut node = start(stored(&chain(1, no_value())), now);
    assert_eq!(peers(&node), [2]);
    let problems = node.netmap_problems().join("\n");
    assert!(problems.contains("locked out"), "{problems}");
    let advice = format!("warren lock sign {} {}", node_key(1), secret(5).id());
    assert!(problems.contains(&advice), "{problems}");

    // Its user turns the lock off here, which is on disk before the peers are there.
    node.handle(now, WALL, NodeInput::DisableLockHere);
    assert_eq!(peers(&node), [2, 3]);
    assert_eq!(node.stored_login().refused_locks, ["1:1"]);
    assert!(node.netmap_problems().is_empty());
    let outputs: Vec<NodeOutput> = std::iter::from_fn(|| node.poll_output()).collect();
    let position = |wanted: fn(&NodeOutput) -> bool| outputs.iter().rposition(wanted).unwrap();
    let store = position(|output| matches!(output, NodeOutput::StoreLock(None)));
    let save = position(|output| matches!(output, NodeOutput::SaveLogin(_)));
    let view = position(|output| matches!(output, NodeOutput::View(_)));
    assert!(save < store && store < view);
}

fn message(peers: &[u8], is_on: bool) -> warren_control_types::MapResponse {
    let node = |number: &u8| {
        json!({
            "ID": number,
            "Key": node_key(*number).to_string(),
            "Addresses": [format!("100.64.0.{number}/32")],
            "CapMap": { CAPABILITY: null },
        })
    };
    let message = json!({
        "Node": node(&1),
        "Peers": peers.iter().map(node).collect::<Vec<_>>(),
        "TKAInfo": { "Head": "", "Disabled": !is_on },
    });
    serde_json::from_value(message).unwrap()
}

#[test]
fn new_peers_wait_until_the_chain_of_a_locked_tailnet_is_known() {
    let now = Instant::now();
    let mut node = start(KeptLock::Off, now);
    node.apply_map(now, WALL, message(&[2], false));
    assert_eq!(peers(&node), [2]);
    // The first message that says so may bring peers in itself.
    node.apply_map(now, WALL, message(&[2, 3, 4], true));
    assert_eq!(peers(&node), [2]);
    assert!(node.is_locked());
    node.apply_map(now, WALL, message(&[2, 5], true));
    assert_eq!(peers(&node), [2]);
    // The user of the machine does not want to wait.
    node.handle(now, WALL, NodeInput::DisableLockHere);
    assert_eq!(peers(&node), [2, 5]);

    // A node that joins has no peers before.
    let mut node = start(KeptLock::Off, now);
    node.handle(now, WALL, NodeInput::LogOut);
    node.apply_map(now, WALL, message(&[2, 3], true));
    assert!(peers(&node).is_empty());
}

#[test]
fn logout_forgets_the_lock_and_its_key() {
    let now = Instant::now();
    let mut node = start(stored(&chain(1, no_value())), now);
    node.handle(now, WALL, NodeInput::LogOut);
    assert!(!node.is_locked());
    let login = node.stored_login();
    assert!(login.lock_key.is_some_and(|key| key != secret(5)));
    let mut outputs = std::iter::from_fn(|| node.poll_output());
    assert!(outputs.any(|output| matches!(output, NodeOutput::StoreLock(None))));
}
