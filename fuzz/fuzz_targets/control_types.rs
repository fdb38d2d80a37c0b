//! Every other JSON message of the coordination protocol, and the texts of
//! keys: read, written and read again.
#![no_main]

use std::fmt::Debug;
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use warren_control_types::{
    DerpMap, EarlyNoise, FilterRule, Hostinfo, MapRequest, Netmap, Node, OverTlsPublicKeyResponse,
    PingResponse, RegisterRequest, RegisterResponse, SshPolicy,
};
use warren_fuzz::json::Message;
use warren_keys::{DiscoPublic, MachinePublic, NodePublic};

fn json<T: Message + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = T::read(bytes) {
        let again = T::read(&value.write()).expect("our own form");
        assert_eq!(again, value);
    }
}

fn key<T: FromStr + ToString + PartialEq + Debug>(text: &str) {
    if let Ok(key) = text.parse::<T>() {
        assert_eq!(key.to_string().parse::<T>().ok(), Some(key));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 13 {
        0 => json::<RegisterRequest>(bytes),
        1 => json::<RegisterResponse>(bytes),
        2 => json::<MapRequest>(bytes),
        3 => json::<Hostinfo>(bytes),
        4 => json::<Node>(bytes),
        5 => json::<Netmap>(bytes),
        6 => json::<EarlyNoise>(bytes),
        7 => json::<OverTlsPublicKeyResponse>(bytes),
        8 => json::<PingResponse>(bytes),
        9 => json::<SshPolicy>(bytes),
        10 => json::<Vec<FilterRule>>(bytes),
        11 => {
            json::<DerpMap>(bytes);
            if let Ok(map) = DerpMap::from_json(bytes) {
                assert_eq!(DerpMap::from_json(&map.write()).ok(), Some(map));
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                key::<NodePublic>(text);
                key::<MachinePublic>(text);
                key::<DiscoPublic>(text);
            }
        }
    }
});
