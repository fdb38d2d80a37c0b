//! Requests to a node (c2n): small HTTP requests inside its map stream.
//!
//! A request has a return address that cannot be guessed and that works once. The
//! node runs the request and posts a complete HTTP response to the address,
//! through its channel; only the machine that got the request may. The caller
//! waits for that no longer than [`RESPONSE_TIMEOUT`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::Method;
use tokio::sync::oneshot;
use warren_control_core::{AdminError, channel_url};
use warren_keys::{Entropy as _, MachinePublic};

use warren_dial::SystemEntropy;

/// How long a response may take: a node may work on a request for a minute, and
/// needs a moment to send the response.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(70);
/// The longest path, in bytes; those that clients know are shorter.
const MAX_PATH: usize = 1024;
/// More headers than any client sends.
const MAX_HEADERS: usize = 64;

/// The reason why a request has no response.
#[derive(Debug, thiserror::Error)]
pub enum C2nError {
    /// The request cannot be sent to that node.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// The path is not valid.
    #[error("\"{0}\" is not a valid path; write it as /echo")]
    Path(String),
    /// The node did not respond in time.
    #[error(
        "node \"{0}\" did not answer within {seconds} s; is it still connected? (`warren-control nodes show {0}`)",
        seconds = RESPONSE_TIMEOUT.as_secs()
    )]
    Silence(String),
    /// The response is not a valid HTTP response.
    #[error("node \"{node}\" sent an invalid HTTP response: {why}")]
    InvalidResponse {
        /// The node.
        node: String,
        /// The reason.
        why: ResponseError,
    },
}

/// The bytes of a request to a node.
///
/// # Errors
/// The path is not valid.
pub fn request(method: &Method, path: &str, body: &[u8]) -> Result<Vec<u8>, C2nError> {
    let good = path.starts_with('/')
        && path.len() <= MAX_PATH
        && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !good {
        return Err(C2nError::Path(path.to_owned()));
    }
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: c2n\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.as_bytes(), body].concat())
}

/// The reason why bytes are not a valid HTTP response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The head has no end.
    #[error("its head has no end")]
    Incomplete,
    /// The head is not valid.
    #[error("{0}")]
    Head(#[from] httparse::Error),
    /// The status is not in the range of HTTP.
    #[error("its status is not valid")]
    Status,
}

/// Status and body of a response. Clients never send it in chunks: the body goes
/// to the end.
///
/// # Errors
/// The bytes do not begin with the head of an HTTP response.
pub fn read_response(response: &[u8]) -> Result<(u16, &[u8]), ResponseError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = head.parse(response)? else {
        return Err(ResponseError::Incomplete);
    };
    let status = head.code.filter(|status| *status >= 100);
    Ok((
        status.ok_or(ResponseError::Status)?,
        response.get(end..).unwrap_or_default(),
    ))
}

/// A request without a response so far.
struct Open {
    /// The machine that may respond.
    machine: Option<MachinePublic>,
    response: oneshot::Sender<Bytes>,
}

/// The requests that wait for their response.
#[derive(Default)]
pub struct C2nRequests {
    open: Mutex<HashMap<String, Open>>,
}

impl std::fmt::Debug for C2nRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("C2nRequests").finish_non_exhaustive()
    }
}

/// A request that waits for its response. Dropping it ends the waiting.
#[derive(Debug)]
pub struct Waiting<'a> {
    requests: &'a C2nRequests,
    token: String,
    response: oneshot::Receiver<Bytes>,
}

impl C2nRequests {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<String, Open>) -> R) -> R {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a request. No machine can respond before the recipient is set
    /// ([`Waiting::set_recipient`]).
    pub fn open(&self) -> Waiting<'_> {
        let token = HEXLOWER.encode(&SystemEntropy.bytes::<16>());
        let (sender, response) = oneshot::channel();
        let open = Open {
            machine: None,
            response: sender,
        };
        self.with(|all| all.insert(token.clone(), open));
        Waiting {
            requests: self,
            token,
            response,
        }
    }

    /// Takes a response that came for the return address with this token. Returns
    /// whether a request waited for it.
    pub fn take_response(&self, token: &str, machine: MachinePublic, response: Bytes) -> bool {
        let open = self.with(|all| {
            let recipient = all.get(token).and_then(|open| open.machine);
            (recipient == Some(machine)).then(|| all.remove(token))
        });
        open.flatten()
            .is_some_and(|open| open.response.send(response).is_ok())
    }
}

impl Waiting<'_> {
    /// The return address.
    pub fn url(&self, server_url: &str) -> String {
        channel_url(server_url, &self.token)
    }

    /// Sets the machine that may respond.
    pub fn set_recipient(&self, machine: MachinePublic) {
        self.requests.with(|all| {
            if let Some(open) = all.get_mut(&self.token) {
                open.machine = Some(machine);
            }
        });
    }

    /// The response; `None` if there is none in time.
    pub async fn response(mut self) -> Option<Bytes> {
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, &mut self.response).await;
        response.ok()?.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.requests.with(|all| all.remove(&self.token));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_cannot_break_out_of_the_request() {
        let asked = request(&Method::POST, "/echo?x=1", b"hi").unwrap();
        assert_eq!(
            asked,
            b"POST /echo?x=1 HTTP/1.1\r\nHost: c2n\r\nContent-Length: 2\r\n\r\nhi"
        );
        for path in ["", "echo", "/a b", "/a\r\nX: y", "/\u{e9}"] {
            assert!(request(&Method::GET, path, b"").is_err(), "{path:?}");
        }
    }

    #[test]
    fn responses_with_and_without_a_body_are_read() {
        for (answer, read) in [
            (
                &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..],
                Some((200, &b"hi"[..])),
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
                Some((400, b"")),
            ),
            (
                b"HTTP/1.0 204 No Content\r\nX: y\r\n\r\n\r\n",
                Some((204, b"\r\n")),
            ),
            (b"HTTP/1.1 200 OK", None),
            (b"HTTP/1.1 099 OK\r\n\r\n", None),
            (b"HTTP/2 200\r\n\r\n", None),
            (b"HTTP/1.1 x\r\n\r\n", None),
            (b"HTTP/1.1 99999\r\n\r\n", None),
            (b"", None),
        ] {
            assert_eq!(read_response(answer).ok(), read, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn only_the_recipient_can_respond_and_only_once() {
        let requests = C2nRequests::default();
        let (asked, other) = (
            MachinePublic::from_bytes([1; 32]),
            MachinePublic::from_bytes([2; 32]),
        );
        let waiting = requests.open();
        let url = waiting.url("http://192.0.2.1:8080");
        let token = url.strip_prefix("https://192.0.2.1:8080/c2n/").unwrap();
        let respond = |machine| requests.take_response(token, machine, Bytes::from_static(b"yes"));
        assert!(!respond(asked), "no recipient is set yet");
        waiting.set_recipient(asked);
        assert!(!respond(other));
        assert!(respond(asked));
        assert!(!respond(asked), "once");
        assert_eq!(waiting.response().await.unwrap(), "yes");
        let given_up = requests.open();
        given_up.set_recipient(asked);
        let token = given_up.url("x").replace("https://x/c2n/", "");
        drop(given_up);
        assert!(!requests.take_response(&token, asked, Bytes::new()));
        assert!(requests.with(|all| all.is_empty()));
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_response(&bytes);
        }
    }
}
