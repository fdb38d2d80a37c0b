//! The sockets of exchanges with upstreams.
//!
//! Each exchange has a task with a connected socket of its own, and both end
//! with the exchange. The system gives each socket a random port and drops the
//! datagrams of all other senders.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use warren_dns::message::MAX_PAYLOAD;
use warren_dns::{ExchangeId, Transport};

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
pub type Report = (ExchangeId, Option<Vec<u8>>);

/// All exchanges under way.
pub struct Exchanges {
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
    pub fn new() -> Self {
        let (reports, reported) = mpsc::channel(WAITING_REPORTS);
        Self {
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
        let reports = self.reports.clone();
        let task = tokio::spawn(async move {
            match transport {
                Transport::Udp => {
                    if ask_over_udp(exchange, to, &query, &reports).await.is_err() {
                        drop(reports.send((exchange, None)).await);
                    }
                }
                Transport::Tcp => {
                    let asking = ask_over_tcp(to, &query);
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

    /// The next message or error.
    pub async fn next(&mut self) -> Report {
        match self.reported.recv().await {
            Some(report) => report,
            None => unreachable!("a sender is held beside the receiver"),
        }
    }
}

/// Sends the query and reports each message that arrives. Returns when the
/// socket has an error: an ICMP message of the upstream, for example.
async fn ask_over_udp(
    exchange: ExchangeId,
    to: SocketAddr,
    query: &[u8],
    reports: &mpsc::Sender<Report>,
) -> io::Result<()> {
    let any = if to.is_ipv4() {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0; 16], 0))
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let mut buffer = vec![0; MAX_ANSWER];
    discard_received(&socket, &mut buffer);
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
async fn ask_over_tcp(to: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(to).await?;
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
