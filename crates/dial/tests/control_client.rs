//! The control client against a server in the same process: key over HTTP,
//! upgrade, Noise, HTTP/2, and the answers that a test sets.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use warren_channel::map_frames::{MapFrameError, Packing, encode};
use warren_control_types::{
    CapabilityVersion, MapRequest, OverTlsPublicKeyResponse, PingRequest, PingResponse,
    RegisterRequest, User,
};
use warren_dial::control::{ControlClient, ControlError, MapStreamError};
use warren_dial::noise_stream::NoiseStream;
use warren_dial::{Dialer, SystemEntropy};
use warren_keys::{MachinePublic, MachineSecret, NodePublic};

const LONG: Duration = Duration::from_secs(60);

type Body = BoxBody<Bytes, std::io::Error>;

/// A request inside the channel, and its sender.
struct Inner {
    machine: MachinePublic,
    version: u16,
    request: Request<Bytes>,
}

type Answer = dyn Fn(Inner) -> Response<Body> + Send + Sync;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

fn status(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_owned()));
    *response.status_mut() = status;
    response
}

/// A body in these pieces; then it ends, or stays open for ever.
fn pieces(pieces: Vec<Vec<u8>>, end: bool) -> Response<Body> {
    let rest: std::pin::Pin<Box<dyn Stream<Item = _> + Send + Sync>> = if end {
        Box::pin(stream::empty())
    } else {
        Box::pin(stream::pending())
    };
    let data = stream::iter(pieces)
        .map(|piece| Ok(Frame::data(Bytes::from(piece))))
        .chain(rest);
    Response::new(BodyExt::boxed(StreamBody::new(data)))
}

