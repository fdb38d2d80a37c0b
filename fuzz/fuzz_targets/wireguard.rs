//! WireGuard messages by their looks alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_wire::wireguard::{Message, is_transport};
use zerocopy::IntoBytes as _;

fuzz_target!(|datagram: &[u8]| {
    let parsed = Message::parse(datagram);
    let transport = matches!(parsed, Ok(Message::Transport { .. }));
    assert_eq!(is_transport(datagram), transport);
    match parsed {
        Ok(Message::Initiation(message)) => assert_eq!(message.as_bytes(), datagram),
        Ok(Message::Response(message)) => assert_eq!(message.as_bytes(), datagram),
        Ok(Message::Cookie(message)) => assert_eq!(message.as_bytes(), datagram),
        Ok(Message::Transport { header, sealed }) => {
            assert_eq!([header.as_bytes(), sealed].concat(), datagram);
        }
        Err(_) => {}
    }
});
