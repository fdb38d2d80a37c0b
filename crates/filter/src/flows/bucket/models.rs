//! All interleavings of two threads that use one bucket, by loom.

use loom::sync::Arc;
use loom::thread;

use super::*;

const IDLE: u32 = IDLE_SECS;

/// A bucket whose flows have the hashes 1 to [`WAYS`], opened by sources of the same
/// numbers and last used in second 0.
fn full(state: u32) -> Bucket {
    let bucket = Bucket::default();
    for n in 1..=WAYS as u64 {
        bucket.put(n, Note::new(state, n), 0);
    }
    bucket
}

/// Each slot has a flow and the note that was put with it.
fn assert_consistent(bucket: &Bucket) {
    for slot in &bucket.0 {
        let hash = slot.hash.load(Ordering::Acquire);
        assert_ne!(hash, BUSY);
        assert_eq!(u64::from(slot.note().owner()), hash);
    }
}

#[test]
fn an_expired_flow_is_not_found_while_its_slot_is_taken() {
    loom::model(|| {
        let bucket = Arc::new(full(Note::ANSWERED));
        let now = IDLE + 1;
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || bucket.put(10, Note::new(0, 10), now))
        };
        for hash in 1..=WAYS as u64 {
            assert!(bucket.find_live(hash, now, IDLE).is_none());
        }
        other.join().expect("the thread ends");
        assert!(bucket.find_live(10, now, IDLE).is_some());
        assert_consistent(&bucket);
    });
}

#[test]
fn two_newcomers_leave_each_slot_with_the_note_of_its_flow() {
    loom::model(|| {
        let bucket = Arc::new(full(0));
        let now = IDLE + 1;
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || bucket.put(10, Note::new(0, 10), now))
        };
        bucket.put(11, Note::new(0, 11), now);
        other.join().expect("the thread ends");
        assert_consistent(&bucket);
        // Both find a place: there are two.
        assert!(bucket.find_live(10, now, IDLE).is_some());
        assert!(bucket.find_live(11, now, IDLE).is_some());
    });
}

#[test]
fn a_live_flow_is_found_while_the_slot_beside_it_is_taken() {
    loom::model(|| {
        let bucket = Arc::new(full(Note::ANSWERED));
        let now = IDLE + 1;
        bucket.find(1).expect("it was put there").touch(now);
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || bucket.put(10, Note::new(0, 10), now))
        };
        assert!(bucket.find_live(1, now, IDLE).is_some());
        other.join().expect("the thread ends");
        assert!(bucket.find_live(1, now, IDLE).is_some());
        assert!(bucket.find_live(10, now, IDLE).is_some());
    });
}