struct Server {
    key: Mutex<MachineSecret>,
    answer: Box<Answer>,
    channels: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Server {
    /// Starts a server and makes a client of it.
    async fn start(
        answer: impl Fn(Inner) -> Response<Body> + Send + Sync + 'static,
    ) -> (Arc<Self>, ControlClient) {
        let server = Arc::new(Self {
            key: Mutex::new(MachineSecret::generate(&mut SystemEntropy)),
            answer: Box::new(answer),
            channels: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = accepting.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.outer(request)) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection.with_upgrades());
            }
        });
        let machine = MachineSecret::from_bytes(&[0x22; 32]);
        (server, ControlClient::new(url, machine, Dialer::new()))
    }

    /// Cuts all channels.
    fn cut(&self) {
        for channel in self.channels.lock().unwrap().drain(..) {
            channel.abort();
        }
    }

    fn outer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == "/key" {
            assert_eq!(request.uri().query(), Some("v=121"));
            let public_key = Some(self.key.lock().unwrap().public());
            let keys = OverTlsPublicKeyResponse {
                public_key,
                ..Default::default()
            };
            return Response::new(full(serde_json::to_vec(&keys).unwrap()));
        }
        if request.headers().get("upgrade").unwrap() != "tailscale-control-protocol" {
            return status(StatusCode::BAD_REQUEST, "unknown next protocol");
        }
        let initiation = request.headers()["X-Tailscale-Handshake"].as_bytes();
        let initiation = BASE64.decode(initiation).unwrap();
        let upgrade = hyper::upgrade::on(&mut request);
        let key = self.key.lock().unwrap().clone();
        let server = self.clone();
        let channel = tokio::spawn(async move {
            let upgraded = TokioIo::new(upgrade.await.unwrap());
            let Ok(accepted) = warren_channel::accept(&initiation, &key, &mut SystemEntropy) else {
                let mut upgraded = upgraded;
                upgraded.write_all(b"\x03\0\x07bad key").await.unwrap();
                upgraded.shutdown().await.unwrap();
                return;
            };
            let mut stream = NoiseStream::new(upgraded, accepted.channel, &[], &accepted.response);
            let early = warren_channel::early::encode(b"{\"nodeKeyChallenge\":null}").unwrap();
            stream.write_all(&early).await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| {
                let server = server.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let request = Request::from_parts(head, body);
                    let inner = Inner {
                        machine: accepted.machine,
                        version: accepted.version,
                        request,
                    };
                    Ok::<_, hyper::Error>((server.answer)(inner))
                }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        self.channels.lock().unwrap().push(channel.abort_handle());
        let mut response = status(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = response.headers_mut();
        headers.insert("Upgrade", "tailscale-control-protocol".parse().unwrap());
        headers.insert("Connection", "upgrade".parse().unwrap());
        response
    }
}

fn echo_register(inner: Inner) -> Response<Body> {
    let Inner {
        machine,
        version,
        request,
    } = inner;
    assert_eq!(request.uri().path(), "/machine/register");
    let hints = request.headers().get_all("ts-lb").iter().count();
    let asked: RegisterRequest = serde_json::from_slice(request.body()).unwrap();
    let answer = warren_control_types::RegisterResponse {
        user: User {
            display_name: machine.to_string(),
            ..Default::default()
        },
        auth_url: format!("{version} {hints} {}", asked.node_key),
        ..Default::default()
    };
    Response::new(full(serde_json::to_vec(&answer).unwrap()))
}

fn map_request(compress: &str) -> MapRequest {
    MapRequest {
        version: CapabilityVersion::CURRENT,
        compress: compress.to_owned(),
        stream: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn registering_tells_machine_node_and_version() {
    let (_server, client) = Server::start(echo_register).await;
    let key = NodePublic::from_bytes([1; 32]);
    let request = RegisterRequest {
        node_key: key,
        ..Default::default()
    };
    let response = client.register(&request).await.unwrap();
    let machine = MachineSecret::from_bytes(&[0x22; 32]).public();
    assert_eq!(response.user.display_name, machine.to_string());
    assert_eq!(response.auth_url, format!("121 1 {key}"));
    let request = RegisterRequest {
        old_node_key: Some(NodePublic::from_bytes([2; 32])),
        ..request
    };
    let response = client.register(&request).await.unwrap();
    assert_eq!(response.auth_url, format!("121 2 {key}"));
}

#[tokio::test]
async fn the_map_streams_in_both_packings_however_it_is_cut() {
    for (compress, packing) in [("zstd", Packing::Zstd), ("", Packing::Plain)] {
        let (_server, client) = Server::start(move |inner| {
            let asked: MapRequest = serde_json::from_slice(inner.request.body()).unwrap();
            assert_eq!(Packing::of_request(&asked.compress), packing);
            let large = format!("{{\"Seq\":2,\"Domain\":\"{}\"}}", "x".repeat(200_000));
            let wire: Vec<u8> = [r#"{"Seq":1}"#, &large, r#"{"KeepAlive":true}"#]
                .iter()
                .flat_map(|json| encode(json.as_bytes(), packing).unwrap())
                .collect();
            pieces(wire.chunks(1500).map(<[u8]>::to_vec).collect(), true)
        })
        .await;
        let stream = client
            .map_stream(&map_request(compress), LONG)
            .await
            .unwrap();
        let messages: Vec<_> = stream.into_stream().try_collect().await.unwrap();
        assert_eq!(
            messages.iter().map(|m| m.seq).collect::<Vec<_>>(),
            [1, 2, 0]
        );
        assert_eq!(messages[1].domain.len(), 200_000);
        assert!(messages[2].keep_alive);
    }
}

#[tokio::test]
async fn stream_that_ends_inside_a_message_is_cut() {
    let (_server, client) = Server::start(|_| {
        let frame = encode(br#"{"Seq":1}"#, Packing::Plain).unwrap();
        pieces(vec![frame.clone(), frame[..frame.len() - 1].to_vec()], true)
    })
    .await;
    let mut stream = client.map_stream(&map_request(""), LONG).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().seq, 1);
    assert!(matches!(stream.next().await, Err(MapStreamError::Cut)));
}

#[tokio::test]
async fn truncated_zstd_frame_is_reported() {
    let (_server, client) = Server::start(|_| {
        let frame = encode(&[b' '; 5000], Packing::Zstd).unwrap();
        let cut = encode(&frame[4..frame.len() - 2], Packing::Plain).unwrap();
        pieces(vec![cut], false)
    })
    .await;
    let mut stream = client.map_stream(&map_request("zstd"), LONG).await.unwrap();
    let error = stream.next().await.unwrap_err();
    assert!(
        matches!(error, MapStreamError::Frame(MapFrameError::Zstd(_))),
        "{error}"
    );
}

#[tokio::test]
async fn cut_connection_breaks_the_stream_and_the_next_request_opens_another() {
    let (server, client) = Server::start(|inner| match inner.request.uri().path() {
        "/machine/map" => pieces(
            vec![encode(br#"{"Seq":1}"#, Packing::Plain).unwrap()],
            false,
        ),
        _ => echo_register(inner),
    })
    .await;
    let mut stream = client.map_stream(&map_request(""), LONG).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().seq, 1);
    server.cut();
    assert!(matches!(
        stream.next().await,
        Err(MapStreamError::Broken(_))
    ));
    client.register(&RegisterRequest::default()).await.unwrap();

    let mut stream = client.map_stream(&map_request(""), LONG).await.unwrap();
    stream.next().await.unwrap().unwrap();
    client.disconnect().await;
    assert!(matches!(
        stream.next().await,
        Err(MapStreamError::Broken(_))
    ));
    client.register(&RegisterRequest::default()).await.unwrap();
}

#[tokio::test]
async fn silence_ends_the_stream() {
    let (_server, client) = Server::start(|_| {
        let frame = encode(br#"{"Seq":1}"#, Packing::Plain).unwrap();
        pieces(vec![frame[..6].to_vec()], false)
    })
    .await;
    let watchdog = Duration::from_millis(300);
    let mut stream = client.map_stream(&map_request(""), watchdog).await.unwrap();
    let silent = stream.next().await;
    assert!(matches!(silent, Err(MapStreamError::Silent(after)) if after == watchdog));
}

#[tokio::test]
async fn refusals_are_typed() {
    let (_server, client) = Server::start(|inner| match inner.request.uri().path() {
        "/machine/register" => {
            let mut response = status(StatusCode::TOO_MANY_REQUESTS, "slow down");
            response
                .headers_mut()
                .insert("Retry-After", "9".parse().unwrap());
            response
        }
        _ => status(
            StatusCode::NOT_FOUND,
            &format!("node\nnot found {}", "x".repeat(400)),
        ),
    })
    .await;
    let limited = client
        .register(&RegisterRequest::default())
        .await
        .unwrap_err();
    let nine = Some(Duration::from_secs(9));
    assert!(matches!(limited, ControlError::RateLimited { retry_after } if retry_after == nine));
    let refused = client.update(&map_request("")).await.unwrap_err();
    let ControlError::Status { path, status, body } = refused else {
        panic!("{refused}")
    };
    assert_eq!(
        (path.as_str(), status),
        ("/machine/map", StatusCode::NOT_FOUND)
    );
    assert!(
        body.starts_with("node not found xx") && body.len() == 200,
        "{body}"
    );
}

#[tokio::test]
async fn answer_of_another_kind_or_without_end_is_reported() {
    let (_server, client) = Server::start(|inner| match inner.request.body().len() {
        0 => pieces(vec![vec![b' '; 300_000]; 4], false),
        _ => Response::new(full("<html>")),
    })
    .await;
    let html = client
        .register(&RegisterRequest::default())
        .await
        .unwrap_err();
    assert!(matches!(html, ControlError::Json { .. }), "{html}");
    let endless = client
        .request(Method::GET, "/machine/whoami", Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(endless, ControlError::TooLong { .. }), "{endless}");
}

#[tokio::test]
async fn news_and_answers_go_beside_the_stream() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let (_server, client) = Server::start(move |inner| {
        let line = format!("{} {}", inner.request.method(), inner.request.uri().path());
        let asked = serde_json::from_slice::<MapRequest>(inner.request.body());
        log.lock().unwrap().push(line);
        match asked {
            Ok(MapRequest { stream: true, .. }) => pieces(
                vec![encode(br#"{"Seq":1}"#, Packing::Plain).unwrap()],
                false,
            ),
            _ => Response::new(full("")),
        }
    })
    .await;
    let mut stream = client.map_stream(&map_request(""), LONG).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let news = MapRequest {
        omit_peers: true,
        stream: false,
        ..map_request("")
    };
    client.update(&news).await.unwrap();
    let ping = PingRequest {
        url: "https://unused/answer/here?token=1".to_owned(),
        url_is_noise: true,
        ..Default::default()
    };
    client
        .post_ping_response(&ping, &PingResponse::default())
        .await
        .unwrap();
    client.answer_head_ping(&ping).await.unwrap();
    client
        .post_c2n_response(&ping, b"HTTP/1.1 200 OK\r\n\r\n".to_vec())
        .await
        .unwrap();
    let nowhere = PingRequest {
        url: "here".to_owned(),
        ..ping
    };
    let refused = client.answer_head_ping(&nowhere).await.unwrap_err();
    assert!(matches!(refused, ControlError::AnswerUrl(_)));
    assert_eq!(
        *seen.lock().unwrap(),
        [
            "POST /machine/map",
            "POST /machine/map",
            "POST /answer/here",
            "HEAD /answer/here",
            "POST /answer/here"
        ]
    );
}

#[tokio::test]
async fn new_server_key_costs_one_failure() {
    let (server, client) = Server::start(echo_register).await;
    client.connect().await.unwrap();
    *server.key.lock().unwrap() = MachineSecret::generate(&mut SystemEntropy);
    client.disconnect().await;
    let failed = client.connect().await.unwrap_err();
    assert!(failed.to_string().contains("bad key"), "{failed}");
    client.register(&RegisterRequest::default()).await.unwrap();
}

#[tokio::test]
async fn other_servers_are_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = |address: std::net::SocketAddr| {
        let url = format!("http://{address}").parse().unwrap();
        ControlClient::new(url, MachineSecret::from_bytes(&[0x22; 32]), Dialer::new())
    };
    tokio::spawn(async move {
        let service = service_fn(|_| async {
            Ok::<_, Infallible>(status(StatusCode::NOT_FOUND, "no such page"))
        });
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let builder = hyper::server::conn::http1::Builder::new();
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    let refused = client(address).connect().await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("HTTP 404 Not Found: no such page"),
        "{refused}"
    );
    let absent = client("127.0.0.1:1".parse().unwrap())
        .connect()
        .await
        .unwrap_err();
    assert!(
        absent.to_string().contains("cannot connect to 127.0.0.1:1"),
        "{absent}"
    );
}
