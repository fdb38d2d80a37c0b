//! From the device to the network.
//!
//! Each thread has a queue of the device and an [`Outbound`] of its own, and
//! shares nothing with the others but the view: the kernel keeps
//! a flow in one queue, so its packets stay in order. Orders go to the first
//! thread, but for those that concern all.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use warren_dataplane::{DropReason, OutSink, Outbound, RelaySend, ServiceId, UdpSend, View};
use warren_host::device::memory::MemoryDevice;
use warren_host::device::{BatchEnd, Device, MAX_FRAME_LEN};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{Datagrams, UdpSocket};
use warren_host::wake::Waker;
use warren_tunnel::PeerIndex;

use super::queues::Queues;
use super::{OutCommand, OwnPacket, Shared};

/// Frames read before what they gave is sent: enough to fill the send buffer,
/// few enough that the first does not wait long.
const READS_PER_FLUSH: usize = 64;
/// How long a full socket is waited for before packets are dropped: about as
/// long as a queue of the kernel holds.
const FULL_SOCKET: Duration = Duration::from_millis(20);

/// A thread that sends.
pub(super) struct Outward<D> {
    pub(super) shared: Arc<Shared>,
    pub(super) queues: Arc<Queues<D>>,
    pub(super) orders: mpsc::Receiver<OutCommand>,
    /// Packets of our own; only the first thread has some.
    pub(super) to_answer: Option<mpsc::Receiver<OwnPacket>>,
    /// The device of services in this process; only the first thread has it.
    pub(super) services: Option<Arc<MemoryDevice>>,
    /// Its queue of the device, and its number among the threads.
    pub(super) queue: usize,
}

/// Takes what comes out of the [`Outbound`].
struct ToNetwork<'a, D> {
    shared: &'a Shared,
    queues: &'a Queues<D>,
    /// Where batches for relays are put together.
    relay_batches: Vec<u8>,
}

impl<D: Device> OutSink for ToNetwork<'_, D> {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        let sockets = self.shared.sockets.load();
        let kept = self.shared.kept.load();
        // Runs through one socket keep their order.
        for v4 in [true, false] {
            let Some(socket) = (if v4 { &sockets.v4 } else { &sockets.v6 }) else {
                continue;
            };
            let ours = |send: &&UdpSend| send.to.is_ipv4() == v4 && kept.get(send.to).is_none();
            self.send_runs(socket, sends.iter().filter(ours), buffer);
        }
        for (remote, socket) in kept.sockets() {
            let ours = |send: &&UdpSend| send.to == *remote;
            self.send_runs(socket, sends.iter().filter(ours), buffer);
        }
    }

    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        let ports = self.shared.relay_ports.load();
        for send in sends {
            let port = ports.get(&send.region);
            // Packets that wait for a connection are counted one by one, so they must
            // be small.
            let mut send = send.clone();
            send.batches &= port.is_some();
            let packets = send.packets(buffer, &mut self.relay_batches);
            if let Some(port) = port {
                port.send_many(packets.map(|packet| (&send.to, packet)));
                continue;
            }
            // Not connected yet: the engine opens the connection, and the packets
            // wait there.
            for packet in packets {
                let engine = &self.shared.engine;
                if !engine.unconnected_relay(send.region, send.to, packet) {
                    self.shared.drops.count(DropReason::Overrun);
                }
            }
        }
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.shared.engine.need_session(peer);
    }

    fn deliver(&mut self, service: ServiceId, packet: &[u8]) {
        if !self.shared.engine.deliver(service, packet) {
            self.shared.drops.count(DropReason::Overrun);
        }
    }

    fn tun(&mut self, frame: &[u8]) {
        // To the queue of its flow, which is ours.
        let _ = self.queues.write(self.shared, frame);
    }
}

const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

