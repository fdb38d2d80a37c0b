//! The task of the port mapper: its socket, its connections, and the record on disk.
//!
//! All decisions are those of [`PortMapper`]; the path engine says which port is wanted, and
//! the link monitor which router there is. IPv4 only: with IPv6 no router translates ports.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use warren_dial::{Dialer, SystemEntropy, mark_own_traffic};
use warren_host::atomic_file::write_atomic;
use warren_host::link::LinkState;
use warren_node_core::node::NodeInput;
use warren_node_types::Family;
use warren_portmap::{
    EXCHANGE_TIMEOUT, KeptMapping, Output, PortMapper, Response, Router, Unfinished,
};

use super::Inbox;

/// The environment variables that switch all port mapping off, our own name first.
const OFF: [&str; 2] = ["WARREN_DISABLE_PORTMAPPER", "TS_DISABLE_PORTMAPPER"];
/// The same for UPnP alone.
const UPNP_OFF: [&str; 2] = ["WARREN_DISABLE_UPNP", "TS_DISABLE_UPNP"];
/// How long the end of the daemon waits for the router to take a deletion.
const RELEASE: Duration = Duration::from_secs(2);
/// Longest datagram of a router: an answer to a search.
const MAX_DATAGRAM: usize = 2_048;

/// Which kinds of port mapping are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Any at all.
    any: bool,
    /// UPnP.
    upnp: bool,
}

impl Allowed {
    /// As the environment says.
    pub fn by_environment() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(value: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |names: [&str; 2]| {
            let first = names.into_iter().find_map(&value);
            // The words that the official client takes for yes.
            first.is_some_and(|text| {
                matches!(text.trim(), "1" | "t" | "T" | "true" | "True" | "TRUE")
            })
        };
        Self {
            any: !is_set(OFF),
            upnp: !is_set(UPNP_OFF),
        }
    }
}

enum Order {
    Want(Option<u16>),
    Router(Option<Router>),
    Stop,
}

/// The running task.
pub struct PortMapping {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
}

impl PortMapping {
    /// Starts the task. `record` is the file with the mapping that an earlier daemon left;
    /// without one, nothing is recorded.
    pub fn start(allowed: Allowed, record: Option<PathBuf>, dialer: Dialer, inbox: Inbox) -> Self {
        let (orders, waiting) = mpsc::unbounded_channel();
        let mut mapper = PortMapper::new(Family::V4, Box::new(SystemEntropy));
        mapper.allow_upnp(allowed.upnp);
        if let Some(kept) = record.as_deref().and_then(read_record) {
            mapper.restore(kept);
        }
        let task = Task {
            mapper,
            allowed,
            record,
            dialer,
            inbox,
            socket: None,
            waiting: VecDeque::new(),
            exchange: None,
        };
        Self {
            orders,
            task: tokio::spawn(task.run(waiting)),
        }
    }

    /// Keeps a mapping to this UDP port of ours; `None`: deletes it.
    pub fn want(&self, port: Option<u16>) {
        self.order(Order::Want(port));
    }

    /// Uses the router of this network.
    pub fn use_network(&self, link: &LinkState) {
        self.order(Order::Router(router(link)));
    }

    /// Deletes the mapping at the router and ends the task.
    pub async fn stop(self) {
        self.order(Order::Stop);
        // It ends by itself within `RELEASE`.
        drop(self.task.await);
    }

    fn order(&self, order: Order) {
        // The task lives as long as this handle.
        drop(self.orders.send(order));
    }
}

/// The IPv4 router, and our address in its network.
fn router(link: &LinkState) -> Option<Router> {
    let gateway = link.gateway_v4?;
    let interface = link.interface(link.default_route_v4.as_ref()?)?;
    let v4 = |net: &IpNet| match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    };
    let nets = || interface.addrs.iter().filter_map(v4);
    let local = nets()
        .find(|net| net.contains(&gateway))
        .or(nets().next())?;
    Some(Router {
        router: IpAddr::V4(gateway),
        local: IpAddr::V4(local.addr()),
    })
}

struct Task {
    mapper: PortMapper,
    allowed: Allowed,
    record: Option<PathBuf>,
    dialer: Dialer,
    inbox: Inbox,
    /// Open from the first datagram on.
    socket: Option<UdpSocket>,
    /// Exchanges that follow the one under way, in their order.
    waiting: VecDeque<Exchange>,
    exchange: Option<JoinHandle<(u64, Option<Response>)>>,
}

