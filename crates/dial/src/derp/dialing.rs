//! From an entry of the DERP map to a DERP stream.
//!
//! The relays of a region are tried in their order, those that only speak STUN
//! left out. To each: TCP to its addresses of both families, raced; TLS under
//! the rule its entry asks for; then `GET /derp`:
//!
//! - knowing the relay's key from the TLS 1.3 handshake (a certificate named
//!   `derpkey…` at the end of the chain), we ask for a fast start and log in
//!   right behind the request, without waiting for anything;
//! - else we ask for an upgrade, and wait for it and for the relay's key;
//! - or, if configured, over a WebSocket.
//!
//! TLS is left out ([`is_plain_http`]) when the options say so, and on the two
//! ports that mean HTTP: 80, and 3340, where `derper -dev` listens and the
//! reference's clients speak plain HTTP too.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use warren_control_types::{DerpNode, DerpRegion, HostAddress, RegionId};
use warren_derp::client::ClientConfig;
use warren_keys::{DerpMeshKey, Entropy as _, NodePublic, NodeSecret};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{DerpReceiver, DerpSender, RecvError, Stream, WebSocketBytes, start_at};
use crate::SystemEntropy;
use crate::proxies::Scheme;
use crate::tls::{self, RELAY_KEY_PREFIX, TlsError, Trust};
use crate::upgrade::{self, UpgradeError, UpgradeRequest};
use crate::{DialError, Dialer, Transport};

/// How long TCP may take to one relay.
const TCP_TIMEOUT: Duration = Duration::from_millis(1500);
/// Unacknowledged data that ends a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that may wait unsent in the kernel: more would be delay that our own
/// queue cannot bound.
const NOT_SENT: u32 = 64 * 1024;
/// TLS bytes that rustls may hold on to.
const TLS_BUFFER: usize = 64 * 1024;
/// TLS bytes read at once.
const READ_AHEAD: usize = 64 * 1024;
/// How much of the answer to a latency check is read.
const MAX_LATENCY_ANSWER: usize = 8 * 1024;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How to connect, and with which role.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Whether this region is our home.
    pub home: bool,
    /// For relays: proves that we are one of the same mesh.
    pub mesh_key: Option<DerpMeshKey>,
    /// For relays: asks for the arrivals and departures of clients.
    pub watch: bool,
    /// Whether we only measure.
    pub is_prober: bool,
    /// A label for the relay's statistics.
    pub app_name: String,
    /// Speak HTTP without TLS, whatever the entry says.
    pub plain_http: bool,
    /// Use a WebSocket, where nothing else gets through.
    pub websocket: bool,
    /// The family to try first; the other one follows a moment later.
    pub prefer: Family,
    /// For one relay, all steps together.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            home: false,
            mesh_key: None,
            watch: false,
            is_prober: false,
            app_name: String::new(),
            plain_http: false,
            websocket: false,
            prefer: Family::V4,
            timeout: Duration::from_secs(10),
        }
    }
}

/// One relay could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The TCP connection failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP upgrade failed.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// The DERP login failed.
    #[error(transparent)]
    Login(#[from] RecvError),
    /// The entry allows no address.
    #[error("{0} has no address in any family that its map entry allows")]
    NoAddress(String),
    /// The relay answers a WebSocket handshake wrongly.
    #[error("{0} answers the WebSocket handshake wrongly")]
    WebSocket(String),
    /// The latency check was answered with an error or not understood.
    #[error("{host} answered the latency check with \"{answer}\"")]
    LatencyCheck {
        /// The relay's host name.
        host: String,
        /// The first line.
        answer: String,
    },
    /// All steps together took too long.
    #[error("{0} did not get ready in time")]
    TimedOut(String),
}

/// No relay of a region could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is none.
    #[error("relay region {0} has no relays")]
    NoRelays(RegionId),
    /// None answered as it should.
    #[error("no relay of region {region} can be used: {}",
        failures.iter().map(|(name, error)| format!("{name}: {error}"))
            .collect::<Vec<_>>().join("; "))]
    AllFailed {
        /// The region that was tried.
        region: RegionId,
        /// By name, in the order tried.
        failures: Vec<(String, NodeError)>,
    },
}

/// Whether HTTP without TLS is spoken to `node`. See the module docs.
pub fn is_plain_http(node: &DerpNode, options: &ConnectOptions) -> bool {
    options.plain_http || matches!(node.derp_port(), 80 | 3340)
}

