//! What is to be seen from outside; looking changes nothing.

use super::*;

impl Sim {
    /// The time since the start.
    pub fn moment(&self) -> Moment {
        self.clock.moment()
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

    /// How many packets a node's data plane dropped.
    pub fn drops(&self, node: NodeIndex) -> BTreeMap<String, u64> {
        let drops = self.nodes[node.0].packets().drops();
        warren_dataplane::DropReason::ALL
            .iter()
            .filter(|reason| drops.get(**reason) > 0)
            .map(|reason| (format!("{reason:?}"), drops.get(*reason)))
            .collect()
    }

    /// Datagrams that the network did not deliver, by reason.
    pub fn losses(&self) -> &BTreeMap<Loss, u64> {
        self.network.losses()
    }

    /// How many clients a relay has.
    pub fn relay_clients(&self, relay: RelayIndex) -> usize {
        self.relays[relay.0].clients()
    }

    /// Which way a node sends packets for a peer.
    pub fn way(&self, from: NodeIndex, to: NodeIndex) -> Way {
        self.destination(from, to).into()
    }

    /// The same, with the address.
    pub fn destination(&self, from: NodeIndex, to: NodeIndex) -> Destination {
        let key = self.nodes[to.0].key();
        let peers = self.nodes[from.0].view().map(|view| view.peers.as_slice());
        let mut peers = peers.unwrap_or_default().iter().flatten();
        peers
            .find(|peer| peer.key == key)
            .map(|peer| peer.destination)
            .unwrap_or_default()
    }

    /// All ways a node's packets for a peer took since its start, and since
    /// when.
    pub fn ways(&self, from: NodeIndex, to: NodeIndex) -> Vec<(Moment, Way)> {
        let key = self.nodes[to.0].key();
        let history = self.nodes[from.0].history.get(&key);
        history
            .into_iter()
            .flatten()
            .map(|(at, way)| (*at, Way::from(*way)))
            .collect()
    }

    /// Whether `from` has `to` in its netmap, with whatever else is known of it
    /// by then.
    pub fn sees(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let key = self.nodes[to.0].key();
        let mut peers = self.nodes[from.0].core().netmap().peers.values();
        self.address(from).is_some() && peers.any(|peer| peer.key == key && !peer.expired)
    }

    /// Whether `from` has `to` in its netmap, with a home relay, and may use
    /// it.
    pub fn knows(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let key = self.nodes[to.0].key();
        let mut peers = self.nodes[from.0].core().netmap().peers.values();
        peers.any(|peer| peer.key == key && !peer.expired && peer.home_region().is_some())
    }

    /// What became of a flow.
    pub fn report(&self, flow: FlowIndex) -> FlowReport {
        self.flows[flow.0].report(self.clock.moment())
    }

    /// When datagram number `sequence` of a flow was sent.
    pub fn sent_at(&self, flow: FlowIndex, sequence: u32) -> Option<Moment> {
        self.flows[flow.0].sent_at(sequence)
    }

    /// A digest of everything that was delivered, when, from where, to where.
    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }

    /// How many deliveries the digest is of.
    pub fn deliveries(&self) -> u64 {
        self.trace.count()
    }

    /// From now on every delivery is printed, to find out what went wrong.
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

    /// What must never happen and did.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }
}
