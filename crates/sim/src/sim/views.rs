//! Views of a simulation. They change nothing.

use super::*;

impl Sim {
    /// The time since the start of the simulation.
    pub fn elapsed(&self) -> SimTime {
        self.clock.elapsed()
    }

    /// The core of a node.
    pub fn core(&self, node: NodeIndex) -> &NodeCore {
        self.nodes[node.0].core()
    }

    /// A node's engine.
    pub fn engine(&self, node: NodeIndex) -> &Engine {
        self.core(node).engine()
    }

    /// A node's name and present state, for messages.
    pub fn describe(&self, node: NodeIndex) -> String {
        let node = &self.nodes[node.0];
        let engine = node.core().engine();
        format!(
            "{}: running {}, {:?}, home {:?}, {} peers, problems {:?}, net {:?}, paths {:?}",
            node.identity.name,
            node.is_running,
            node.core().state(),
            engine.paths().home(),
            engine.netmap().peers.len(),
            node.core().login_problems(),
            engine.paths().endpoints(),
            engine.paths().counters(),
        )
    }

    /// A node's address inside the tunnel.
    pub fn address(&self, node: NodeIndex) -> Option<IpAddr> {
        self.nodes[node.0].packets().tunnel_address(true)
    }

    /// The packets that a node's packet path dropped, by reason.
    pub fn drops(&self, node: NodeIndex) -> BTreeMap<String, u64> {
        let drops = self.nodes[node.0].packets().drops();
        warren_dataplane::DropReason::ALL
            .iter()
            .filter(|reason| drops.get(**reason) > 0)
            .map(|reason| (format!("{reason:?}"), drops.get(*reason)))
            .collect()
    }

    /// A node's sockets of port searches: open for a search, and kept for a path.
    pub fn search_sockets(&self, node: NodeIndex) -> (usize, usize) {
        self.nodes[node.0].search_sockets()
    }

    /// Datagrams that the network did not deliver, by reason.
    pub fn losses(&self) -> &BTreeMap<Loss, u64> {
        self.network.losses()
    }

    /// The number of clients of a relay.
    pub fn relay_clients(&self, relay: RelayIndex) -> usize {
        self.relays[relay.0].clients()
    }

    /// The kind of path on which a node sends packets for a peer.
    pub fn path_kind(&self, from: NodeIndex, to: NodeIndex) -> PathKind {
        self.destination(from, to).into()
    }

    /// The path on which a node sends packets for a peer.
    pub fn destination(&self, from: NodeIndex, to: NodeIndex) -> Destination {
        let key = self.nodes[to.0].key();
        let peers = self.nodes[from.0].view().map(|view| view.peers.as_slice());
        let mut peers = peers.unwrap_or_default().iter().flatten();
        peers
            .find(|peer| peer.key == key)
            .map(|peer| peer.destination)
            .unwrap_or_default()
    }

    /// All kinds of paths that a node's packets for a peer took since its start,
    /// with the time of each change.
    pub fn path_history(&self, from: NodeIndex, to: NodeIndex) -> Vec<(SimTime, PathKind)> {
        let key = self.nodes[to.0].key();
        let history = self.nodes[from.0].history.get(&key);
        history
            .into_iter()
            .flatten()
            .map(|(at, path)| (*at, PathKind::from(*path)))
            .collect()
    }

    /// Whether `from` has an address, and `to` in its netmap.
    pub fn sees(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let key = self.nodes[to.0].key();
        let mut peers = self.nodes[from.0].core().netmap().peers.values();
        self.address(from).is_some() && peers.any(|peer| peer.key == key && !peer.expired)
    }

    /// Whether `from` has `to` in its netmap, with a home relay.
    pub fn knows(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let key = self.nodes[to.0].key();
        let mut peers = self.nodes[from.0].core().netmap().peers.values();
        peers.any(|peer| peer.key == key && !peer.expired && peer.home_region().is_some())
    }

    /// The results of a flow so far.
    pub fn report(&self, flow: FlowIndex) -> FlowReport {
        self.flows[flow.0].report(self.clock.elapsed())
    }

    /// The time at which the last lost datagram of a flow was sent.
    pub fn last_loss(&self, flow: FlowIndex) -> Option<SimTime> {
        let last = *self.report(flow).lost.last()?;
        self.sent_at(flow, last)
    }

    /// The time at which datagram number `sequence` of a flow was sent.
    pub fn sent_at(&self, flow: FlowIndex, sequence: u32) -> Option<SimTime> {
        self.flows[flow.0].sent_at(sequence)
    }

    /// A digest of all deliveries, with times and addresses.
    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }

    /// The number of deliveries in the digest.
    pub fn deliveries(&self) -> u64 {
        self.trace.count()
    }

    /// From now on every delivery is printed, to investigate a failure.
    pub fn narrate(&mut self) {
        self.narrates = true;
    }

    pub(super) fn name(&self, host: HostId) -> &str {
        match self.roles[host.0] {
            Role::Node(node) => &self.nodes[node].identity.name,
            Role::Relay(relay) => &self.relays[relay].code,
            Role::Control => "control",
        }
    }

    /// The events that must never happen and did.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }
}
