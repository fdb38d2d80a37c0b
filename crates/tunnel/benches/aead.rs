//! The cost of sealing and opening, for batches of datagrams together and one by one
//! with the library. Run by `bench/aead`.
//!
//! Both ways take turns in short rounds on the same bytes. A figure is the
//! best round of each, since noise of a shared machine only ever adds; the
//! ratio is the median over the rounds of neighbours, which see the same
//! noise.

#![allow(clippy::unwrap_used)]
// The table is what this program is for.
#![allow(clippy::print_stdout)]
// Counts of bytes and nanoseconds, far below 2^52.
#![allow(clippy::cast_precision_loss)]

use std::time::{Duration, Instant};

use warren_keys::noise::MessageKey;
use warren_tunnel::{Role, Session};

/// Whole datagrams; the tunnel's own are 1,312 bytes long.
const SIZES: [usize; 6] = [64, 256, 576, 1_312, 1_420, 8_960];
const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 48];
const ROUNDS: usize = 60;
/// Bytes of a round: some tens of microseconds.
const ROUND: usize = 150_000;

type Work<'a> = Box<dyn Fn(&mut [u8]) + 'a>;

/// One way of doing it, and the rounds it took.
struct Way<'a> {
    run: Work<'a>,
    rounds: Vec<Duration>,
}

fn main() {
    let rounds = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(ROUNDS);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("GB/s of whole datagrams, best of {rounds} rounds; load {load}");
    println!(
        "| datagram | batch | seal one by one | together | ratio | open one by one | together | ratio |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let key = |byte: u8| MessageKey::new([byte; 32]);
    let now = Instant::now();
    let near = Session::new(Role::Initiator, 1, 2, &key(1), &key(2), now);
    let far = Session::new(Role::Responder, 2, 1, &key(2), &key(1), now);
    for size in SIZES {
        for count in BATCHES {
            let mut sealed = vec![0x5a; size * count];
            near.seal_batch(0, &mut sealed, size).unwrap();
            let seal = [
                Way::new(|batch| {
                    for (datagram, counter) in batch.chunks_mut(size).zip(0..) {
                        near.seal_in_place(counter, datagram).unwrap();
                    }
                }),
                Way::new(|batch| near.seal_batch(0, batch, size).unwrap()),
            ];
            // Opening destroys what it opens: both ways get a copy first.
            let open = [
                Way::new(|batch| {
                    batch.copy_from_slice(&sealed);
                    for datagram in batch.chunks_mut(size) {
                        far.open_in_place(datagram).unwrap();
                    }
                }),
                Way::new(|batch| {
                    batch.copy_from_slice(&sealed);
                    let opened = far.open_batch(batch, size);
                    for (i, datagram) in batch.chunks(size).enumerate() {
                        opened.get(i, datagram).unwrap();
                    }
                }),
            ];
            let [a, b, c] = compare(seal, size * count, rounds);
            let [d, e, f] = compare(open, size * count, rounds);
            println!("| {size} | {count} | {a:.2} | {b:.2} | {c:.2} | {d:.2} | {e:.2} | {f:.2} |");
        }
    }
}

impl<'a> Way<'a> {
    fn new(run: impl Fn(&mut [u8]) + 'a) -> Self {
        Self {
            run: Box::new(run),
            rounds: Vec::new(),
        }
    }
}

/// GB/s of the first way and of the second, and how many times faster the
/// second is.
fn compare(mut ways: [Way<'_>; 2], len: usize, rounds: usize) -> [f64; 3] {
    let mut batch = vec![0x5a; len];
    let times = (ROUND / len).max(1);
    for round in 0..rounds.max(1) {
        // The order of the two changes from round to round.
        for i in [round % 2, (round + 1) % 2] {
            let start = Instant::now();
            for _ in 0..times {
                (ways[i].run)(&mut batch);
            }
            ways[i].rounds.push(start.elapsed());
        }
    }
    let [first, second] = ways.map(|way| way.rounds);
    let mut ratios: Vec<_> = first
        .iter()
        .zip(&second)
        .map(|(first, second)| first.as_secs_f64() / second.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let speed =
        |rounds: &[Duration]| (len * times) as f64 / rounds.iter().min().unwrap().as_nanos() as f64;
    [speed(&first), speed(&second), ratios[ratios.len() / 2]]
}
