//! The connections to relays: one task each, opened when the engine asks.
//!
//! Sending never waits. A [`RelayPort`] takes packets from any thread: while
//! the connection is being made they wait in it (a few, the newest), afterwards
//! they go straight to the connection's own queue. What a relay delivers is
//! sorted where it arrives: tunnel data goes to the receiving threads in
//! batches, everything else to the engine.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use warren_control_types::{DerpMap, DerpRegion, RegionId};
use warren_derp::client::Event;
use warren_dial::Dialer;
use warren_dial::derp::{ConnectOptions, DerpReceiver, DerpSender, connect, https_latency};
use warren_host::wake::Waker;
use warren_keys::{NodePublic, NodeSecret};
use warren_wire::relay_train;
use warren_wire::wireguard::is_transport;

use super::{Inbox, Message};

/// Packets that wait for a connection that is being made.
const WAITING_PACKETS: usize = 256;
/// Batches between a relay's task and the receiving threads.
const INBOX_BATCHES: usize = 32;

/// Tunnel data that came through a relay with one read.
pub struct RelayBatch {
    /// Which relay.
    pub region: RegionId,
    /// The packets, one after the other.
    pub bytes: Vec<u8>,
    /// Who sent each, and how long it is.
    pub packets: Vec<Relayed>,
}

/// A packet of a [`RelayBatch`].
#[derive(Clone, Copy)]
pub struct Relayed {
    /// Who sent it.
    pub from: NodePublic,
    /// Its bytes.
    pub len: usize,
    /// Length of each datagram in it but the last, which may be smaller.
    pub segment_len: usize,
}

impl RelayBatch {
    fn push(&mut self, from: NodePublic, datagrams: &[u8], segment_len: usize) {
        self.bytes.extend_from_slice(datagrams);
        self.packets.push(Relayed {
            from,
            len: datagrams.len(),
            segment_len,
        });
    }
}

/// Where packets for one relay go in.
pub struct RelayPort {
    waiting: Mutex<VecDeque<(NodePublic, Vec<u8>)>>,
    sender: OnceLock<DerpSender>,
}

impl RelayPort {
    fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            sender: OnceLock::new(),
        }
    }

    /// Whether the connection is there.
    pub fn is_open(&self) -> bool {
        self.sender.get().is_some()
    }

    /// Sends packets that belong together.
    pub fn send_many<'a>(&self, packets: impl IntoIterator<Item = (&'a NodePublic, &'a [u8])>) {
        if let Some(sender) = self.sender.get() {
            sender.send_many(packets);
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (to, packet) in packets {
            if waiting.len() == WAITING_PACKETS {
                waiting.pop_front();
            }
            waiting.push_back((*to, packet.to_vec()));
        }
        drop(waiting);
        // The connection may have come up in between: then nobody else looks.
        if let Some(sender) = self.sender.get() {
            self.flush(sender);
        }
    }

    fn open(&self, sender: DerpSender) {
        let sender = self.sender.get_or_init(|| sender);
        self.flush(sender);
    }

    fn flush(&self, sender: &DerpSender) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send_many(waiting.iter().map(|(to, packet)| (to, packet.as_slice())));
        waiting.clear();
    }
}

/// The ports of all relays, shared with the sending threads.
pub type RelayPorts = ArcSwap<BTreeMap<RegionId, Arc<RelayPort>>>;

/// The receiving end of what relays deliver.
pub struct RelayInbox {
    /// Filled by the relays' tasks.
    pub batches: mpsc::Receiver<RelayBatch>,
}

struct Connection {
    /// Tells it from earlier and later ones to the same relay.
    number: u64,
    port: Arc<RelayPort>,
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
    node_key: NodeSecret,
    map: DerpMap,
    home: Option<RegionId>,
    made: u64,
    connections: BTreeMap<RegionId, Connection>,
    ports: Arc<RelayPorts>,
    engine: Inbox,
    inbox: mpsc::Sender<RelayBatch>,
    waker: Arc<Waker>,
}

