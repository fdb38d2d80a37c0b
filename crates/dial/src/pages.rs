//! A listener that answers GET requests with short texts: health and metrics.
//!
//! One request per connection (RFC 9112, section 9.6: `Connection: close`). There are at
//! most 32 connections at a time, each for 10 seconds, with a head of at most 8 KiB. When one
//! more opens, the oldest one of the source that has most of them is closed, so connections
//! that send nothing do not keep probes out. Nothing is read behind the head.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Connections at a time.
const CONNECTIONS: usize = 32;
/// The time for request and answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest head.
const MAX_HEAD: usize = 8 * 1024;
/// The most header lines.
const MAX_HEADERS: usize = 64;
/// Pause after an error of the listener, such as no free file descriptor.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The media type of Prometheus' text format, version 0.0.4.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The media type of other texts.
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: StatusCode,
    /// The media type.
    pub media_type: &'static str,
    /// The body.
    pub text: String,
}

impl Page {
    /// A short answer with a status.
    pub fn plain(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            media_type: PLAIN,
            text: text.into(),
        }
    }

    /// The answer for a path that does not exist.
    pub fn not_found() -> Self {
        Self::plain(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    fn emit(&self, with_body: bool) -> String {
        let reason = self.status.canonical_reason().unwrap_or_default();
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{}",
            self.status.as_str(),
            self.media_type,
            self.text.len(),
            if with_body { &self.text } else { "" }
        )
    }
}

/// Answers requests with what `page` gives for their path; never returns.
pub async fn serve<F, T>(listener: TcpListener, page: F)
where
    F: Fn(String) -> T + Send + Sync + 'static,
    T: Future<Output = Page> + Send,
{
    let page = Arc::new(page);
    let mut open: Vec<(IpAddr, AbortHandle)> = Vec::new();
    loop {
        let (stream, source) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        open.retain(|(_, connection)| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(at) = oldest_of_the_largest(&open)
        {
            open.remove(at).1.abort();
        }
        let page = Arc::clone(&page);
        let serving = tokio::spawn(async move {
            let served = tokio::time::timeout(PATIENCE, answer(stream, &*page)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, "a request was not answered");
            }
        });
        open.push((source, serving.abort_handle()));
    }
}

/// The position of the oldest connection of the source that has most of them.
fn oldest_of_the_largest<T>(open: &[(IpAddr, T)]) -> Option<usize> {
    let count = |source: IpAddr| open.iter().filter(|(other, _)| *other == source).count();
    let largest = open.iter().map(|(source, _)| count(*source)).max()?;
    open.iter()
        .position(|(source, _)| count(*source) == largest)
}

async fn answer<F, T>(mut stream: TcpStream, page: &F) -> io::Result<()>
where
    F: Fn(String) -> T,
    T: Future<Output = Page>,
{
    let (page, with_body) = match request(&mut stream).await? {
        None => return Ok(()),
        Some(Request::Read { path, with_body }) => (page(path).await, with_body),
        Some(Request::Other) => {
            let text = "use GET\n";
            (Page::plain(StatusCode::METHOD_NOT_ALLOWED, text), true)
        }
        Some(Request::Malformed) => {
            let text = "not an HTTP request\n";
            (Page::plain(StatusCode::BAD_REQUEST, text), true)
        }
    };
    stream.write_all(page.emit(with_body).as_bytes()).await?;
    stream.shutdown().await?;
    // A socket that is closed with unread bytes drops the answer.
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// The request of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Read { path: String, with_body: bool },
    Other,
    Malformed,
}

/// Reads the head; `None` if the client closed before its end.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    loop {
        if let Some(request) = parse(&head) {
            return Ok(Some(request));
        }
        if head.len() >= MAX_HEAD {
            return Ok(Some(Request::Malformed));
        }
        let room = MAX_HEAD - head.len();
        if stream.take(room as u64).read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
}

/// The request at the start of `bytes`; `None` while its head is not whole.
fn parse(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Request::Malformed),
    }
    let target = request.path.unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Some(match request.method {
        Some("GET") => Request::Read {
            path,
            with_body: true,
        },
        Some("HEAD") => Request::Read {
            path,
            with_body: false,
        },
        _ => Request::Other,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_oldest_connection_of_the_largest_source_gives_way() {
        let source = |last| IpAddr::from([192, 0, 2, last]);
        let open = [1, 2, 2, 3, 2, 1].map(|last| (source(last), ()));
        assert_eq!(oldest_of_the_largest(&open), Some(1));
        assert_eq!(oldest_of_the_largest::<()>(&[]), None);
    }

    proptest! {
        #[test]
        fn heads_in_pieces_are_the_same_request(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            path in "/[a-z]{0,9}",
        ) {
            // Any bytes are a request, none, or malformed.
            let _ = parse(&bytes);
            let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            for end in 0..head.len() {
                prop_assert_eq!(parse(&head.as_bytes()[..end]), None);
            }
            let whole = Some(Request::Read { path, with_body: true });
            prop_assert_eq!(parse(head.as_bytes()), whole);
        }
    }
}
