//! The programs on the hosts: they send, receive, reply, and check.

use super::*;

impl Sim {
    pub(super) fn send_flow(&mut self, index: usize) {
        let (elapsed, flow) = (self.clock.elapsed(), &mut self.flows[index]);
        if !flow.is_running {
            return;
        }
        self.queue
            .plan(elapsed + flow.spec.interval, Event::Send(index));
        let (from, v4) = (flow.from, !flow.spec.v6);
        let Some(to) = self.nodes[flow.to].packets().tunnel_address(v4) else {
            return;
        };
        let node = &self.nodes[from];
        let Some(own) = node
            .packets()
            .tunnel_address(v4)
            .filter(|_| node.is_running)
        else {
            return;
        };
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        if let Some(packet) = flow.next(elapsed, id, own, to) {
            let at = self.node_time(from);
            self.nodes[from].send_packet(at, &packet);
            self.after(from);
        }
    }

    /// A packet came out of a node's tunnel.
    pub(super) fn packet(&mut self, node: usize, bytes: &[u8]) {
        let Ok(packet) = IpPacket::parse(bytes) else {
            self.violations
                .push(format!("node {node} received bytes that are not a packet"));
            return;
        };
        let own = [true, false].map(|v4| self.nodes[node].packets().tunnel_address(v4));
        if !own.contains(&Some(packet.dst)) {
            let what = format!("node {node} received a packet for {}", packet.dst);
            self.violations.push(what);
        }
        let Some(message) = packet.udp_payload().and_then(FlowDatagram::parse) else {
            return;
        };
        let (meant, other) = match message.is_reply {
            false => (message.to, message.from),
            true => (message.from, message.to),
        };
        if meant as usize != node {
            self.violations
                .push(format!("node {node} received {message:?}"));
            return;
        }
        let source = self.nodes[other as usize]
            .packets()
            .tunnel_address(packet.src.is_ipv4());
        if source.is_some_and(|source| source != packet.src) {
            self.violations
                .push(format!("{message:?} came from {}", packet.src));
        }
        let elapsed = self.clock.elapsed();
        let Some(flow) = self.flows.get_mut(message.flow as usize) else {
            return;
        };
        let is_new = if message.is_reply {
            flow.note_answered(elapsed, message.sequence)
        } else {
            flow.note_reached(message.sequence)
        };
        if !is_new {
            self.violations
                .push(format!("{message:?} was delivered twice"));
        }
        if message.is_reply {
            return;
        }
        if self.forbidden.contains(&(other as usize, node)) {
            self.violations.push(format!("{message:?} was forbidden"));
        }
        if let Some(answer) = flow::echo(&packet) {
            let at = self.node_time(node);
            self.nodes[node].send_packet(at, &answer);
        }
    }
}
