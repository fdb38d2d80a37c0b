//! The thread of a peer relay server: receives, asks [`Server`] where each batch goes,
//! and sends.
//!
//! The datagrams that the kernel joined on receipt (GRO) and that have the same Geneve
//! header are sent on as one joined datagram (GSO).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use warren_dial::SystemEntropy;
use warren_host::poll::{Watch, wait};
use warren_host::udp::{
    Datagrams, GroBuffer, RecvBatch, UdpOptions, UdpPair, UdpSocket, bind_pair,
};
use warren_host::wake::Waker;
use warren_keys::{DiscoSecret, NodePublic};
use warren_node_core::RelayRequest;
use warren_peer_relay::{AllocateError, Limits, Server};
use warren_wire::disco::RelayEndpoint;
use warren_wire::geneve::{HEADER_LEN, Header, Payload};

/// Messages of one receive call.
const RECEIVE_BATCH: usize = 64;
/// Receive calls on one socket before the other one is looked at.
const BATCHES_PER_ROUND: usize = 4;

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the port is in use")]
    PortInUse,
    #[error(transparent)]
    Socket(#[from] warren_host::udp::UdpError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// A running server. It ends when this is dropped.
pub(super) struct RelayServer {
    wanted_port: u16,
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    sockets: UdpPair,
    server: Mutex<Server>,
    waker: Waker,
    stop: AtomicBool,
}

impl Shared {
    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RelayServer {
    /// Binds the port, or one of the system's choice for 0, and starts the thread.
    pub(super) fn start(wanted_port: u16, options: &UdpOptions) -> Result<Self, StartError> {
        let sockets = bind_pair(&[wanted_port], options)?;
        let first = sockets.v4.as_ref().or(sockets.v6.as_ref());
        let port = first.map_or(0, |socket| socket.local_addr().port());
        if wanted_port != 0 && port != wanted_port {
            return Err(StartError::PortInUse);
        }
        let secret = DiscoSecret::generate(&mut SystemEntropy);
        let now = Instant::now();
        let server = Server::new(now, secret, Limits::default(), &mut SystemEntropy);
        let shared = Arc::new(Shared {
            sockets,
            server: Mutex::new(server),
            waker: Waker::new()?,
            stop: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("peer-relay".to_owned())
            .spawn(move || run(&of_thread))?;
        Ok(Self {
            wanted_port,
            port,
            shared,
            thread: Some(thread),
        })
    }

    /// The port that was asked for; 0: any.
    pub(super) fn wanted_port(&self) -> u16 {
        self.wanted_port
    }

    /// The port that clients send to.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// An endpoint for the two clients of the request, at these addresses.
    pub(super) fn allocate(
        &self,
        now: Instant,
        request: &RelayRequest,
        addresses: Vec<SocketAddr>,
    ) -> Result<RelayEndpoint, AllocateError> {
        let mut server = self.shared.server();
        server.set_addresses(addresses);
        let endpoint = server.allocate(now, request.node, request.clients, &mut SystemEntropy);
        drop(server);
        // There may be a deadline now.
        self.shared.waker.wake();
        endpoint
    }

    /// Ends the endpoints that were asked for by nodes for which `keep` is false.
    pub(super) fn retain(&self, keep: impl Fn(&NodePublic) -> bool) {
        let requesters = self.shared.server().requesters();
        // Without the lock: each one is looked up among all peers.
        let gone: BTreeSet<NodePublic> =
            requesters.into_iter().filter(|node| !keep(node)).collect();
        if !gone.is_empty() {
            self.shared.server().retain(|node, _| !gone.contains(node));
        }
    }
}

impl Drop for RelayServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(shared: &Shared) {
    let mut batch = RecvBatch::new(RECEIVE_BATCH);
    let sockets = [shared.sockets.v4.as_ref(), shared.sockets.v6.as_ref()];
    while !shared.stop.load(Ordering::Acquire) {
        let now = Instant::now();
        let deadline = {
            let mut server = shared.server();
            server.on_deadline(now);
            server.next_deadline()
        };
        let timeout = deadline.map(|at| at.saturating_duration_since(now));
        let mut watches = [
            Watch::readable(&shared.waker),
            watch(shared, sockets[0]),
            watch(shared, sockets[1]),
        ];
        if wait(&mut watches, timeout).is_err() {
            std::thread::yield_now();
            continue;
        }
        let ready = watches.map(|watch| watch.is_ready());
        if ready[0] {
            shared.waker.clear();
        }
        for (socket, ready) in sockets.iter().zip(&ready[1..]) {
            if let Some(socket) = socket.filter(|_| *ready) {
                // A few batches in a row, so that a flood of one family leaves time to the
                // other. An error belongs to an earlier datagram of ours (ICMP).
                for _ in 0..BATCHES_PER_ROUND {
                    if socket.recv_batch(&mut batch).is_err() {
                        break;
                    }
                    relay(shared, socket, &mut batch);
                    if !batch.is_full() {
                        break;
                    }
                }
            }
        }
    }
}

/// The watch of a socket. A family without a socket watches the waker once more.
fn watch<'s>(shared: &'s Shared, socket: Option<&'s UdpSocket>) -> Watch<'s> {
    match socket {
        Some(socket) => Watch::readable(socket),
        None => Watch::readable(&shared.waker),
    }
}

/// Sends on what one receive call gave.
fn relay(shared: &Shared, socket: &UdpSocket, batch: &mut RecvBatch) {
    let now = Instant::now();
    let mut v4 = Vec::with_capacity(RECEIVE_BATCH);
    let mut v6 = Vec::new();
    let mut replies = Vec::new();
    let mut server = shared.server();
    for buffer in batch.buffers() {
        let GroBuffer {
            from,
            segment_len,
            data,
        } = buffer;
        let segment_len = segment_len.max(1);
        let mut rest: &[u8] = data;
        while !rest.is_empty() {
            let run;
            (run, rest) = rest.split_at(same_header(rest, segment_len));
            let Some((header, _)) = Header::parse(run) else {
                continue;
            };
            if header.payload == Payload::DiscoControl {
                for datagram in run.chunks(segment_len) {
                    let content = datagram.get(HEADER_LEN..).unwrap_or_default();
                    let reply = server.control(now, from, header.vni, content, &mut SystemEntropy);
                    replies.extend(reply.map(|reply| (from, reply)));
                }
                continue;
            }
            let packets = run.len().div_ceil(segment_len) as u64;
            if let Some(to) = server.forward(now, from, header.vni, packets, run.len() as u64) {
                let datagrams = Datagrams {
                    to,
                    payload: run,
                    segment_len,
                };
                if to.is_ipv4() { &mut v4 } else { &mut v6 }.push(datagrams);
            }
        }
    }
    drop(server);
    // Where the socket's buffer is full, the rest is lost as on any network.
    for (socket, datagrams) in [(&shared.sockets.v4, v4), (&shared.sockets.v6, v6)] {
        if let Some(socket) = socket.as_ref().filter(|_| !datagrams.is_empty()) {
            socket.send_batch(&datagrams, |_, error| {
                tracing::trace!(%error, "peer relay: not sent");
            });
        }
    }
    for (to, reply) in replies {
        drop(socket.send_to(to, &reply));
    }
}

/// The bytes of the datagrams at the start of `rest` that have the header of the first.
fn same_header(rest: &[u8], segment_len: usize) -> usize {
    let mut datagrams = rest.chunks(segment_len);
    let first = datagrams.next().unwrap_or_default();
    let header = first.get(..HEADER_LEN);
    let more: usize = datagrams
        .take_while(|datagram| header.is_some() && datagram.get(..HEADER_LEN) == header)
        .map(<[u8]>::len)
        .sum();
    first.len() + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_header_changes() {
        let datagram = |vni: u8, len: usize| {
            let mut bytes = vec![0, 0, 0x7a, 0x12, 0, 0, vni, 0];
            bytes.resize(len, 7);
            bytes
        };
        let same = [datagram(1, 20), datagram(1, 20), datagram(1, 9)].concat();
        assert_eq!(same_header(&same, 20), 49);
        let other = [datagram(1, 20), datagram(1, 20), datagram(2, 20)].concat();
        assert_eq!(same_header(&other, 20), 40);
        assert_eq!(same_header(&other[40..], 20), 20);
        // Too short for a header: each by itself.
        assert_eq!(same_header(&[1, 2, 3, 1, 2, 3], 3), 3);
        assert_eq!(same_header(&[1, 2], 3), 2);
    }
}
