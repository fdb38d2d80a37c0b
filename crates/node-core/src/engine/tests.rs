//! Keys end by the clock of the coordination server.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;
use warren_testkit::CountingEntropy;

use super::*;

const DAY: i64 = 86_400;
/// The server's time at the beginning: some day of 2026.
const SERVER: i64 = 20_500 * DAY;
/// From this difference on, a clock that jumps ahead counts as one that was set.
const NOTABLE: i64 = 10 * 60;

fn at(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap().to_string()
}

fn engine(now: Instant) -> Engine {
    let config = EngineConfig {
        node_key: NodeSecret::from_bytes(&[1; 32]),
        disco_key: DiscoSecret::from_bytes(&[2; 32]),
        flow_slots: Some(64),
        aead: Aead::default(),
        ranges: TailnetRanges::DEFAULT,
        lock: Default::default(),
    };
    Engine::new(config, now, Box::new(CountingEntropy::default()))
}

/// A first message with peers whose keys end so many seconds after the server's time;
/// 0 is never.
fn message(ends: &[i64]) -> MapResponse {
    let node = |id: usize, expiry: String| {
        json!({
            "ID": id,
            "StableID": format!("n{id}"),
            "Key": NodeSecret::from_bytes(&[u8::try_from(id).unwrap(); 32]).public().to_string(),
            "Addresses": [format!("100.64.0.{id}/32")],
            "AllowedIPs": [format!("100.64.0.{id}/32")],
            "KeyExpiry": expiry,
        })
    };
    let end = |end: i64| match end {
        0 => "0001-01-01T00:00:00Z".to_owned(),
        end => at(SERVER + end),
    };
    let peers = ends
        .iter()
        .zip(10..)
        .map(|(after, id)| node(id, end(*after)));
    let message = json!({
        "Node": node(1, end(0)),
        "Peers": peers.collect::<Vec<_>>(),
        "ControlTime": at(SERVER),
    });
    serde_json::from_value(message).unwrap()
}

/// The peers that this engine talks to.
fn alive(engine: &Engine) -> Vec<i64> {
    let peers = engine.netmap().peers.values();
    let peers = peers.filter(|peer| engine.peer_at(peer.addresses[0].addr()).is_some());
    peers.map(|peer| peer.id.0).collect()
}

fn expected(ends: &[i64], passed: i64) -> Vec<i64> {
    let peers = ends.iter().zip(10..);
    let left = peers.filter(|(end, _)| **end == 0 || **end > passed);
    left.map(|(_, id)| id).collect()
}

proptest! {
    /// The clock of this machine does not count, also after a restart from the kept netmap,
    /// before the server has answered.
    #[test]
    fn peers_end_by_the_clock_of_the_server(
        offset in prop_oneof![-20_000 * DAY..20_000 * DAY, -500 * DAY..500 * DAY],
        ends in prop::collection::vec(
            prop_oneof![Just(0), -400 * DAY..-60, 60..400 * DAY],
            1..6,
        ),
        passed in 0..500 * DAY,
    ) {
        let start = Instant::now();
        let wall = |passed: i64| Duration::from_secs(u64::try_from(SERVER + offset + passed).unwrap());
        let mut node = engine(start);
        node.apply_map(start, wall(0), message(&ends)).unwrap();
        prop_assert_eq!(alive(&node), expected(&ends, 0));

        let kept = node.netmap().clone();
        let clock = node.clock_pair(start, wall(0));
        let later = start + Duration::from_secs(u64::try_from(passed).unwrap());
        node.handle_timeout(later, wall(passed));
        prop_assert_eq!(alive(&node), expected(&ends, passed));

        let mut restarted = engine(start);
        restarted.restore_netmap(start, wall(passed), kept, clock);
        if offset < -NOTABLE && offset + passed >= 0 {
            // A clock that was behind is now past the time that was kept. It may have been
            // set, so the node takes its time, which is early if it was not. Peers that
            // had ended before stay away, and none is lost too early.
            let left = alive(&restarted);
            prop_assert_eq!(&left, &expected(&ends, passed + offset));
            prop_assert!(left.iter().all(|id| expected(&ends, 0).contains(id)));
            prop_assert!(expected(&ends, passed).iter().all(|id| left.contains(id)));
        } else {
            prop_assert_eq!(alive(&restarted), expected(&ends, passed));
        }
    }
}
