//! The name server at 100.100.100.100, inside the tunnel device.
//!
//! Questions arrive as whole IP packets from the thread that reads the device,
//! and answers are written back to it as packets: no socket is bound, so
//! nothing can be in the way and nothing is reachable from outside. Questions for
//! upstreams are forwarded through ordinary sockets ([`exchanges`]).
//!
//! UDP only so far, so answers are never cut: a client that is sent to TCP by the TC
//! bit would find no server there. The way to the client is the memory of this machine,
//! which takes datagrams of any length, and C libraries read them whole (glibc asks for
//! the length first). An upstream that cuts its answer is asked over TCP. A connection
//! attempt to us over TCP is refused, so that no program waits for it.

pub(super) mod exchanges;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use warren_dataplane::{TunWrite, VNET_HDR_LEN};
use warren_dns::{
    Client, ClientId, Decision, Forwarder, Output, Resolver, ResolverConfig, Transport, is_service,
};
use warren_packet_threads::FrameWriter;
use warren_wire::ip::{IpPacket, tcp, udp};

use super::wall_clock;
use exchanges::{Exchanges, Routing};
use warren_dial::SystemEntropy;

/// Questions that may wait; a program that asks faster is not answered.
pub const WAITING_QUESTIONS: usize = 512;
/// The port of DNS.
const PORT: u16 = 53;
/// Clients take answers of any length, as over TCP.
const ANSWERS: Transport = Transport::Tcp;

/// Counters of the forwarded questions, for the metrics.
#[derive(Debug, Default)]
pub struct DnsCounters {
    /// Questions that were passed to upstreams.
    pub forwarded: AtomicU64,
    /// Messages in the name of an upstream that were not its answer.
    pub wrong_answers: AtomicU64,
    /// Questions that ended early because too many were under way.
    pub evicted: AtomicU64,
    /// Attempts that were not made because too many exchanges were open.
    pub refused: AtomicU64,
}

struct Server {
    frames: FrameWriter,
    counters: Arc<DnsCounters>,
    resolver: Resolver,
    forwarder: Forwarder,
    /// Clients that wait for an upstream: their address, and the one they asked.
    clients: BTreeMap<ClientId, (SocketAddr, SocketAddr)>,
    next_client: ClientId,
    /// Exchanges under way; the forwarder limits their number.
    exchanges: Exchanges,
}

/// Serves until the daemon ends.
pub async fn serve(
    frames: FrameWriter,
    counters: Arc<DnsCounters>,
    mut packets: mpsc::Receiver<Vec<u8>>,
    mut config: watch::Receiver<ResolverConfig>,
) {
    let mut server = Server {
        frames,
        counters,
        resolver: Resolver::new(config.borrow_and_update().clone()),
        forwarder: Forwarder::new(Box::new(SystemEntropy)),
        clients: BTreeMap::new(),
        next_client: 0,
        exchanges: Exchanges::new(Routing::System),
    };
    loop {
        server.act();
        tokio::select! {
            packet = packets.recv() => match packet {
                Some(packet) => server.question(&packet),
                None => return,
            },
            changed = config.changed() => {
                if changed.is_err() {
                    return;
                }
                server.resolver.set_config(config.borrow_and_update().clone());
            }
            () = server.exchanges.drive(&mut server.forwarder) => {}
        }
    }
}

impl Server {
    /// A packet to one of the service addresses.
    fn question(&mut self, packet: &[u8]) {
        let Ok(packet) = IpPacket::parse(packet) else {
            return;
        };
        if let Some(reset) = tcp::reset_for(&packet) {
            self.write(&reset);
        }
        let Some(query) = packet.udp_payload() else {
            return;
        };
        if packet.dst_port != PORT || !is_service(packet.dst) {
            return;
        }
        let client = SocketAddr::new(packet.src, packet.src_port);
        let asked = SocketAddr::new(packet.dst, packet.dst_port);
        match self.resolver.handle_query(wall_clock(), query, ANSWERS) {
            Decision::Answer(answer) => self.answer(client, asked, &answer),
            Decision::Forward { upstreams, query } => {
                self.next_client += 1;
                let id: ClientId = self.next_client;
                self.clients.insert(id, (client, asked));
                let now = Instant::now();
                let asker = Client {
                    id,
                    from: Some(client),
                };
                self.forwarder.start(now, asker, ANSWERS, query, upstreams);
            }
            Decision::Drop => {}
        }
    }

    /// Writes an answer to the tunnel device, as if it had come through it.
    fn answer(&self, client: SocketAddr, asked: SocketAddr, answer: &[u8]) {
        let Ok(packet) = udp::packet(asked, client, answer) else {
            return;
        };
        self.write(&packet);
    }

    /// Writes a packet to the tunnel device, with an empty virtio header.
    fn write(&self, packet: &[u8]) {
        let frame = [&[0; VNET_HDR_LEN], packet].concat();
        if self.frames.write(&frame) != TunWrite::Taken {
            tracing::debug!("an answer was not delivered");
        }
    }

    /// Carries out the outputs of the forwarder, and publishes its counters.
    fn act(&mut self) {
        while let Some(output) = self.forwarder.poll_output() {
            match output {
                Output::Answer { client, answer } => {
                    if let Some((client, asked)) = self.clients.remove(&client) {
                        self.answer(client, asked, &answer);
                    }
                }
                Output::Send {
                    exchange,
                    to,
                    transport,
                    query,
                } => self.exchanges.start(exchange, to, transport, query),
                Output::Close { exchange } => self.exchanges.end(exchange),
            }
        }
        let counted = self.forwarder.counters();
        let counters = &self.counters;
        for (counter, value) in [
            (&counters.forwarded, counted.questions),
            (&counters.wrong_answers, counted.wrong_answers),
            (&counters.evicted, counted.evicted),
            (&counters.refused, counted.refused),
        ] {
            counter.store(value, Ordering::Relaxed);
        }
    }
}
