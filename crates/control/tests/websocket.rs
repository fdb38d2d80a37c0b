//! The channel inside a WebSocket, as browsers open it.

#![allow(clippy::unwrap_used)]

mod support;

use std::io;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::serve;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use warren_channel::ClientHandshake;
use warren_control::serve::Running;
use warren_dial::SystemEntropy;
use warren_dial::noise_stream::NoiseStream;
use warren_keys::{MachinePublic, MachineSecret};

async fn server_key(server: &Running) -> MachinePublic {
    let dialer = warren_dial::Dialer::new();
    let client = warren_dial::control::ControlClient::new(
        server.server_url.parse().unwrap(),
        MachineSecret::generate(&mut SystemEntropy),
        dialer,
    );
    client.fetch_key().await.unwrap().public_key.unwrap()
}

#[tokio::test]
async fn a_websocket_carries_the_channel() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let machine = MachineSecret::generate(&mut SystemEntropy);
    let key = server_key(&server).await;
    let (handshake, initiation) =
        ClientHandshake::start(119, &machine, &key, &mut SystemEntropy).unwrap();
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("X-Tailscale-Handshake", &BASE64.encode(&initiation))
        .finish();
    let address = server.server_url.strip_prefix("http://").unwrap();
    let mut request = format!("ws://{address}/ts2021?{query}")
        .into_client_request()
        .unwrap();
    let protocol = http::HeaderValue::from_static("tailscale-control-protocol");
    request
        .headers_mut()
        .insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol.clone());
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(
        response.headers()[http::header::SEC_WEBSOCKET_PROTOCOL],
        protocol
    );

    let (sink, stream) = socket.split();
    let reader = StreamReader::new(stream.filter_map(|message| async {
        match message.unwrap() {
            Message::Binary(bytes) => Some(Ok::<_, io::Error>(bytes)),
            _ => None,
        }
    }));
    let sink = sink
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| std::future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    let both = tokio::io::join(
        Box::pin(reader),
        Box::pin(SinkWriter::new(CopyToBytes::new(sink))),
    );
    let channel = NoiseStream::connect(both, Vec::new(), handshake)
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(channel))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://unused/machine/whoami").body(Empty::<Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("you are {}\n", machine.public()));
    server.stop().await.unwrap();
}
