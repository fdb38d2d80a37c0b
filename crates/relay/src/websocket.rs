//! DERP over WebSocket, for clients that can do nothing else (browsers).

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use warren_dial::derp::WebSocketBytes;

use crate::head::RequestHead;

/// The response that accepts a WebSocket with subprotocol `derp`; `None` if the
/// request is not a whole WebSocket handshake (RFC 6455 section 4.2.1).
pub(crate) fn accept(head: &RequestHead) -> Option<Vec<u8>> {
    let key = head.header("sec-websocket-key")?;
    if head.header("sec-websocket-version") != Some("13")
        || !head.has_token("connection", "upgrade")
        || head.method != "GET"
    {
        return None;
    }
    let accept = derive_accept_key(key.as_bytes());
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
    );
    Some(response.into_bytes())
}

/// The bytes inside, as a stream.
pub(crate) async fn server<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    leftover: Vec<u8>,
) -> WebSocketBytes<S> {
    WebSocketBytes::new(stream, leftover, Role::Server).await
}
