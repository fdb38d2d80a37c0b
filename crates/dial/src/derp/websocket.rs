//! A WebSocket as a stream of bytes.
//!
//! DERP over WebSocket pays no heed to message boundaries: each write is one
//! binary message, and the payloads of all binary messages are one stream.
//! Text messages are an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The largest message taken.
const MAX_MESSAGE: usize = 1024 * 1024;
/// The largest message written. The reference's relay closes the connection
/// on one of more than 32 KiB.
const MAX_WRITTEN: usize = 16 * 1024;

/// The payloads of binary messages, one after the other. See the module.
pub struct ByteStream<S> {
    inner: WebSocketStream<S>,
    message: bytes::Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream<S> {
    /// A WebSocket whose HTTP handshake is done; `leftover` was read behind it.
    pub async fn new(stream: S, leftover: Vec<u8>, role: Role) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .write_buffer_size(64 * 1024)
            .max_write_buffer_size(4 * MAX_MESSAGE);
        let inner =
            WebSocketStream::from_partially_read(stream, leftover, role, Some(config)).await;
        Self {
            inner,
            message: bytes::Bytes::new(),
        }
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ByteStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.message.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_next(cx)) {
                None | Some(Err(Error::ConnectionClosed)) | Some(Ok(Message::Close(_))) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(Message::Binary(payload))) => this.message = payload,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let problem = "text message on a WebSocket that carries bytes";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let n = this.message.len().min(buf.remaining());
        buf.put_slice(&this.message.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ByteStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(cx)).map_err(broken)?;
        let n = buf.len().min(MAX_WRITTEN);
        let message = bytes::Bytes::copy_from_slice(buf.get(..n).unwrap_or_default());
        Pin::new(&mut self.inner)
            .start_send(Message::Binary(message))
            .map_err(broken)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.inner).poll_close(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}
