//! Signatures of node keys: made by nodes and by attackers, damaged and nested.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{damage, lock_secret, locked, node, steps};
use warren_lock::{NodeKeySignature, RotationTracker};

/// The keys that the lock of [`locked`] trusts.
const TRUSTED: [u8; 2] = [0, 1];

fuzz_target!(|bytes: &[u8]| {
    let authority = locked();
    // The signature that was made last, and whether it has to be valid: for which node
    // key, and who may rotate it.
    let mut last: Option<(NodeKeySignature, Option<u8>)> = None;
    let mut tracker = RotationTracker::default();
    for step in steps(bytes) {
        let key = node(step.arg).public();
        let by = step.bytes.first().copied().unwrap_or(0) % 6;
        let wrapping = step.bytes.get(1).map(|n| n % 6);
        let trusted = TRUSTED.contains(&by);
        match step.kind % 5 {
            0 => {
                let public = wrapping.map(|n| lock_secret(n).public());
                let signature = NodeKeySignature::direct(key, public, &lock_secret(by));
                let result = authority.authorize(key, &signature.encode());
                assert_eq!(result.is_ok(), trusted);
                last = trusted.then_some((signature, wrapping));
            }
            1 => {
                let delegate = wrapping.unwrap_or(0);
                let signature =
                    NodeKeySignature::credential(lock_secret(delegate).public(), &lock_secret(by));
                assert!(authority.authorize(key, &signature.encode()).is_err());
                last = trusted.then_some((signature, Some(delegate)));
            }
            2 => {
                let Some((signature, wrapping)) = last.take() else {
                    continue;
                };
                let same = signature.node_key() == Some(key);
                let rotated = signature.rotated(key, &lock_secret(by));
                let encoded = rotated.encode();
                let result = authority.authorize(key, &encoded);
                assert_eq!(result.is_ok(), same || wrapping == Some(by));
                if let Ok(authorization) = result {
                    tracker.add(key, &authorization);
                    last = Some((rotated, wrapping));
                }
            }
            3 => {
                let Some((signature, _)) = &last else {
                    continue;
                };
                let Some(key) = signature.node_key() else {
                    continue;
                };
                let encoded = signature.encode();
                let mut hurt = encoded.clone();
                damage(&mut hurt, step.bytes);
                assert_eq!(authority.authorize(key, &hurt).is_ok(), hurt == encoded);
            }
            _ => assert!(authority.authorize(key, step.bytes).is_err()),
        }
    }
    tracker.obsolete();
});
