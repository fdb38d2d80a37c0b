//! The name server at 100.100.100.100, inside the tunnel device.
//!
//! Questions arrive as whole IP packets from the thread that reads the device,
//! and answers are written back to it as packets: no socket is bound, so
//! nothing can be in the way and nothing is reachable from outside. What is to
//! be forwarded goes out through ordinary sockets.
//!
//! UDP only so far: answers of our own always fit, and a forwarded answer that
//! does not is cut off with the TC bit set, as the upstream did. A connection
//! attempt over TCP is refused, so that nobody waits for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use warren_dataplane::{TunWrite, VNET_HDR_LEN};
use warren_dns::{
    ClientId, Decision, ExchangeId, Forwarder, MAX_TCP_QUERY, Output, Resolver, ResolverConfig,
    Transport, is_service,
};
use warren_wire::ip::{IpPacket, tcp, udp};

use super::pump::Shared;
use super::wall_clock;
use warren_dial::SystemEntropy;

/// Questions that may wait; a program that asks faster is not answered.
pub const WAITING_QUESTIONS: usize = 512;
/// The port of DNS.
const PORT: u16 = 53;
/// How long an upstream may take over TCP; the forwarder has given up by then.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer of an upstream over UDP.
const MAX_ANSWER: usize = 65_535;

/// What an attempt over TCP ended with.
type TcpOutcome = (ExchangeId, SocketAddr, Option<Vec<u8>>);

struct Server {
    shared: Arc<Shared>,
    resolver: Resolver,
    forwarder: Forwarder,
    /// Who waits for which answer: their address, and the one they asked.
    clients: BTreeMap<ClientId, (SocketAddr, SocketAddr)>,
    next_client: ClientId,
    outcomes: mpsc::UnboundedSender<TcpOutcome>,
}

/// Serves until the daemon ends.
pub async fn serve(
    shared: Arc<Shared>,
    mut packets: mpsc::Receiver<Vec<u8>>,
    mut config: watch::Receiver<ResolverConfig>,
) {
    let (outcomes, mut finished) = mpsc::unbounded_channel();
    let mut server = Server {
        shared,
        resolver: Resolver::new(config.borrow_and_update().clone()),
        forwarder: Forwarder::new(Box::new(SystemEntropy)),
        clients: BTreeMap::new(),
        next_client: 0,
        outcomes,
    };
    let v4 = UdpSocket::bind(("0.0.0.0", 0)).await.ok();
    let v6 = UdpSocket::bind(("::", 0)).await.ok();
    let (mut from_v4, mut from_v6) = (vec![0; MAX_ANSWER], vec![0; MAX_ANSWER]);
    loop {
        server.act(&v4, &v6).await;
        let deadline = server.forwarder.next_deadline().map(|(at, _)| at);
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
            Some((len, from)) = receive(&v4, &mut from_v4) => {
                let answer = from_v4.get(..len).unwrap_or_default();
                server.forwarder.handle_answer(Instant::now(), from, Transport::Udp, answer);
            }
            Some((len, from)) = receive(&v6, &mut from_v6) => {
                let answer = from_v6.get(..len).unwrap_or_default();
                server.forwarder.handle_answer(Instant::now(), from, Transport::Udp, answer);
            }
            Some((exchange, from, answer)) = finished.recv() => match answer {
                Some(answer) => server.forwarder.handle_answer(
                    Instant::now(), from, Transport::Tcp, &answer,
                ),
                None => server.forwarder.handle_failure(Instant::now(), exchange),
            },
            () = sleep_until(deadline) => server.forwarder.handle_timeout(Instant::now()),
        }
    }
}

/// The next datagram; never without a socket.
async fn receive(socket: &Option<UdpSocket>, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    match socket {
        // An error belongs to an earlier question, whose time runs out.
        Some(socket) => socket.recv_from(buffer).await.ok(),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
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
        match self
            .resolver
            .handle_query(wall_clock(), query, Transport::Udp)
        {
            Decision::Answer(answer) => self.answer(client, asked, &answer),
            Decision::Forward { upstreams, query } => {
                self.next_client += 1;
                let id: ClientId = self.next_client;
                self.clients.insert(id, (client, asked));
                let now = Instant::now();
                self.forwarder
                    .start(now, id, Transport::Udp, query, upstreams);
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
        if self.shared.write_tun(&frame) != TunWrite::Taken {
            tracing::debug!("an answer was not delivered");
        }
    }

    /// Does what the forwarder wants.
    async fn act(&mut self, v4: &Option<UdpSocket>, v6: &Option<UdpSocket>) {
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
                    transport: Transport::Udp,
                    query,
                } => {
                    let socket = if to.is_ipv4() { v4 } else { v6 };
                    let sent = match socket {
                        Some(socket) => socket.send_to(&query, to).await.is_ok(),
                        None => false,
                    };
                    if !sent {
                        self.forwarder.handle_failure(Instant::now(), exchange);
                    }
                }
                Output::Send {
                    exchange,
                    to,
                    transport: Transport::Tcp,
                    query,
                } => {
                    let outcomes = self.outcomes.clone();
                    tokio::spawn(async move {
                        let asking = ask_over_tcp(to, &query);
                        let answer = tokio::time::timeout(TCP_PATIENCE, asking).await;
                        let answer = answer.ok().and_then(Result::ok);
                        drop(outcomes.send((exchange, to, answer)));
                    });
                }
            }
        }
    }
}

/// One question over a connection of its own (RFC 7766). The forwarder limits
/// how long it waits.
async fn ask_over_tcp(to: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let len = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    debug_assert!(message.len() <= MAX_TCP_QUERY);
    let mut stream = TcpStream::connect(to).await?;
    stream
        .write_all(&[&len.to_be_bytes(), message].concat())
        .await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