impl<D: Device> ToNetwork<'_, D> {
    /// Sends runs of datagrams, in batches.
    fn send_runs<'s>(
        &self,
        socket: &UdpSocket,
        sends: impl Iterator<Item = &'s UdpSend>,
        buffer: &[u8],
    ) {
        let mut batch = [Datagrams {
            to: ANYWHERE,
            payload: &[],
            segment_len: 0,
        }; 64];
        let mut filled = 0;
        for send in sends {
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

    /// Sends a batch; a full socket is waited for, shortly, then what is left
    /// is dropped: queueing it would only make it late.
    fn send(&self, socket: &UdpSocket, batch: &[Datagrams<'_>]) {
        let mut left: std::borrow::Cow<'_, [Datagrams<'_>]> = batch.into();
        while !left.is_empty() {
            let sent = socket.send_batch(&left, |_, error| {
                self.shared.count_send_failure();
                tracing::trace!(%error, "run not sent");
            });
            if sent.done >= left.len() {
                return;
            }
            let mut rest = left[sent.done..].to_vec();
            rest[0].payload = rest[0].payload.get(sent.offset..).unwrap_or_default();
            left = rest.into();
            let mut writable = [Watch::writable(socket)];
            if !matches!(wait(&mut writable, Some(FULL_SOCKET)), Ok(1..)) {
                self.shared.count_send_failure();
                return;
            }
        }
    }
}

impl<D: Device> Outward<D> {
    /// Sends until it is time to stop.
    pub(super) fn run(self) {
        let shared = &*self.shared;
        let mut sink = ToNetwork {
            shared,
            queues: &*self.queues,
            relay_batches: Vec::new(),
        };
        let mut outbound = Outbound::new(Arc::clone(&shared.drops));
        let mut buffer = vec![0; MAX_FRAME_LEN].into_boxed_slice();
        let mut view = shared.view.load_full();
        let mut loss_is_reported = false;
        loop {
            let mut reads = 0;
            let read = self.queues.read(self.queue, &mut buffer, |frame| {
                outbound.packet(&view, Instant::now(), frame, &mut sink);
                reads += 1;
                if reads == READS_PER_FLUSH || outbound.is_full() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            let services_idle = self.read_services(&mut outbound, &view, &mut buffer, &mut sink);
            let idle = match read {
                Ok(end) => end == BatchEnd::Drained,
                Err(error) => {
                    // EIO: the device is down for the moment. It comes back, or the
                    // thread is stopped.
                    tracing::debug!(%error, "cannot read the tunnel device");
                    true
                }
            };
            outbound.flush(&mut sink);
            let waker: &Waker = &shared.out_wakers[self.queue];
            let queue = self.queues.device().readable(self.queue);
            let services = self.services.as_ref().map(|services| services.readable(0));
            let mut watches = [
                Watch::readable(waker),
                Watch::readable(&queue),
                Watch::readable(services.as_ref().unwrap_or(&queue)),
            ];
            let watched = if services.is_some() { 3 } else { 2 };
            let timeout = if idle && services_idle {
                None
            } else {
                Some(Duration::ZERO)
            };
            if wait(&mut watches[..watched], timeout).is_err() {
                std::thread::yield_now();
            } else if watches[1].is_broken() && !watches[0].is_ready() {
                // The device was deleted. It stays so, and the thread would spin: only
                // orders are left to wait for.
                if !loss_is_reported {
                    loss_is_reported = true;
                    tracing::error!(
                        "the tunnel device is gone; restart the daemon to have it again"
                    );
                }
                let [orders, ..] = &mut watches;
                drop(wait(std::slice::from_mut(orders), None));
            }
            if watches[0].is_ready() {
                waker.clear();
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                self.take_orders(&mut outbound, &mut view, &mut sink);
            }
        }
    }

    /// Reads some packets of services in this process. Returns whether there are no more.
    fn read_services(
        &self,
        outbound: &mut Outbound,
        view: &View,
        buffer: &mut [u8],
        sink: &mut ToNetwork<'_, D>,
    ) -> bool {
        let Some(services) = &self.services else {
            return true;
        };
        let mut reads = 0;
        let read = services.read_batch(0, buffer, |frame| {
            outbound.packet(view, Instant::now(), frame, sink);
            reads += 1;
            if reads == READS_PER_FLUSH || outbound.is_full() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        matches!(read, Ok(BatchEnd::Drained))
    }

    /// Takes a new view, the orders of the engine and the packets of our own.
    fn take_orders(
        &self,
        outbound: &mut Outbound,
        view: &mut Arc<View>,
        sink: &mut ToNetwork<'_, D>,
    ) {
        let now = Instant::now();
        let fresh = self.shared.view.load_full();
        if !Arc::ptr_eq(&fresh, view) {
            *view = fresh;
            outbound.on_view_change(view, now, sink);
        }
        for order in self.orders.try_iter() {
            match order {
                OutCommand::DropStaged(peer) => outbound.drop_staged(peer),
                OutCommand::Keepalive(peer) => outbound.send_keepalive(view, now, peer, sink),
                OutCommand::Inject(peer, packet) => {
                    outbound.inject(view, now, peer, &packet, sink);
                }
            }
        }
        for (peer, packet) in self.to_answer.iter().flat_map(mpsc::Receiver::try_iter) {
            outbound.inject(view, now, peer, &packet, sink);
        }
        outbound.flush(sink);
    }
}
