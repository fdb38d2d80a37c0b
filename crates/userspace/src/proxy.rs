//! The way out for programs of this machine: a SOCKS5 server and an HTTP proxy, on one
//! listener or two.
//!
//! Where a connection goes, and what a name means, is decided by [`Dial`].

mod http;
mod socks;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use warren_wire::socks5::{self, Host};

use crate::{Flow, Stream};

/// Connections of programs at the same time, for each listener.
const MAX_CONNECTIONS: usize = 1024;
/// The time that a program has to say what it wants.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The time before a listener that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A connection that is being made.
pub type Dialing<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Makes connections for the proxies.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a host, through the tunnel or not.
    fn connect<'a>(&'a self, host: &'a Host, port: u16) -> Dialing<'a, Outgoing>;

    /// Opens a way for datagrams to a host, through the tunnel or not.
    fn open_flow<'a>(&'a self, host: &'a Host, port: u16) -> Dialing<'a, OutgoingFlow>;
}

/// A connection to a host.
pub enum Outgoing {
    /// Through the tunnel.
    Tunnel(Stream),
    /// Past it.
    System(TcpStream),
}

/// A way for datagrams to a host.
pub enum OutgoingFlow {
    /// Through the tunnel.
    Tunnel(Flow),
    /// Past it: a connected socket.
    System(UdpSocket),
}

impl OutgoingFlow {
    /// Sends a datagram; it may be lost. `false`: the flow has ended.
    async fn send(&self, datagram: &[u8]) -> bool {
        match self {
            Self::Tunnel(flow) => flow.send(datagram),
            Self::System(socket) => socket.send(datagram).await.is_ok(),
        }
    }

    /// The next datagram; `None`: the flow has ended.
    async fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        match self {
            Self::Tunnel(flow) => {
                let datagram = flow.receive().await?;
                let len = datagram.len().min(buffer.len());
                buffer[..len].copy_from_slice(&datagram[..len]);
                Some(len)
            }
            Self::System(socket) => socket.recv(buffer).await.ok(),
        }
    }
}

impl AsyncRead for Outgoing {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::System(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write(context, data),
            Self::System(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(context),
            Self::System(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(context),
            Self::System(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The protocols of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// SOCKS5 only.
    Socks,
    /// The HTTP proxy only.
    Http,
    /// Both; the first byte decides.
    Both,
}

/// Serves programs at `listener` until the future is dropped.
pub async fn serve(listener: TcpListener, protocols: Protocols, dial: Arc<dyn Dial>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // Beyond the limit it is closed at once.
                Ok((program, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(serve_program(program, protocols, Arc::clone(&dial)));
                }
                Ok(_) => tracing::warn!("too many programs use the proxy; one was refused"),
                Err(error) => {
                    tracing::warn!(%error, "the proxy accepts no connection");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_program(program: TcpStream, protocols: Protocols, dial: Arc<dyn Dial>) {
    let served = async {
        program.set_nodelay(true)?;
        let is_socks = match protocols {
            Protocols::Socks => true,
            Protocols::Http => false,
            Protocols::Both => {
                let mut first = [0];
                let peeked = tokio::time::timeout(HEAD_TIMEOUT, program.peek(&mut first)).await;
                if peeked.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
                    return Ok(());
                }
                first == [socks5::VERSION]
            }
        };
        if is_socks {
            socks::serve(program, dial).await
        } else {
            http::serve(program, dial).await
        }
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, "a program's connection to the proxy ended");
    }
}
