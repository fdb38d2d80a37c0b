//! Connections, flows and pings of peers, forwarded to programs of this machine and to
//! the networks behind it.
//!
//! All that comes here has passed the packet filter, which knows what this node offers: its
//! own addresses, its subnets, the internet as an exit node. An address of the node
//! leads to the loopback address of the same family; another one to itself, but for
//! those that only mean this machine or one link ([`destination`]).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::network::{Arrival, Arrivals, Incoming, IncomingFlow};
use crate::{Network, OwnServices, ping};

/// The time for the program or host behind to take a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are copied at once, in each direction of a connection.
const COPY_BYTES: usize = 32 * 1024;
/// Pings to other hosts at the same time.
const PINGS: usize = 64;
/// Connections that are being made to programs and hosts, in all and for one peer. A peer
/// that withdraws its own attempts must not leave sockets behind without end.
const CONNECTING: usize = 1024;
const CONNECTING_OF_PEER: usize = 128;
/// The longest UDP datagram.
const LONGEST_DATAGRAM: usize = 65_535;

/// The addresses of this node inside the tunnel.
#[derive(Debug, Clone, Default)]
pub struct Own(pub Vec<IpAddr>);

/// Ports of this machine at which the daemon itself serves programs, as with its proxies.
/// Peers do not reach them: they would get from there to all that this machine reaches.
#[derive(Debug, Clone, Default)]
pub struct OwnPorts(Arc<Mutex<BTreeSet<u16>>>);

impl OwnPorts {
    /// Closes a port to peers.
    pub fn add(&self, port: u16) {
        self.lock().insert(port);
    }

