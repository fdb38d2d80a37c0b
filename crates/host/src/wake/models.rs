//! All interleavings of threads that queue work and wake, and of the thread that
//! sleeps, by loom: the packets of relays and the orders of the engine reach the thread
//! that receives in this way.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;

/// An eventfd that is waited for with a condition variable.
#[derive(Default)]
struct Model {
    ready: Mutex<bool>,
    changed: Condvar,
}

impl Model {
    fn wait(&self) {
        let mut ready = self.ready.lock().expect("no thread panicked");
        while !*ready {
            ready = self.changed.wait(ready).expect("no thread panicked");
        }
    }
}

impl Event for Model {
    fn set(&self) {
        *self.ready.lock().expect("no thread panicked") = true;
        self.changed.notify_one();
    }

    fn reset(&self) {
        *self.ready.lock().expect("no thread panicked") = false;
    }
}

/// `senders` threads queue `each` packets and wake; the sleeper ends once it has all.
/// Loom reports a lost wake as a deadlock.
fn all_are_received(senders: usize, each: usize) {
    loom::model(move || {
        let flag = Arc::new(Flag::new(Model::default()));
        let queue = Arc::new(Mutex::new(0));
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let (flag, queue) = (Arc::clone(&flag), Arc::clone(&queue));
                thread::spawn(move || {
                    for _ in 0..each {
                        *queue.lock().expect("no thread panicked") += 1;
                        flag.wake();
                    }
                })
            })
            .collect();
        let mut received = 0;
        while received < senders * each {
            flag.event.wait();
            flag.clear();
            received += std::mem::take(&mut *queue.lock().expect("no thread panicked"));
        }
        for thread in threads {
            thread.join().expect("the thread ends");
        }
    });
}

#[test]
fn packets_of_one_sender_are_all_received() {
    all_are_received(1, 3);
}

#[test]
fn packets_of_two_senders_are_all_received() {
    all_are_received(2, 1);
}
