//! Both ends of the control channel: handshakes of unauthenticated senders, and records that
//! an attacker on the path truncates and damages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_channel::{Channel, ClientHandshake, Opener, accept, response_frame_len};
use warren_fuzz::{damage, machine, steps};
use warren_testkit::SeededEntropy;
use warren_wire::control::MAX_PLAINTEXT_LEN;

/// An established channel: the client's end and the server's.
fn pair(first_damage: &[u8], second_damage: &[u8]) -> Option<(Channel, Channel)> {
    let (client, server) = (machine(1), machine(2));
    let (handshake, mut initiation) =
        ClientHandshake::start(119, &client, &server.public(), &mut SeededEntropy(1))
            .expect("good keys");
    let damaged = damage(&mut initiation, first_damage);
    let accepted = accept(&initiation, &server, &mut SeededEntropy(2));
    // Pairs can undo each other, so damage is what differs, not what was done.
    let (_, intact) = ClientHandshake::start(119, &client, &server.public(), &mut SeededEntropy(1))
        .expect("good keys");
    let damaged = damaged && initiation != intact;
    assert_eq!(accepted.is_err(), damaged);
    let accepted = accepted.ok()?;
    assert_eq!((accepted.machine, accepted.version), (client.public(), 119));
    let mut response = accepted.response;
    damage(&mut response, second_damage);
    let finished = handshake.finish(&response);
    assert_eq!(finished.is_err(), response != accepted.response);
    let finished = finished.ok()?;
    assert_eq!(finished.handshake_hash, accepted.channel.handshake_hash);
    Some((finished, accepted.channel))
}

/// Everything that `opener` reads before an error or the end.
fn open_all(opener: &mut Opener, stream: &mut [u8]) -> (Vec<u8>, bool) {
    let (mut plain, mut at) = (Vec::new(), 0);
    loop {
        match opener.open(&mut stream[at..]) {
            Ok(Some(opened)) => {
                plain.extend_from_slice(&stream[at..][opened.plaintext]);
                at += opened.consumed;
            }
            Ok(None) => return (plain, false),
            Err(_) => return (plain, true),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (client, server) = (machine(1), machine(2));
    assert!(accept(bytes, &server, &mut SeededEntropy(3)).is_err());
    let (handshake, _) =
        ClientHandshake::start(119, &client, &server.public(), &mut SeededEntropy(1))
            .expect("good keys");
    assert!(handshake.finish(bytes).is_err());
    if let Some(header) = bytes.first_chunk() {
        let _ = response_frame_len(header);
    }

    let mut steps = steps(bytes);
    let (first, second) = (steps.next(), steps.next());
    let bytes_of =
        |step: Option<warren_fuzz::Step<'_>>| step.map_or(Vec::new(), |s| s.bytes.to_vec());
    let Some((mut near, mut far)) = pair(&bytes_of(first), &bytes_of(second)) else {
        return;
    };
    let (mut stream, mut sent) = (Vec::new(), Vec::new());
    let mut hurt = Vec::new();
    for step in steps {
        match step.kind % 3 {
            0 => {
                near.sealer
                    .seal(step.bytes, &mut stream)
                    .expect("far from exhausted");
                sent.extend_from_slice(step.bytes);
            }
            1 => {
                let long = vec![step.arg; MAX_PLAINTEXT_LEN + usize::from(step.arg)];
                near.sealer
                    .seal(&long, &mut stream)
                    .expect("far from exhausted");
                sent.extend_from_slice(&long);
            }
            _ => hurt.extend_from_slice(step.bytes),
        }
    }
    let intact = stream.clone();
    damage(&mut stream, &hurt);
    let same = intact == stream;
    let (received, failed) = open_all(&mut far.opener, &mut stream);
    if same {
        assert_eq!((received, failed), (sent, false));
    } else {
        // The received bytes are a prefix of the sent ones, never anything else.
        assert!(sent.starts_with(&received) && received.len() < sent.len() || sent.is_empty());
    }
});