/// Connects to the first relay of `region` that can be reached.
///
/// # Errors
/// [`ConnectError`], with the error of each relay.
pub async fn connect(
    dialer: &Dialer,
    region: &DerpRegion,
    secret: &NodeSecret,
    options: &ConnectOptions,
) -> Result<(DerpSender, DerpReceiver), ConnectError> {
    let mut failures = Vec::new();
    // A WebSocket client looks like a browser, and browsers use the first.
    let most = if options.websocket { 1 } else { usize::MAX };
    let ideal = region.nodes.first().map(|node| node.name.as_str());
    for node in region
        .nodes
        .iter()
        .filter(|node| !node.stun_only)
        .take(most)
    {
        let other = ideal.filter(|ideal| *ideal != node.name);
        match connect_to(dialer, node, other, secret, options).await {
            Ok(connected) => return Ok(connected),
            Err(error) => failures.push((node.name.clone(), error)),
        }
    }
    let region = region.region_id;
    if failures.is_empty() {
        return Err(ConnectError::NoRelays(region));
    }
    Err(ConnectError::AllFailed { region, failures })
}

/// Connects to one relay.
///
/// # Errors
/// [`NodeError`].
pub async fn connect_node(
    dialer: &Dialer,
    node: &DerpNode,
    secret: &NodeSecret,
    options: &ConnectOptions,
) -> Result<(DerpSender, DerpReceiver), NodeError> {
    connect_to(dialer, node, None, secret, options).await
}

async fn connect_to(
    dialer: &Dialer,
    node: &DerpNode,
    ideal: Option<&str>,
    secret: &NodeSecret,
    options: &ConnectOptions,
) -> Result<(DerpSender, DerpReceiver), NodeError> {
    let connecting = async {
        let config = ClientConfig {
            secret: secret.clone(),
            home: options.home,
            mesh_key: options.mesh_key.clone(),
            watch: options.watch,
            is_prober: options.is_prober,
            app_name: options.app_name.clone(),
        };
        let opened = open(dialer, node, options).await?;
        let Opened {
            mut stream,
            relay_key,
            ends,
        } = opened;
        let host = host_header(node, is_plain_http(node, options));
        if options.websocket {
            let (stream, leftover) = websocket(stream, node, &host).await?;
            let bytes = WebSocketBytes::new(stream, leftover, Role::Client).await;
            let stream: Box<dyn Stream> = Box::new(bytes);
            return Ok(start_at(stream, &[], config, None, Vec::new(), ends).await?);
        }
        let mut headers = Vec::new();
        headers.extend(ideal.map(|ideal| ("Ideal-Node", ideal)));
        headers.extend(relay_key.map(|_| ("Derp-Fast-Start", "1")));
        let request = UpgradeRequest {
            method: "GET",
            path: "/derp",
            host: &host,
            protocol: "DERP",
            headers: &headers,
        };
        if relay_key.is_some() {
            let head = upgrade::request_head(&request);
            return Ok(start_at(stream, &[], config, relay_key, head, ends).await?);
        }
        let upgraded = upgrade::upgrade(&mut stream, &request).await?;
        Ok(start_at(stream, &upgraded.leftover, config, None, Vec::new(), ends).await?)
    };
    timeout(options.timeout, connecting)
        .await
        .unwrap_or_else(|_| Err(NodeError::TimedOut(node.host_name.clone())))
}

/// How long the relay takes to answer a small request over a connection that
/// is already up: one round trip, where UDP does not get through.
///
/// # Errors
/// [`NodeError`].
pub async fn https_latency(
    dialer: &Dialer,
    node: &DerpNode,
    options: &ConnectOptions,
) -> Result<(Duration, SocketAddr), NodeError> {
    let checking = async {
        let Opened {
            mut stream, ends, ..
        } = open(dialer, node, options).await?;
        let host = host_header(node, is_plain_http(node, options));
        let request = format!(
            "GET /derp/latency-check HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        let broken = |source| NodeError::Login(RecvError::Broken(source));
        let started = Instant::now();
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut answer = Vec::new();
        let mut first = None;
        while answer.len() < MAX_LATENCY_ANSWER && !answer.windows(4).any(|w| w == b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
                break;
            }
            first.get_or_insert_with(|| started.elapsed());
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&answer);
        match (parsed, response.code, first, ends.1) {
            (Ok(_), Some(200..=299), Some(latency), Some(relay)) => Ok((latency, relay)),
            _ => Err(NodeError::LatencyCheck {
                host: node.host_name.clone(),
                answer: upgrade::shown(answer.split(|b| *b == b'\r').next().unwrap_or_default()),
            }),
        }
    };
    timeout(options.timeout, checking)
        .await
        .unwrap_or_else(|_| Err(NodeError::TimedOut(node.host_name.clone())))
}

