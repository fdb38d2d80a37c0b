//! STUN requests and responses of unauthenticated senders.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_wire::stun::{Request, Response, looks_like_stun};

/// `datagram` as a request with a valid fingerprint.
fn with_fingerprint(datagram: &[u8]) -> Vec<u8> {
    let mut out = datagram.to_vec();
    let fingerprint = crc32fast::hash(&out) ^ 0x5354_554e;
    out.extend_from_slice(&[0x80, 0x28, 0, 4]);
    out.extend_from_slice(&fingerprint.to_be_bytes());
    out
}

fuzz_target!(|datagram: &[u8]| {
    for datagram in [datagram, &with_fingerprint(datagram)] {
        if let Ok(request) = Request::parse(datagram) {
            assert!(looks_like_stun(datagram) || datagram[1] != 1);
            let emitted = request.emit();
            assert_eq!(Request::parse(&emitted), Ok(request));
            assert!(Response::parse(datagram).is_err());
            let answer = Response::to(&request, ([192, 0, 2, 1], 7).into());
            assert!(answer.emit().len() <= datagram.len(), "no amplifier");
        }
        if let Ok(response) = Response::parse(datagram) {
            assert_eq!(Response::parse(&response.emit()), Ok(response));
        }
    }
});
