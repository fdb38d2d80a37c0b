//! `/ts2021`: from an HTTP/1.1 request to HTTP/2 inside Noise.
//!
//! The client's first handshake message rides in a header (or, from browsers,
//! in the query of a WebSocket request). The answer is 101, then our handshake
//! message, then records. In them comes first the early payload, then HTTP/2
//! with prior knowledge. From here on the machine key of the peer is proven.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tracing::Instrument as _;
use warren_channel::{Accepted, Channel, accept, early};
use warren_control_types::{CapabilityVersion, EarlyNoise};
use warren_dial::SystemEntropy;
use warren_dial::connections::Owner;
use warren_dial::noise_stream::NoiseStream;
use warren_keys::{ChallengeSecret, MachinePublic, MachineSecret};

use crate::admin::moment;
use crate::body_budget::BodyBudget;
use crate::channel_idle::OpenRequests;
use crate::clock::wall_clock;
use crate::coordinator::CoordinatorHandle;
use crate::http::{Connection, answer, text};
use crate::machine;
use crate::refusals::Refused;
use crate::swallowed_upgrades::is_swallowed;

/// The protocol to upgrade to.
const PROTOCOL: &str = "tailscale-control-protocol";
/// The header or query parameter with the client's first message.
const HANDSHAKE: &str = "X-Tailscale-Handshake";
/// A stream of maps may be silent for 59 s; a dead peer should not be online
/// for much longer than that, and HTTP/2 pings cost next to nothing.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a peer may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at a time on one connection. A client has one stream, one
/// registration and a few updates.
const MAX_STREAMS: u32 = 64;

/// The longest WebSocket message, and the longest queue of unsent ones, in bytes.
const MAX_WEBSOCKET: usize = 1 << 20;

/// The state that upgrades need.
#[derive(Debug)]
pub struct Upgrader {
    coordinator: Arc<CoordinatorHandle>,
    /// The server's Noise key.
    pub(crate) key: MachineSecret,
    router: Router,
    bodies: BodyBudget,
}

impl Upgrader {
    /// Upgrades with this Noise key to channels of this coordinator.
    pub fn new(coordinator: Arc<CoordinatorHandle>, key: MachineSecret) -> Self {
        Self {
            router: machine::router(coordinator.clone()),
            coordinator,
            key,
            bodies: BodyBudget::default(),
        }
    }

    /// Answers a request for `/ts2021`. The rest happens in a task of its own.
    pub(crate) fn upgrade(self: &Arc<Self>, connection: Connection, request: Request) -> Response {
        self.recognise_proxy(&request);
        let upgraded = match *request.method() {
            Method::POST => self.upgrade_native(connection, request),
            Method::GET => self.upgrade_websocket(connection, request),
            _ => Err((
                StatusCode::METHOD_NOT_ALLOWED,
                "use POST, or GET with a WebSocket".to_owned(),
            )),
        };
        upgraded.unwrap_or_else(|(status, why)| {
            self.coordinator.refused(Refused::Request, &why);
            text(status, why)
        })
    }

    /// Counts the request if it has a handshake message and lost its upgrade.
    fn recognise_proxy(&self, request: &Request) {
        let (method, version, headers) = (request.method(), request.version(), request.headers());
        let handshake = headers.contains_key(HANDSHAKE)
            || request.uri().query().is_some_and(|query| {
                let mut pairs = query.split('&');
                pairs.any(|pair| {
                    pair.split('=')
                        .next()
                        .unwrap_or_default()
                        .eq_ignore_ascii_case(HANDSHAKE)
                })
            });
        if handshake && is_swallowed(method, version, headers, PROTOCOL) {
            let now = moment(wall_clock());
            self.coordinator.swallowed_upgrades().note(now);
        }
    }

