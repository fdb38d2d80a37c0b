//! WireGuard data, many datagrams at once: the same as one by one.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{damage, steps};
use warren_keys::noise::MessageKey;
use warren_tunnel::{MAX_BATCH, Role, Session};
use warren_wire::wireguard::{TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD};

fuzz_target!(|bytes: &[u8]| {
    let now = Instant::now();
    let (x, y) = (MessageKey::new([1; 32]), MessageKey::new([2; 32]));
    let near = Session::new(Role::Initiator, 11, 22, &x, &y, now);
    let far = Session::new(Role::Responder, 22, 11, &y, &x, now);
    let mut counter = 0_u64;

    // Of every step: how many datagrams, where in memory, and their content.
    // The first two bytes say how long each is, the next what happens to one
    // of them on the way.
    for step in steps(bytes) {
        let Some((head, text)) = step.bytes.split_first_chunk::<4>() else {
            // The counter goes on or far away.
            counter = counter.rotate_left(u32::from(step.kind % 64)) ^ u64::from(step.arg);
            continue;
        };
        let [low, high, place, pattern] = *head;
        let len = usize::from(u16::from_le_bytes([low, high])) % 1_600;
        let segment_len = len + TRANSPORT_OVERHEAD;
        let count = 1 + usize::from(step.kind) % (MAX_BATCH + 6);
        let last = usize::from(step.arg) * len / 255;
        let total = (count - 1) * segment_len + last + TRANSPORT_OVERHEAD;
        let align = usize::from(step.arg % 64);
        let mut plain = vec![0; align + total];
        for (byte, from) in plain.iter_mut().zip(text.iter().cycle()) {
            *byte = *from;
        }

        let mut one_by_one = plain.clone();
        let mut number = counter;
        for datagram in one_by_one[align..].chunks_mut(segment_len) {
            near.seal_in_place(number, datagram)
                .expect("the buffer is long enough");
            number = number.wrapping_add(1);
        }
        let mut together = plain.clone();
        near.seal_batch(counter, &mut together[align..], segment_len)
            .expect("the buffer is long enough");
        assert!(together == one_by_one, "sealed otherwise");

        let hurt = usize::from(place) % count * segment_len + align;
        let end = together.len().min(hurt + segment_len);
        damage(&mut together[hurt..end], &[place, pattern]);
        damage(&mut one_by_one[hurt..end], &[place, pattern]);
        let opened = far.open_batch(&mut together[align..], segment_len);
        let both = together[align..]
            .chunks(segment_len)
            .zip(one_by_one[align..].chunks_mut(segment_len));
        for (i, (datagram, alone)) in both.enumerate().take(MAX_BATCH) {
            let expected = far.open_in_place(alone);
            let got = opened.get(i, datagram);
            assert_eq!(got.is_ok(), expected.is_ok());
            if let (Ok(got), Ok(expected)) = (got, expected) {
                assert_eq!(got, expected);
                assert_eq!(datagram[got.1.clone()], alone[got.1.clone()]);
                let start = align + i * segment_len + TRANSPORT_HEADER_LEN;
                let content = &plain[start..start + got.1.len()];
                assert_eq!(&datagram[got.1], content);
                assert_eq!(
                    datagram.len(),
                    content.len() + TRANSPORT_HEADER_LEN + TAG_LEN
                );
            }
        }
        counter = number;
    }
});
