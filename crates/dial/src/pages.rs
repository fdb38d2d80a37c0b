//! A listener that answers GET requests with short texts: health and metrics.
//!
//! One request per connection (RFC 9112, section 9.6: `Connection: close`). There are at
//! most 32 connections at a time, each for 10 seconds, with a head of at most 8 KiB; more
//! connections are closed without an answer. Nothing is read behind the head.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let page = Arc::clone(&page);
        tokio::spawn(async move {
            let served = tokio::time::timeout(PATIENCE, answer(stream, &*page)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, "a request was not answered");
            }
            drop(slot);
        });
    }
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

    async fn start() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |path| async move {
            match path.as_str() {
                "/metrics" => Page {
                    status: StatusCode::OK,
                    media_type: PROMETHEUS,
                    text: "up 1\n".to_owned(),
                },
                _ => Page::not_found(),
            }
        }));
        address
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn requests_are_answered_by_their_path_and_method() {
        let address = start().await;
        let answer = ask(address, "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
             Content-Length: 5\r\nConnection: close\r\n\r\nup 1\n"
        );
        let answer = ask(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.ends_with("Content-Length: 5\r\nConnection: close\r\n\r\n"));
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            (
                "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
                "405",
            ),
            ("\u{1}\u{2}\r\n\r\n", "400"),
            (
                &format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(MAX_HEAD)),
                "400",
            ),
        ] {
            let answer = ask(address, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
    }

    #[tokio::test]
    async fn connections_that_send_nothing_do_not_keep_others_out_for_ever() {
        let address = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Closed without an answer, or answered once the others are out of time.
        tokio::time::pause();
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
            let mut answer = String::new();
            if stream.write_all(request).await.is_ok()
                && stream.read_to_string(&mut answer).await.is_ok()
                && answer.ends_with("up 1\n")
            {
                break;
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(silent.len(), CONNECTIONS);
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
