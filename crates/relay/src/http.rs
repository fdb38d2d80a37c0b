//! The relay's HTTP side: the upgrade to DERP, and the small answers.
//!
//! Everything here is GET without a body, so the answers are written by hand;
//! what is not understood is refused and the connection closed.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use data_encoding::HEXLOWER;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument as _;
use warren_dial::connections::{NoSlot, Owner, Slot};

use crate::connection::{self, ConnectionError};
use crate::head::{HeadError, RequestHead};
use crate::relay::Relay;
use crate::websocket;

/// The longest challenge of a captive-portal probe that is answered.
const MAX_CHALLENGE: usize = 64;

/// The reason why an HTTP connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The relay has as many connections as its configuration allows.
    #[error(transparent)]
    Full(#[from] NoSlot),
    /// The connection was closed in favour of a newer one: clients that have
    /// not logged in share a limited number of slots.
    #[error("closed for a newer connection before the login")]
    Displaced,
    /// The client did not finish this phase in time.
    #[error("the client took too long for {0}")]
    Slow(&'static str),
    /// The TLS handshake failed.
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    /// The request cannot be read.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The DERP connection ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The connection broke.
    #[error("connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl Relay {
    /// Whether a request is for the relay, of those that reach a server that
    /// also does other things.
    pub fn wants(&self, head: &RequestHead) -> bool {
        matches!(
            head.path(),
            "/derp" | "/derp/probe" | "/derp/latency-check" | "/generate_204" | "/bootstrap-dns"
        )
    }

    /// Serves one HTTP/1.1 connection from its first byte to its end.
    ///
    /// # Errors
    /// [`ServeError`] is the reason for the end, for the log.
    pub async fn serve_connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: S,
        peer: SocketAddr,
    ) -> Result<(), ServeError> {
        self.in_slot(peer, async move |slot| {
            self.serve_http(stream, peer, slot).await
        })
        .await
    }

    /// Serves a connection in a slot, which it keeps until it ends. All log lines of
    /// the connection carry its number; which address it belongs to is said at the
    /// level `debug` only.
    pub(crate) async fn in_slot(
        &self,
        peer: SocketAddr,
        serve: impl AsyncFnOnce(&Slot) -> Result<(), ServeError>,
    ) -> Result<(), ServeError> {
        let slot = self.shared.slots.open(peer.ip()).inspect_err(|_| {
            self.shared.metrics.refused.add(1);
        })?;
        let served = async {
            tracing::debug!(%peer, "connection accepted");
            let served = tokio::select! {
                served = serve(&slot) => served,
                () = slot.must_close() => Err(ServeError::Displaced),
            };
            if let Err(error) = &served {
                self.shared.metrics.refused.add(1);
                tracing::debug!(%error, "connection ended");
            }
            served
        };
        let span = tracing::warn_span!("conn", id = slot.id());
        served.instrument(span).await
    }

    pub(crate) async fn serve_http<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        mut stream: S,
        peer: SocketAddr,
        slot: &Slot,
    ) -> Result<(), ServeError> {
        let timeouts = self.shared.timeouts;
        let until_upgrade = Instant::now() + timeouts.until_upgrade;
        let mut leftover = Vec::new();
        loop {
            let deadline = until_upgrade.min(Instant::now() + timeouts.http);
            let head = RequestHead::read(&mut stream, &mut leftover);
            let head = match timeout_at(deadline, head)
                .await
                .map_err(|_| ServeError::Slow("a request"))?
            {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(error) => {
                    if !matches!(error, HeadError::Broken(_)) {
                        let answer =
                            Answer::text(400, "Bad Request", "this port speaks HTTP/1.1\n");
                        let answer = answer.render("GET", false);
                        let _ = send(&mut stream, &answer, timeouts.http).await;
                    }
                    return Err(error.into());
                }
            };
            let identify = |owner| slot.identify(owner);
            let served = self.serve_request(&head, stream, leftover, peer, identify);
            match served.await? {
                Some(next) => (stream, leftover) = next,
                None => return Ok(()),
            }
        }
    }

    /// Serves one request whose head was read already, with the bytes that
    /// came behind it. Gives the connection back if it can take another
    /// request, which it cannot after DERP. Calls `identified` when a DERP client
    /// has logged in and is admitted, with the owner of the connection.
    ///
    /// # Errors
    /// [`ServeError`]; the connection is closed.
    pub async fn serve_request<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        head: &RequestHead,
        mut stream: S,
        leftover: Vec<u8>,
        peer: SocketAddr,
        identified: impl FnOnce(Owner) + Send,
    ) -> Result<Option<(S, Vec<u8>)>, ServeError> {
        let http_timeout = self.shared.timeouts.http;
        if head.path() == "/derp"
            && let Some(upgrade) = head.header("upgrade")
        {
            if self.connections() >= self.shared.max_connections {
                return Err(NoSlot(self.shared.max_connections).into());
            }
            let fast = head.header("derp-fast-start") == Some("1");
            let not_ideal = head
                .header("ideal-node")
                .is_some_and(|node| !node.is_empty());
            if upgrade.eq_ignore_ascii_case("websocket")
                && head.has_token("sec-websocket-protocol", "derp")
            {
                self.shared.metrics.websockets.add(1);
                let Some(response) = websocket::accept(head) else {
                    let answer = Answer::text(400, "Bad Request", "not a WebSocket handshake\n");
                    let answer = answer.render(&head.method, false);
                    send(&mut stream, &answer, http_timeout).await?;
                    return Ok(None);
                };
                send(&mut stream, &response, http_timeout).await?;
                let stream = websocket::server(stream, leftover).await;
                connection::serve(self, stream, Vec::new(), peer, false, identified).await?;
                return Ok(None);
            }
            if upgrade.eq_ignore_ascii_case("derp") || upgrade.eq_ignore_ascii_case("websocket") {
                if !fast {
                    send(&mut stream, &self.switching_protocols(), http_timeout).await?;
                }
                connection::serve(self, stream, leftover, peer, not_ideal, identified).await?;
                return Ok(None);
            }
        }
        let answer = self.answer(head, peer);
        let keep = head.keeps_alive() && !head.has_body() && !answer.close;
        send(
            &mut stream,
            &answer.render(&head.method, keep),
            http_timeout,
        )
        .await?;
        if keep {
            return Ok(Some((stream, leftover)));
        }
        let _ = timeout(http_timeout, stream.shutdown()).await;
        Ok(None)
    }

    fn switching_protocols(&self) -> Vec<u8> {
        let key = HEXLOWER.encode(self.public_key().as_bytes());
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\
             Derp-Version: 2\r\nDerp-Public-Key: {key}\r\n\r\n"
        )
        .into_bytes()
    }

    fn answer(&self, head: &RequestHead, peer: SocketAddr) -> Answer {
        let reads = matches!(head.method.as_str(), "GET" | "HEAD");
        match head.path() {
            "/derp" => {
                let text = "DERP requires connection upgrade\n";
                Answer::text(426, "Upgrade Required", text).with("Upgrade", "DERP")
            }
            "/derp/probe" | "/derp/latency-check" if reads => {
                Answer::empty(200, "OK").with("Access-Control-Allow-Origin", "*")
            }
            "/generate_204" => generate_204(head),
            "/bootstrap-dns" if reads => {
                let json = self.shared.bootstrap_dns.answer(head.query("q"));
                let mut answer = Answer::text(200, "OK", &json);
                answer.content_type = "application/json";
                answer.close = true;
                answer
            }
            "/robots.txt" if reads => Answer::text(200, "OK", "User-agent: *\nDisallow: /\n"),
            "/" if reads => {
                let mut answer = Answer::text(200, "OK", HOME);
                answer.content_type = "text/html; charset=utf-8";
                answer
                    .with("X-Frame-Options", "DENY")
                    .with("X-Content-Type-Options", "nosniff")
                    .with(
                        "Content-Security-Policy",
                        "default-src 'none'; frame-ancestors 'none'",
                    )
            }
            // Through a proxy, all clients would come from loopback.
            "/metrics"
                if reads
                    && peer.ip().to_canonical().is_loopback()
                    && head.header("x-forwarded-for").is_none() =>
            {
                Answer::text(200, "OK", &self.metrics())
            }
            "/derp/probe" | "/derp/latency-check" | "/bootstrap-dns" | "/robots.txt" | "/" => {
                Answer::text(405, "Method Not Allowed", "only GET and HEAD\n")
                    .with("Allow", "GET, HEAD")
            }
            _ => Answer::text(404, "Not Found", "not found\n"),
        }
    }
}

