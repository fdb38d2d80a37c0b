//! Nodes that are signed without a person.

use std::collections::BTreeSet;

use serde_json::json;
use warren_control_types::Node;
use warren_keys::NodeSecret;
use warren_lock::Unauthorized;

use super::*;
use crate::engine::LockedOut;

fn peer(number: u8, tags: &[&str], why: LockedOut) -> HiddenPeer {
    let node: Node = serde_json::from_value(json!({
        "ID": number,
        "Key": NodeSecret::from_bytes(&[number; 32]).public().to_string(),
        "Tags": tags,
    }))
    .unwrap();
    HiddenPeer { node, why }
}

fn due(lock: &TailnetLock, hidden: &[HiddenPeer]) -> Vec<i64> {
    let due = lock.due_signatures(hidden.iter());
    due.into_iter().map(|(id, _)| id.0).collect()
}

#[test]
fn only_unsigned_nodes_with_none_but_these_tags_are_signed_and_each_once() {
    let unsigned = || LockedOut::Signature(Unauthorized::Unsigned);
    let mut hidden = vec![
        peer(2, &["tag:a"], unsigned()),
        peer(3, &[], unsigned()),
        peer(4, &["tag:b"], unsigned()),
        peer(5, &["tag:a", "tag:b"], unsigned()),
        peer(6, &["tag:a"], LockedOut::Replaced),
        peer(7, &["tag:a"], LockedOut::Signature(Unauthorized::OtherNode)),
    ];
    let mut world = World::synced(chain(1, no_value()));
    assert!(due(&world.lock, &hidden).is_empty());
    world
        .lock
        .set_autosign_tags(BTreeSet::from(["tag:a".to_owned()]));
    assert_eq!(due(&world.lock, &hidden), [2]);
    let key = hidden[0].node.key;
    world
        .lock
        .submit(NodeId(2), key, TkaSubmitSignatureRequest::default());
    let Some(Output::Request(id, request)) = world.lock.poll_output() else {
        panic!("another output");
    };
    assert!(matches!(*request, LockRequest::Sign(_)));
    assert!(due(&world.lock, &hidden).is_empty());
    let info = world.server.info();
    let around = Surroundings {
        info: Some(&info),
        is_capable: true,
        node_key: NodePublic::default(),
        server: SERVER,
    };
    let refused = Err("refused".to_owned());
    world.lock.answered(world.now, WALL, &around, id, refused);
    assert!(matches!(
        world.lock.poll_output(),
        Some(Output::SignedByTags(NodeId(2), Err(_)))
    ));
    // A server that refuses is not asked again before the next session.
    assert!(due(&world.lock, &hidden).is_empty());
    world.lock.disconnected();
    assert_eq!(due(&world.lock, &hidden), [2]);
    // A bounded number at a time.
    hidden.extend((10..60).map(|number| peer(number, &["tag:a"], unsigned())));
    assert_eq!(due(&world.lock, &hidden).len(), 16);
}
