//! Faults of hosts, links and programs. No time passes in them.

use super::*;

impl Sim {
    /// Cuts the direct path between two nodes; each still reaches the others.
    pub fn cut(&mut self, a: NodeIndex, b: NodeIndex) {
        self.network
            .set_cut(self.nodes[a.0].host, self.nodes[b.0].host, true);
    }

    /// Mends the direct path between two nodes.
    pub fn mend(&mut self, a: NodeIndex, b: NodeIndex) {
        self.network
            .set_cut(self.nodes[a.0].host, self.nodes[b.0].host, false);
    }

    /// Switches the port searches of a node on or off, as its user does.
    pub fn set_port_search(&mut self, node: NodeIndex, on: bool) {
        let at = self.node_time(node.0);
        self.nodes[node.0].set_port_search(at, on);
        self.after(node.0);
    }

    /// Pulls a node's cable.
    pub fn unplug(&mut self, node: NodeIndex) {
        let host = self.nodes[node.0].host;
        self.network.set_plugged(host, false);
        for stream in self.streams.of(host) {
            self.half_open(stream);
        }
        self.report_link(node.0);
    }

    /// Puts a node's cable back in.
    pub fn plug(&mut self, node: NodeIndex) {
        self.network.set_plugged(self.nodes[node.0].host, true);
        self.report_link(node.0);
    }

    /// Replaces the link of a node.
    pub fn set_link(&mut self, node: NodeIndex, link: Link) {
        self.network.set_link(self.nodes[node.0].host, link);
    }

    /// Replaces the link of a relay.
    pub fn set_relay_link(&mut self, relay: RelayIndex, link: Link) {
        self.network.set_link(self.relays[relay.0].host, link);
    }

    /// Moves a node to another network, with other addresses.
    pub fn roam(&mut self, node: NodeIndex, uplink: Uplink) {
        let host = self.nodes[node.0].host;
        let is_plugged = self.network.is_plugged(host);
        // The old network goes before the new one comes, which may well give the
        // host the address that it had.
        self.unplug(node);
        self.network.move_host(host, uplink);
        if is_plugged {
            self.plug(node);
        }
    }

    /// The NATs and firewalls in front of a node lose their state.
    pub fn reboot_router(&mut self, node: NodeIndex) {
        self.network.reboot_gateways(self.nodes[node.0].host);
    }

    pub(super) fn report_link(&mut self, node: usize) {
        if !self.nodes[node].is_running {
            return;
        }
        let (at, addresses) = (self.node_time(node), self.interfaces(node));
        self.nodes[node].link_changed(at, addresses);
        self.after(node);
    }

    /// The addresses that a node's host has now.
    pub(super) fn interfaces(&self, node: usize) -> Vec<IpAddr> {
        let host = self.nodes[node].host;
        if self.network.is_plugged(host) {
            self.network.addresses(host)
        } else {
            Vec::new()
        }
    }

    /// A stream broke silently: the client knows, the server learns it later.
    pub(super) fn half_open(&mut self, stream: StreamId) {
        self.streams.freeze(stream);
        let at = self.clock.elapsed() + HALF_OPEN;
        self.queue.plan(
            at,
            Event::Closed {
                stream,
                to: Side::Server,
            },
        );
    }

    /// Ends a node's process as with SIGKILL: the system closes its sockets.
    pub fn kill(&mut self, node: NodeIndex) {
        for stream in self.nodes[node.0].stop() {
            self.close(stream, Side::Client);
        }
    }

    /// Starts a node again; it has the login and the netmap that are on its disk,
    /// a new disco key and no sessions.
    pub fn start(&mut self, node: NodeIndex) {
        let at = self.node_time(node.0);
        let addresses = self.interfaces(node.0);
        self.nodes[node.0].start(at, addresses);
        self.after(node.0);
    }

    /// Starts a node again, unless it runs.
    pub fn start_if_stopped(&mut self, node: NodeIndex) {
        if !self.nodes[node.0].is_running {
            self.start(node);
        }
    }

    /// Kills a node and starts it again.
    pub fn restart(&mut self, node: NodeIndex) {
        self.kill(node);
        self.start(node);
    }

    /// Logs a node in again with a new node key, as `warren up --force-reauth`.
    pub fn renew_key(&mut self, node: NodeIndex) {
        let at = self.node_time(node.0);
        self.nodes[node.0].log_in(at, true);
        self.after(node.0);
    }

    /// Turns a node's wall clock forward or back, in seconds.
    pub fn jump_clock(&mut self, node: NodeIndex, seconds: i64) {
        self.skew[node.0] += seconds;
    }

    /// Stops a relay; its connections break.
    pub fn stop_relay(&mut self, relay: RelayIndex) {
        for stream in self.relays[relay.0].stop() {
            self.close(stream, Side::Server);
        }
    }

    /// Starts a relay again.
    pub fn start_relay(&mut self, relay: RelayIndex) {
        self.relays[relay.0].is_up = true;
    }

    /// Stops the coordination server; its connections break.
    pub fn stop_control(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        for stream in self.control.stop(now, wall) {
            self.close(stream, Side::Server);
        }
    }

    /// Starts the coordination server again, with the state that it had.
    pub fn start_control(&mut self) {
        self.control.is_up = true;
    }

    /// Carries out a command of the administrator; nodes are notified.
    pub fn admin<T>(&mut self, act: impl FnOnce(&mut Coordinator, Duration) -> T) -> T {
        let wall = self.clock.wall();
        let result = act(&mut self.control.coordinator, wall);
        self.settle_control();
        result
    }

    /// Mends all cuts, plugs all cables in, and starts all stopped programs.
    pub fn heal(&mut self) {
        let unplugged: Vec<usize> = (0..self.nodes.len())
            .filter(|node| !self.network.is_plugged(self.nodes[*node].host))
            .collect();
        self.network.mend_all();
        unplugged
            .into_iter()
            .for_each(|node| self.report_link(node));
        self.start_control();
        self.relays.iter_mut().for_each(|relay| relay.is_up = true);
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_running {
                self.start(NodeIndex(node));
            }
        }
    }
}
