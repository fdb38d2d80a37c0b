//! One stream of batches through several threads, in order.
//!
//! ```text
//!   receive stage ──▶ receive, next position ──▶ work ──▶ deliver stage ──▶ ...
//!   one thread at a time, in order      side by side    one thread at a time,
//!                                                       in the same order
//! ```
//!
//! One thread at a time has the *receive stage*, from which batches come. A batch
//! gets a position in the order. With a large batch the thread lets go of the stage,
//! so that another can receive, and works on the batch beside the others. Then it
//! waits until its position is next, has the *deliver stage* for itself, and passes
//! it on. With a small batch it keeps the receive stage: no thread is woken.
//!
//! Locks are taken per batch, and are usually free: while one thread does all of the
//! work, the others sleep.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// The two stages: the state `R` of receiving and the state `D` of delivering.
pub(crate) struct OrderedPipeline<R, D> {
    receiving: Mutex<Receiving<R>>,
    delivering: Mutex<Delivering<D>>,
    /// Where threads wait for their position: that of number n waits at n modulo the
    /// number of threads, so that usually one thread waits at each.
    waiting: Box<[Condvar]>,
}

struct Receiving<R> {
    next_position: u64,
    state: R,
}

struct Delivering<D> {
    /// The position that may deliver.
    position: u64,
    /// The number of threads that sleep at each place of `waiting`.
    sleepers: Box<[usize]>,
    state: D,
}

impl<R, D> OrderedPipeline<R, D> {
    /// A pipeline for so many threads.
    pub(crate) fn new(threads: usize, receiving: R, delivering: D) -> Self {
        let threads = threads.max(1);
        Self {
            receiving: Mutex::new(Receiving {
                next_position: 0,
                state: receiving,
            }),
            delivering: Mutex::new(Delivering {
                position: 0,
                sleepers: vec![0; threads].into(),
                state: delivering,
            }),
            waiting: (0..threads).map(|_| Condvar::new()).collect(),
        }
    }

    /// Whether there are threads to share work with.
    pub(crate) fn has_several_threads(&self) -> bool {
        self.waiting.len() > 1
    }

    /// Waits until no other thread receives, and has the receive stage until the
    /// result is dropped.
    pub(crate) fn receive_stage(&self) -> ReceiveStage<'_, R, D> {
        ReceiveStage {
            pipeline: self,
            // A thread that panicked while it received has lost one batch.
            receiving: self
                .receiving
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn place(&self, position: u64) -> usize {
        // Below the number of threads.
        (position % self.waiting.len() as u64) as usize
    }
}

/// Exclusive access to the receive stage.
pub(crate) struct ReceiveStage<'p, R, D> {
    pipeline: &'p OrderedPipeline<R, D>,
    receiving: MutexGuard<'p, Receiving<R>>,
}

impl<'p, R, D> ReceiveStage<'p, R, D> {
    /// The position of the batch that was just received.
    pub(crate) fn next_position(&mut self) -> Position<'p, R, D> {
        let number = self.receiving.next_position;
        self.receiving.next_position += 1;
        Position {
            pipeline: self.pipeline,
            number,
            used: false,
        }
    }
}

impl<R, D> Deref for ReceiveStage<'_, R, D> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.receiving.state
    }
}

impl<R, D> DerefMut for ReceiveStage<'_, R, D> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.receiving.state
    }
}

/// The position of a batch in the order. One that is dropped waits until it is next
/// and is skipped, so that a thread that panics does not hold up the others.
pub(crate) struct Position<'p, R, D> {
    pipeline: &'p OrderedPipeline<R, D>,
    number: u64,
    used: bool,
}

impl<'p, R, D> Position<'p, R, D> {
    /// Waits until all batches before this one are delivered.
    pub(crate) fn deliver_stage(mut self) -> DeliverStage<'p, R, D> {
        self.used = true;
        self.wait()
    }

    fn wait(&self) -> DeliverStage<'p, R, D> {
        let pipeline = self.pipeline;
        let place = pipeline.place(self.number);
        let mut delivering = pipeline
            .delivering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while delivering.position != self.number {
            delivering.sleepers[place] += 1;
            delivering = pipeline.waiting[place]
                .wait(delivering)
                .unwrap_or_else(PoisonError::into_inner);
            delivering.sleepers[place] -= 1;
        }
        DeliverStage {
            pipeline,
            delivering,
        }
    }
}

impl<R, D> Drop for Position<'_, R, D> {
    fn drop(&mut self) {
        if !self.used {
            drop(self.wait());
        }
    }
}

/// Exclusive access to the deliver stage. Dropping it passes it on to the next
/// position.
pub(crate) struct DeliverStage<'p, R, D> {
    pipeline: &'p OrderedPipeline<R, D>,
    delivering: MutexGuard<'p, Delivering<D>>,
}

impl<R, D> Deref for DeliverStage<'_, R, D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.delivering.state
    }
}

impl<R, D> DerefMut for DeliverStage<'_, R, D> {
    fn deref_mut(&mut self) -> &mut D {
        &mut self.delivering.state
    }
}

