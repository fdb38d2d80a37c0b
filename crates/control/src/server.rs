//! The listener: TLS or not, relay or not.
//!
//! One port serves everything. The first byte distinguishes TLS (22, the record
//! type of a ClientHello) from HTTP. Behind TLS, or without it, the request head
//! distinguishes the relay's requests from the control server's; the relay takes the
//! connection over with its bytes, because its protocol may begin without an
//! HTTP response. All other connections go to hyper, with the bytes that were read,
//! and to the router of [`public`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tracing::Instrument as _;
use warren_dial::connections::{ConnectionTable, Slot};
use warren_relay::{Prefixed, Relay, RequestHead};

use crate::certificates::Acceptor;
use crate::coordinator::CoordinatorHandle;
use crate::http::{Connection, answer};
use crate::login::Logins;
use crate::noise::Upgrader;
use crate::public;
use crate::refusals::Refused;

/// How long a client may take for the TLS handshake and the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The type byte of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// More headers than any client sends.
const MAX_HEADERS: usize = 64;

/// The use of TLS at this port.
#[derive(Clone)]
pub enum Tls {
    /// Everything; plain HTTP is refused.
    Required(Acceptor),
    /// The embedded relay, whose clients insist on it. The rest is plain.
    ForRelay(Acceptor),
    /// TLS is not used.
    Off,
}

/// The state that all connections share.
pub struct Server {
    coordinator: Arc<CoordinatorHandle>,
    router: Router,
    relay: Option<Relay>,
    tls: Tls,
    connections: Arc<ConnectionTable>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// A server of this coordinator, with these identity providers. A relay may share its
    /// port; `connections` bounds and counts the connections of all its listeners.
    pub fn new(
        coordinator: Arc<CoordinatorHandle>,
        upgrader: Upgrader,
        logins: Arc<Logins>,
        relay: Option<Relay>,
        tls: Tls,
        connections: Arc<ConnectionTable>,
    ) -> Self {
        Self {
            router: public::router(coordinator.clone(), Arc::new(upgrader), logins),
            coordinator,
            relay,
            tls,
            connections,
        }
    }

    /// The same server, for a port with this use of TLS.
    #[must_use]
    pub fn with_tls(&self, tls: Tls) -> Self {
        Self {
            coordinator: self.coordinator.clone(),
            router: self.router.clone(),
            relay: self.relay.clone(),
            tls,
            connections: self.connections.clone(),
        }
    }

    /// Serves connections until the task is dropped.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match self.connections.open(peer.ip()) {
                    Ok(slot) => {
                        // At the level of warnings, so that every line of a
                        // connection carries its number.
                        let span = tracing::warn_span!("conn", id = slot.id());
                        let server = self.clone();
                        let served = async move {
                            let slot = Arc::new(slot);
                            tokio::select! {
                                () = server.connection(stream, peer, slot.clone()) => {}
                                () = slot.must_close() => {
                                    tracing::debug!("closed in favour of another connection");
                                }
                            }
                        };
                        tokio::spawn(served.instrument(span));
                    }
                    Err(error) => {
                        let why = error.to_string();
                        self.coordinator.refused(Refused::Connection, &why);
                    }
                },
                Err(error) => {
                    // Out of file descriptors: the ones in use have to end first.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, slot: Arc<Slot>) {
        warren_relay::listen::tune(&stream);
        let mut first = [0_u8];
        let peeked = tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await;
        if !matches!(peeked, Ok(Ok(1))) {
            return;
        }
        let is_tls = first == [TLS_HANDSHAKE];
        match &self.tls {
            Tls::Required(acceptor) | Tls::ForRelay(acceptor) if is_tls => {
                match tokio::time::timeout(HEAD_TIMEOUT, acceptor.get().accept(stream)).await {
                    Ok(Ok(stream)) => self.http(stream, peer, slot).await,
                    Ok(Err(error)) => {
                        tracing::debug!("a TLS handshake failed: {error}");
                        let why = "a TLS handshake failed; clients must trust the certificate";
                        self.coordinator.refused(Refused::Connection, why);
                    }
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
            Tls::Required(_) => {
                let why = "a client spoke HTTP to the port for TLS; its address of this server must begin with https://";
                self.coordinator.refused(Refused::Connection, why);
                let mut stream = stream;
                let _ = stream
                    .write_all(
                        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 35\r\n\r\nthis port speaks TLS; use https://\n",
                    )
                    .await;
            }
            Tls::ForRelay(_) | Tls::Off => self.http(stream, peer, slot).await,
        }
    }

    async fn http<S>(self: Arc<Self>, mut stream: S, peer: SocketAddr, slot: Arc<Slot>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut seen = Vec::with_capacity(1024);
        while let Some(relay) = &self.relay {
            let head = tokio::time::timeout(HEAD_TIMEOUT, async {
                loop {
                    match RequestHead::parse(&seen) {
                        Ok(Some(whole)) => return Some(whole),
                        // hyper answers what is no HTTP, or too long.
                        Err(_) => return None,
                        Ok(None) => {}
                    }
                    match stream.read_buf(&mut seen).await {
                        Ok(0) | Err(_) => return None,
                        Ok(_) => {}
                    }
                }
            });
            let Ok(head) = head.await else { return };
            let Some((head, length)) = head else { break };
            if !is_for_relay(head.path()) || !relay.wants(&head) {
                break;
            }
            let leftover = seen.split_off(length);
            let identify = |owner| slot.identify(owner);
            let served = relay.serve_request(&head, stream, leftover, peer, identify);
            match served.await {
                Ok(Some((again, behind))) => (stream, seen) = (again, behind),
                Ok(None) => return,
                Err(error) => return tracing::debug!("a relay connection ended: {error}"),
            }
        }
        let stream = Prefixed::new(seen, stream);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let source = source_of(peer.ip(), request.headers());
            let slot = slot.clone();
            if let Some(source) = source {
                slot.move_to(source);
            }
            request.extensions_mut().insert(Connection { source, slot });
            answer(self.router.clone(), request)
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!("a connection ended: {error}");
        }
    }
}

