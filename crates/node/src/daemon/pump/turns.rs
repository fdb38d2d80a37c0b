//! Who receives, and whose turn it is: how several threads share one stream of
//! work and keep its order.
//!
//! ```text
//!   lead ──▶ receive, take a ticket ──▶ (another leads) ──▶ work ──▶ turn ──▶ lead
//!            one at a time, in order        at the same time     one at a time,
//!                                                                in the same order
//! ```
//!
//! One thread *leads*: it has the front, from which work comes. A piece of work
//! gets a ticket. With a large one the thread lets go of the front, so that
//! another can lead, and prepares it beside the others. Then it waits for the
//! turn of its ticket, has the back for itself, and passes the turn on. With a
//! small one it just goes on leading: nobody is woken.
//!
//! Locks are taken per piece of work, and usually free: while one thread does
//! it all, the others sleep.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The two ends: `F` where work comes from, `B` where it is finished.
pub(super) struct Turns<F, B> {
    front: Mutex<Front<F>>,
    back: Mutex<Back<B>>,
    /// Where threads sleep until it is their turn: a ticket's place is its
    /// number modulo the number of threads, so that usually one sleeps at each.
    places: Box<[Condvar]>,
}

struct Front<F> {
    next_ticket: u64,
    state: F,
}

struct Back<B> {
    turn: u64,
    /// How many sleep at each place.
    sleepers: Box<[usize]>,
    state: B,
}

impl<F, B> Turns<F, B> {
    /// For so many threads.
    pub(super) fn new(threads: usize, front: F, back: B) -> Self {
        let threads = threads.max(1);
        Self {
            front: Mutex::new(Front {
                next_ticket: 0,
                state: front,
            }),
            back: Mutex::new(Back {
                turn: 0,
                sleepers: vec![0; threads].into(),
                state: back,
            }),
            places: (0..threads).map(|_| Condvar::new()).collect(),
        }
    }

    /// Whether there is anybody to share work with.
    pub(super) fn has_others(&self) -> bool {
        self.places.len() > 1
    }

    /// Waits until nobody leads, and leads until the result is dropped.
    pub(super) fn lead(&self) -> Lead<'_, F, B> {
        Lead {
            turns: self,
            // A thread that panicked with the front has lost one piece of work.
            front: self.front.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn place(&self, ticket: u64) -> usize {
        // Below the number of threads.
        (ticket % self.places.len() as u64) as usize
    }
}

/// Being the one who receives.
pub(super) struct Lead<'t, F, B> {
    turns: &'t Turns<F, B>,
    front: MutexGuard<'t, Front<F>>,
}

impl<'t, F, B> Lead<'t, F, B> {
    /// A ticket for what was just received.
    pub(super) fn ticket(&mut self) -> Ticket<'t, F, B> {
        let number = self.front.next_ticket;
        self.front.next_ticket += 1;
        Ticket {
            turns: self.turns,
            number,
            used: false,
        }
    }
}

impl<F, B> Deref for Lead<'_, F, B> {
    type Target = F;

    fn deref(&self) -> &F {
        &self.front.state
    }
}

impl<F, B> DerefMut for Lead<'_, F, B> {
    fn deref_mut(&mut self) -> &mut F {
        &mut self.front.state
    }
}

/// A place in the order. One that is dropped waits for its turn and passes it
/// on, so that a thread that panics does not hold up the others.
pub(super) struct Ticket<'t, F, B> {
    turns: &'t Turns<F, B>,
    number: u64,
    used: bool,
}

impl<'t, F, B> Ticket<'t, F, B> {
    /// Waits until everything before it is finished.
    pub(super) fn turn(mut self) -> Turn<'t, F, B> {
        self.used = true;
        self.wait()
    }

    fn wait(&self) -> Turn<'t, F, B> {
        let turns = self.turns;
        let place = turns.place(self.number);
        let mut back = turns.back.lock().unwrap_or_else(PoisonError::into_inner);
        while back.turn != self.number {
            back.sleepers[place] += 1;
            back = turns.places[place]
                .wait(back)
                .unwrap_or_else(PoisonError::into_inner);
            back.sleepers[place] -= 1;
        }
        Turn { turns, back }
    }
}

impl<F, B> Drop for Ticket<'_, F, B> {
    fn drop(&mut self) {
        if !self.used {
            drop(self.wait());
        }
    }
}

/// Having the back. Dropping it makes it the next one's turn.
pub(super) struct Turn<'t, F, B> {
    turns: &'t Turns<F, B>,
    back: MutexGuard<'t, Back<B>>,
}

impl<F, B> Deref for Turn<'_, F, B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.back.state
    }
}

