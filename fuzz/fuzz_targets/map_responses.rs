//! The messages of a map stream: what they add up to, and that every way of
//! keeping the map keeps all of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_control_types::{Changes, MapResponse, Netmap};
use warren_fuzz::json::Message as _;
use warren_fuzz::{WALL, first_map, steps};

fuzz_target!(|bytes: &[u8]| {
    let mut map = Netmap::default();
    map.apply(first_map(), WALL).expect("a whole map");
    for step in steps(bytes) {
        if step.kind & 7 == 1 {
            map.begin_stream();
        }
        let Ok(message) = MapResponse::read(step.bytes) else {
            continue;
        };
        let again = MapResponse::read(&message.write()).expect("our own form");
        assert_eq!(again, message);

        let before = map.clone();
        let wall = WALL + std::time::Duration::from_secs(step.arg.into());
        match map.apply(message, wall) {
            Ok(applied) => assert_eq!(applied.changes, Changes::between(&before, &map)),
            Err(_) => assert_eq!(map, before),
        }
    }
    // The stored netmap does not record that a stream began.
    let again = Netmap::read(&map.write()).expect("our own form");
    assert!(Changes::between(&map, &again).is_empty());
});
