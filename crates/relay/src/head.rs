//! The head of an HTTP/1.1 request, read off a connection by hand.
//!
//! A relay cannot leave this to an HTTP library: a client in a hurry asks for
//! the DERP stream *without* any response, and the bytes behind the head belong
//! to that stream already. So the head is read here, with a limit, and the
//! bytes behind it are kept. [`Prefixed`] puts such bytes back in front of a
//! stream, for the next reader of the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The longest head taken.
const MAX_HEAD: usize = 16 * 1024;
/// The most headers taken.
const MAX_HEADERS: usize = 100;

/// A head cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.
    #[error("not an HTTP/1.1 request: {0}")]
    Malformed(#[from] httparse::Error),
    /// Longer than 16 KiB.
    #[error("request head of more than 16 KiB")]
    TooLong,
    /// The connection broke in the middle of it.
    #[error("the connection broke inside the request head: {0}")]
    Broken(#[from] io::Error),
}

/// Request line and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// As sent, that is in capitals.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Whether the client speaks HTTP/1.0, where connections close.
    pub is_http_10: bool,
    /// Names as sent and values, in order. Values that are not UTF-8 are left
    /// out.
    pub headers: Vec<(String, String)>,
}

impl RequestHead {
    /// Reads the head at the start of `bytes`, and how long it is; `None`
    /// while it is not whole.
    ///
    /// # Errors
    /// [`HeadError`] when it never will be.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let len = match request.parse(bytes)? {
            httparse::Status::Complete(len) => len,
            httparse::Status::Partial if bytes.len() >= MAX_HEAD => return Err(HeadError::TooLong),
            httparse::Status::Partial => return Ok(None),
        };
        let headers = request.headers.iter().filter_map(|header| {
            let value = std::str::from_utf8(header.value).ok()?;
            Some((header.name.to_owned(), value.trim().to_owned()))
        });
        let head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            is_http_10: request.version == Some(0),
            headers: headers.collect(),
        };
        Ok(Some((head, len)))
    }

    /// Reads a head from `stream`, starting with what is in `buffered`, which
    /// afterwards holds what came behind it. `None` when the client closed
    /// before it sent anything. Takes as long as the client takes: put a
    /// timeout around it.
    ///
    /// # Errors
    /// [`HeadError`].
    pub async fn read<S: AsyncRead + Unpin>(
        stream: &mut S,
        buffered: &mut Vec<u8>,
    ) -> Result<Option<Self>, HeadError> {
        loop {
            if !buffered.is_empty()
                && let Some((head, len)) = Self::parse(buffered)?
            {
                buffered.drain(..len);
                return Ok(Some(head));
            }
            if stream.read_buf(buffered).await? == 0 {
                if buffered.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(&found.1)
    }

    /// Whether one of the comma-separated values of a header is `token`, in
    /// any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        let named = self
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named
            .flat_map(|(_, value)| value.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case(token))
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// A value of the query, percent-encoding left as it is.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether a body follows the head.
    pub fn has_body(&self) -> bool {
        self.header("transfer-encoding").is_some()
            || self.header("content-length").is_some_and(|len| len != "0")
    }

    /// Whether the client wants the connection to stay open.
    pub fn keeps_alive(&self) -> bool {
        !self.is_http_10 && !self.has_token("connection", "close")
    }
}

/// A stream with some bytes in front that were read too early.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Vec<u8>,
    at: usize,
    inner: S,
}

impl<S> Prefixed<S> {
    /// `inner` behind `prefix`.
    pub fn new(prefix: Vec<u8>, inner: S) -> Self {
        Self {
            prefix,
            at: 0,
            inner,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = this.prefix.get(this.at..).unwrap_or_default();
        if left.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let n = left.len().min(buf.remaining());
        buf.put_slice(left.get(..n).unwrap_or_default());
        this.at += n;
        if this.at == this.prefix.len() {
            this.prefix = Vec::new();
            this.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn bytes_behind_the_head_are_kept() {
        let mut stream: &[u8] =
            b"GET /derp?x=1&q=a.b HTTP/1.1\r\nUPGRADE: Derp\r\nConnection: keep, Upgrade\r\n\r\nrest";
        let mut buffered = Vec::new();
        let head = RequestHead::read(&mut stream, &mut buffered)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (head.method.as_str(), head.path(), head.query("q")),
            ("GET", "/derp", Some("a.b"))
        );
        assert!(head.has_token("connection", "upgrade") && head.has_token("Upgrade", "derp"));
        assert!(head.keeps_alive() && !head.has_body());
        buffered.extend_from_slice(stream);
        assert_eq!(buffered, b"rest");
        let mut all = Vec::new();
        Prefixed::new(buffered, &b" of it"[..])
            .read_to_end(&mut all)
            .await
            .unwrap();
        assert_eq!(all, b"rest of it");
    }

    #[tokio::test]
    async fn closed_cut_and_endless_heads_are_told_apart() {
        let read = async |bytes: &[u8]| RequestHead::read(&mut &*bytes, &mut Vec::new()).await;
        assert!(matches!(read(b"").await, Ok(None)));
        assert!(matches!(read(b"GET /").await, Err(HeadError::Broken(_))));
        assert!(matches!(
            read(b"\x16\x03\x01\x02\x00").await,
            Err(HeadError::Malformed(_))
        ));
        let mut endless = b"GET / HTTP/1.1\r\nA: ".to_vec();
        endless.resize(40_000, b'a');
        assert!(matches!(read(&endless).await, Err(HeadError::TooLong)));
    }

    proptest! {
        #[test]
        fn head_parser_never_panics_on_bytes(bytes: Vec<u8>) {
            let _ = RequestHead::parse(&bytes);
        }
    }
}
