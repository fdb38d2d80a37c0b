//! Leaving HTTP/1.1 for another protocol, as a client.
//!
//! One request with `Upgrade` goes out. After a `101` the connection belongs
//! to the new protocol, and bytes of it may have arrived together with the
//! response head: they are handed back as [`Upgraded::leftover`] and must be
//! read first.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use crate::interception::upgrade_hint;
use crate::response_head::{HeadError, ResponseHead};

/// How much of a refusal's body is kept for the error message.
const SHOWN_LEN: usize = 200;

/// A request to change the protocol.
#[derive(Clone, Debug)]
pub struct UpgradeRequest<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Value of `Host`.
    pub host: &'a str,
    /// The protocol to change to.
    pub protocol: &'a str,
    /// More header fields.
    pub headers: &'a [(&'a str, &'a str)],
}

/// The connection has changed its protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgraded {
    /// Header fields of the response; names as sent.
    pub headers: Vec<(String, String)>,
    /// First bytes of the new protocol.
    pub leftover: Vec<u8>,
}

impl Upgraded {
    /// The first header field of this name, in any letter case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// The connection did not change its protocol.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The connection broke.
    #[error("the connection broke while changing to {protocol}: {source}")]
    Io {
        /// The wanted protocol.
        protocol: String,
        /// The error of the connection.
        source: io::Error,
    },
    /// The other side does not speak HTTP, or sends too much.
    #[error("the answer to the change to {protocol} is not HTTP: {problem}")]
    NotHttp {
        /// The wanted protocol.
        protocol: String,
        /// The fault in the answer.
        problem: String,
    },
    /// The server does not offer the protocol here.
    #[error(
        "the server answered HTTP {status} instead of changing to {protocol}{}{body}{}",
        if body.is_empty() { "" } else { ": " },
        upgrade_hint(*status, body)
    )]
    Refused {
        /// The wanted protocol.
        protocol: String,
        /// The HTTP status code.
        status: u16,
        /// Start of the body.
        body: String,
    },
    /// The server changed to something else.
    #[error("the server changed to \"{actual}\" instead of {protocol}")]
    OtherProtocol {
        /// The wanted protocol.
        protocol: String,
        /// The protocol that the server names.
        actual: String,
    },
}

/// The request head as bytes, for callers that send something right behind it.
pub fn request_head(request: &UpgradeRequest<'_>) -> Vec<u8> {
    let UpgradeRequest {
        method,
        path,
        host,
        protocol,
        headers,
    } = request;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n"
    );
    for (name, value) in *headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if *method == "POST" {
        head.push_str("Content-Length: 0\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Asks the server to change protocol, and waits for its answer.
///
/// # Errors
/// [`UpgradeError`].
pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &UpgradeRequest<'_>,
) -> Result<Upgraded, UpgradeError> {
    let broke = |source| UpgradeError::Io {
        protocol: request.protocol.to_owned(),
        source,
    };
    stream
        .write_all(&request_head(request))
        .await
        .map_err(broke)?;
    stream.flush().await.map_err(broke)?;
    read_response(stream, request.protocol).await
}

/// Reads the answer to a request whose head was already sent.
///
/// # Errors
/// [`UpgradeError`].
pub async fn read_response<S: AsyncRead + Unpin>(
    stream: &mut S,
    protocol: &str,
) -> Result<Upgraded, UpgradeError> {
    let protocol = protocol.to_owned();
    let head = match ResponseHead::read(stream).await {
        Ok(head) => head,
        Err(HeadError::Io(source)) => return Err(UpgradeError::Io { protocol, source }),
        Err(HeadError::NotHttp(problem)) => {
            return Err(UpgradeError::NotHttp { protocol, problem });
        }
    };
    let ResponseHead {
        status,
        headers,
        leftover,
        ..
    } = head;
    if status != 101 {
        return Err(UpgradeError::Refused {
            protocol,
            status,
            body: shown(&leftover),
        });
    }
    let upgraded = Upgraded { headers, leftover };
    let actual = upgraded.header("upgrade").unwrap_or_default();
    if !actual.eq_ignore_ascii_case(&protocol) {
        return Err(UpgradeError::OtherProtocol {
            protocol,
            actual: actual.to_owned(),
        });
    }
    Ok(upgraded)
}

/// The start of an untrusted body, fit for one line of a log.
pub(crate) fn shown(body: &[u8]) -> String {
    let start = body.get(..SHOWN_LEN).unwrap_or(body);
    let text = String::from_utf8_lossy(start);
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const REQUEST: UpgradeRequest<'_> = UpgradeRequest {
        method: "POST",
        path: "/ts2021",
        host: "example.net",
        protocol: "tailscale-control-protocol",
        headers: &[("X-Tailscale-Handshake", "AQID")],
    };

    async fn answer(response: &[u8]) -> Result<Upgraded, UpgradeError> {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(response).await.unwrap();
        let upgraded = upgrade(&mut ours, &REQUEST).await;
        drop(ours);
        let mut sent = String::new();
        theirs.read_to_string(&mut sent).await.unwrap();
        assert!(
            sent.starts_with("POST /ts2021 HTTP/1.1\r\nHost: example.net\r\n"),
            "{sent}"
        );
        assert!(sent.ends_with("\r\n\r\n"), "{sent}");
        upgraded
    }

    #[tokio::test]
    async fn bytes_behind_the_head_are_kept() {
        let response =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: Tailscale-Control-Protocol\r\n\
            Connection: upgrade\r\nX-More: yes\r\n\r\n\x02\x00\x30rest";
        let upgraded = answer(response).await.unwrap();
        assert_eq!(upgraded.leftover, b"\x02\x00\x30rest");
        assert_eq!(upgraded.header("x-more"), Some("yes"));
    }

    #[tokio::test]
    async fn refusals_say_what_came() {
        let refused = answer(b"HTTP/1.1 400 Bad Request\r\n\r\nmissing\nprotocol\n").await;
        assert_eq!(
            refused.unwrap_err().to_string(),
            "the server answered HTTP 400 instead of changing to tailscale-control-protocol: \
             missing protocol"
        );
        let other = answer(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n").await;
        assert!(matches!(other, Err(UpgradeError::OtherProtocol { .. })));
        let not_http = answer(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(not_http, Err(UpgradeError::NotHttp { .. })));
        let mut endless = b"HTTP/1.1 101 X\r\nX: ".to_vec();
        endless.resize(20_000, b'a');
        assert!(matches!(
            answer(&endless).await,
            Err(UpgradeError::NotHttp { .. })
        ));
    }

    #[tokio::test]
    async fn connection_that_ends_early_is_reported() {
        let mut cut: &[u8] = b"HTTP/1.1 101 Switching";
        let broke = read_response(&mut cut, "DERP").await;
        assert!(matches!(broke, Err(UpgradeError::Io { .. })));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read_response(&mut &bytes[..], "DERP"));
            let _ = shown(&bytes);
        }
    }
}
