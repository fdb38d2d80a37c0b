//! The events of hosts, and the actions that follow from them.

use super::*;

impl Sim {
    pub(super) fn handle_event(&mut self, event: Event) {
        match event {
            Event::Descend {
                segment,
                mut datagram,
            } => {
                let elapsed = self.clock.elapsed();
                match self.network.descend(elapsed, segment, &mut datagram) {
                    Ok((host, delay)) => {
                        self.queue
                            .plan(elapsed + delay, Event::Arrive { host, datagram });
                    }
                    Err(loss) => self.network.count(loss),
                }
            }
            Event::Arrive { host, datagram } => self.arrive(host, datagram),
            Event::Opened(stream) => self.opened(stream),
            Event::Failed(stream) => {
                if self.streams.get(stream).is_some() {
                    self.closed(stream, Side::Client);
                }
            }
            Event::Data { stream, to, bytes } => self.data(stream, to, &bytes),
            Event::Closed { stream, to } => self.closed(stream, to),
            Event::HttpsAnswer {
                node,
                region,
                latency,
            } => {
                if self.nodes[node].is_running {
                    let at = self.node_time(node);
                    self.nodes[node].https_answered(at, region, latency);
                    self.after(node);
                }
            }
            Event::Wake(host) => self.wake(host),
            Event::Send(flow) => self.send_flow(flow),
        }
    }

    pub(super) fn arrive(&mut self, host: HostId, mut datagram: Datagram) {
        let Datagram { from, to, .. } = datagram;
        if !self.network.is_plugged(host) || !self.network.addresses(host).contains(&to.ip()) {
            self.network.count(Loss::Unplugged);
            return;
        }
        self.trace
            .datagram(self.clock.elapsed(), from, to, &datagram.bytes);
        if self.narrates {
            let (elapsed, bytes) = (self.clock.elapsed(), &datagram.bytes);
            let (sender, receiver) = (self.name(datagram.origin), self.name(host));
            let what = trace::name_of(bytes);
            println!("{elapsed:>12.3?} {sender} -> {receiver} {what} from {from} to {to}");
        }
        match self.roles[host.0] {
            Role::Control => {}
            Role::Relay(relay) => {
                let answer = self.relays[relay].stun(from, &datagram.bytes);
                if let Some(answer) = answer.filter(|_| to.port() == STUN_PORT) {
                    self.send_udp(host, STUN_PORT, from, answer);
                }
            }
            Role::Node(node) => {
                if self.nodes[node].is_running {
                    let at = self.node_time(node);
                    let port = to.port();
                    self.nodes[node].datagram(at, port, from, &mut datagram.bytes);
                    self.after(node);
                }
            }
        }
    }

    pub(super) fn send_udp(&mut self, host: HostId, port: u16, to: SocketAddr, bytes: Vec<u8>) {
        let elapsed = self.clock.elapsed();
        match self.network.climb(elapsed, host, port, to, bytes) {
            Ok(routed) => {
                let event = Event::Descend {
                    segment: routed.segment,
                    datagram: routed.datagram,
                };
                self.queue.plan(elapsed + routed.delay, event);
            }
            Err(loss) => self.network.count(loss),
        }
    }

    pub(super) fn wake(&mut self, host: HostId) {
        let elapsed = self.clock.elapsed();
        if self.wakes[host.0] != Some(elapsed) {
            return;
        }
        self.wakes[host.0] = None;
        self.wakes_at_once = match self.wakes_at_once {
            (at, turns) if at == elapsed => (at, turns + 1),
            _ => (elapsed, 0),
        };
        let now = self.clock.now();
        match self.roles[host.0] {
            Role::Node(node) => {
                if !self.nodes[node].is_running {
                    return;
                }
                assert!(
                    self.wakes_at_once.1 < MAX_WAKES_AT_ONCE,
                    "{} does not get past its deadline at {elapsed:?}: {:?}",
                    self.nodes[node].identity.name,
                    self.nodes[node].next_deadline().map(|(_, reason)| reason),
                );
                let at = self.node_time(node);
                self.nodes[node].timeout(at);
                self.after(node);
            }
            Role::Relay(relay) => {
                let actions = self.relays[relay].handle_timeout(now);
                self.after_relay(relay, actions);
            }
            Role::Control => {
                let mut actions = StreamActions::default();
                self.control
                    .handle_timeout(now, self.clock.wall(), &mut actions);
                self.after_control(actions);
            }
        }
    }