    fn upgrade_native(
        self: &Arc<Self>,
        connection: Connection,
        mut request: Request,
    ) -> Result<Response, Refusal> {
        let headers = request.headers();
        if request.version() != http::Version::HTTP_11 {
            return Err(invalid("make request over HTTP/1"));
        }
        let Some(next) = headers.get(header::UPGRADE) else {
            return Err(invalid("missing next protocol"));
        };
        if !next.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()) {
            return Err(invalid("unknown next protocol"));
        }
        let Some(handshake) = headers.get(HANDSHAKE) else {
            return Err(invalid("missing Tailscale handshake header"));
        };
        let accepted = self.accept(handshake.as_bytes()).map_err(invalid)?;
        let this = self.clone();
        let upgraded = hyper::upgrade::on(&mut request);
        let upgraded = async move {
            match upgraded.await {
                Ok(upgraded) => {
                    this.serve(TokioIo::new(upgraded), accepted, connection, true)
                        .await;
                }
                Err(error) => tracing::debug!("an upgrade did not happen: {error}"),
            }
        };
        tokio::spawn(upgraded.in_current_span());
        Ok(switch_to(PROTOCOL))
    }

    fn upgrade_websocket(
        self: &Arc<Self>,
        connection: Connection,
        mut request: Request,
    ) -> Result<Response, Refusal> {
        let headers = request.headers();
        let key = headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        let (true, Some(key)) = (lists(headers, &header::UPGRADE, "websocket"), key) else {
            return Err(invalid("GET here must ask for a WebSocket"));
        };
        let speaks_it = lists(headers, &header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
        let query = request.uri().query().unwrap_or_default();
        let handshake = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.eq_ignore_ascii_case(HANDSHAKE).then_some(value)
        });
        let Some(handshake) = handshake else {
            return Err(invalid("missing Tailscale handshake parameter"));
        };
        let handshake: Vec<u8> = percent_encoding::percent_decode_str(handshake).collect();
        let accepted = self.accept(&handshake).map_err(invalid)?;
        let this = self.clone();
        let upgraded = hyper::upgrade::on(&mut request);
        let upgraded = async move {
            match upgraded.await {
                Ok(upgraded) if speaks_it => {
                    let stream = websocket_bytes(websocket(TokioIo::new(upgraded)).await);
                    this.serve(stream, accepted, connection, false).await;
                }
                Ok(upgraded) => {
                    let close = CloseFrame {
                        code: 1008.into(),
                        reason: "the client must speak the tailscale-control-protocol subprotocol"
                            .into(),
                    };
                    let mut socket = websocket(TokioIo::new(upgraded)).await;
                    let _ = socket.close(Some(close)).await;
                }
                Err(error) => tracing::debug!("an upgrade did not happen: {error}"),
            }
        };
        tokio::spawn(upgraded.in_current_span());
        let mut response = switch_to("websocket");
        let headers = response.headers_mut();
        if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if speaks_it {
            headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(PROTOCOL),
            );
        }
        Ok(response)
    }

    fn accept(&self, encoded: &[u8]) -> Result<Accepted, String> {
        let initiation = BASE64
            .decode(encoded)
            .map_err(|_| "invalid tailscale handshake header".to_owned())?;
        accept(&initiation, &self.key, &mut SystemEntropy)
            .map_err(|error| format!("the handshake failed: {error}"))
    }

    async fn serve<S>(
        self: Arc<Self>,
        stream: S,
        accepted: Accepted,
        Connection { source, slot }: Connection,
        may_be_early: bool,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Accepted {
            channel,
            response,
            machine,
            version,
        } = accepted;
        let mut channel = channel;
        let mut first = response.to_vec();
        if may_be_early && u32::from(version) >= CapabilityVersion::EARLY_PAYLOAD.0 {
            first.extend(early_payload(&mut channel).unwrap_or_default());
        }
        // Both go out with the first bytes of HTTP/2, in one segment.
        let stream = NoiseStream::new(stream, channel, &[], &first);
        let owner = Owner::Node(*machine.as_bytes());
        if self.has_valid_node(&machine) {
            slot.identify(owner);
        }
        let requests = OpenRequests::default();
        let budget = self.bodies.channel(machine, source);
        let peer = machine::Peer { machine, source };
        let service = hyper::service::service_fn(|mut request: http::Request<Incoming>| {
            let open = requests.begin();
            let (this, slot) = (self.clone(), slot.clone());
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(budget.clone());
            async move {
                let response = answer(this.router.clone(), request).await?;
                if !slot.is_identified() && this.has_valid_node(&machine) {
                    slot.identify(owner);
                }
                // A map stream is open as long as its body.
                Ok::<_, std::convert::Infallible>(response.map(|body| {
                    body.map_frame(move |frame| {
                        let _ = &open;
                        frame
                    })
                }))
            }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = serving => {
                if let Err(error) = served {
                    tracing::debug!(%machine, "a channel ended: {error}");
                }
            }
            unused = requests.unused(|| self.has_valid_node(&machine)) => {
                tracing::debug!(%machine, "a channel was closed: {unused}");
            }
            () = slot.must_close() => {
                tracing::debug!(%machine, "a channel was closed in favour of another connection");
            }
        }
    }

    fn has_valid_node(&self, machine: &MachinePublic) -> bool {
        self.coordinator.view().has_valid_node(*machine)
    }
}

/// The answer to a request that is refused.
type Refusal = (StatusCode, String);

fn invalid(why: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, why.into())
}

/// Whether a header that holds a list contains this word, in any case.
fn lists(headers: &HeaderMap, name: &header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter();
    values.filter_map(|value| value.to_str().ok()).any(|value| {
        let mut words = value.split(',').map(str::trim);
        words.any(|found| found.eq_ignore_ascii_case(word))
    })
}

/// The response that switches to another protocol.
fn switch_to(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

async fn websocket<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MAX_WEBSOCKET);
    config.max_frame_size = Some(MAX_WEBSOCKET);
    config.max_write_buffer_size = MAX_WEBSOCKET;
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// The bytes in the messages of a WebSocket. The messages themselves have no meaning
/// here.
fn websocket_bytes<S>(
    socket: WebSocketStream<S>,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = socket.split();
    let reader = StreamReader::new(stream.filter_map(|message| async {
        match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        }
    }));
    let sink = sink
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| std::future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    let writer = SinkWriter::new(CopyToBytes::new(sink));
    tokio::io::join(Box::pin(reader), Box::pin(writer))
}

/// The early payload, sealed. Today's clients read the challenge and forget it.
fn early_payload(channel: &mut Channel) -> Option<Vec<u8>> {
    let challenge = ChallengeSecret::generate(&mut SystemEntropy).public();
    let json = serde_json::to_vec(&EarlyNoise {
        node_key_challenge: Some(challenge),
    })
    .ok()?;
    let payload = early::encode(&json).ok()?;
    let mut sealed = Vec::new();
    channel.sealer.seal(&payload, &mut sealed).ok()?;
    Some(sealed)
}
