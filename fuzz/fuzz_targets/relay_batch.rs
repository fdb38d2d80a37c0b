//! Packets of relays that may be batches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_wire::disco::looks_like_relayed_disco;
use warren_wire::relay_batch::{HEADER_LEN, header, split};
use warren_wire::wireguard::is_transport;

fuzz_target!(|bytes: &[u8]| {
    let mut packet = bytes.to_vec();
    let Some((segment_len, datagrams)) = split(&mut packet) else {
        return;
    };
    assert!(segment_len >= 32 && datagrams.len() > segment_len);
    assert_eq!(datagrams.len() + HEADER_LEN, bytes.len());
    assert_eq!(header(segment_len).as_ref(), bytes.first_chunk());
    assert!(!is_transport(bytes) && !looks_like_relayed_disco(bytes));
});
