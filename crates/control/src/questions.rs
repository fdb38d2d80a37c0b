//! Questions to a node (c2n): small HTTP requests that ride in its map stream.
//!
//! A question has an address that nobody can guess and that works once. The
//! node runs the request and posts a complete HTTP response to the address,
//! through its channel; only the machine that was asked may. Who asked waits
//! for that no longer than [`PATIENCE`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::Method;
use tokio::sync::oneshot;
use warren_keys::{Entropy as _, MachinePublic};

use warren_dial::SystemEntropy;

/// A node may think about a question for a minute, and needs a moment to send
/// its answer.
pub const PATIENCE: Duration = Duration::from_secs(70);
/// Where answers come to.
const PREFIX: &str = "/c2n/";
/// A path longer than this is none that a node knows.
const MAX_PATH: usize = 1024;

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// Not a path.
    #[error("\"{0}\" is no path to ask a node for; write it as /echo")]
    Path(String),
    /// The node is silent.
    #[error(
        "node \"{0}\" did not answer within {seconds} s; is it still connected? (`warren-control nodes show {0}`)",
        seconds = PATIENCE.as_secs()
    )]
    Silence(String),
    /// The node answered with something else.
    #[error("node \"{node}\" answered with what is no HTTP response: {why}")]
    Nonsense {
        /// Which node.
        node: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// The request to put to a node.
///
/// # Errors
/// The path is none.
pub fn request(method: &Method, path: &str, body: &[u8]) -> Result<Vec<u8>, QuestionError> {
    let good = path.starts_with('/')
        && path.len() <= MAX_PATH
        && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !good {
        return Err(QuestionError::Path(path.to_owned()));
    }
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: c2n\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.as_bytes(), body].concat())
}

/// Status and body of the response in an answer. Clients never cut it into
/// chunks: the body goes to the end.
pub fn read_response(answer: &[u8]) -> Result<(u16, &[u8]), &'static str> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or("it has no end of the head")?;
    let (head, body) = answer.split_at(end);
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| "its first line is no text")?;
    let mut words = line.split(' ');
    if !words.next().is_some_and(|word| word.starts_with("HTTP/1.")) {
        return Err("it does not begin with HTTP/1");
    }
    let status = words.next().and_then(|word| word.parse().ok());
    let status = status.filter(|status| (100..1000).contains(status));
    Ok((
        status.ok_or("it has no status")?,
        body.get(4..).unwrap_or_default(),
    ))
}

struct Open {
    machine: Option<MachinePublic>,
    answer: oneshot::Sender<Bytes>,
}

/// The questions that wait for their answer.
#[derive(Default)]
pub struct Questions {
    open: Mutex<HashMap<String, Open>>,
}

impl std::fmt::Debug for Questions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Questions").finish_non_exhaustive()
    }
}

/// A question that waits. Dropping it ends the waiting.
#[derive(Debug)]
pub struct Waiting<'a> {
    questions: &'a Questions,
    token: String,
    answer: oneshot::Receiver<Bytes>,
}

impl Questions {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<String, Open>) -> R) -> R {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a question. Nobody can answer it before it is known who is asked
    /// ([`Waiting::is_put_to`]).
    pub fn open(&self) -> Waiting<'_> {
        let token = HEXLOWER.encode(&SystemEntropy.bytes::<16>());
        let (sender, answer) = oneshot::channel();
        let open = Open {
            machine: None,
            answer: sender,
        };
        self.with(|all| all.insert(token.clone(), open));
        Waiting {
            questions: self,
            token,
            answer,
        }
    }

    /// Takes an answer that came for `path`; whether somebody waited for it.
    pub fn answered(&self, path: &str, machine: MachinePublic, answer: Bytes) -> bool {
        let Some(token) = path.strip_prefix(PREFIX) else {
            return false;
        };
        let open = self.with(|all| {
            let asked = all.get(token).and_then(|open| open.machine);
            (asked == Some(machine)).then(|| all.remove(token))
        });
        open.flatten()
            .is_some_and(|open| open.answer.send(answer).is_ok())
    }
}

impl Waiting<'_> {
    /// The address that the answer is to be sent to. Its host is the server's,
    /// with `https`, as in the other requests of the reference's clients: for
    /// any other they open a second channel, which they do on port 443 alone.
    pub fn url(&self, server_url: &str) -> String {
        let host = server_url
            .split_once("://")
            .map_or(server_url, |(_, host)| host);
        format!("https://{host}{PREFIX}{}", self.token)
    }

    /// Says who may answer.
    pub fn is_put_to(&self, machine: MachinePublic) {
        self.questions.with(|all| {
            if let Some(open) = all.get_mut(&self.token) {
                open.machine = Some(machine);
            }
        });
    }

    /// The answer; `None` when there is none in time.
    pub async fn answer(mut self) -> Option<Bytes> {
        let answer = tokio::time::timeout(PATIENCE, &mut self.answer).await;
        answer.ok()?.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.questions.with(|all| all.remove(&self.token));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_one_and_a_path_cannot_break_out_of_it() {
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
    fn responses_of_both_forms() {
        for (answer, read) in [
            (
                &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..],
                Some((200, &b"hi"[..])),
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
                Some((400, b"")),
            ),
            (b"HTTP/1.1 200 OK", None),
            (b"HTTP/2 200\r\n\r\n", None),
            (b"HTTP/1.1 x\r\n\r\n", None),
            (b"HTTP/1.1 99999\r\n\r\n", None),
            (b"", None),
        ] {
            assert_eq!(read_response(answer).ok(), read, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn only_who_was_asked_answers_and_only_once() {
        let questions = Questions::default();
        let (asked, other) = (
            MachinePublic::from_bytes([1; 32]),
            MachinePublic::from_bytes([2; 32]),
        );
        let waiting = questions.open();
        let url = waiting.url("http://192.0.2.1:8080");
        let path = url.strip_prefix("https://192.0.2.1:8080").unwrap();
        let say = |machine| questions.answered(path, machine, Bytes::from_static(b"yes"));
        assert!(!say(asked), "nobody was asked yet");
        waiting.is_put_to(asked);
        assert!(!say(other));
        assert!(say(asked));
        assert!(!say(asked), "once");
        assert_eq!(waiting.answer().await.unwrap(), "yes");
        let given_up = questions.open();
        given_up.is_put_to(asked);
        let path = given_up.url("x").replace("https://x", "");
        drop(given_up);
        assert!(!questions.answered(&path, asked, Bytes::new()));
        assert!(questions.with(|all| all.is_empty()));
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_response(&bytes);
        }
    }
}
