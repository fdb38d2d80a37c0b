//! The life of streams: dialled, open, closed and broken.

use super::*;

impl Sim {
    pub(super) fn dial(&mut self, node: usize, server: HostId, purpose: Purpose) -> StreamId {
        let client = self.nodes[node].host;
        let stream = self.streams.add(node, client, server, purpose);
        let there = self.network.stream_delay(client, server);
        let back = self.network.stream_delay(client, server);
        let elapsed = self.clock.elapsed();
        match there.zip(back) {
            // TCP and TLS take a round trip each.
            Some((there, back)) => {
                self.queue
                    .plan(elapsed + (there + back) * 2, Event::Opened(stream));
            }
            // A host without a network has no route to anywhere.
            None if !self.network.is_plugged(client) => {
                self.queue.plan(elapsed, Event::Failed(stream));
            }
            None => self
                .queue
                .plan(elapsed + DIAL_TIMEOUT, Event::Failed(stream)),
        }
        stream
    }

    pub(super) fn opened(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id) else {
            return;
        };
        let plugged = self.network.is_plugged(stream.client);
        let is_up = match self.roles[stream.server.0] {
            Role::Relay(relay) => self.relays[relay].is_up,
            Role::Control => self.control.is_up,
            Role::Node(_) => false,
        };
        if !plugged || !is_up || stream.is_frozen {
            self.closed(id, Side::Client);
            return;
        }
        self.streams.open(id);
        let (node, at) = (stream.node, self.node_time(stream.node));
        match stream.purpose {
            Purpose::Relay(region) => {
                let Role::Relay(relay) = self.roles[stream.server.0] else {
                    return;
                };
                let key = self.relays[relay].key();
                let actions = self.relays[relay].accept(at.now, id);
                self.after_relay(relay, actions);
                let local = self.network.addresses(stream.client).first().copied();
                self.nodes[node].relay_opened(at, region, id, key, local);
            }
            Purpose::Control(session) => {
                let machine = self.nodes[node].identity.machine.public();
                self.control.accept(id, machine);
                self.nodes[node].control_opened(session, id);
            }
        }
        self.after(node);
    }

    pub(super) fn send(&mut self, id: StreamId, from: Side, bytes: Vec<u8>) {
        let Some(stream) = self.streams.get(id).filter(|stream| stream.is_open) else {
            return;
        };
        // Without a network TCP keeps the bytes for ever.
        let Some(delay) = self.network.stream_delay(stream.client, stream.server) else {
            return;
        };
        let to = from.other();
        let at = self.streams.arrival(id, to, self.clock.elapsed() + delay);
        self.queue.plan(
            at,
            Event::Data {
                stream: id,
                to,
                bytes,
            },
        );
    }

    /// One side closes; the other receives that after everything sent before.
    pub(super) fn close(&mut self, id: StreamId, from: Side) {
        // A frozen stream has its end planned.
        let Some(stream) = self.streams.get(id).filter(|stream| !stream.is_frozen) else {
            return;
        };
        let to = from.other();
        let delay = self
            .network
            .stream_delay(stream.client, stream.server)
            .unwrap_or(HALF_OPEN);
        let at = self.streams.arrival(id, to, self.clock.elapsed() + delay);
        self.queue.plan(at, Event::Closed { stream: id, to });
    }

    pub(super) fn data(&mut self, id: StreamId, to: Side, bytes: &[u8]) {
        let Some(stream) = self.streams.get(id).filter(|stream| stream.is_open) else {
            return;
        };
        if !self.network.is_plugged(stream.client) {
            return;
        }
        let elapsed = self.clock.elapsed();
        self.trace.chunk(
            elapsed,
            stream.client.0,
            stream.server.0,
            to == Side::Client,
            bytes,
        );
        if self.narrates {
            let (client, server) = (self.name(stream.client), self.name(stream.server));
            let arrow = if to == Side::Client { "<=" } else { "=>" };
            let what = match stream.purpose {
                Purpose::Relay(_) => trace::frames_of(bytes),
                Purpose::Control(_) => String::from_utf8_lossy(bytes).chars().take(300).collect(),
            };
            println!("{elapsed:>12.3?} {client} {arrow} {server} {what}");
        }
        let at = self.node_time(stream.node);
        match (to, stream.purpose) {
            (Side::Client, purpose) => {
                if !self.nodes[stream.node].is_running {
                    return;
                }
                match purpose {
                    Purpose::Relay(region) => {
                        self.nodes[stream.node].relay_data(at, region, id, bytes);
                    }
                    Purpose::Control(session) => {
                        self.nodes[stream.node].control_data(at, session, id, bytes);
                    }
                }
                self.after(stream.node);
            }
            (Side::Server, Purpose::Relay(_)) => {
                let Role::Relay(relay) = self.roles[stream.server.0] else {
                    return;
                };
                let actions = self.relays[relay].received(at.now, id, bytes);
                self.after_relay(relay, actions);
            }
            (Side::Server, Purpose::Control(_)) => {
                let mut actions = StreamActions::default();
                self.control
                    .received(at.now, self.clock.wall(), id, bytes, &mut actions);
                self.after_control(actions);
            }
        }
    }

    pub(super) fn closed(&mut self, id: StreamId, to: Side) {
        let Some(stream) = self.streams.remove(id) else {
            return;
        };
        let at = self.node_time(stream.node);
        match (to, stream.purpose) {
            (Side::Client, purpose) => {
                if !self.nodes[stream.node].is_running {
                    return;
                }
                match purpose {
                    Purpose::Relay(region) => {
                        self.nodes[stream.node].relay_closed(at, region, id);
                    }
                    Purpose::Control(session) => {
                        self.nodes[stream.node].control_closed(at, session, id);
                    }
                }
                self.after(stream.node);
            }
            (Side::Server, Purpose::Relay(_)) => {
                let Role::Relay(relay) = self.roles[stream.server.0] else {
                    return;
                };
                let actions = self.relays[relay].closed(at.now, id);
                self.after_relay(relay, actions);
            }
            (Side::Server, Purpose::Control(_)) => {
                self.control.closed(at.now, self.clock.wall(), id);
                self.settle_control();
            }
        }
    }
}
