//! Connections between two stacks through a bad network.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use proptest::prelude::*;
use warren_netstack::{ConnectionId, Limits};
use world::{Network, World};

/// The virtual time after which a transfer has failed.
const MOST_TIME: Duration = Duration::from_secs(3600);

/// The bytes that one side sends: none alike in a row.
fn content(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ salt).collect()
}

/// One end of a transfer.
struct End {
    id: ConnectionId,
    to_send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    is_shut: bool,
    ended: bool,
}

impl End {
    fn new(id: ConnectionId, to_send: Vec<u8>) -> Self {
        Self {
            id,
            to_send,
            sent: 0,
            received: Vec::new(),
            is_shut: false,
            ended: false,
        }
    }

    /// Writes and reads in pieces of random length.
    fn work(&mut self, world: &mut World, side: usize) {
        loop {
            let len = 1 + world.random.below(40_000) as usize;
            let rest = &self.to_send[self.sent..];
            if rest.is_empty() {
                break;
            }
            let piece = &rest[..len.min(rest.len())];
            match world.stacks[side].write(world.now, self.id, piece).unwrap() {
                Some(written) => self.sent += written,
                None => break,
            }
        }
        if self.sent == self.to_send.len() && !self.is_shut {
            self.is_shut = true;
            world.stacks[side].shut_down(world.now, self.id);
        }
        while !self.ended {
            let mut buffer = vec![0; 1 + world.random.below(70_000) as usize];
            match world.stacks[side]
                .read(world.now, self.id, &mut buffer)
                .unwrap()
            {
                Some(0) => self.ended = true,
                Some(read) => self.received.extend_from_slice(&buffer[..read]),
                None => break,
            }
        }
    }
}

/// Sends both ways and checks that everything arrives; returns the time it took.
fn transfer(world: &mut World, there: usize, back: usize) -> Duration {
    let (client, server) = world.open();
    let start = world.now;
    let mut ends = [
        End::new(client, content(there, 0)),
        End::new(server, content(back, 0x5a)),
    ];
    while !(ends[0].ended && ends[1].ended) {
        for (side, end) in ends.iter_mut().enumerate() {
            end.work(world, side);
        }
        if !(ends[0].ended && ends[1].ended) {
            assert!(world.step(), "nothing happens any more");
            let passed = world.now - start;
            assert!(passed < MOST_TIME, "it takes too long");
        }
    }
    let took = world.now - start;
    assert!(ends[0].received == content(back, 0x5a));
    assert!(ends[1].received == content(there, 0));
    for (side, end) in ends.iter().enumerate() {
        world.stacks[side].release(world.now, end.id);
    }
    while world.step() {
        let passed = world.now - start;
        assert!(passed < 2 * MOST_TIME, "the connections do not end");
    }
    for stack in &world.stacks {
        assert_eq!((stack.connections(), stack.half_open()), (0, 0));
    }
    took
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_in_order_through_a_bad_network(
        seed in any::<u32>(),
        v6 in any::<bool>(),
        loss in 0u64..80,
        duplication in 0u64..80,
        reordering in 0u64..300,
        joins in any::<bool>(),
        there in 0usize..400_000,
        back in 0usize..400_000,
        buffer in 2_000usize..300_000,
    ) {
        let network = Network {
            loss,
            duplication,
            reordering,
            delay: Duration::from_millis(5),
            joins,
        };
        let limits = Limits {
            least_buffer: buffer,
            largest_buffer: buffer,
            ..Limits::default()
        };
        let mut world = World::new(seed.into(), v6, network, limits);
        transfer(&mut world, there, back);
    }
}

#[test]
fn a_long_way_is_filled_within_few_round_trips() {
    for joins in [false, true] {
        let network = Network {
            delay: Duration::from_millis(25),
            joins,
            ..Network::default()
        };
        let mut world = World::new(1, false, network, Limits::default());
        let took = transfer(&mut world, 10_000_000, 0);
        // 2 MiB for each round trip of 50 ms, once the window is open.
        assert!(
            took < Duration::from_millis(1500),
            "{took:?}, joins: {joins}"
        );
    }
}

#[test]
fn one_loss_in_a_hundred_does_not_stop_a_transfer() {
    let network = Network {
        loss: 10,
        delay: Duration::from_millis(5),
        ..Network::default()
    };
    let mut world = World::new(7, true, network, Limits::default());
    let took = transfer(&mut world, 5_000_000, 0);
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn both_sides_go_back_after_a_timeout_and_still_acknowledge() {
    let network = Network {
        loss: 0,
        duplication: 38,
        reordering: 182,
        delay: Duration::from_millis(5),
        joins: false,
    };
    let limits = Limits {
        least_buffer: 130_089,
        largest_buffer: 130_089,
        ..Limits::default()
    };
    let mut world = World::new(3_226_245_789, false, network, limits);
    transfer(&mut world, 130_089, 4_529);
}

/// Both sides write without reading, as two programs do that echo. When one of them reads, it
/// gets everything, while the window of its own data stays closed.
#[test]
fn a_side_that_reads_is_served_while_both_windows_were_closed() {
    let network = Network {
        delay: Duration::from_millis(5),
        ..Network::default()
    };
    let limits = Limits {
        least_buffer: 20_000,
        largest_buffer: 20_000,
        ..Limits::default()
    };
    let mut world = World::new(3, false, network, limits);
    let (client, server) = world.open();
    let ids = [client, server];
    let piece = content(7_000, 1);
    let start = world.now;
    let mut written = [0, 0];
    let fill = |world: &mut World, written: &mut [usize; 2]| {
        for side in 0..2 {
            let stack = &mut world.stacks[side];
            while let Some(taken) = stack.write(world.now, ids[side], &piece).unwrap() {
                written[side] += taken;
            }
        }
    };
    // Both are probed a few times.
    while world.now - start < Duration::from_secs(20) {
        fill(&mut world, &mut written);
        assert!(world.step());
    }
    assert!(
        written.iter().all(|written| *written > 20_000),
        "{written:?}"
    );
    let mut read = 0;
    let mut buffer = vec![0; 4_096];
    while read < written[1] {
        match world.stacks[0]
            .read(world.now, client, &mut buffer)
            .unwrap()
        {
            Some(len) => read += len,
            None => assert!(world.step()),
        }
        assert!(
            world.now - start < Duration::from_secs(60),
            "{read} of {written:?}"
        );
    }
}