impl<F, B> DerefMut for Turn<'_, F, B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.back.state
    }
}

impl<F, B> Drop for Turn<'_, F, B> {
    fn drop(&mut self) {
        self.back.turn += 1;
        let place = self.turns.place(self.back.turn);
        // Waking costs a system call, even when nobody sleeps. Who comes later
        // sees the turn before it sleeps.
        if self.back.sleepers[place] > 0 {
            self.turns.places[place].notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Numbers that look random, other ones for each seed.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }

        /// Lets others run at this point, or not.
        fn dawdle(&mut self) {
            for _ in 0..self.roll(4) {
                std::thread::yield_now();
            }
            for _ in 0..self.roll(200) {
                std::hint::spin_loop();
            }
        }
    }

    /// Many threads, each taking what comes, sharing some of it, with pauses
    /// wherever one can be overtaken.
    fn crowd(threads: usize, pieces: u64, seed: u64) {
        let turns = Turns::new(threads, 0u64, Vec::new());
        let working = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..threads as u64 {
                let (turns, working) = (&turns, &working);
                let mut dice = Dice((seed + 1) << 32 | (thread + 1));
                scope.spawn(move || {
                    loop {
                        let mut lead = turns.lead();
                        let (ticket, piece) = loop {
                            if *lead == pieces {
                                return;
                            }
                            let piece = *lead;
                            *lead += 1;
                            dice.dawdle();
                            let ticket = lead.ticket();
                            if dice.roll(3) > 0 {
                                break (ticket, piece);
                            }
                            let mut turn = ticket.turn();
                            assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                            turn.push(piece);
                            working.fetch_sub(1, Ordering::SeqCst);
                        };
                        drop(lead);
                        dice.dawdle();
                        if dice.roll(10) == 0 {
                            // As a thread that panics does.
                            drop(ticket);
                            continue;
                        }
                        let mut turn = ticket.turn();
                        assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                        turn.push(piece);
                        dice.dawdle();
                        working.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let lead = turns.lead();
        assert_eq!(*lead, pieces, "everything was received");
        let back = turns.back.lock().unwrap();
        assert_eq!(back.turn, lead.front.next_ticket, "every turn was taken");
        assert!(back.sleepers.iter().all(|sleepers| *sleepers == 0));
        let finished = &back.state;
        assert!(finished.is_sorted_by(|a, b| a < b), "out of order");
        assert!(finished.len() as u64 > pieces * 8 / 10);
    }

    #[test]
    fn batches_are_finished_in_the_order_of_receiving() {
        for seed in 0..20 {
            for threads in [1, 2, 3, 4, 8] {
                crowd(threads, 500, seed);
            }
        }
    }

    /// The last is ready first, and has to wait for all before it.
    #[test]
    fn a_batch_that_is_ready_early_waits_for_its_turn() {
        let turns = Turns::new(4, (), Vec::new());
        let tickets: Vec<_> = (0..4).map(|_| turns.lead().ticket()).collect();
        let (ready, all_ready) = mpsc::channel();
        std::thread::scope(|scope| {
            let mut tickets: Vec<_> = tickets.into_iter().enumerate().collect();
            let first = tickets.remove(0);
            for (number, ticket) in tickets.into_iter().rev() {
                let ready = ready.clone();
                scope.spawn(move || {
                    ready.send(()).unwrap();
                    ticket.turn().push(number);
                });
            }
            for _ in 0..3 {
                all_ready.recv().unwrap();
            }
            let (number, ticket) = first;
            let mut turn = ticket.turn();
            assert!(turn.is_empty());
            turn.push(number);
        });
        assert_eq!(*turns.back.lock().unwrap().state, [0, 1, 2, 3]);
    }

    #[test]
    fn a_panicking_thread_does_not_block_the_others() {
        let turns = Turns::new(2, 0, 0);
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let ticket = turns.lead().ticket();
                assert!(ticket.number > 0, "a panic of this test");
            });
            assert!(panics.join().is_err());
        });
        *turns.lead().ticket().turn() += 1;
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let turn = turns.lead().ticket().turn();
                assert!(*turn == 0, "a panic of this test");
            });
            assert!(panics.join().is_err());
        });
        *turns.lead().ticket().turn() += 1;
        assert_eq!(*turns.lead().ticket().turn(), 2);
    }

    #[test]
    fn one_alone_leads_and_finishes_by_itself() {
        let turns = Turns::new(1, 0, 0);
        assert!(!turns.has_others());
        let mut lead = turns.lead();
        for _ in 0..10 {
            *lead += 1;
            *lead.ticket().turn() += *lead;
        }
        assert_eq!(*lead.ticket().turn(), 55);
    }
}
