//! The listener: TLS or not, relay or not, and the public pages.
//!
//! One port serves everything. The first byte distinguishes TLS (22, the record
//! type of a ClientHello) from HTTP. Behind TLS, or without it, the request head
//! distinguishes the relay's requests from the control server's; the relay takes the
//! connection over with its bytes, because its protocol may begin without an
//! HTTP response. All other connections go to hyper with the bytes that were read.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::Instrument as _;
use warren_control_types::{CapabilityVersion, OverTlsPublicKeyResponse};
use warren_dial::connections::{ConnectionTable, Slot};
use warren_keys::{MachinePublic, NodePublic};
use warren_relay::{Prefixed, Relay, RequestHead};

use crate::admin::waiting_ssh_checks;
use crate::coordinator::CoordinatorHandle;
use crate::http::{ReplyBody, json, read_body, text, whole};
use crate::noise::Upgrader;
use crate::pages;

/// How long a client may take for the TLS handshake and the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The type byte of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// More headers than any client sends.
const MAX_HEADERS: usize = 64;
/// The page for users whose SSH session waits for a check.
const SSH_CHECK: &str = "/ssh-check/";
/// The longest `/verify` request, in bytes; usual ones have 150.
const MAX_VERIFY_BODY: usize = 4096;

/// The use of TLS at this port.
#[derive(Clone)]
pub enum Tls {
    /// Everything; plain HTTP is refused.
    Required(TlsAcceptor),
    /// The embedded relay, whose clients insist on it. The rest is plain.
    ForRelay(TlsAcceptor),
    /// TLS is not used.
    Off,
}