impl<R, D> Drop for DeliverStage<'_, R, D> {
    fn drop(&mut self) {
        self.delivering.position += 1;
        let place = self.pipeline.place(self.delivering.position);
        // Waking costs a system call, even when no thread sleeps. Threads that come
        // later see their position before they sleep.
        if self.delivering.sleepers[place] > 0 {
            self.pipeline.waiting[place].notify_all();
        }
    }
}

#[cfg(all(test, warren_loom))]
#[path = "pipeline/models.rs"]
mod models;

#[cfg(all(test, not(warren_loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Numbers that look random, other ones for each seed.
    struct XorShift(u64);

    impl XorShift {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }

        /// Lets others run at this point, or not.
        fn pause(&mut self) {
            for _ in 0..self.below(4) {
                std::thread::yield_now();
            }
            for _ in 0..self.below(200) {
                std::hint::spin_loop();
            }
        }
    }

    /// Many threads, each taking the batches that come, sharing some of them, with
    /// pauses wherever one thread can overtake another.
    fn run_many_threads(threads: usize, batches: u64, seed: u64) {
        let pipeline = OrderedPipeline::new(threads, 0u64, Vec::new());
        let delivering = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..threads as u64 {
                let (pipeline, delivering) = (&pipeline, &delivering);
                let mut random = XorShift((seed + 1) << 32 | (thread + 1));
                scope.spawn(move || {
                    loop {
                        let mut receiving = pipeline.receive_stage();
                        let (position, batch) = loop {
                            if *receiving == batches {
                                return;
                            }
                            let batch = *receiving;
                            *receiving += 1;
                            random.pause();
                            let position = receiving.next_position();
                            if random.below(3) > 0 {
                                break (position, batch);
                            }
                            let mut stage = position.deliver_stage();
                            assert_eq!(delivering.fetch_add(1, Ordering::SeqCst), 0);
                            stage.push(batch);
                            delivering.fetch_sub(1, Ordering::SeqCst);
                        };
                        drop(receiving);
                        random.pause();
                        if random.below(10) == 0 {
                            // As a thread that panics does.
                            drop(position);
                            continue;
                        }
                        let mut stage = position.deliver_stage();
                        assert_eq!(delivering.fetch_add(1, Ordering::SeqCst), 0);
                        stage.push(batch);
                        random.pause();
                        delivering.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let receiving = pipeline.receive_stage();
        assert_eq!(*receiving, batches, "all batches were received");
        let end = pipeline.delivering.lock().unwrap();
        assert_eq!(end.position, receiving.receiving.next_position);
        assert!(end.sleepers.iter().all(|sleepers| *sleepers == 0));
        let delivered = &end.state;
        assert!(delivered.is_sorted_by(|a, b| a < b), "out of order");
        assert!(delivered.len() as u64 > batches * 8 / 10);
    }

    #[test]
    fn batches_are_delivered_in_the_order_of_receiving() {
        for seed in 0..20 {
            for threads in [1, 2, 3, 4, 8] {
                run_many_threads(threads, 500, seed);
            }
        }
    }

    /// The last is ready first, and has to wait for all before it.
    #[test]
    fn a_batch_that_is_ready_early_waits_for_its_position() {
        let pipeline = OrderedPipeline::new(4, (), Vec::new());
        let positions: Vec<_> = (0..4)
            .map(|_| pipeline.receive_stage().next_position())
            .collect();
        let (ready, all_ready) = mpsc::channel();
        std::thread::scope(|scope| {
            let mut positions: Vec<_> = positions.into_iter().enumerate().collect();
            let first = positions.remove(0);
            for (number, position) in positions.into_iter().rev() {
                let ready = ready.clone();
                scope.spawn(move || {
                    ready.send(()).unwrap();
                    position.deliver_stage().push(number);
                });
            }
            for _ in 0..3 {
                all_ready.recv().unwrap();
            }
            let (number, position) = first;
            let mut stage = position.deliver_stage();
            assert!(stage.is_empty());
            stage.push(number);
        });
        assert_eq!(*pipeline.delivering.lock().unwrap().state, [0, 1, 2, 3]);
    }

    #[test]
    fn a_panicking_thread_does_not_block_the_others() {
        let pipeline = OrderedPipeline::new(2, 0, 0);
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let position = pipeline.receive_stage().next_position();
                assert!(position.number > 0, "a panic of this test");
            });
            assert!(panics.join().is_err());
        });
        *pipeline.receive_stage().next_position().deliver_stage() += 1;
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let stage = pipeline.receive_stage().next_position().deliver_stage();
                assert!(*stage == 0, "a panic of this test");
            });
            assert!(panics.join().is_err());
        });
        *pipeline.receive_stage().next_position().deliver_stage() += 1;
        assert_eq!(*pipeline.receive_stage().next_position().deliver_stage(), 2);
    }

    #[test]
    fn a_single_thread_receives_and_delivers_by_itself() {
        let pipeline = OrderedPipeline::new(1, 0, 0);
        assert!(!pipeline.has_several_threads());
        let mut receiving = pipeline.receive_stage();
        for _ in 0..10 {
            *receiving += 1;
            *receiving.next_position().deliver_stage() += *receiving;
        }
        assert_eq!(*receiving.next_position().deliver_stage(), 55);
    }
}