impl Relays {
    /// No connections yet. `waker` wakes whoever reads the inbox.
    pub fn new(
        dialer: Dialer,
        node_key: NodeSecret,
        engine: Inbox,
        waker: Arc<Waker>,
    ) -> (Self, RelayInbox) {
        let (inbox, batches) = mpsc::channel(INBOX_BATCHES);
        let relays = Self {
            dialer,
            node_key,
            map: DerpMap::default(),
            home: None,
            made: 0,
            connections: BTreeMap::new(),
            ports: Arc::new(ArcSwap::default()),
            engine,
            inbox,
            waker,
        };
        (relays, RelayInbox { batches })
    }

    /// The ports, for the sending threads.
    pub fn ports(&self) -> Arc<RelayPorts> {
        Arc::clone(&self.ports)
    }

    /// Uses another identity: every relay must learn it.
    pub fn set_node_key(&mut self, key: NodeSecret) {
        self.node_key = key;
        self.close_all();
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        self.connections.clear();
        self.publish();
    }

    /// Uses another relay map; connections to relays that changed are closed,
    /// and returned.
    pub fn set_map(&mut self, map: &DerpMap) -> Vec<RegionId> {
        let changed: Vec<RegionId> = self
            .connections
            .keys()
            .filter(|region| self.map.regions.get(region) != map.regions.get(region))
            .copied()
            .collect();
        self.map = map.clone();
        for region in &changed {
            self.close(*region);
        }
        changed
    }

    /// Whether that is the number of the present connection to `region`.
    pub fn is_current(&self, region: RegionId, number: u64) -> bool {
        let connection = self.connections.get(&region);
        connection.is_some_and(|connection| connection.number == number)
    }

    /// Makes one attempt to connect, unless there is a connection; the engine
    /// hears how it ended. `false` when the map has no such relay.
    pub fn connect(&mut self, region: RegionId) -> bool {
        if self.connections.contains_key(&region) {
            return true;
        }
        let Some(definition) = self.map.regions.get(&region).cloned() else {
            return false;
        };
        self.made += 1;
        let port = Arc::new(RelayPort::new());
        let options = ConnectOptions {
            home: self.home == Some(region),
            ..ConnectOptions::default()
        };
        let connection = Task {
            dialer: self.dialer.clone(),
            node_key: self.node_key.clone(),
            region,
            number: self.made,
            definition,
            options,
            port: Arc::clone(&port),
            engine: self.engine.clone(),
            inbox: self.inbox.clone(),
            waker: Arc::clone(&self.waker),
        };
        let task = tokio::spawn(connection.run());
        let number = self.made;
        self.connections
            .insert(region, Connection { number, port, task });
        self.publish();
        true
    }