    pub(super) fn plan_wake(&mut self, host: HostId, at: Option<Instant>) {
        let Some(at) = at else { return };
        let late = match self.roles[host.0] {
            Role::Node(node) => self.late[node],
            Role::Relay(_) | Role::Control => Duration::ZERO,
        };
        let at = (self.clock.time_of(at) + late).max(self.clock.elapsed());
        if self.wakes[host.0].is_none_or(|planned| at < planned) {
            self.wakes[host.0] = Some(at);
            self.queue.plan(at, Event::Wake(host));
        }
    }

    pub(super) fn after(&mut self, node: usize) {
        for action in std::mem::take(&mut self.nodes[node].actions) {
            let host = self.nodes[node].host;
            match action {
                Action::Udp(port, to, bytes) => self.send_udp(host, port, to, bytes),
                Action::DialRelay(region, link) => {
                    let relay = self.relays.iter().find(|relay| relay.region == region);
                    let relay = relay.filter(|_| self.nodes[node].wants_relay(region, link));
                    if let Some(server) = relay.map(|relay| relay.host) {
                        let stream = self.dial(node, server, Purpose::Relay(region));
                        self.nodes[node].relay_dialed(region, link, stream);
                    }
                }
                Action::DialControl(session) if self.nodes[node].wants_control(session) => {
                    let stream = self.dial(node, self.control.host, Purpose::Control(session));
                    self.nodes[node].control_dialed(session, stream);
                }
                Action::DialControl(_) => {}
                Action::Send(stream, bytes) => self.send(stream, Side::Client, bytes),
                Action::Close(stream) => self.close(stream, Side::Client),
                Action::ProbeHttps(region) => self.probe_https(node, region),
                Action::Packet(packet) => self.packet(node, &packet),
            }
        }
        if !self.nodes[node].actions.is_empty() {
            self.after(node);
        }
        let at = self.nodes[node].next_deadline().map(|(at, _)| at);
        self.plan_wake(self.nodes[node].host, at);
    }

    pub(super) fn probe_https(&mut self, node: usize, region: RegionId) {
        let relay = self
            .relays
            .iter()
            .find(|relay| relay.region == region && relay.is_up);
        let Some(server) = relay.map(|relay| relay.host) else {
            return;
        };
        let client = self.nodes[node].host;
        let there = self.network.stream_delay(client, server);
        let back = self.network.stream_delay(client, server);
        if let Some((there, back)) = there.zip(back) {
            let latency = there + back;
            let at = self.clock.elapsed() + latency * 3;
            self.queue.plan(
                at,
                Event::HttpsAnswer {
                    node,
                    region,
                    latency,
                },
            );
        }
    }

    pub(super) fn after_relay(&mut self, relay: usize, actions: StreamActions) {
        for (stream, bytes) in actions.send {
            self.send(stream, Side::Server, bytes);
        }
        for stream in actions.close {
            self.close(stream, Side::Server);
        }
        let at = self.relays[relay].next_deadline();
        self.plan_wake(self.relays[relay].host, at);
    }

    pub(super) fn settle_control(&mut self) {
        let mut actions = StreamActions::default();
        self.control
            .settle(self.clock.now(), self.clock.wall(), &mut actions);
        self.after_control(actions);
    }

    pub(super) fn after_control(&mut self, actions: StreamActions) {
        for (stream, bytes) in actions.send {
            self.send(stream, Side::Server, bytes);
        }
        for stream in actions.close {
            self.close(stream, Side::Server);
        }
        let at = self.control.next_deadline();
        self.plan_wake(self.control.host, at);
    }
}