/// The state that all connections share.
pub struct Server {
    /// The coordinator.
    pub coordinator: Arc<CoordinatorHandle>,
    /// `/ts2021`.
    pub upgrader: Arc<Upgrader>,
    /// The relay that shares the port.
    pub relay: Option<Relay>,
    /// TLS at this port.
    pub tls: Tls,
    /// Our Noise key.
    pub public_key: MachinePublic,
    /// The connections of this listener.
    pub connections: Arc<ConnectionTable>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

impl Server {
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
                                    tracing::debug!("closed to make room for another connection");
                                }
                            }
                        };
                        tokio::spawn(served.instrument(span));
                    }
                    Err(error) => tracing::warn!("a connection was refused: {error}"),
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
                match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.http(stream, peer, slot).await,
                    Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
            Tls::Required(_) => {
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
            let identify = || slot.identify();
            let served = relay.serve_request(&head, stream, leftover, peer, identify);
            match served.await {
                Ok(Some((again, behind))) => (stream, seen) = (again, behind),
                Ok(None) => return,
                Err(error) => return tracing::debug!("a relay connection ended: {error}"),
            }
        }
        let stream = Prefixed::new(seen, stream);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (server, slot) = (self.clone(), slot.clone());
            let source = source_of(peer.ip(), request.headers());
            async move { Ok::<_, Infallible>(server.answer(source, slot, request).await) }
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

    async fn answer(
        &self,
        source: Option<IpAddr>,
        slot: Arc<Slot>,
        request: Request<Incoming>,
    ) -> Response<ReplyBody> {
        if let Some(source) = source {
            slot.move_to(source);
        }
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        match (&method, path.as_str()) {
            (_, "/ts2021") => self.upgrader.upgrade(source, slot, request),
            (&Method::GET, "/key") => self.key(request.uri().query().unwrap_or_default()),
            (&Method::GET | &Method::HEAD, "/health") => self.health(),
            (&Method::GET, "/version") => json(StatusCode::OK, &Version::own()),
            (&Method::POST, "/verify") => self.verify(request).await,
            (&Method::GET | &Method::HEAD, "/generate_204") => generate_204(&request),
            (&Method::GET, "/derpmap/default") => {
                let map = self
                    .coordinator
                    .read(|coordinator| coordinator.config().derp_map.clone());
                json(StatusCode::OK, &map)
            }
            (&Method::GET, "/robots.txt") => text(StatusCode::OK, "User-agent: *\nDisallow: /\n"),
            (&Method::GET, "/") => html(pages::front(
                &self.coordinator.read(|c| c.config().server_url.clone()),
            )),
            (&Method::GET, path) => match path.strip_prefix("/register/") {
                Some(id) => {
                    let waiting = self.coordinator.inspect(|coordinator| {
                        coordinator
                            .pending()
                            .into_iter()
                            .find(|view| view.id.0 == id)
                    });
                    html(pages::approval(waiting.as_ref(), id))
                }
                None if path.starts_with(SSH_CHECK) => {
                    let id = path.trim_start_matches(SSH_CHECK);
                    let waiting = self.coordinator.inspect(waiting_ssh_checks);
                    html(pages::ssh_check(waiting.iter().find(|v| v.id == id), id))
                }
                None if path.starts_with("/machine/") => text(
                    StatusCode::BAD_REQUEST,
                    "this path is only available inside /ts2021",
                ),
                None => text(StatusCode::NOT_FOUND, "not found"),
            },
            (_, path) if path.starts_with("/machine/") => text(
                StatusCode::BAD_REQUEST,
                "this path is only available inside /ts2021",
            ),
            (_, "/key" | "/health" | "/version" | "/verify" | "/") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
            }
            _ => text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    fn key(&self, query: &str) -> Response<ReplyBody> {
        let version = query.split('&').find_map(|pair| pair.strip_prefix("v="));
        let Some(version) = version else {
            return text(
                StatusCode::BAD_REQUEST,
                "the capability version is missing: /key?v=N",
            );
        };
        let Ok(version) = version.parse::<u32>() else {
            return text(
                StatusCode::BAD_REQUEST,
                "the capability version in /key?v=N is not a valid number",
            );
        };
        let oldest = CapabilityVersion::OLDEST_CLIENT.0;
        if version < oldest {
            return text(
                StatusCode::BAD_REQUEST,
                format!(
                    "this client is too old (capability version {version}); {oldest} is needed, which is Tailscale 1.80"
                ),
            );
        }
        // A zero legacy key is what says that there is none.
        json(
            StatusCode::OK,
            &OverTlsPublicKeyResponse {
                legacy_public_key: None,
                public_key: Some(self.public_key),
            },
        )
    }

    fn health(&self) -> Response<ReplyBody> {
        let well = self.coordinator.is_healthy();
        let (status, word) = if well {
            (StatusCode::OK, "pass")
        } else {
            (StatusCode::INTERNAL_SERVER_ERROR, "fail")
        };
        let mut response = json(status, &serde_json::json!({ "status": word }));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/health+json; charset=utf-8"),
        );
        response
    }

    /// Answers a relay's request whether a node may use it.
    async fn verify(&self, request: Request<Incoming>) -> Response<ReplyBody> {
        #[derive(Deserialize)]
        struct VerifyRequest {
            #[serde(rename = "NodePublic")]
            node: NodePublic,
        }
        #[derive(Serialize)]
        struct VerifyResponse {
            #[serde(rename = "Allow")]
            allow: bool,
        }
        let body = match read_body(request.into_body(), MAX_VERIFY_BODY).await {
            Ok(body) => body,
            Err(refusal) => return *refusal,
        };
        match serde_json::from_slice::<VerifyRequest>(&body) {
            Ok(question) => json(
                StatusCode::OK,
                &VerifyResponse {
                    allow: self.coordinator.admits(&question.node),
                },
            ),
            Err(error) => text(
                StatusCode::BAD_REQUEST,
                format!("the request is not valid: {error}"),
            ),
        }
    }
}

/// Paths that are the relay's; the rest is ours even where a relay that is
/// alone would answer.
fn is_for_relay(path: &str) -> bool {
    path == "/derp" || path.starts_with("/derp/") || path == "/bootstrap-dns"
}

fn html(content: String) -> Response<ReplyBody> {
    let mut response = Response::new(whole(content));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
    );
    response
}

/// The captive portal check: 204, and an echo that a portal cannot guess.
fn generate_204<B>(request: &Request<B>) -> Response<ReplyBody> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store"),
    );
    let challenge = request
        .headers()
        .get("X-Tailscale-Challenge")
        .and_then(|value| value.to_str().ok())
        .filter(|c| {
            c.len() <= 64
                && c.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
        });
    if let Some(challenge) = challenge
        && let Ok(value) = HeaderValue::from_str(&format!("response {challenge}"))
    {
        response.headers_mut().insert("X-Tailscale-Response", value);
    }
    response
}

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    capability_version: u32,
    minimum_capability_version: u32,
}

impl Version {
    fn own() -> Self {
        Self {
            name: "warren-control",
            version: env!("CARGO_PKG_VERSION"),
            capability_version: CapabilityVersion::CURRENT.0,
            minimum_capability_version: CapabilityVersion::OLDEST_CLIENT.0,
        }
    }
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