/// A connection on which HTTP/1.1 may start.
struct Opened {
    stream: Box<dyn Stream>,
    /// The relay's key, if the TLS handshake named it.
    relay_key: Option<NodePublic>,
    /// Our and the relay's end.
    ends: (Option<SocketAddr>, Option<SocketAddr>),
}

async fn open(
    dialer: &Dialer,
    node: &DerpNode,
    options: &ConnectOptions,
) -> Result<Opened, NodeError> {
    let is_plain = is_plain_http(node, options);
    let stream = transport(dialer, node, is_plain, options.prefer).await?;
    let tcp = stream.tcp();
    tune(tcp);
    let ends = (tcp.local_addr().ok(), tcp.peer_addr().ok());
    if is_plain {
        return Ok(Opened {
            stream: Box::new(stream),
            relay_key: None,
            ends,
        });
    }
    let trust = Trust::for_relay(node)?;
    // rustls reads 4 KiB at once.
    let stream = BufReader::with_capacity(READ_AHEAD, stream);
    let mut stream = tls::connect(stream, &node.host_name, &trust, &[b"http/1.1"]).await?;
    let (_, session) = stream.get_mut();
    session.set_buffer_limit(Some(TLS_BUFFER));
    // Before 1.3 certificates travel in the clear, and nothing binds the
    // extra one to the handshake.
    let relay_key = if session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) {
        session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .find_map(|der| relay_key(der))
    } else {
        None
    };
    Ok(Opened {
        stream: Box::new(stream),
        relay_key,
        ends,
    })
}

/// A connection to the relay, through a proxy if there is one for it.
async fn transport(
    dialer: &Dialer,
    node: &DerpNode,
    is_plain: bool,
    prefer: Family,
) -> Result<Transport, NodeError> {
    let scheme = match is_plain {
        true => Scheme::Http,
        false => Scheme::Https,
    };
    let (host, port) = (&node.host_name, node.derp_port());
    let proxy = dialer.proxy(scheme, host, port).map_err(DialError::from)?;
    if proxy.is_some() {
        return Ok(dialer.open(scheme, host, port).await?);
    }
    let addresses = addresses(dialer, node, prefer).await?;
    let target = format!("relay {host} port {port}");
    let quick = dialer.clone().with_timeout(TCP_TIMEOUT);
    Ok(Transport::Tcp(
        quick.connect_any(&target, &addresses).await?,
    ))
}

/// The relay's key, if this is the certificate that names it.
fn relay_key(der: &[u8]) -> Option<NodePublic> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?;
    let digits = name.strip_prefix(RELAY_KEY_PREFIX)?;
    let key = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?;
    // The serial number is the protocol version: one byte, not zero.
    let version = match certificate.raw_serial() {
        [version] | [0, version] => *version,
        _ => return None,
    };
    if version == 0 {
        return None;
    }
    NodePublic::from_bytes(key.try_into().ok()?).non_zero()
}

fn tune(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(stream);
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
    }
}

