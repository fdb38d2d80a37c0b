//! The connections to relays: one task each.
//!
//! The node decides which connections exist; here they are made. The sending
//! threads find the open ones in [`RelayPorts`] and hand packets straight to
//! them; packets for other relays go to the node, where they wait. Packets from
//! relays are sorted where they arrive: tunnel data goes to the receiving threads
//! in batches, everything else to the engine task.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::{Instrument as _, Span};
use warren_control_types::{DerpNode, DerpRegion, RegionId};
use warren_derp::client::Event;
use warren_dial::Dialer;
use warren_dial::derp::{ConnectOptions, DerpReceiver, DerpSender, connect, https_latency};
use warren_keys::{NodePublic, NodeSecret};
use warren_node_core::node::{LinkId, NodeInput};
use warren_packet_threads::{RelayFeed, RelayPorts, RelayedPackets};
use warren_wire::relay_batch;
use warren_wire::wireguard::is_transport;

use super::{Inbox, Message};

struct Connection {
    link: LinkId,
    /// `None` while it is being made.
    sender: Option<DerpSender>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All relay connections of a node.
pub struct Relays {
    dialer: Dialer,
    connections: BTreeMap<RegionId, Connection>,
    ports: Arc<RelayPorts>,
    engine: Inbox,
    feed: RelayFeed,
}

impl Relays {
    /// No connections yet. The tunnel data that relays deliver goes into `feed`.
    pub fn new(dialer: Dialer, engine: Inbox, feed: RelayFeed) -> Self {
        Self {
            dialer,
            connections: BTreeMap::new(),
            ports: Arc::default(),
            engine,
            feed,
        }
    }

    /// The open connections, for the sending threads.
    pub fn ports(&self) -> Arc<RelayPorts> {
        Arc::clone(&self.ports)
    }

    /// Makes one attempt to connect. The engine task learns how it ended.
    pub fn dial(
        &mut self,
        region: RegionId,
        link: LinkId,
        definition: DerpRegion,
        is_home: bool,
        node_key: NodeSecret,
    ) {
        let work = Task {
            region,
            link,
            engine: self.engine.clone(),
            feed: self.feed.clone(),
        };
        let options = ConnectOptions {
            home: is_home,
            ..ConnectOptions::default()
        };
        let dialer = self.dialer.clone();
        let span = relay_span(region, link);
        let work = async move { work.run(dialer, definition, node_key, options).await };
        let connection = Connection {
            link,
            sender: None,
            task: tokio::spawn(work.instrument(span)),
        };
        self.connections.insert(region, connection);
        self.publish();
    }

    /// The connection is open. Returns its local address, or `None` when the
    /// connection is not wanted any more.
    pub fn connected(
        &mut self,
        region: RegionId,
        link: LinkId,
        sender: DerpSender,
    ) -> Option<Option<IpAddr>> {
        let connection = self.find(region, link)?;
        let local = sender.local_addr().map(|local| local.ip());
        connection.sender = Some(sender);
        self.publish();
        Some(local)
    }

    /// Ends a connection.
    pub fn close(&mut self, region: RegionId, link: LinkId) {
        if self.find(region, link).is_some() {
            self.connections.remove(&region);
            self.publish();
        }
    }

    /// Sends the relay whether it is the home relay.
    pub fn note_home(&mut self, region: RegionId, link: LinkId, is_home: bool) {
        if let Some(sender) = self.sender(region, link) {
            sender.note_home(is_home);
        }
    }

    /// Sends one packet.
    pub fn send(&mut self, region: RegionId, link: LinkId, to: &NodePublic, packet: &[u8]) {
        if let Some(sender) = self.sender(region, link) {
            sender.send(to, packet);
        }
    }

    fn find(&mut self, region: RegionId, link: LinkId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(&region);
        connection.filter(|connection| connection.link == link)
    }

