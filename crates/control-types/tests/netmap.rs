//! Messages of a map stream, put together.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use warren_control_types::*;
use warren_keys::NodePublic;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn message(value: serde_json::Value) -> MapResponse {
    serde_json::from_str(&value.to_string()).unwrap()
}

fn start() -> Netmap {
    let mut map = Netmap::default();
    let first = json!({
        "Node": {"ID": 1, "Name": "self.example.net.", "Capabilities": ["https"]},
        "Peers": [{"ID": 2, "Name": "two.", "DERP": "127.3.3.40:7"}, {"ID": 3, "Name": "three."}],
        "PacketFilters": {"base": [{"SrcIPs": ["*"]}], "extra": []},
        "DERPMap": {"Regions": {"1": {"RegionID": 1}}},
        "Domain": "example.net",
    });
    map.apply(message(first), NOW).unwrap();
    map
}

fn apply(map: &mut Netmap, value: serde_json::Value) -> Changes {
    map.apply(message(value), NOW).unwrap().changes
}

fn ids(map: &Netmap) -> Vec<i64> {
    map.peers.keys().map(|id| id.0).collect()
}

#[test]
fn the_first_message_must_carry_the_node_itself() {
    let mut map = Netmap::default();
    let refused = map.apply(message(json!({"Peers": [{"ID": 2}]})), NOW);
    assert_eq!(refused, Err(ApplyError::NoSelfNode));
    assert_eq!(map, Netmap::default());
    // A keepalive may come before it, and carries notices only.
    let keepalive =
        json!({"KeepAlive": true, "Node": {"ID": 9}, "PingRequest": {"URL": "https://x"}});
    let applied = map.apply(message(keepalive), NOW).unwrap();
    assert!(applied.changes.is_empty() && applied.notices.ping_request.is_some());
    assert_eq!(map, Netmap::default());
}

#[test]
fn older_forms_are_put_where_they_belong() {
    let map = start();
    assert!(map.self_node.as_ref().unwrap().cap_map.has("https"));
    assert_eq!(map.peers[&NodeId(2)].home_derp, Some(RegionId(7)));
    assert_eq!(map.node(NodeId(1)).unwrap().base_name(), "self");
    assert_eq!(map.packet_filter().count(), 1);
}

#[test]
fn an_empty_peer_list_changes_nothing_and_a_full_one_replaces_all() {
    let mut map = start();
    assert!(apply(&mut map, json!({"Peers": []})).is_empty());
    assert_eq!(ids(&map), [2, 3]);
    let changes = apply(
        &mut map,
        json!({"Peers": [{"ID": 3, "Name": "three."}], "PeersRemoved": [3], "OnlineChange": {"3": true}}),
    );
    assert_eq!(ids(&map), [3]);
    assert_eq!(map.peers[&NodeId(3)].online, None);
    assert_eq!(changes.peers.len(), 1);
    assert!(matches!(changes.peers[&NodeId(2)], PeerDelta::Removed(_)));
}

#[test]
fn parts_apply_in_the_documented_order() {
    let mut map = start();
    // Removed and added in one message: present. Patches come last.
    let changes = apply(
        &mut map,
        json!({
            "PeersRemoved": [2, 77],
            "PeersChanged": [{"ID": 2, "Name": "new."}, {"ID": 4, "Name": "four."}],
            "PeerSeenChange": {"4": true, "3": false},
            "OnlineChange": {"4": true, "88": true},
            "PeersChangedPatch": [{"NodeID": 4, "Online": false, "Cap": 119}, {"NodeID": 99, "Cap": 1}],
        }),
    );
    assert_eq!(ids(&map), [2, 3, 4]);
    let four = &map.peers[&NodeId(4)];
    assert_eq!(
        (four.online, four.cap),
        (Some(false), Some(CapabilityVersion(119)))
    );
    assert_eq!(four.last_seen.unwrap().as_second(), 1_800_000_000);
    assert_eq!(changes.peers[&NodeId(4)], PeerDelta::Added);
    assert!(matches!(&changes.peers[&NodeId(2)], PeerDelta::Changed(old) if old.name == "two."));
    // Peer 3 was never seen, so forgetting that changes nothing.
    assert_eq!(changes.peers.len(), 2);
}

#[test]
fn filters_change_by_name_and_the_star_clears_first() {
    let mut map = start();
    let names = |map: &Netmap| map.filters.keys().cloned().collect::<Vec<_>>();
    assert!(apply(&mut map, json!({"PacketFilters": {}})).is_empty());
    apply(
        &mut map,
        json!({"PacketFilters": {"extra": null, "more": []}}),
    );
    assert_eq!(names(&map), ["base", "more"]);
    apply(
        &mut map,
        json!({"PacketFilter": [{"SrcIPs": ["a"]}], "PacketFilters": {"!": [], "*": null}}),
    );
    assert_eq!(names(&map), ["!"]);
    let changes = apply(&mut map, json!({"PacketFilter": []}));
    assert!(changes.filters);
    assert_eq!(map.filters["base"], []);
}

