//! Disco: the envelope of an unauthenticated sender, and the sealed message of a peer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_fuzz::disco;
use warren_keys::sealed_box::NONCE_LEN;
use warren_wire::disco::{Envelope, Message, looks_like_disco, looks_like_relayed_disco};

fuzz_target!(|bytes: &[u8]| {
    let (ours, theirs) = (disco(1), disco(2));
    if let Ok(envelope) = Envelope::parse(bytes)
        && let Ok(shared) = ours.shared_with(envelope.sender.as_bytes())
    {
        // Opens for the seed that knows the keys, and for no damaged copy.
        if let Ok(opened) = shared.open(envelope.sealed) {
            let _ = Message::parse(&opened);
            let mut hurt = envelope.sealed.to_vec();
            hurt[0] ^= 1;
            assert!(shared.open(&hurt).is_err());
        }
    }

    let Ok(message) = Message::parse(bytes) else {
        return;
    };
    let body = message.emit();
    assert_eq!(Message::parse(&body).as_ref(), Ok(&message));
    let there = theirs
        .shared_with(ours.public().as_bytes())
        .expect("an honest key");
    let here = ours
        .shared_with(theirs.public().as_bytes())
        .expect("an honest key");
    let packet = Envelope::seal(&theirs.public(), &there, &[7; NONCE_LEN], &message);
    assert!(looks_like_relayed_disco(&packet) && looks_like_disco(&packet));
    let envelope = Envelope::parse(&packet).expect("our own envelope");
    assert_eq!(envelope.sender, theirs.public());
    assert_eq!(here.open(envelope.sealed).as_ref(), Ok(&body));
});
