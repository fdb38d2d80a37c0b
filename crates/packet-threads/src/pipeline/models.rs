//! All interleavings of a few threads, by loom.

use loom::sync::Arc;
use loom::thread;

use super::*;

/// Receives batches up to `batches` and delivers each, `shared` of them after letting
/// the next thread receive.
fn work(pipeline: &OrderedPipeline<u64, Vec<u64>>, batches: u64, shared: impl Fn(u64) -> bool) {
    loop {
        let mut receiving = pipeline.receive_stage();
        loop {
            if *receiving == batches {
                return;
            }
            let batch = *receiving;
            *receiving += 1;
            let position = receiving.next_position();
            if shared(batch) {
                drop(receiving);
                position.deliver_stage().push(batch);
                break;
            }
            position.deliver_stage().push(batch);
        }
    }
}

fn all_delivered_in_order(threads: usize, batches: u64, shared: fn(u64) -> bool) {
    loom::model(move || {
        let pipeline = Arc::new(OrderedPipeline::new(threads, 0, Vec::new()));
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let pipeline = Arc::clone(&pipeline);
                thread::spawn(move || work(&pipeline, batches, shared))
            })
            .collect();
        work(&pipeline, batches, shared);
        for other in others {
            other.join().expect("the thread ends");
        }
        let receiving = pipeline.receive_stage();
        assert_eq!(*receiving, batches);
        let end = pipeline.delivering.lock().expect("no thread panicked");
        assert_eq!(end.position, batches);
        assert!(end.sleepers.iter().all(|sleepers| *sleepers == 0));
        let expected: Vec<_> = (0..batches).collect();
        assert_eq!(end.state, expected);
    });
}

#[test]
fn two_threads_deliver_shared_batches_in_order() {
    all_delivered_in_order(2, 3, |_| true);
}

#[test]
fn two_threads_deliver_large_and_small_batches_in_order() {
    all_delivered_in_order(2, 3, |batch| batch % 2 == 0);
}

#[test]
fn three_threads_deliver_in_order_and_all_end() {
    all_delivered_in_order(3, 3, |_| true);
}

/// As a thread that panics: its batch is lost, the others go on.
#[test]
fn a_dropped_position_does_not_block_the_others() {
    loom::model(|| {
        let pipeline = Arc::new(OrderedPipeline::new(2, (), Vec::new()));
        let dropped = pipeline.receive_stage().next_position();
        let number = dropped.number;
        assert_eq!(number, 0);
        let other = {
            let pipeline = Arc::clone(&pipeline);
            thread::spawn(move || {
                pipeline
                    .receive_stage()
                    .next_position()
                    .deliver_stage()
                    .push(1);
            })
        };
        drop(dropped);
        other.join().expect("the thread ends");
        let end = pipeline.delivering.lock().expect("no thread panicked");
        assert_eq!((end.position, end.state.as_slice()), (2, &[1][..]));
    });
}