#[test]
fn messages_to_show_follow_the_same_rule() {
    let mut map = start();
    let text = |title: &str| json!({"Title": title, "Text": "", "Severity": "low"});
    assert!(
        apply(
            &mut map,
            json!({"DisplayMessages": {"a": text("A"), "b": text("B")}})
        )
        .messages
    );
    apply(
        &mut map,
        json!({"DisplayMessages": {"a": null, "c": text("C")}}),
    );
    assert_eq!(map.display_messages.keys().collect::<Vec<_>>(), ["b", "c"]);
    apply(
        &mut map,
        json!({"DisplayMessages": {"*": null, "d": text("D")}}),
    );
    assert_eq!(map.display_messages.keys().collect::<Vec<_>>(), ["d"]);
    assert!(apply(&mut map, json!({"Health": ["broken"]})).messages);
    assert!(apply(&mut map, json!({"Health": []})).messages);
    assert!(map.health.is_empty());
}

#[test]
fn absent_parts_stay_and_equal_parts_are_no_change() {
    let mut map = start();
    let before = map.clone();
    let same = json!({
        "Domain": "example.net", "DERPMap": {"Regions": null},
        "PeersChanged": [{"ID": 3, "Name": "three."}], "PacketFilters": {"extra": []},
    });
    assert!(apply(&mut map, same).is_empty());
    assert_eq!(map, before);
    let changes = apply(
        &mut map,
        json!({"DNSConfig": {"Proxied": true}, "TKAInfo": {}}),
    );
    assert!(changes.dns_config && changes.tka_info && !changes.derp_map);
    assert!(apply(&mut map, json!({"DNSConfig": {}})).dns_config);
}

#[test]
fn the_first_message_of_a_new_stream_replaces_everything() {
    let mut map = start();
    map.begin_stream();
    let applied = map.apply(MapResponse::keep_alive(), NOW).unwrap();
    assert!(applied.changes.is_empty());
    assert_eq!(
        map.apply(message(json!({"Domain": "x"})), NOW),
        Err(ApplyError::NoSelfNode)
    );
    assert_eq!(ids(&map), [2, 3]);
    let first = json!({"Node": {"ID": 1, "Name": "self.example.net.", "Capabilities": ["https"]},
        "Peers": [{"ID": 3, "Name": "three."}]});
    let changes = apply(&mut map, first);
    assert!(!changes.self_node && changes.domain && changes.filters && changes.derp_map);
    assert_eq!(ids(&map), [3]);
    assert_eq!(changes.peers.len(), 1);
    // And after that, deltas again.
    assert!(
        apply(&mut map, json!({"PeersChanged": [{"ID": 8}]}))
            .peers
            .contains_key(&NodeId(8))
    );
    assert_eq!(ids(&map), [3, 8]);
}

#[test]
fn a_map_survives_the_disk() {
    let map = start();
    let text = serde_json::to_string(&map).unwrap();
    assert_eq!(serde_json::from_str::<Netmap>(&text).unwrap(), map);
}

prop_compose! {
    fn peer()(id in 1i64..6, name in "[ab]", online: Option<bool>, key in 0u8..3, region in 0u16..3)
        -> Node {
        Node {
            id: NodeId(id),
            name,
            online,
            key: NodePublic::from_bytes([key; 32]),
            home_derp: Some(RegionId(region)).filter(|region| region.0 != 0),
            ..Node::default()
        }
    }
}

prop_compose! {
    fn patch()(id in 1i64..8, online: Option<bool>, key in proptest::option::of(0u8..3))
        -> PeerChange {
        PeerChange {
            node_id: NodeId(id),
            online,
            key: key.map(|byte| NodePublic::from_bytes([byte; 32])),
            ..PeerChange::default()
        }
    }
}

prop_compose! {
    fn delta()(
        peers in proptest::option::weighted(0.2, proptest::collection::vec(peer(), 0..4)),
        peers_changed in proptest::collection::vec(peer(), 0..3),
        removed in proptest::collection::vec(1i64..8, 0..3),
        peers_changed_patch in proptest::collection::vec(patch(), 0..3),
        online in proptest::collection::btree_map(1i64..8, any::<bool>(), 0..3),
        domain in "[ab]?",
        filter in proptest::option::of(Just(Vec::new())),
    ) -> MapResponse {
        MapResponse {
            peers,
            peers_changed,
            peers_removed: removed.into_iter().map(NodeId).collect(),
            peers_changed_patch,
            online_change: online.into_iter().map(|(id, on)| (NodeId(id), on)).collect(),
            domain,
            packet_filters: BTreeMap::from([("x".to_owned(), filter)]),
            ..MapResponse::default()
        }
    }
}

proptest! {
    #[test]
    fn reported_changes_are_exactly_the_difference(deltas in proptest::collection::vec(delta(), 1..8)) {
        let mut map = start();
        for delta in deltas {
            let before = map.clone();
            let changes = map.apply(delta, NOW).unwrap().changes;
            prop_assert_eq!(changes, Changes::between(&before, &map));
        }
    }

    #[test]
    fn deltas_read_back_as_they_were_written(delta in delta()) {
        let text = serde_json::to_string(&delta).unwrap();
        prop_assert_eq!(serde_json::from_str::<MapResponse>(&text).unwrap(), delta);
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<MapResponse>(&bytes);
        let _ = DerpMap::from_json(&bytes);
    }
}
