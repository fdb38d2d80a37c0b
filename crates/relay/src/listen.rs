//! Listeners of the relay's own: TCP with or without TLS, and port 80.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use warren_dial::connections::{NoSlot, Slot};

use crate::http::{self, ServeError};
use crate::relay::Relay;

/// Data that the other side does not acknowledge for so long ends the
/// connection.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// First TCP keepalive probe on an idle connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(600);
/// Bytes that may wait unsent in the kernel. More would only be delay that the
/// relay's own queue cannot bound.
const NOT_SENT: u32 = 64 * 1024;
/// Connections to the listener for metrics at a time.
const METRICS_CONNECTIONS: usize = 32;
/// TLS bytes that rustls may hold on to per connection.
const TLS_BUFFER: usize = 32 * 1024;
/// Pause after an error of the listener, such as no free file descriptor.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Binds a listener. An IPv6 wildcard address takes IPv4 too.
///
/// # Errors
/// Those of the system, such as a port already taken.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Sets up an accepted connection for the relay's use: no Nagle, dead peers
/// noticed, little hidden queueing. Options that the system does not support
/// are skipped.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE));
    #[cfg(target_os = "linux")]
    {
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
    }
}

/// Serves `relay` on a listener; never returns. With `tls`, each connection
/// must start with a TLS handshake.
pub async fn serve(relay: Relay, listener: TcpListener, tls: Option<Arc<ServerConfig>>) {
    let acceptor = tls.map(TlsAcceptor::from);
    accept_all(listener, |stream, peer| {
        let (relay, acceptor) = (relay.clone(), acceptor.clone());
        async move {
            let Some(acceptor) = acceptor else {
                return relay.serve_connection(stream, peer).await;
            };
            let serve = async |slot: &Slot| {
                let handshake = timeout(relay.shared.timeouts.tls, acceptor.accept(stream)).await;
                let mut stream = handshake
                    .map_err(|_| ServeError::Slow("the TLS handshake"))?
                    .map_err(ServeError::Tls)?;
                stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                relay.serve_http(stream, peer, slot).await
            };
            relay.in_slot(peer, serve).await
        }
    })
    .await;
}

/// Serves port 80 beside the relay's TLS port; never returns. The connections
/// count like those of the relay itself.
pub async fn serve_port_80(relay: Relay, listener: TcpListener) {
    accept_all(listener, |stream, peer| {
        let relay = relay.clone();
        async move {
            let serve = async |_: &Slot| http::serve_port_80(stream, &relay).await;
            relay.in_slot(peer, serve).await
        }
    })
    .await;
}

/// Serves the metrics, and nothing else; never returns. Bind it where only
/// those can connect that may read them. The metrics can be read even while the
/// relay is full, so this listener has a few slots of its own.
pub async fn serve_metrics(relay: Relay, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
    accept_all(listener, |stream, _| {
        let (relay, slots) = (relay.clone(), Arc::clone(&slots));
        async move {
            let Ok(_slot) = slots.try_acquire_owned() else {
                return Err(NoSlot(METRICS_CONNECTIONS).into());
            };
            http::serve_metrics(stream, &relay).await
        }
    })
    .await;
}

async fn accept_all<F, T>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> T,
    T: Future<Output = Result<(), ServeError>> + Send + 'static,
{
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        tune(&stream);
        let serving = serve(stream, peer);
        tokio::spawn(async move {
            // It was never a connection of the relay, so no other line says why. All
            // other errors are logged with the number of the connection.
            if let Err(ServeError::Full(error)) = serving.await {
                tracing::debug!(%peer, %error, "refused");
            }
        });
    }
}