    /// Ends connections that leave from an address this machine no longer has:
    /// they would hang until TCP gives up. Returns them.
    pub fn close_stranded(&mut self, has: impl Fn(IpAddr) -> bool) -> Vec<RegionId> {
        let stranded: Vec<RegionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                let sender = connection.port.sender.get();
                let local = sender.and_then(DerpSender::local_addr);
                local.is_some_and(|local| !has(local.ip()))
            })
            .map(|(region, _)| *region)
            .collect();
        for region in &stranded {
            self.close(*region);
        }
        stranded
    }

    /// Ends a connection.
    pub fn close(&mut self, region: RegionId) {
        if self.connections.remove(&region).is_some() {
            self.publish();
        }
    }

    /// Tells all relays which of them is home.
    pub fn set_home(&mut self, home: RegionId) {
        self.home = Some(home);
        for (region, connection) in &self.connections {
            if let Some(sender) = connection.port.sender.get() {
                sender.note_home(*region == home);
            }
        }
        self.connect(home);
    }

    /// Sends one packet, connecting first if need be.
    pub fn send(&mut self, region: RegionId, to: &NodePublic, packet: &[u8]) {
        self.connect(region);
        if let Some(connection) = self.connections.get(&region) {
            connection.port.send_many([(to, packet)]);
        }
    }

    /// Measures the way to a relay over HTTPS; the engine hears the result.
    pub fn measure_https(&self, region: RegionId) {
        let nodes = self
            .map
            .regions
            .get(&region)
            .map(|region| region.nodes.clone());
        let (dialer, engine) = (self.dialer.clone(), self.engine.clone());
        tokio::spawn(async move {
            for node in nodes
                .unwrap_or_default()
                .iter()
                .filter(|node| !node.stun_only)
            {
                match https_latency(&dialer, node, &ConnectOptions::default()).await {
                    Ok((latency, _)) => {
                        engine.tell(Message::RelayLatency(region, latency));
                        return;
                    }
                    Err(error) => tracing::debug!(node = node.name, %error, "no latency"),
                }
            }
        });
    }

    /// How many connections stand.
    pub fn live(&self) -> usize {
        self.connections
            .values()
            .filter(|connection| connection.port.sender.get().is_some())
            .count()
    }

    fn publish(&self) {
        let ports = self
            .connections
            .iter()
            .map(|(region, connection)| (*region, Arc::clone(&connection.port)));
        self.ports.store(Arc::new(ports.collect()));
    }
}

/// One connection, from dialing to its end.
struct Task {
    dialer: Dialer,
    node_key: NodeSecret,
    region: RegionId,
    number: u64,
    definition: DerpRegion,
    options: ConnectOptions,
    port: Arc<RelayPort>,
    engine: Inbox,
    inbox: mpsc::Sender<RelayBatch>,
    waker: Arc<Waker>,
}

impl Task {
    async fn run(self) {
        let region = self.region;
        let connected = connect(
            &self.dialer,
            &self.definition,
            &self.node_key,
            &self.options,
        )
        .await;
        let ended = match connected {
            Err(error) => error.to_string(),
            Ok((sender, receiver)) => {
                self.port.open(sender);
                self.receive(receiver).await
            }
        };
        tracing::debug!(region = region.0, reason = ended, "relay connection ended");
        self.engine.tell(Message::RelayDown(region, self.number));
    }

    /// Hands on what comes, until the connection ends; returns why.
    async fn receive(&self, mut receiver: DerpReceiver) -> String {
        loop {
            let mut batch = RelayBatch {
                region: self.region,
                bytes: Vec::new(),
                packets: Vec::new(),
            };
            match receiver.recv().await {
                Err(error) => return error.to_string(),
                Ok(events) => {
                    for event in events {
                        sort(event, self.number, &mut batch, &self.engine);
                    }
                }
            }
            if batch.packets.is_empty() {
                continue;
            }
            // Waiting here is what slows the relay down when we are slower.
            if self.inbox.send(batch).await.is_err() {
                return "the daemon stops".to_owned();
            }
            self.waker.wake();
        }
    }
}

fn sort(event: Event<'_>, number: u64, batch: &mut RelayBatch, engine: &Inbox) {
    let region = batch.region;
    let message = match event {
        Event::Packet { from, packet } if is_transport(packet) => {
            batch.push(from, packet, packet.len());
            return;
        }
        Event::Packet { from, packet } => {
            if let Some((segment_len, datagrams)) = relay_train::split(packet) {
                batch.push(from, datagrams, segment_len);
                return;
            }
            let packet = packet.to_vec();
            engine.offer(Message::RelayPacket {
                region,
                from,
                packet,
            });
            return;
        }
        Event::Connected(_) => Message::RelayUp(region, number),
        Event::PeerGone { key, .. } => Message::RelayPeerGone { region, peer: key },
        Event::Restarting { .. } => Message::RelayDown(region, number),
        Event::Health(Some(problem)) => {
            tracing::warn!(region = region.0, problem, "the relay reports a problem");
            return;
        }
        Event::Health(None) | Event::PeerPresent { .. } | Event::Pong(_) => return,
    };
    engine.tell(message);
}
