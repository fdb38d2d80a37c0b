//! The frames of the control channel, before any key is used.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_channel::early::{self, Peek};
use warren_wire::control::{EARLY_HEADER_LEN, FrameHeader, Initiation, MAX_FRAME_LEN, Response};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(header)) = FrameHeader::parse(bytes) {
        assert_eq!(header.emit(), bytes[..3]);
        assert!(header.frame_len() <= MAX_FRAME_LEN);
    }
    if let Ok(initiation) = Initiation::parse(bytes) {
        assert_eq!(initiation.emit(), bytes);
    }
    if let Ok(response) = Response::parse(bytes) {
        assert_eq!(response.emit(), bytes);
    }
    if let Ok(Peek::Present(json)) = early::peek(bytes) {
        assert_eq!(json.start, EARLY_HEADER_LEN);
        assert!(json.end <= bytes.len());
    }
    if let Ok(encoded) = early::encode(bytes) {
        let end = encoded.len();
        assert_eq!(
            early::peek(&encoded),
            Ok(Peek::Present(EARLY_HEADER_LEN..end))
        );
        assert_eq!(&encoded[EARLY_HEADER_LEN..], bytes);
        assert_eq!(early::peek(&encoded[..end - 1]), Ok(Peek::Incomplete));
    }
});