/// The addresses of the relay, the preferred family first.
async fn addresses(
    dialer: &Dialer,
    node: &DerpNode,
    prefer: Family,
) -> Result<Vec<SocketAddr>, NodeError> {
    let port = node.derp_port();
    let mut found: Vec<IpAddr> = Vec::new();
    found.extend(node.ipv4.literal().map(IpAddr::V4));
    found.extend(node.ipv6.literal().map(IpAddr::V6));
    let ask_v4 = node.ipv4 == HostAddress::Resolve;
    let ask_v6 = node.ipv6 == HostAddress::Resolve;
    let host = node.host_name.trim_start_matches('[').trim_end_matches(']');
    if ask_v4 || ask_v6 {
        let wanted = |ip: &IpAddr| if ip.is_ipv4() { ask_v4 } else { ask_v6 };
        if let Ok(ip) = host.parse::<IpAddr>() {
            found.extend(Some(ip).filter(wanted));
        } else {
            let quick = dialer.clone().with_timeout(TCP_TIMEOUT * 2);
            match quick.resolve(host).await {
                Ok(all) => found.extend(all.into_iter().filter(wanted)),
                // A literal address is enough.
                Err(_) if !found.is_empty() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    if found.is_empty() {
        return Err(NodeError::NoAddress(node.host_name.clone()));
    }
    found.sort_by_key(|ip| ip.is_ipv4() != (prefer == Family::V4));
    found.dedup();
    Ok(found
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
}

fn host_header(node: &DerpNode, plain: bool) -> String {
    let usual = if plain { 80 } else { 443 };
    let bare = node.host_name.trim_start_matches('[').trim_end_matches(']');
    let host = if bare.contains(':') {
        format!("[{bare}]")
    } else {
        bare.to_owned()
    };
    if node.derp_port() == usual {
        host
    } else {
        format!("{host}:{}", node.derp_port())
    }
}

/// The WebSocket handshake (RFC 6455 section 4.1) with subprotocol `derp`.
async fn websocket(
    mut stream: Box<dyn Stream>,
    node: &DerpNode,
    host: &str,
) -> Result<(Box<dyn Stream>, Vec<u8>), NodeError> {
    let key = BASE64.encode(&SystemEntropy.bytes::<16>());
    let request = UpgradeRequest {
        method: "GET",
        path: "/derp",
        host,
        protocol: "websocket",
        headers: &[
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", &key),
            ("Sec-WebSocket-Protocol", "derp"),
        ],
    };
    let upgraded = upgrade::upgrade(&mut stream, &request).await?;
    let accept = derive_accept_key(key.as_bytes());
    if upgraded.header("sec-websocket-accept") != Some(accept.as_str())
        || upgraded.header("sec-websocket-protocol") != Some("derp")
    {
        return Err(NodeError::WebSocket(node.host_name.clone()));
    }
    Ok((stream, upgraded.leftover))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(host: &str, port: i32) -> DerpNode {
        DerpNode {
            host_name: host.into(),
            derp_port_raw: port,
            ..DerpNode::default()
        }
    }

    #[tokio::test]
    async fn addresses_follow_the_entry() {
        let dialer = Dialer::new();
        let both = DerpNode {
            ipv4: HostAddress::At([192, 0, 2, 1].into()),
            ipv6: HostAddress::At("2001:db8::1".parse().unwrap()),
            ..node("never-asked.invalid", 444)
        };
        let first = addresses(&dialer, &both, Family::V4).await.unwrap();
        assert_eq!(
            first,
            [
                "192.0.2.1:444".parse().unwrap(),
                "[2001:db8::1]:444".parse().unwrap()
            ]
        );
        let first = addresses(&dialer, &both, Family::V6).await.unwrap();
        assert!(first[0].is_ipv6());
        let literal = addresses(&dialer, &node("192.0.2.9", 0), Family::V4)
            .await
            .unwrap();
        assert_eq!(literal, ["192.0.2.9:443".parse().unwrap()]);
        let never = DerpNode {
            ipv4: HostAddress::Never,
            ..node("192.0.2.9", 0)
        };
        assert!(matches!(
            addresses(&dialer, &never, Family::V4).await,
            Err(NodeError::NoAddress(_))
        ));
    }

    #[test]
    fn plain_http_is_for_two_ports_or_the_option() {
        let options = ConnectOptions::default();
        for (port, plain) in [
            (0, false),
            (443, false),
            (8443, false),
            (80, true),
            (3340, true),
        ] {
            assert_eq!(is_plain_http(&node("x", port), &options), plain, "{port}");
        }
        let options = ConnectOptions {
            plain_http: true,
            ..options
        };
        assert!(is_plain_http(&node("x", 8443), &options));
    }

    #[test]
    fn the_host_header_names_unusual_ports() {
        assert_eq!(
            host_header(&node("relay.example", 0), false),
            "relay.example"
        );
        assert_eq!(
            host_header(&node("relay.example", 443), true),
            "relay.example:443"
        );
        assert_eq!(
            host_header(&node("2001:db8::1", 444), false),
            "[2001:db8::1]:444"
        );
    }
}
