//! Chains of tailnet lock: valid, forged and damaged messages in any order, at two
//! nodes that synchronise at the end and must agree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{damage, lock_secret, locked, steps};
use warren_lock::{Aum, Authority, Change, Compaction, KeyId, Meta, TrustedKey, revocation};

fn change(kind: u8, arg: u8) -> Change {
    let id: KeyId = lock_secret(arg % 6).id();
    let votes = u16::from(arg / 6 % 4) + 1;
    match kind {
        0 => Change::NoOp,
        1 => Change::AddKey(TrustedKey::new(id, votes, Meta::default()).expect("in range")),
        2 => Change::RemoveKey(id),
        3 => Change::UpdateKey {
            id,
            votes: Some(u64::from(arg)),
            meta: None,
        },
        _ => Change::Unknown(arg),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (mut left, mut right): (Authority, Authority) = (locked(), locked());
    let mut known: Vec<Aum> = vec![left.log().next().expect("a genesis message").clone()];
    for (now, step) in steps(bytes).enumerate() {
        let one = if step.arg & 1 == 0 {
            &mut left
        } else {
            &mut right
        };
        let (head, count) = (one.head(), one.stored().len());
        let at = usize::from(step.bytes.first().copied().unwrap_or(0));
        let signer = lock_secret(step.arg / 2 % 6);
        let parent = known[known.len() - 1 - at % known.len()].hash();
        match step.kind % 8 {
            kind @ 0..5 => {
                let aum = Aum::unsigned(Some(parent), change(kind, step.arg)).signed_by(&signer);
                if one.inform(std::slice::from_ref(&aum), now as u64).is_ok() {
                    known.push(aum);
                } else {
                    assert_eq!((one.head(), one.stored().len()), (head, count));
                }
            }
            // A damaged message is never accepted, unless the damage undid itself.
            5 => {
                let aum = Aum::unsigned(Some(parent), Change::NoOp).signed_by(&signer);
                let mut hurt = aum.as_bytes().to_vec();
                damage(&mut hurt, step.bytes);
                if hurt != aum.as_bytes()
                    && let Ok(hurt) = Aum::decode(&hurt)
                {
                    assert!(one.inform(&[hurt], now as u64).is_err());
                }
            }
            6 => {
                let ids: Vec<KeyId> = step
                    .bytes
                    .iter()
                    .take(6)
                    .map(|n| lock_secret(n % 6).id())
                    .collect();
                if let Ok(aum) = revocation(one, &ids, &signer.id(), None) {
                    let aum = aum.signed_by(&signer);
                    if one.inform(std::slice::from_ref(&aum), now as u64).is_ok() {
                        known.push(aum);
                    }
                }
            }
            _ => {
                let state = one.state().clone();
                // Cutting the chain of one node only would part the two at forks that begin
                // before the cut, so it is done on a copy.
                let mut copy = one.clone();
                copy.compact(
                    now as u64,
                    Compaction {
                        min_chain: at % 8,
                        min_age: 1,
                    },
                );
                assert_eq!(copy.state(), &state);
                let (opened, discarded) = Authority::open(copy.stored().cloned(), copy.oldest())
                    .expect("what is kept can be opened");
                assert_eq!((opened.head(), discarded.len()), (state.head(), 0));
            }
        }
    }
    let to_right = left
        .missing(&right.offer())
        .expect("the genesis message is shared");
    let to_left = right
        .missing(&left.offer())
        .expect("the genesis message is shared");
    right.inform(&to_right, 0).expect("valid on the other side");
    left.inform(&to_left, 0).expect("valid on the other side");
    assert_eq!(left.head(), right.head());
    assert_eq!(left.state(), right.state());
});