const HOME: &str = "<!doctype html><title>Relay</title><h1>Relay</h1>\
    <p>This is a DERP relay of a private network. It carries encrypted packets \
    between machines that cannot reach each other directly, and has nothing to show.\n";

/// The answer that proves to a client that no captive portal is in the way.
fn generate_204(head: &RequestHead) -> Answer {
    let answer = Answer::empty(204, "No Content").with(
        "Cache-Control",
        "no-cache, no-store, must-revalidate, no-transform, max-age=0",
    );
    let fits = |challenge: &&str| {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        (1..=MAX_CHALLENGE).contains(&challenge.len()) && challenge.bytes().all(ok)
    };
    match head.header("x-tailscale-challenge").filter(fits) {
        Some(challenge) => answer.with("X-Tailscale-Response", &format!("response {challenge}")),
        None => answer,
    }
}

/// A response, not yet written out.
pub(crate) struct Answer {
    status: u16,
    reason: &'static str,
    headers: Vec<(&'static str, String)>,
    content_type: &'static str,
    body: String,
    close: bool,
}

impl Answer {
    pub(crate) fn empty(status: u16, reason: &'static str) -> Self {
        Self::text(status, reason, "")
    }

    pub(crate) fn text(status: u16, reason: &'static str, body: &str) -> Self {
        Self {
            status,
            reason,
            headers: Vec::new(),
            content_type: "text/plain; charset=utf-8",
            body: body.to_owned(),
            close: false,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn render(&self, method: &str, keep: bool) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} {}\r\n", self.status, self.reason);
        for (name, value) in &self.headers {
            // Writing to a String cannot fail.
            let _ = write!(out, "{name}: {value}\r\n");
        }
        if self.status != 204 {
            let _ = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        if !self.body.is_empty() {
            let _ = write!(out, "Content-Type: {}\r\n", self.content_type);
        }
        if !keep {
            out.push_str("Connection: close\r\n");
        }
        out.push_str("\r\n");
        if method != "HEAD" {
            out.push_str(&self.body);
        }
        out.into_bytes()
    }
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
    limit: Duration,
) -> Result<(), ServeError> {
    let sending = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    Ok(timeout(limit, sending)
        .await
        .map_err(|_| ServeError::Slow("taking an answer"))??)
}

/// Reads one request head, sends the answer to it, and closes.
async fn answer_one<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    limit: Duration,
    answer: impl FnOnce(&RequestHead) -> Answer,
) -> Result<(), ServeError> {
    let mut buffered = Vec::new();
    let head = RequestHead::read(&mut stream, &mut buffered);
    let head = timeout(limit, head)
        .await
        .map_err(|_| ServeError::Slow("a request"))?;
    let Some(head) = head? else {
        return Ok(());
    };
    let answer = answer(&head).render(&head.method, false);
    send(&mut stream, &answer, limit).await?;
    let _ = timeout(limit, stream.shutdown()).await;
    Ok(())
}

/// Serves a plain HTTP port beside a TLS one: captive-portal probes are
/// answered, all other requests are redirected to HTTPS.
pub(crate) async fn serve_port_80<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    relay: &Relay,
) -> Result<(), ServeError> {
    answer_one(stream, relay.shared.timeouts.http, |head| {
        let host = head
            .header("host")
            .map(|host| host.split(':').next().unwrap_or(host));
        match (head.path(), host) {
            ("/generate_204", _) => generate_204(head),
            (_, Some(host)) if matches!(head.method.as_str(), "GET" | "HEAD") => {
                let to = format!("https://{host}{}", head.target);
                Answer::empty(302, "Found").with("Location", &to)
            }
            _ => Answer::text(400, "Bad Request", "use HTTPS\n"),
        }
    })
    .await
}

/// Answers one `GET /metrics`.
pub(crate) async fn serve_metrics<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    relay: &Relay,
) -> Result<(), ServeError> {
    answer_one(stream, relay.shared.timeouts.http, |head| {
        if head.path() == "/metrics" && head.method == "GET" {
            Answer::text(200, "OK", &relay.metrics())
        } else {
            Answer::text(404, "Not Found", "only GET /metrics\n")
        }
    })
    .await
}
