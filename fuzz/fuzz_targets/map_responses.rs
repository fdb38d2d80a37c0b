//! The messages of a map stream: what they add up to, and that every way of
//! keeping the map keeps all of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_control_types::{Changes, MapResponse, Netmap};
use warren_fuzz::{WALL, first_map, steps};

fuzz_target!(|bytes: &[u8]| {
    let mut map = Netmap::default();
    let first: MapResponse = serde_json::from_value(first_map()).expect("written well");
    map.apply(first, WALL).expect("a whole map");
    for step in steps(bytes) {
        if step.kind & 7 == 1 {
            map.begin_stream();
        }
        let Ok(message) = serde_json::from_slice::<MapResponse>(step.bytes) else {
            continue;
        };
        let text = serde_json::to_vec(&message).expect("a message has a form");
        let again: MapResponse = serde_json::from_slice(&text).expect("our own form");
        assert_eq!(again, message);

        let before = map.clone();
        let wall = WALL + std::time::Duration::from_secs(step.arg.into());
        match map.apply(message, wall) {
            Ok(applied) => assert_eq!(applied.changes, Changes::between(&before, &map)),
            Err(_) => assert_eq!(map, before),
        }
    }
    map = {
        // What is written to disk does not remember that a stream began.
        let text = serde_json::to_vec(&map).expect("a map has a form");
        let again: Netmap = serde_json::from_slice(&text).expect("our own form");
        assert!(Changes::between(&map, &again).is_empty());
        again
    };
    drop(map);
});
