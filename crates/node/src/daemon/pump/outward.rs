//! From the TUN device to the network.
//!
//! Each thread has a queue of the device and an [`Outbound`] of its own, and
//! shares nothing with the others but the picture of the node: the kernel keeps
//! a flow in one queue, so its packets stay in order. Orders go to the first
//! thread, but for those that concern all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender as AsyncSender;
use warren_dataplane::{DropReason, OutSink, Outbound, RelaySend, ServiceId, UdpSend};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{Datagrams, UdpSocket};
use warren_host::wake::Waker;
use warren_node_core::MAGIC_DNS;
use warren_node_core::node::NodeInput;
use warren_tunnel::PeerIndex;

use super::super::Inbox;
use super::super::relays::RelayPorts;
use super::{Answer, OutCommand, Shared};

/// TUN reads before what they gave is sent: enough to fill the send buffer,
/// few enough that the first does not wait long.
const READS_PER_FLUSH: usize = 64;
/// Largest frame of the TUN device: virtio header and 64 KiB.
const TUN_FRAME: usize = 10 + 65_536;
/// How long a full socket is waited for before packets are dropped: about as
/// long as a queue of the kernel holds.
const FULL_SOCKET: Duration = Duration::from_millis(20);

/// A thread that sends.
pub(super) struct Outward {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Inbox,
    pub(super) dns: AsyncSender<Vec<u8>>,
    pub(super) ports: Arc<RelayPorts>,
    pub(super) orders: mpsc::Receiver<OutCommand>,
    /// Answers of our own; only the first thread has some.
    pub(super) to_answer: Option<mpsc::Receiver<Answer>>,
    /// Its queue of the TUN device, and its number among the threads.
    pub(super) queue: usize,
}

struct OutSide<'a> {
    shared: &'a Shared,
    engine: &'a Inbox,
    dns: &'a AsyncSender<Vec<u8>>,
    ports: &'a RelayPorts,
    /// Where trains for relays are put together.
    trains: Vec<u8>,
}

impl OutSink for OutSide<'_> {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        let sockets = self.shared.sockets.load();
        // Runs of one family keep their order; the two have different sockets.
        for v4 in [true, false] {
            let Some(socket) = (if v4 { &sockets.v4 } else { &sockets.v6 }) else {
                continue;
            };
            let mut batch = [Datagrams {
                to: ANYWHERE,
                payload: &[],
                segment_len: 0,
            }; 64];
            let mut filled = 0;
            for send in sends.iter().filter(|send| send.to.is_ipv4() == v4) {
                let payload = buffer.get(send.range.clone()).unwrap_or_default();
                batch[filled] = Datagrams {
                    to: send.to,
                    payload,
                    segment_len: send.segment_len,
                };
                filled += 1;
                if filled == batch.len() {
                    self.send(socket, &batch);
                    filled = 0;
                }
            }
            self.send(socket, &batch[..filled]);
        }
    }

    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        let ports = self.ports.load();
        for send in sends {
            let port = ports.get(&send.region);
            // What waits for a connection is counted by packets: small ones.
            let mut send = send.clone();
            send.trains &= port.is_some();
            let packets = send.packets(buffer, &mut self.trains);
            if let Some(port) = port {
                port.send_many(packets.map(|packet| (&send.to, packet)));
                continue;
            }
            // Not connected yet: the engine's task opens the connection, and
            // the packets wait there.
            for packet in packets {
                let taken = self.engine.try_send(NodeInput::RelayData {
                    region: send.region,
                    to: send.to,
                    packet: packet.to_vec(),
                });
                if !taken {
                    self.shared.drops.count(DropReason::Overrun);
                }
            }
        }
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.engine.send(NodeInput::NeedSession(peer));
    }

    fn deliver(&mut self, service: ServiceId, packet: &[u8]) {
        let taken = service == MAGIC_DNS && self.dns.try_send(packet.to_vec()).is_ok();
        if !taken {
            self.shared.drops.count(DropReason::Overrun);
        }
    }

    fn tun(&mut self, frame: &[u8]) {
        // To the queue of its flow, which is ours.
        let _ = self.shared.write_tun(frame);
    }
}