/// A request to the router, and the number under which the mapper expects the answer.
struct Exchange {
    id: u64,
    to: SocketAddr,
    request: Vec<u8>,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut datagram = [0; MAX_DATAGRAM];
        loop {
            self.carry_out().await;
            let deadline = self.mapper.next_deadline();
            let sleep = deadline.map(|at| tokio::time::sleep_until(at.into()));
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Want(port)) => {
                        self.mapper.want(Instant::now(), port.filter(|_| self.allowed.any));
                    }
                    Some(Order::Router(router)) => {
                        self.mapper.set_router(Instant::now(), router);
                        if !self.allowed.any {
                            self.mapper.release(Instant::now());
                        }
                    }
                    Some(Order::Stop) | None => break,
                },
                received = receive(self.socket.as_ref(), &mut datagram) => {
                    if let Ok((len, from)) = received {
                        let packet = datagram.get(..len).unwrap_or_default();
                        self.mapper.handle_datagram(Instant::now(), from, packet);
                    }
                }
                (id, response) = ended(&mut self.exchange) => {
                    self.exchange = None;
                    self.mapper.handle_exchange(Instant::now(), id, response.as_ref());
                }
                () = async { match sleep { Some(sleep) => sleep.await, None => std::future::pending().await } } => {
                    self.mapper.handle_timeout(Instant::now());
                }
            }
        }
        self.mapper.release(Instant::now());
        // The router may be gone: then the next daemon deletes the mapping, or it ends by its
        // lifetime.
        drop(tokio::time::timeout(RELEASE, self.finish_exchanges()).await);
        if let Some(exchange) = self.exchange {
            exchange.abort();
        }
    }

    /// Makes the exchanges that are left, one of which may make a mapping and another delete it.
    async fn finish_exchanges(&mut self) {
        self.carry_out().await;
        while self.exchange.is_some() {
            let (id, response) = ended(&mut self.exchange).await;
            self.exchange = None;
            self.mapper
                .handle_exchange(Instant::now(), id, response.as_ref());
            self.carry_out().await;
        }
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.mapper.poll_output() {
            match output {
                Output::Send { to, packet } => {
                    if let Err(error) = self.send(to, &packet).await {
                        tracing::debug!(%error, "port mapping: not sent");
                    }
                }
                Output::Exchange { id, to, request } => {
                    self.waiting.push_back(Exchange { id, to, request });
                }
                Output::Keep(kept) => {
                    if let Some(record) = self.record.clone() {
                        write_record(record, kept).await;
                    }
                }
                Output::Report(report) => self.inbox.send(NodeInput::PortMap(report)),
            }
        }
        if self.exchange.is_none() {
            self.exchange = self.waiting.pop_front().map(|next| {
                let dialer = self.dialer.clone();
                tokio::spawn(async move {
                    let exchange = exchange(&dialer, next.to, &next.request);
                    let response = tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await;
                    (next.id, response.ok().and_then(Result::ok))
                })
            });
        }
    }

    async fn send(&mut self, to: SocketAddr, packet: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open()?),
        };
        socket.send_to(packet, to).await.map(drop)
    }
}

/// Writes the record before anything else happens: a mapping without one cannot be deleted
/// after `kill -9`.
async fn write_record(path: PathBuf, kept: Option<KeptMapping>) {
    let written = tokio::task::spawn_blocking(move || match kept {
        Some(kept) => {
            let text = serde_json::to_vec(&kept).map_err(io::Error::other)?;
            write_atomic(&path, &text, 0o600)
        }
        None => std::fs::remove_file(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }),
    });
    if let Ok(Err(error)) = written.await {
        tracing::warn!(
            %error,
            "the port mapping cannot be recorded; after a crash the router may keep it"
        );
    }
}

fn open() -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_nonblocking(true)?;
    mark_own_traffic(&socket);
    UdpSocket::from_std(socket)
}

async fn receive(socket: Option<&UdpSocket>, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(into).await,
        None => std::future::pending().await,
    }
}

/// The end of the exchange under way; there may be none.
async fn ended(
    exchange: &mut Option<JoinHandle<(u64, Option<Response>)>>,
) -> (u64, Option<Response>) {
    match exchange {
        // A task that panicked has no id: the mapper goes on after its own deadline.
        Some(task) => task.await.unwrap_or((0, None)),
        None => std::future::pending().await,
    }
}

/// Sends a request and reads the response to its end.
async fn exchange(dialer: &Dialer, to: SocketAddr, request: &[u8]) -> io::Result<Response> {
    let stream = dialer.connect(&to.ip().to_string(), to.port()).await;
    let mut stream = stream.map_err(io::Error::other)?;
    stream.write_all(request).await?;
    let mut bytes = Vec::new();
    loop {
        let is_at_end = stream.read_buf(&mut bytes).await? == 0;
        match Response::parse(&bytes, is_at_end) {
            Ok(response) => return Ok(response),
            Err(Unfinished::Incomplete) => {}
            Err(Unfinished::Malformed) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The record of an earlier daemon. One that cannot be read is as good as none.
fn read_record(path: &std::path::Path) -> Option<KeptMapping> {
    let text = std::fs::read(path).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::debug!(%error, "the record of a port mapping is ignored"))
        .ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_host::link::Interface;

    #[test]
    fn the_environment_switches_it_off_as_for_the_official_client() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let allowed = Allowed::of(|name| {
                let found = set.iter().find(|(other, _)| other == name);
                found.map(|(_, value)| value.clone())
            });
            (allowed.any, allowed.upnp)
        };
        assert_eq!(of(&[]), (true, true));
        assert_eq!(of(&[("TS_DISABLE_PORTMAPPER", "true")]), (false, true));
        assert_eq!(of(&[("TS_DISABLE_UPNP", "1")]), (true, false));
        let both = [("WARREN_DISABLE_UPNP", "0"), ("TS_DISABLE_UPNP", "1")];
        assert_eq!(of(&both), (true, true), "our own name counts first");
        assert_eq!(of(&[("TS_DISABLE_UPNP", "maybe")]), (true, true));
    }

    #[test]
    fn the_router_is_that_of_the_default_route() {
        let mut link = LinkState {
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                index: 2,
                up: true,
                loopback: false,
                addrs: ["10.1.0.9/16", "192.168.7.2/24", "fe80::1/64"]
                    .map(|net| net.parse().unwrap())
                    .to_vec(),
            }],
            default_route_v4: Some("eth0".to_owned()),
            gateway_v4: Some(Ipv4Addr::new(192, 168, 7, 1)),
            ..LinkState::default()
        };
        let local = |link: &LinkState| router(link).map(|router| router.local.to_string());
        assert_eq!(local(&link).as_deref(), Some("192.168.7.2"));
        link.gateway_v4 = Some(Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(local(&link).as_deref(), Some("10.1.0.9"));
        link.gateway_v4 = None;
        assert_eq!(local(&link), None, "a tunnel has no router");
    }
}
