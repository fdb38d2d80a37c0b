//! The sockets of exchanges with upstreams.
//!
//! MagicDNS and the node's own look-ups ask upstreams through these.
//!
//! Each exchange has a task with a connected socket of its own, and both end
//! with the exchange. The system gives each socket a random port and drops the
//! datagrams of all other senders.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use warren_dial::mark_own_traffic;
use warren_dns::message::MAX_PAYLOAD;
use warren_dns::{ExchangeId, Forwarder, Transport};

/// The longest time that an upstream may take over TCP; the forwarder has
/// given up by then.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// Space for an answer of an upstream over UDP, in bytes. A longer answer does
/// not fit the payload size that upstreams are asked for.
const MAX_ANSWER: usize = MAX_PAYLOAD as usize + 1;

/// Messages of upstreams that may wait for the forwarder; then the buffers of
/// the sockets fill.
const WAITING_REPORTS: usize = 64;

/// A message that arrived on the socket of an exchange; `None` for an error.
type Report = (ExchangeId, Option<Vec<u8>>);

/// The routes that packets of exchanges take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// As the system routes them, into the tunnel as well.
    System,
    /// Never into the tunnel.
    OutsideTunnel,
}

/// All exchanges under way.
pub struct Exchanges {
    routing: Routing,
    tasks: BTreeMap<ExchangeId, Task>,
    reports: mpsc::Sender<Report>,
    reported: mpsc::Receiver<Report>,
}

/// The task that owns the socket of an exchange; dropping this ends the task.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Exchanges {
    /// No exchanges.
    pub fn new(routing: Routing) -> Self {
        let (reports, reported) = mpsc::channel(WAITING_REPORTS);
        Self {
            routing,
            tasks: BTreeMap::new(),
            reports,
            reported,
        }
    }

    /// Sends the query on a new socket. All that arrives there is reported
    /// until [`Exchanges::end`].
    pub fn start(
        &mut self,
        exchange: ExchangeId,
        to: SocketAddr,
        transport: Transport,
        query: Vec<u8>,
    ) {
        let (routing, reports) = (self.routing, self.reports.clone());
        let task = tokio::spawn(async move {
            match transport {
                Transport::Udp => {
                    let asking = async {
                        let socket = udp_socket(routing, to).await?;
                        ask_over_udp(exchange, &socket, &query, &reports).await
                    };
                    if asking.await.is_err() {
                        drop(reports.send((exchange, None)).await);
                    }
                }
                Transport::Tcp => {
                    let asking = ask_over_tcp(routing, to, &query);
                    let answer = tokio::time::timeout(TCP_TIMEOUT, asking).await;
                    let answer = answer.ok().and_then(Result::ok);
                    drop(reports.send((exchange, answer)).await);
                }
            }
        });
        self.tasks.insert(exchange, Task(task));
    }

    /// Closes the socket of this exchange.
    pub fn end(&mut self, exchange: ExchangeId) {
        self.tasks.remove(&exchange);
    }

    /// Waits for the next message, error or deadline, and passes it to the
    /// forwarder. Nothing is lost when the caller stops to wait.
    pub async fn drive(&mut self, forwarder: &mut Forwarder) {
        let deadline = forwarder.next_deadline().map(|(at, _)| at);
        tokio::select! {
            (exchange, message) = self.next() => match message {
                Some(message) => forwarder.handle_answer(Instant::now(), exchange, &message),
                None => forwarder.handle_failure(Instant::now(), exchange),
            },
            () = sleep_until(deadline) => forwarder.handle_timeout(Instant::now()),
        }
    }

    /// The next message or error.
    async fn next(&mut self) -> Report {
        match self.reported.recv().await {
            Some(report) => report,
            None => unreachable!("a sender is held beside the receiver"),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// A new socket with a random port, connected to the upstream.
async fn udp_socket(routing: Routing, to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0; 16], 0))
    };
    let socket = UdpSocket::bind(any).await?;
    if routing == Routing::OutsideTunnel {
        mark_own_traffic(&socket);
    }
    socket.connect(to).await?;
    Ok(socket)
}

/// Sends the query and reports each message that arrives. Returns when the
/// socket has an error: an ICMP message of the upstream, for example.
async fn ask_over_udp(
    exchange: ExchangeId,
    socket: &UdpSocket,
    query: &[u8],
    reports: &mpsc::Sender<Report>,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_ANSWER];
    discard_received(socket, &mut buffer);
    socket.send(query).await?;
    loop {
        let len = socket.recv(&mut buffer).await?;
        let message = buffer.get(..len).unwrap_or_default().to_vec();
        let report = reports.send((exchange, Some(message))).await;
        report.map_err(io::Error::other)?;
    }
}

/// Discards datagrams that arrived between `bind` and `connect`: any sender
/// could have sent them, and no answer can be older than its question.
fn discard_received(socket: &UdpSocket, buffer: &mut [u8]) {
    while socket.try_recv(buffer).is_ok() {}
}

/// Sends the query over a connection of its own, and reads one message
/// (RFC 7766).
async fn ask_over_tcp(routing: Routing, to: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if routing == Routing::OutsideTunnel {
        mark_own_traffic(&socket);
    }
    let mut stream = socket.connect(to).await?;
    stream
        .write_all(&[&len.to_be_bytes(), query].concat())
        .await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests;
