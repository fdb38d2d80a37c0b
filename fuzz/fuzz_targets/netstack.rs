//! The network stack of a node without an interface: packets of a peer that say
//! anything, on connections that are open, opening and closing, and what the application
//! does at the same time.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{Clock, damage, steps};
use warren_netstack::{Checksum, ConnectionId, Event, FlowId, Limits, Netstack};
use warren_testkit::SeededEntropy;

const LIMITS: Limits = Limits {
    connections: 8,
    connections_per_source: 6,
    half_open: 8,
    half_open_per_source: 6,
    least_buffer: 3_000,
    largest_buffer: 9_000,
    pool_bytes: 100_000,
    flows: 8,
    flows_per_source: 6,
    datagrams_per_flow: 4,
    datagram_bytes: 20_000,
    opening: Duration::from_secs(30),
    unanswered: Duration::from_secs(900),
    idle: Duration::from_secs(7200),
    keep_alive: Duration::from_secs(900),
    half_closed: Duration::from_secs(600),
    released: Duration::from_secs(60),
    released_total: Duration::from_secs(300),
    time_wait: Duration::from_secs(10),
    time_waits: 8,
    flow_idle: Duration::from_secs(120),
};

/// Most packets that one step takes out of a stack.
const MOST_SENT: usize = 2_000;

/// One side, with what its application holds.
struct Side {
    stack: Netstack,
    connections: Vec<ConnectionId>,
    flows: Vec<FlowId>,
    address: IpAddr,
}

impl Side {
    fn events(&mut self, clock: Clock, accept: bool) {
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Incoming { id, .. } if accept => {
                    if self.stack.accept(clock.now, id).is_ok() {
                        self.connections.push(id);
                    }
                }
                Event::Incoming { id, .. } => self.stack.refuse(id),
                Event::IncomingFlow { id, .. } => self.flows.push(id),
                Event::Echo(request) => self.stack.answer_echo(request),
                Event::Connection { .. } | Event::Flow(_) => {}
            }
        }
    }

    fn application(&mut self, clock: Clock, arg: u8, bytes: &[u8]) {
        let now = clock.now;
        if let Some(id) = pick(&self.connections, arg >> 3) {
            match arg & 7 {
                0 | 1 => drop(self.stack.write(now, id, bytes)),
                2 | 3 => drop(self.stack.read(now, id, &mut [0; 700])),
                4 => self.stack.shut_down(now, id),
                5 => {
                    self.stack.release(now, id);
                    self.connections.retain(|other| *other != id);
                }
                6 => {
                    self.stack.abort(now, id);
                    self.connections.retain(|other| *other != id);
                }
                _ => drop(self.stack.write(now, id, &[7; 9_000])),
            }
        }
        if let Some(id) = pick(&self.flows, arg) {
            drop(self.stack.read_datagram(id));
            self.stack.send_datagram(now, id, bytes);
            if arg & 0x40 != 0 {
                self.stack.close_flow(id);
            }
        }
    }
}

fn pick<T: Copy>(of: &[T], n: u8) -> Option<T> {
    of.get(usize::from(n) % of.len().max(1)).copied()
}

fuzz_target!(|bytes: &[u8]| {
    let mut clock = Clock::default();
    let v6 = bytes.first().is_some_and(|first| first & 1 == 1);
    let addresses = if v6 {
        ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"]
    } else {
        ["100.64.0.1", "100.64.0.2"]
    };
    let mut sides = addresses.map(|address| {
        let address: IpAddr = address.parse().expect("an address");
        let entropy = Box::new(SeededEntropy(7));
        let mut stack = Netstack::new(clock.now, 1280, 0, LIMITS, entropy);
        stack.set_addresses([address]);
        Side {
            stack,
            connections: Vec::new(),
            flows: Vec::new(),
            address,
        }
    });
    // The packet before, which a step may send again in another form.
    let mut last = Vec::new();
    for step in steps(bytes) {
        let side = usize::from(step.arg & 1);
        match step.kind % 8 {
            0 => sides[side]
                .stack
                .receive(clock.now, step.bytes, Checksum::Verified),
            1 => {
                let to = SocketAddr::new(sides[1 - side].address, 80);
                let local = sides[side].address;
                if let Ok(id) = sides[side].stack.connect(clock.now, local, to) {
                    sides[side].connections.push(id);
                }
            }
            2 => {
                let to = SocketAddr::new(sides[1 - side].address, 53);
                let local = SocketAddr::new(sides[side].address, 0);
                if let Ok(id) = sides[side].stack.open_flow(clock.now, local, to) {
                    sides[side].flows.push(id);
                }
            }
            3 | 4 => sides[side].application(clock, step.arg >> 1, step.bytes),
            5 => clock.pass(step.arg),
            6 => {
                let mut again: Vec<u8> = last.clone();
                damage(&mut again, step.bytes);
                sides[side]
                    .stack
                    .receive(clock.now, &again, Checksum::Verified);
            }
            _ => {
                let accept = step.arg & 2 != 0;
                for _ in 0..1 + (step.arg >> 4) {
                    for from in 0..2 {
                        let mut sent = 0;
                        while let Some(packet) = sides[from].stack.poll_transmit(clock.now) {
                            let mut packet = packet.frame;
                            if step.arg & 4 != 0 {
                                damage(&mut packet, step.bytes);
                            }
                            let lost = step.bytes.get(sent % step.bytes.len().max(1));
                            if lost.is_none_or(|lost| lost & 7 != 7) {
                                let to = &mut sides[1 - from].stack;
                                to.receive(clock.now, &packet, Checksum::Verified);
                            }
                            last = packet;
                            sent += 1;
                            assert!(sent < MOST_SENT, "it never stops sending");
                        }
                    }
                    for side in &mut sides {
                        side.events(clock, accept);
                    }
                }
            }
        }
        for side in &mut sides {
            side.stack.handle_timeout(clock.now);
            assert!(side.stack.connections() <= LIMITS.connections);
            assert!(side.stack.half_open() <= LIMITS.half_open);
            assert!(side.stack.flows() <= LIMITS.flows);
        }
    }
    // Everything that the application has given back ends.
    for side in &mut sides {
        for id in std::mem::take(&mut side.connections) {
            side.stack.release(clock.now, id);
        }
    }
    for _ in 0..40 {
        for side in &mut sides {
            while side.stack.poll_transmit(clock.now).is_some() {}
            side.stack.handle_timeout(clock.now);
        }
        clock.now += Duration::from_secs(60);
    }
    for side in &sides {
        assert_eq!(side.stack.connections(), 0);
    }
});
