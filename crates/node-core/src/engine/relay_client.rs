//! The peer relays of other nodes: which of them this node may ask.

use warren_control_types::CapabilityVersion;
use warren_paths::PeerRelayRole;

use super::*;

/// Lets this node ask a peer for endpoints on its relay server; granted by the policy.
const RELAY_TARGET: &str = "tailscale.com/cap/relay-target";
/// The attributes with which the coordination server keeps this node from peer relays.
const DISABLED: [&str; 2] = ["disable-relay-client", "only-tcp-443"];

impl Engine {
    /// The role of `peer` towards peer relays, as far as this node may use them.
    pub(super) fn peer_relay_role(&self, peer: &Node) -> PeerRelayRole {
        let Some(own) = self.netmap.self_node.as_ref() else {
            return PeerRelayRole::None;
        };
        let is_disabled = DISABLED.iter().any(|name| own.cap_map.contains_key(*name));
        let version = peer.cap.unwrap_or_default();
        if is_disabled || version < CapabilityVersion::PEER_RELAYS || peer.is_wire_guard_only {
            return PeerRelayRole::None;
        }
        // A node without a signature under tailnet lock has no session with anyone.
        let may_serve =
            version >= CapabilityVersion::RELAY_ALLOCATION && !peer.unsigned_peer_api_only;
        if may_serve && self.holds(peer, RELAY_TARGET) {
            PeerRelayRole::Server
        } else {
            PeerRelayRole::Client
        }
    }

    /// Brings the path engine in line after a change of the policy, or of our own node.
    pub(super) fn refresh_relay_roles(&mut self, now: Instant) {
        let changed: Vec<NodeId> = self
            .peers
            .iter()
            .filter_map(|(_, peer)| {
                let node = self.netmap.peers.get(&peer.node)?;
                (self.peer_relay_role(node) != peer.relay_role).then_some(peer.node)
            })
            .collect();
        for node in changed {
            self.refresh_peer(now, node);
        }
    }

    /// Whether the policy grants `peer` a capability towards this node, on any pair of
    /// addresses of one family.
    pub(super) fn holds(&self, peer: &Node, capability: &str) -> bool {
        let Some(own) = self.netmap.self_node.as_ref() else {
            return false;
        };
        // As on the wire: towards the first address of the same family.
        let ours: Vec<IpAddr> = own.addresses.iter().map(IpNet::addr).collect();
        single_addresses(peer).into_iter().any(|source| {
            let to = ours.iter().find(|to| to.is_ipv4() == source.is_ipv4());
            let filter = self.packet_filter.filter();
            to.is_some_and(|to| filter.caps_for(source, *to).contains_key(capability))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};
    use warren_testkit::CountingEntropy;

    use super::*;

    fn node(id: u8, cap: u32, attributes: &[&str]) -> Value {
        let attributes: serde_json::Map<_, _> = attributes
            .iter()
            .map(|name| ((*name).to_owned(), Value::Null))
            .collect();
        json!({
            "ID": id,
            "StableID": format!("n{id}"),
            "Key": NodeSecret::from_bytes(&[id; 32]).public().to_string(),
            "DiscoKey": DiscoSecret::from_bytes(&[id + 100; 32]).public().to_string(),
            "Addresses": [format!("100.64.0.{id}/32")],
            "AllowedIPs": [format!("100.64.0.{id}/32")],
            "Cap": cap,
            "CapMap": attributes,
        })
    }

    /// A rule that lets us ask these nodes.
    fn targets(ids: &[u8]) -> Value {
        json!([{
            "SrcIPs": ids.iter().map(|id| format!("100.64.0.{id}")).collect::<Vec<_>>(),
            "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {(RELAY_TARGET): []}}],
        }])
    }

    fn apply(engine: &mut Engine, message: Value) {
        let message = serde_json::from_value(message).unwrap();
        engine
            .apply_map(Instant::now(), Duration::from_secs(1_800_000_000), message)
            .unwrap();
    }

    fn roles(engine: &Engine) -> Vec<(i64, PeerRelayRole)> {
        let peers = engine.peers.iter();
        let mut roles: Vec<_> = peers.map(|(_, it)| (it.node.0, it.relay_role)).collect();
        roles.sort_unstable_by_key(|(node, _)| *node);
        roles
    }

    #[test]
    fn only_nodes_that_the_policy_names_are_asked() {
        use PeerRelayRole::{Client, None, Server};
        let config = EngineConfig {
            node_key: NodeSecret::from_bytes(&[1; 32]),
            disco_key: DiscoSecret::from_bytes(&[2; 32]),
            flow_slots: Some(64),
            aead: Aead::default(),
            ranges: TailnetRanges::DEFAULT,
            lock: LockGate::default(),
        };
        let entropy = Box::new(CountingEntropy::default());
        let mut engine = Engine::new(config, Instant::now(), entropy);
        let peers = [
            node(2, 119, &[]),
            node(3, 120, &[]),
            node(4, 121, &[]),
            node(5, 121, &[]),
        ];
        apply(
            &mut engine,
            json!({"Node": node(1, 121, &[]), "Peers": peers, "PacketFilter": targets(&[2, 3, 4])}),
        );
        let named = [(2, None), (3, Client), (4, Server), (5, Client)];
        assert_eq!(roles(&engine), named);

        apply(&mut engine, json!({"PacketFilter": targets(&[5])}));
        let changed = [(2, None), (3, Client), (4, Client), (5, Server)];
        assert_eq!(roles(&engine), changed);

        for attribute in DISABLED {
            apply(&mut engine, json!({"Node": node(1, 121, &[attribute])}));
            assert!(roles(&engine).iter().all(|(_, role)| *role == None));
            apply(&mut engine, json!({"Node": node(1, 121, &[])}));
            assert_eq!(roles(&engine), changed);
        }
    }
}
