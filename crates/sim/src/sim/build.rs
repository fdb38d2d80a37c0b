//! The parts of a simulation: relays, nodes and flows.

use super::*;

impl Sim {
    /// A relay, which is a region of its own, near all nodes.
    pub fn relay(&mut self, code: &str) -> RelayIndex {
        self.relay_with(
            code,
            Link {
                latency: Duration::from_millis(5),
                ..Link::default()
            },
        )
    }

    /// A relay on this link.
    pub fn relay_with(&mut self, code: &str, link: Link) -> RelayIndex {
        let host = self.network.add_host(Uplink::Open, link, true);
        let index = self.relays.len();
        let region = RegionId(u16::try_from(index + 1).unwrap_or(u16::MAX));
        self.relays
            .push(Relay::new(host, region, code, self.rng.fork()));
        self.roles.push(Role::Relay(index));
        self.wakes.push(None);
        let map = self.derp_map();
        self.control.coordinator.set_derp_map(map);
        self.settle_control();
        RelayIndex(index)
    }

    pub(super) fn derp_map(&self) -> DerpMap {
        let mut map = DerpMap::default();
        for relay in &self.relays {
            let at = |v4: Option<_>| v4.map_or(HostAddress::Never, HostAddress::At);
            let node = DerpNode {
                name: format!("{}a", relay.region.0),
                region_id: relay.region,
                host_name: format!("{}.relay.sim", relay.code),
                ipv4: at(self.network.v4(relay.host)),
                ipv6: self
                    .network
                    .v6(relay.host)
                    .map_or(HostAddress::Never, HostAddress::At),
                ..DerpNode::default()
            };
            let region = DerpRegion {
                region_id: relay.region,
                region_code: relay.code.clone(),
                region_name: relay.code.clone(),
                nodes: vec![node],
                ..DerpRegion::default()
            };
            map.regions.insert(relay.region, region);
        }
        map
    }

    /// A node that starts now and joins with an auth key.
    pub fn node(&mut self, name: &str, uplink: Uplink) -> NodeIndex {
        self.node_with(NodeSpec::new(name, uplink))
    }

    /// A node with more properties, which starts now and joins with an auth key.
    pub fn node_with(&mut self, spec: NodeSpec) -> NodeIndex {
        let host = match spec.beside {
            Some(other) => self
                .network
                .add_beside(self.nodes[other.0].host, spec.link, spec.v6),
            None => self.network.add_host(spec.uplink, spec.link, spec.v6),
        };
        let mut rng = self.rng.fork();
        let identity = Identity {
            name: spec.name,
            machine: MachineSecret::from_bytes(&rng.bytes()),
            auth_key: self.auth_key(&spec.tags),
        };
        let index = self.nodes.len();
        self.skew.push(0);
        self.late.push(spec.late);
        let at = self.node_time(index);
        let addresses = self.network.addresses(host);
        self.nodes
            .push(Node::new(host, identity, at, addresses, rng));
        self.roles.push(Role::Node(index));
        self.wakes.push(None);
        self.after(index);
        NodeIndex(index)
    }

    #[allow(
        clippy::expect_used,
        reason = "a simulation that cannot be set up has to stop"
    )]
    pub(super) fn auth_key(&mut self, tags: &BTreeSet<String>) -> String {
        if tags.is_empty() {
            return self.control.auth_key.clone();
        }
        let new = warren_control_core::NewAuthKey {
            user: Some(crate::control::USER.into()),
            reusable: true,
            tags: tags.clone(),
            ..warren_control_core::NewAuthKey::default()
        };
        let wall = self.clock.wall();
        let made = self.control.coordinator.create_auth_key(wall, new);
        made.expect("the tag is allowed").0.expose()
    }

    /// A program on `from` begins to send numbered datagrams to `to`, which
    /// sends them back.
    pub fn flow(&mut self, from: NodeIndex, to: NodeIndex, spec: FlowSpec) -> FlowIndex {
        let now = self.clock.elapsed();
        self.flows.push(Flow::new(now, from.0, to.0, spec));
        let index = self.flows.len() - 1;
        self.queue.plan(now, Event::Send(index));
        FlowIndex(index)
    }

    /// The program stops sending.
    pub fn stop_flow(&mut self, flow: FlowIndex) {
        self.flows[flow.0].is_running = false;
    }

    /// From now on it is a violation when a request of `from` reaches `to`.
    pub fn forbid(&mut self, from: NodeIndex, to: NodeIndex) {
        self.forbidden.insert((from.0, to.0));
    }
}