const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

impl OutSide<'_> {
    /// Sends a batch; a full socket is waited for, shortly, then what is left
    /// is dropped: queueing it would only make it late.
    fn send(&self, socket: &UdpSocket, batch: &[Datagrams<'_>]) {
        let mut left: std::borrow::Cow<'_, [Datagrams<'_>]> = batch.into();
        while !left.is_empty() {
            let outcome = socket.send_batch(&left, |_, error| {
                self.shared.send_failures.fetch_add(1, Ordering::Relaxed);
                tracing::trace!(%error, "run not sent");
            });
            if outcome.done >= left.len() {
                return;
            }
            let mut rest = left[outcome.done..].to_vec();
            rest[0].payload = rest[0].payload.get(outcome.offset..).unwrap_or_default();
            left = rest.into();
            let mut writable = [Watch::writable(socket)];
            if !matches!(wait(&mut writable, Some(FULL_SOCKET)), Ok(1..)) {
                self.shared.send_failures.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl Outward {
    /// Sends until it is told to stop.
    pub(super) fn run(self) {
        let shared = &*self.shared;
        let queue = shared.tun.get(self.queue);
        let mut sink = OutSide {
            shared,
            engine: &self.engine,
            dns: &self.dns,
            ports: &self.ports,
            trains: Vec::new(),
        };
        let mut outbound = Outbound::new(Arc::clone(&shared.drops));
        let mut frame = vec![0; TUN_FRAME].into_boxed_slice();
        let mut view = shared.view.load_full();
        let mut told_of_loss = false;
        loop {
            let mut reads = 0;
            let idle = loop {
                match shared.tun.read(self.queue, &mut frame) {
                    Ok(len) => {
                        outbound.packet(&view, Instant::now(), &frame[..len], &mut sink);
                        reads += 1;
                        if reads == READS_PER_FLUSH || outbound.is_full() {
                            break false;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                    Err(error) => {
                        // EIO: the device is down for the moment; it comes back or
                        // we are told to stop.
                        tracing::debug!(%error, "cannot read the tunnel device");
                        break true;
                    }
                }
            };
            outbound.flush(&mut sink);
            let waker: &Waker = &shared.out_wakers[self.queue];
            let mut watches = [Watch::readable(waker), Watch::readable(queue)];
            let timeout = if idle { None } else { Some(Duration::ZERO) };
            if wait(&mut watches, timeout).is_err() {
                std::thread::yield_now();
            } else if watches[1].is_broken() && !watches[0].is_ready() {
                // The device was deleted. That does not end, and would keep
                // us busy with nothing: only orders are left to wait for.
                if !told_of_loss {
                    told_of_loss = true;
                    tracing::error!(
                        "the tunnel device is gone; restart the daemon to have it again"
                    );
                }
                let [orders, _] = &mut watches;
                drop(wait(std::slice::from_mut(orders), None));
            }
            if watches[0].is_ready() {
                waker.clear();
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                let now = Instant::now();
                let fresh = shared.view.load_full();
                if !Arc::ptr_eq(&fresh, &view) {
                    view = fresh;
                    outbound.on_view_change(&view, now, &mut sink);
                }
                for order in self.orders.try_iter() {
                    match order {
                        OutCommand::DropStaged(peer) => outbound.drop_staged(peer),
                        OutCommand::Keepalive(peer) => {
                            outbound.send_keepalive(&view, now, peer, &mut sink);
                        }
                        OutCommand::Inject(peer, packet) => {
                            outbound.inject(&view, now, peer, &packet, &mut sink);
                        }
                    }
                }
                for (peer, packet) in self.to_answer.iter().flat_map(mpsc::Receiver::try_iter) {
                    outbound.inject(&view, now, peer, &packet, &mut sink);
                }
                outbound.flush(&mut sink);
            }
        }
    }
}
