//! Routes the events of path finding and the handshakes: to each other, to the
//! data plane and to the owner of the engine.

use super::*;

impl Engine {
    /// Routes events until neither path finding nor the handshakes have any.
    pub(super) fn drain(&mut self) {
        loop {
            if let Some(event) = self.handshakes.poll_event() {
                self.on_tunnel_event(event);
            } else if let Some(event) = self.paths.poll_event() {
                self.on_path_event(event);
            } else {
                break;
            }
        }
    }

    pub(super) fn on_path_event(&mut self, event: PathEvent) {
        match event {
            PathEvent::SendUdp { to, packet } => {
                self.outputs.push_back(Output::SendUdp { to, packet });
            }
            PathEvent::Sockets(order) => self.outputs.push_back(Output::Sockets(order)),
            PathEvent::SendRelay { region, to, packet } => {
                self.outputs
                    .push_back(Output::SendRelay { region, to, packet });
            }
            PathEvent::Destination { peer, destination } => {
                self.set_destination(peer, destination);
            }
            PathEvent::Endpoints(endpoints) => self.set_endpoints(endpoints),
            PathEvent::NetInfo(info) => self.set_net_info(info),
            PathEvent::HomeRelay(region) => self.outputs.push_back(Output::HomeRelay(region)),
            PathEvent::ConnectRelay(region) => {
                self.outputs.push_back(Output::ConnectRelay(region));
            }
            PathEvent::ProbeRelayHttps { region } => {
                self.outputs.push_back(Output::ProbeRelayHttps(region));
            }
            PathEvent::ResolveHost { name } => self.outputs.push_back(Output::ResolveHost(name)),
            PathEvent::WantPortMapping { family, port } => {
                self.outputs
                    .push_back(Output::WantPortMapping { family, port });
            }
            PathEvent::RelayEndpointRequested {
                peer,
                region,
                clients,
                generation,
            } => self.relay_endpoint_requested(peer, region, clients, generation),
            PathEvent::CloseRelay(region) => self.outputs.push_back(Output::CloseRelay(region)),
            PathEvent::Pong {
                token,
                peer,
                latency,
                via,
            } => {
                if let Some(peer) = self.peers.get(peer) {
                    let result = Ok(Pong {
                        node: peer.node,
                        via,
                        latency,
                    });
                    self.outputs
                        .push_back(Output::Pong(PingAnswer { token, result }));
                }
            }
            PathEvent::PingFailed { token, error } => {
                let result = Err(PingError::Path(error));
                self.outputs
                    .push_back(Output::Pong(PingAnswer { token, result }));
            }
        }
    }