    fn sender(&mut self, region: RegionId, link: LinkId) -> Option<&DerpSender> {
        self.find(region, link)?.sender.as_ref()
    }

    /// Measures the latency to a relay over HTTPS and reports it.
    pub fn measure_https(&self, region: RegionId, nodes: Vec<DerpNode>) {
        let (dialer, engine) = (self.dialer.clone(), self.engine.clone());
        let span = tracing::info_span!(parent: None, "relay_latency", region = region.0);
        let work = async move {
            for node in nodes.iter().filter(|node| !node.stun_only) {
                match https_latency(&dialer, node, &ConnectOptions::default()).await {
                    Ok((latency, _)) => {
                        engine.send(NodeInput::RelayLatency(region, latency));
                        return;
                    }
                    Err(error) => tracing::debug!(node = node.name, %error, "no latency"),
                }
            }
        };
        tokio::spawn(work.instrument(span));
    }

    fn publish(&self) {
        let open = self.connections.iter().filter_map(|(region, connection)| {
            let sender = connection.sender.clone()?;
            Some((*region, sender))
        });
        self.ports.store(Arc::new(open.collect()));
    }
}

/// The span of a connection. It has no parent: the connection outlives the request or
/// message that led to it.
pub fn relay_span(region: RegionId, link: LinkId) -> Span {
    tracing::info_span!(parent: None, "relay", region = region.0, link = link.0)
}

/// One connection, from dialling to its end.
struct Task {
    region: RegionId,
    link: LinkId,
    engine: Inbox,
    feed: RelayFeed,
}

impl Task {
    async fn run(
        self,
        dialer: Dialer,
        definition: DerpRegion,
        node_key: NodeSecret,
        options: ConnectOptions,
    ) {
        let (region, link) = (self.region, self.link);
        let connected = connect(&dialer, &definition, &node_key, &options).await;
        let ended = match connected {
            Err(error) => error.to_string(),
            Ok((sender, receiver)) => {
                self.engine.send(Message::RelayConnected {
                    region,
                    link,
                    sender,
                });
                self.receive(receiver).await
            }
        };
        tracing::debug!(reason = ended, "relay connection ended");
        self.engine.send(NodeInput::RelayDown(region, link));
    }

    /// Hands on what comes until the connection ends; returns the reason.
    async fn receive(&self, mut receiver: DerpReceiver) -> String {
        loop {
            let mut batch = RelayedPackets::new(self.region);
            match receiver.recv().await {
                Err(error) => return error.to_string(),
                Ok(events) => {
                    for event in events {
                        self.sort(event, &mut batch);
                    }
                }
            }
            if batch.is_empty() {
                continue;
            }
            // Waiting here is what slows the relay down when we are slower.
            if !self.feed.send(batch).await {
                return "the daemon stops".to_owned();
            }
        }
    }

    fn sort(&self, event: Event<'_>, batch: &mut RelayedPackets) {
        let (region, link) = (self.region, self.link);
        let input = match event {
            Event::Packet { from, packet } if is_transport(packet) => {
                batch.push(from, packet, packet.len());
                return;
            }
            Event::Packet { from, packet } => {
                if let Some((segment_len, datagrams)) = relay_batch::split(packet) {
                    batch.push(from, datagrams, segment_len);
                    return;
                }
                let packet = packet.to_vec();
                self.engine.try_send(NodeInput::Relay {
                    region,
                    from,
                    packet,
                });
                return;
            }
            Event::Connected(_) => NodeInput::RelayUp(region, link),
            Event::PeerGone { key, .. } => NodeInput::RelayPeerGone { region, peer: key },
            Event::Restarting { .. } => NodeInput::RelayDown(region, link),
            Event::Health(Some(problem)) => {
                tracing::warn!(problem, "the relay reports a problem");
                return;
            }
            Event::Health(None) | Event::PeerPresent { .. } | Event::Pong(_) => return,
        };
        self.engine.send(input);
    }
}
