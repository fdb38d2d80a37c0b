//! The relay server of this node, as preferences and netmap want it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use warren_control_types::EndpointType;
use warren_node_core::RelayRequest;
use warren_node_core::node::NodeInput;

use super::EngineTask;
use super::network::addresses;
use crate::daemon::relay_server::RelayServer;

impl EngineTask {
    /// Starts, stops or moves the server after a change of the preferences.
    pub(super) fn refresh_relay_server(&mut self) {
        let wanted = self.state.prefs.relay_server_port;
        let running = self.relay_server.as_ref().map(RelayServer::wanted_port);
        if wanted == running {
            return;
        }
        // The port is free again before the next one is bound.
        self.relay_server = None;
        let Some(port) = wanted else {
            return;
        };
        match RelayServer::start(port, &self.socket_options) {
            Ok(server) => {
                tracing::info!(port = server.port(), "the peer relay server is running");
                self.relay_server = Some(server);
            }
            Err(error) => tracing::warn!(
                port,
                "the peer relay server does not run: {error}; choose another port with: \
                 warren set --relay-server-port"
            ),
        }
    }

    /// A peer that the policy lets use this relay asks for an endpoint.
    pub(super) fn relay_endpoint_requested(&mut self, request: RelayRequest) {
        let Some(server) = &self.relay_server else {
            return;
        };
        let addresses = self.relay_addresses(server.port());
        match server.allocate(Instant::now(), &request, addresses) {
            Ok(endpoint) => self.give(NodeInput::RelayEndpoint(request, Box::new(endpoint))),
            Err(error) => tracing::debug!(%error, "peer relay: no endpoint"),
        }
    }

    /// Ends the endpoints of nodes that the policy no longer lets use this relay.
    pub(super) fn recheck_relay_endpoints(&self) {
        if let Some(server) = &self.relay_server {
            let engine = self.node.engine();
            server.retain(|node| engine.may_use_relay(node));
        }
    }

    /// The addresses under which peers may reach the server, the best first: those of
    /// the user, those of interfaces, and the public ones as a guess, which holds where
    /// no NAT is in between, or one that keeps the port or forwards it.
    fn relay_addresses(&self, port: u16) -> Vec<SocketAddr> {
        let seen = self.node.engine().control_report().endpoints.iter();
        let public = seen
            .filter(|(_, kind)| *kind == EndpointType::Stun)
            .map(|(address, _)| address.ip());
        let ranges = self.node.engine().ranges();
        let local = addresses(&self.link).filter(|ip| !ip.is_loopback() && !is_link_local(*ip));
        let mut all = self.state.prefs.relay_server_static_endpoints.clone();
        for ip in local.chain(public).filter(|ip| !ranges.contains(*ip)) {
            let address = SocketAddr::new(ip, port);
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }
}

/// Whether the address means something on one link only.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