    fn contains(&self, port: u16) -> bool {
        self.lock().contains(&port)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of connections that are being made.
#[derive(Debug, Clone)]
struct Connecting {
    all: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
struct Place {
    peer: IpAddr,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _of_all: OwnedSemaphorePermit,
}

impl Connecting {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONNECTING)),
            peers: Arc::default(),
        }
    }

    /// A place for a connection of this peer. `None`: there are too many.
    fn begin(&self, peer: IpAddr) -> Option<Place> {
        let of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= CONNECTING_OF_PEER {
            return None;
        }
        *count += 1;
        Some(Place {
            peer,
            peers: Arc::clone(&self.peers),
            _of_all: of_all,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Forwards everything that arrives, until the network ends; nothing to `closed` ports of
/// this machine. `services` take what is for their ports at addresses of this node.
pub async fn serve(
    mut arrivals: Arrivals,
    network: Network,
    own: watch::Receiver<Own>,
    closed: OwnPorts,
    services: OwnServices,
) {
    let mut tasks = JoinSet::new();
    let connecting = Connecting::new();
    let pings = Arc::new(Semaphore::new(PINGS));
    loop {
        let arrival = tokio::select! {
            arrival = arrivals.next() => match arrival {
                Some(arrival) => arrival,
                None => return,
            },
            Some(_) = tasks.join_next() => continue,
        };
        match arrival {
            Arrival::Connection(incoming) => {
                let tuple = incoming.tuple();
                let is_own = own.borrow().0.contains(&tuple.local.ip());
                let incoming = match is_own {
                    true => services.offer(incoming),
                    false => Some(incoming),
                };
                let Some(incoming) = incoming else { continue };
                let to = destination(&own.borrow(), &closed, tuple.local);
                let place = connecting.begin(tuple.remote.ip());
                match (to, place) {
                    (Some(to), Some(place)) => drop(tasks.spawn(connection(incoming, to, place))),
                    // Dropping it refuses it.
                    (None, _) => drop(incoming),
                    // The peer sends its SYN again.
                    (Some(_), None) => incoming.ignore(),
                }
            }
            Arrival::Flow(incoming) => {
                if let Some(to) = destination(&own.borrow(), &closed, incoming.tuple.local) {
                    tasks.spawn(flow(incoming, to));
                }
            }
            Arrival::Echo(request) => {
                if let Ok(permit) = Arc::clone(&pings).try_acquire_owned() {
                    let network = network.clone();
                    tasks.spawn(async move {
                        if ping::is_answered(&request).await {
                            network.answer_echo(request);
                        }
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Where a connection to `local` goes: for an address of this node to loopback. `None`:
/// nowhere.
pub fn destination(own: &Own, closed: &OwnPorts, local: SocketAddr) -> Option<SocketAddr> {
    let port = local.port();
    if own.0.contains(&local.ip()) {
        if closed.contains(port) {
            return None;
        }
        let loopback: IpAddr = match local {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        return Some(SocketAddr::new(loopback, port));
    }
    is_forwarded(local.ip()).then_some(local)
}

/// Whether an address means the same host here as for a peer. Loopback, link-local
/// (among them the metadata services of clouds), multicast and unspecified addresses do
/// not.
fn is_forwarded(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_unspecified())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6.is_unicast_link_local())
        }
    }
}

async fn connection(incoming: Incoming, to: SocketAddr, place: Place) {
    let connected = tokio::time::timeout(PATIENCE, connect(to)).await;
    drop(place);
    match connected {
        Ok(Ok(outside)) => {
            let Ok(inside) = incoming.accept() else {
                return;
            };
            // Both ends know about an end that was not in order.
            let _ended = splice(inside, outside).await;
        }
        // Dropping it refuses it.
        Ok(Err(error)) => tracing::debug!(%error, "connection not forwarded"),
        Err(_) => {
            tracing::debug!("connection not forwarded: no answer");
            incoming.ignore();
        }
    }
}

/// Connects to a program or host. A program may listen at the other family's loopback
/// address only.
async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let first = TcpStream::connect(to).await;
    let stream = match first {
        Err(error)
            if to.ip() == Ipv6Addr::LOCALHOST
                && matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable
                ) =>
        {
            TcpStream::connect((Ipv4Addr::LOCALHOST, to.port())).await?
        }
        other => other?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Copies both ways until both have ended.
///
/// # Errors
/// The first error of either.
pub async fn splice(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    tokio::io::copy_bidirectional_with_sizes(&mut one, &mut other, COPY_BYTES, COPY_BYTES)
        .await
        .map(drop)
}

async fn flow(incoming: IncomingFlow, to: SocketAddr) {
    let flow = incoming.flow;
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let opened = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        io::Result::Ok(socket)
    };
    let socket = match opened.await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "flow not forwarded");
            return;
        }
    };
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    loop {
        tokio::select! {
            datagram = flow.receive() => match datagram {
                // A socket that refuses is a host that does not answer.
                Some(datagram) => drop(socket.send(&datagram).await),
                None => return,
            },
            received = socket.recv(&mut buffer) => match received {
                Ok(len) => {
                    if !flow.send(buffer.get(..len).unwrap_or_default()) {
                        return;
                    }
                }
                // Nothing listens there.
                Err(_) => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_hosts_that_mean_the_same_for_a_peer_are_forwarded_to() {
        let own = Own(vec![
            "100.64.0.1".parse().unwrap(),
            "fd7a::1".parse().unwrap(),
        ]);
        let closed = OwnPorts::default();
        closed.add(1055);
        let to = |text: &str| {
            let found = destination(&own, &closed, text.parse().unwrap());
            found.map(|to| to.to_string())
        };
        assert_eq!(to("100.64.0.1:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(to("[fd7a::1]:80").as_deref(), Some("[::1]:80"));
        assert_eq!(to("10.0.0.1:80").as_deref(), Some("10.0.0.1:80"));
        // The daemon's own port is closed here and not elsewhere.
        assert_eq!(to("10.0.0.1:1055").as_deref(), Some("10.0.0.1:1055"));
        for refused in [
            "100.64.0.1:1055",
            "[fd7a::1]:1055",
            "127.0.0.1:80",
            "169.254.169.254:80",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::1]:80",
            "[fe80::1]:80",
            "[ff02::1]:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert_eq!(to(refused), None, "{refused}");
        }
    }

    #[test]
    fn one_peer_has_a_part_of_the_connections_that_are_being_made() {
        let connecting = Connecting::new();
        let peer = |n: u8| IpAddr::from([100, 64, 0, n]);
        let mut places: Vec<Place> = (0..2 * CONNECTING_OF_PEER)
            .map_while(|_| connecting.begin(peer(1)))
            .collect();
        assert_eq!(places.len(), CONNECTING_OF_PEER);
        assert!(connecting.begin(peer(2)).is_some());
        places.pop();
        places.extend(connecting.begin(peer(1)));
        assert!(connecting.begin(peer(1)).is_none());
        for n in 2..=255 {
            places.extend((0..CONNECTING_OF_PEER).map_while(|_| connecting.begin(peer(n))));
        }
        assert_eq!(places.len(), CONNECTING);
        drop(places);
        assert!(connecting.peers.lock().unwrap().is_empty());
        assert_eq!(connecting.all.available_permits(), CONNECTING);
    }
}