    pub(super) fn on_tunnel_event(&mut self, event: TunnelEvent) {
        match event {
            TunnelEvent::Send {
                peer,
                reply_to,
                datagram,
            } => {
                self.send_handshake(peer, reply_to, datagram);
            }
            TunnelEvent::NewSession {
                peer,
                session,
                initiator: _,
                confirmed,
            } => {
                let view = SessionView {
                    peer,
                    session: Arc::clone(&session),
                };
                self.sessions.insert(session.local_index(), view);
                if confirmed {
                    self.send_with(peer, session);
                }
                self.view_changed = true;
            }
            TunnelEvent::SessionConfirmed { peer, session } => self.send_with(peer, session),
            TunnelEvent::SessionExpired { peer, local_index } => {
                self.sessions.remove(&local_index);
                if let Some(peer) = self.peers.get_mut(peer) {
                    let current = peer.view.session.as_ref();
                    if current.is_some_and(|session| session.local_index() == local_index) {
                        peer.change_view(|view| view.session = None);
                    }
                }
                self.view_changed = true;
            }
            TunnelEvent::SendKeepalive { peer } => {
                self.outputs.push_back(Output::Keepalive(peer));
            }
            TunnelEvent::HandshakeFailed { peer } => {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.unanswered = None;
                }
                self.outputs.push_back(Output::DropStaged(peer));
            }
        }
    }

    /// From now on packets for `peer` go out under `session`.
    pub(super) fn send_with(&mut self, index: PeerIndex, session: Arc<Session>) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.unanswered = None;
            peer.change_view(|view| view.session = Some(session));
            self.view_changed = true;
            self.advertise_disco(index);
        }
    }

    /// Sends the peer our disco key inside the tunnel, at the start of every
    /// session: while the server is away it is the only way to learn it after
    /// a restart.
    pub(super) fn advertise_disco(&mut self, index: PeerIndex) {
        let Some(own) = self.netmap.self_node.as_ref() else {
            return;
        };
        let Some(peer) = self.peers.get(index) else {
            return;
        };
        let Some(node) = self.netmap.peers.get(&peer.node) else {
            return;
        };
        let Some(to) = node.addresses.first().map(IpNet::addr) else {
            return;
        };
        let from = single_addresses(own)
            .into_iter()
            .find(|from| from.is_ipv4() == to.is_ipv4());
        let Some(from) = from.filter(|_| !node.is_wire_guard_only) else {
            return;
        };
        let advertisement = tsmp::Message::DiscoAdvertisement(self.disco_key);
        if let Ok(packet) = advertisement.packet(from, to) {
            self.outputs.push_back(Output::Inject {
                peer: index,
                packet,
            });
        }
    }

    /// Sends a handshake message the way it should go: an answer to where the
    /// question came from, anything else along the peer's path.
    pub(super) fn send_handshake(
        &mut self,
        peer: Option<PeerIndex>,
        reply_to: Option<Source>,
        datagram: Vec<u8>,
    ) {
        if let Some(source) = reply_to {
            send_on(&mut self.outputs, source.path(), source.key(), datagram);
            return;
        }
        let Some(peer) = peer.and_then(|index| self.peers.get_mut(index)) else {
            self.counters.unroutable += 1;
            return;
        };
        send_along(&mut self.outputs, &peer.view, datagram.clone());
        peer.unanswered = Some(Unanswered {
            datagram,
            nudged: None,
        });
    }

    pub(super) fn set_destination(&mut self, index: PeerIndex, destination: Destination) {
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        if peer.view.destination == destination {
            return;
        }
        peer.change_view(|view| view.destination = destination);
        self.view_changed = true;
        self.outputs.push_back(Output::Path {
            node: peer.node,
            destination,
        });
        if let Some(region) = destination.derp_region() {
            self.outputs.push_back(Output::ConnectRelay(region));
        }
        if let Some(unanswered) = &peer.unanswered {
            send_along(&mut self.outputs, &peer.view, unanswered.datagram.clone());
        }
    }

    /// A packet of the peer came through a relay: an initiation that was sent
    /// through it before the peer was connected is sent again.
    pub(super) fn nudge(&mut self, now: Instant, key: NodePublic) {
        let index = self.peers.index_of_key(&key);
        let Some(peer) = index.and_then(|index| self.peers.get_mut(index)) else {
            return;
        };
        let Some(unanswered) = &mut peer.unanswered else {
            return;
        };
        if unanswered.nudged.is_none_or(|at| now >= at + NUDGE_GAP) {
            unanswered.nudged = Some(now);
            send_along(&mut self.outputs, &peer.view, unanswered.datagram.clone());
        }
    }

    pub(super) fn set_endpoints(&mut self, endpoints: Vec<(SocketAddr, EndpointType)>) {
        self.report_changed |= self.report.endpoints != endpoints;
        self.report.endpoints = endpoints;
    }

    pub(super) fn set_net_info(&mut self, info: NetInfo) {
        let info = Some(info);
        self.report_changed |= self.report.net_info != info;
        self.report.net_info = info;
    }
}

/// Sends a datagram on every path of the peer's destination.
fn send_along(outputs: &mut VecDeque<Output>, peer: &PeerView, packet: Vec<u8>) {
    for path in peer.destination.paths() {
        send_on(outputs, path, Some(peer.key), packet.clone());
    }
}

/// Sends a handshake message on one path; `key` is the receiver's, which only
/// a DERP relay needs.
fn send_on(
    outputs: &mut VecDeque<Output>,
    path: PathAddr,
    key: Option<NodePublic>,
    packet: Vec<u8>,
) {
    match path {
        PathAddr::Udp(to) => outputs.push_back(Output::SendUdp { to, packet }),
        PathAddr::PeerRelay { server: to, vni } => {
            let payload = geneve::Payload::WireGuard;
            let packet = geneve::Header { payload, vni }.wrap(&packet);
            outputs.push_back(Output::SendUdp { to, packet });
        }
        PathAddr::Derp(region) => {
            outputs.extend(key.map(|to| Output::SendRelay { region, to, packet }));
        }
    }
}