/// Paths that are the relay's; the rest is ours even where a relay that is
/// alone would answer.
fn is_for_relay(path: &str) -> bool {
    path == "/derp" || path.starts_with("/derp/") || path == "/bootstrap-dns"
}

/// The source of a request, as far as it is known. Behind a proxy on this machine,
/// all connections come from a loopback address; only such a proxy is trusted to
/// name the client. Entries before the last may be forged by the client.
fn source_of(peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    if !peer.is_loopback() {
        return Some(peer);
    }
    let last = |name: &str| {
        let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
        let entry = line.rsplit(',').next()?.trim();
        let address = entry.parse().ok();
        // Some add the port.
        address.or_else(|| Some(entry.parse::<SocketAddr>().ok()?.ip()))
    };
    let named = last("x-forwarded-for").or_else(|| last("x-real-ip"))?;
    Some(named.to_canonical()).filter(|ip| !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_proxy_on_this_machine_is_trusted() {
        let from = |peer: &str, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_str(value).unwrap());
            }
            source_of(peer.parse().unwrap(), &map).map(|ip| ip.to_string())
        };
        let is = |ip: &str| Some(ip.to_owned());
        let forwarded = "x-forwarded-for";
        assert_eq!(from("192.0.2.1", &[]), is("192.0.2.1"));
        assert_eq!(
            from("192.0.2.1", &[(forwarded, "203.0.113.9")]),
            is("192.0.2.1")
        );
        assert_eq!(
            from("192.0.2.1", &[("x-real-ip", "203.0.113.9")]),
            is("192.0.2.1")
        );
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(from(here, &[]), None);
            assert_eq!(from(here, &[(forwarded, "203.0.113.9")]), is("203.0.113.9"));
            assert_eq!(
                from(here, &[(forwarded, "198.51.100.1, 203.0.113.9")]),
                is("203.0.113.9")
            );
            assert_eq!(
                from(
                    here,
                    &[(forwarded, "198.51.100.1"), (forwarded, "203.0.113.9")]
                ),
                is("203.0.113.9")
            );
            assert_eq!(
                from(here, &[("x-real-ip", "2001:db8::1")]),
                is("2001:db8::1")
            );
            assert_eq!(
                from(
                    here,
                    &[(forwarded, "unknown"), ("x-real-ip", "203.0.113.9")]
                ),
                is("203.0.113.9")
            );
            assert_eq!(
                from(here, &[(forwarded, "[2001:db8::1]:443")]),
                is("2001:db8::1")
            );
            assert_eq!(from(here, &[(forwarded, "127.0.0.1")]), None);
            assert_eq!(from(here, &[(forwarded, "\u{e4}")]), None);
        }
    }
}
