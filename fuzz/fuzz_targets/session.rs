//! WireGuard data: what opens, and which numbers count as seen.
#![no_main]

use std::collections::BTreeSet;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{damage, steps};
use warren_keys::noise::MessageKey;
use warren_tunnel::{ReplayWindow, Role, Session};
use warren_wire::wireguard::{TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD};

fuzz_target!(|bytes: &[u8]| {
    let now = Instant::now();
    let (x, y) = (MessageKey::new([1; 32]), MessageKey::new([2; 32]));
    let near = Session::new(Role::Initiator, 11, 22, &x, &y, now);
    let far = Session::new(Role::Responder, 22, 11, &y, &x, now);
    let mut window = ReplayWindow::new();
    let mut seen = BTreeSet::new();
    let mut counter = 0u64;

    for step in steps(bytes) {
        let mut datagram = match step.kind % 4 {
            // Bytes of an unauthenticated sender.
            0 => {
                let mut datagram = step.bytes.to_vec();
                assert!(far.open_in_place(&mut datagram).is_err());
                continue;
            }
            // The counter goes on, back, or far away.
            1 => {
                counter = counter.wrapping_add_signed(i64::from(step.arg as i8));
                step.bytes.to_vec()
            }
            2 => {
                counter = counter.wrapping_add(u64::from(step.arg) << 8);
                step.bytes.to_vec()
            }
            _ => {
                counter = counter.rotate_left(u32::from(step.arg % 64));
                step.bytes.to_vec()
            }
        };
        let content = datagram.clone();
        datagram.splice(0..0, [0; TRANSPORT_HEADER_LEN]);
        datagram.resize(content.len() + TRANSPORT_OVERHEAD, 0);
        near.seal_in_place(counter, &mut datagram)
            .expect("the buffer is long enough");

        let mut hurt = datagram.clone();
        damage(&mut hurt, step.bytes);
        // The index is not sealed; reading it is the caller's business.
        hurt[4..8].copy_from_slice(&datagram[4..8]);
        let intact = hurt == datagram;
        match far.open_in_place(&mut hurt) {
            Ok((got, range)) => {
                assert!(intact);
                assert_eq!(got, counter);
                assert_eq!(hurt[range], content);
            }
            Err(_) => {
                assert!(!intact || counter >= warren_tunnel::REJECT_AFTER_MESSAGES);
                continue;
            }
        }

        let newest = seen.last().copied();
        let recent =
            newest.is_none_or(|newest: u64| newest.saturating_sub(counter) < ReplayWindow::SPAN);
        let accepted = window.accept(counter);
        assert!(
            !accepted || !seen.contains(&counter),
            "a replay came through"
        );
        assert!(
            accepted || !recent || seen.contains(&counter),
            "a fresh packet was refused"
        );
        if accepted {
            seen.insert(counter);
        }
    }
});
