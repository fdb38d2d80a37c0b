//! A DERP client and what any relay may say to it, before and after login.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_derp::client::{Client, ClientConfig, Event, MAX_PAYLOAD};
use warren_derp::{FrameBuffer, Identity, OverLong};
use warren_fuzz::{Clock, node};
use warren_keys::sealed_box::NONCE_LEN;
use warren_testkit::SeededEntropy;
use warren_wire::derp::{Frame, MAX_PACKET, split};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[mode, sealed_len], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let clock = Clock::default();
    let relay = Identity::new(node(9), None);
    let config = ClientConfig::node(node(1));
    let mut client = if mode & 1 == 0 {
        Client::new(clock.now, config)
    } else {
        Client::fast_start(clock.now, config, relay.public(), &mut SeededEntropy(1))
            .expect("a good key")
    };

    let mut stream = Vec::new();
    let mut rest = rest;
    if mode & 2 != 0 {
        // An honest key frame, then whatever the relay seals.
        stream.extend(relay.server_key_frame());
        let (plain, tail) = rest.split_at(usize::from(sealed_len).min(rest.len()));
        rest = tail;
        let shared = node(9)
            .shared_with(node(1).public().as_bytes())
            .expect("an honest key");
        let mut sealed = Vec::new();
        shared.seal(&[3; NONCE_LEN], plain, &mut sealed);
        Frame::ServerInfo { sealed: &sealed }.emit(&mut stream);
    }
    stream.extend_from_slice(rest);

    let mut buffer = FrameBuffer::new(MAX_PAYLOAD, OverLong::Fatal);
    buffer.push(&stream);
    let Ok(frames) = buffer.frames() else { return };
    let mut out = Vec::new();
    let mut connected = 0;
    for frame in frames {
        match client.handle_frame(clock.now, frame, &mut SeededEntropy(2)) {
            Err(_) => break,
            Ok(Some(Event::Connected(_))) => connected += 1,
            Ok(Some(Event::Packet { packet, .. })) => assert!(packet.len() <= MAX_PACKET),
            Ok(_) => {}
        }
        assert!(connected == 0 || client.relay_key().is_some());
        assert!(client.has_logged_in() == client.relay_key().is_some());
    }
    assert!(connected <= 1);
    client.take_output(&mut out);
    assert!(out.len() < 4096, "answers do not pile up");
    let mut rest = &out[..];
    while !rest.is_empty() {
        let (kind, payload, tail) = split(rest).expect("whole frames");
        Frame::parse(kind, payload).expect("good frames");
        rest = tail;
    }
    assert!(client.handle_timeout(clock.now).is_ok());
});
