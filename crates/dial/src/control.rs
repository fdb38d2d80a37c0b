//! The client of a coordination server.
//!
//! A [`ControlClient`] knows one server and one machine key. It fetches the
//! server's Noise key over verified TLS, opens the encrypted channel when it
//! is first needed ([`racing`]), runs HTTP/2 on it, and opens it again when it
//! has broken. On it go
//!
//! - [`register`](ControlClient::register), which may wait as long as a user
//!   needs to log in;
//! - [`map_stream`](ControlClient::map_stream), which stays open as long as the
//!   node runs;
//! - [`update`](ControlClient::update) and answers to the server's pings,
//!   beside the open stream.
//!
//! Nothing here retries on its own or keeps state between requests besides the
//! connection and the key: the caller decides when to try
//! again and what an answer means. Dropping a future cancels its request.

mod map_stream;
mod racing;
mod server_url;

pub use map_stream::{MapStream, MapStreamError};
pub use racing::{AttemptError, ConnectFailure};
pub use server_url::{ServerUrl, ServerUrlError};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use url::Url;
use warren_channel::map_frames::Packing;
use warren_control_types::{
    CapabilityVersion, MapRequest, OverTlsPublicKeyResponse, PingRequest, PingResponse,
    RegisterRequest, RegisterResponse,
};
use warren_keys::{MachinePublic, MachineSecret};

use crate::Dialer;
use crate::fetch::{Fetch, FetchError, fetch};
use crate::interception::foreign_answer;
use crate::upgrade::shown;

/// Most bytes of an answer other than the map stream.
const MAX_ANSWER_LEN: usize = 1024 * 1024;
/// The longest answer about tailnet lock: a chain of update messages.
const MAX_CHAIN_LEN: usize = 24 << 20;
/// The longest wait for an answer about tailnet lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// The longest time a short request may take.
const SHORT: Duration = Duration::from_secs(30);
/// The longest wait that a server can ask for by `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Flow control window of one HTTP/2 stream; a first map can be large.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// A request to the coordination server failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The server's key could not be fetched.
    #[error("cannot fetch the key of the coordination server: {0}")]
    Key(#[from] FetchError),
    /// `/key` answered something else.
    #[error(
        "{url} did not answer with a key but with HTTP {status}{}{body} \
         (is this the address of a coordination server?{})",
        if body.is_empty() { "" } else { ": " },
        proxy.iter().map(|proxy| format!(" The answer came through the proxy {proxy}"))
            .collect::<String>()
    )]
    NoKey {
        /// The requested path or URL.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// Start of the body.
        body: String,
        /// The proxy that may have given the answer itself.
        proxy: Option<String>,
    },
    /// Something else answers in the server's place.
    #[error("{url} is not answered by a coordination server: {answer}")]
    OtherServer {
        /// The requested URL.
        url: String,
        /// The answer, and what to do.
        answer: String,
    },
    /// The server has no Noise key.
    #[error("the coordination server is too old: it has no Noise key")]
    TooOld,
    /// No channel came about.
    #[error(transparent)]
    Connect(#[from] Box<ConnectFailure>),
    /// The connection broke during the request.
    #[error("the connection to the coordination server broke: {0}")]
    Broken(#[source] hyper::Error),
    /// The server wants less.
    #[error("the coordination server asks to slow down{}", match retry_after {
        Some(after) => format!(", for {} s", after.as_secs()),
        None => String::new(),
    })]
    RateLimited {
        /// For how long; `None` if it does not say (choose 5 to 10 s).
        retry_after: Option<Duration>,
    },
    /// The server refuses, or has a problem.
    #[error("the coordination server answered {path} with HTTP {status}{}{body}",
        if body.is_empty() { "" } else { ": " })]
    Status {
        /// The requested path or URL.
        path: String,
        /// The HTTP status.
        status: StatusCode,
        /// Start of the body, at most 200 bytes.
        body: String,
    },
    /// The answer is longer than any should be.
    #[error("the coordination server's answer to {path} is longer than {limit} bytes")]
    TooLong {
        /// The requested path or URL.
        path: String,
        /// The longest answer that is read.
        limit: usize,
    },
    /// The answer is not of the expected kind.
    #[error("the coordination server's answer to {path} cannot be read: {source}")]
    Json {
        /// The requested path or URL.
        path: String,
        /// The error of the JSON decoder.
        source: serde_json::Error,
    },
    /// No answer in time.
    #[error("the coordination server did not answer {path} within {} s", after.as_secs())]
    TimedOut {
        /// The requested path or URL.
        path: String,
        /// The time limit that passed.
        after: Duration,
    },
    /// The server wants an answer at an address that makes no sense.
    #[error("the coordination server asks for an answer at \"{0}\", which is not an address")]
    AnswerUrl(String),
}

/// A coordination server, as one machine reaches it. Cheap to clone; clones
/// share the connection.
#[derive(Clone, Debug)]
pub struct ControlClient {
    shared: Arc<Shared>,
}

struct Shared {
    server: ServerUrl,
    machine: MachineSecret,
    dialer: Dialer,
    version: CapabilityVersion,
    key: Mutex<Option<MachinePublic>>,
    last_dial: Mutex<Option<Instant>>,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

/// An open channel with HTTP/2 on it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// The tasks that drive the connection end when this is dropped.
    _alive: watch::Sender<()>,
}

/// Runs the tasks of one connection for as long as its [`Connection`] lives.
/// HTTP/2 by itself would let open streams go on.
#[derive(Clone)]
struct ConnectionTasks(watch::Receiver<()>);

impl<F> hyper::rt::Executor<F> for ConnectionTasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let mut alive = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = task => {}
                // Nothing is ever sent: this is the end of the sender.
                _ = alive.changed() => {}
            }
        });
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("server", &self.server)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

impl ControlClient {
    /// A client of `server`. Opens nothing yet.
    pub fn new(server: ServerUrl, machine: MachineSecret, dialer: Dialer) -> Self {
        let shared = Shared {
            server,
            machine,
            dialer,
            version: CapabilityVersion::CURRENT,
            key: Mutex::new(None),
            last_dial: Mutex::new(None),
            connection: tokio::sync::Mutex::new(None),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The server.
    pub fn server(&self) -> &ServerUrl {
        &self.shared.server
    }

    /// Fetches the server's keys over verified TLS (or plain HTTP, if the
    /// server's address says so), and remembers the Noise key.
    ///
    /// # Errors
    /// [`ControlError::Key`], [`ControlError::NoKey`], [`ControlError::OtherServer`],
    /// [`ControlError::Json`], [`ControlError::TooOld`].
    pub async fn fetch_key(&self) -> Result<OverTlsPublicKeyResponse, ControlError> {
        let url = self.shared.server.key_url(self.shared.version);
        let answer = fetch(&self.shared.dialer, Fetch::get(&url)).await?;
        let foreign = foreign_answer(&url, answer.status, &answer.headers, &answer.body);
        if let Some(answer) = foreign {
            let url = url.to_string();
            return Err(ControlError::OtherServer { url, answer });
        }
        if answer.status != StatusCode::OK {
            return Err(ControlError::NoKey {
                url: url.to_string(),
                status: answer.status,
                body: shown(&answer.body),
                proxy: answer.proxy,
            });
        }
        let keys: OverTlsPublicKeyResponse =
            serde_json::from_slice(&answer.body).map_err(|source| ControlError::Json {
                path: url.to_string(),
                source,
            })?;
        let key = keys.public_key.ok_or(ControlError::TooOld)?;
        *lock(&self.shared.key) = Some(key);
        Ok(keys)
    }

    /// Makes sure that the channel is open.
    ///
    /// # Errors
    /// As [`Self::fetch_key`], or [`ControlError::Connect`].
    pub async fn connect(&self) -> Result<(), ControlError> {
        self.sender().await.map(drop)
    }

    /// Drops the connection; the map stream and all requests on it fail. The
    /// next request opens a new one. For when the network has changed.
    pub async fn disconnect(&self) {
        *self.shared.connection.lock().await = None;
    }

    /// Registers a node. Waits as long as the server does, which for a
    /// follow-up is until the user has logged in.
    ///
    /// # Errors
    /// [`ControlError`]. Refusals are not errors: they come in the answer.
    pub async fn register(
        &self,
        request: &RegisterRequest,
    ) -> Result<RegisterResponse, ControlError> {
        let path = "/machine/register";
        let keys = request.old_node_key.iter().chain([&request.node_key]);
        let hints: HeaderMap = keys
            .filter_map(|key| {
                let value = HeaderValue::try_from(key.to_string()).ok()?;
                Some((HeaderName::from_static("ts-lb"), value))
            })
            .collect();
        let response = self.post(path, json(request), hints).await?;
        let body = read_answer(path, response).await?;
        serde_json::from_slice(&body).map_err(|source| ControlError::Json {
            path: path.to_owned(),
            source,
        })
    }

    /// Opens the map stream. `watchdog` is the longest silence: before the
    /// answer begins, and before each complete message (the official client takes
    /// 120 s).
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn map_stream(
        &self,
        request: &MapRequest,
        watchdog: Duration,
    ) -> Result<MapStream, ControlError> {
        let path = "/machine/map";
        let response = self.post(path, json(request), routing_hint(request));
        let response = within(watchdog, path, response).await?;
        let packing = Packing::of_request(&request.compress);
        Ok(MapStream::new(
            self.clone(),
            response.into_body(),
            packing,
            watchdog,
        ))
    }

    /// Sends changes of the node to the server. `request` should have `omit_peers`
    /// and not `stream`; the open map stream is not disturbed.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn update(&self, request: &MapRequest) -> Result<(), ControlError> {
        let path = "/machine/map";
        let exchange = async {
            let response = self
                .post(path, json(request), routing_hint(request))
                .await?;
            read_answer(path, response).await.map(drop)
        };
        within(SHORT, path, exchange).await
    }

    /// Answers a ping for some way of pinging.
    ///
    /// # Errors
    /// [`ControlError`]. The status of the server's answer does not matter.
    pub async fn post_ping_response(
        &self,
        ping: &PingRequest,
        response: &PingResponse,
    ) -> Result<(), ControlError> {
        self.answer(Method::POST, ping, json(response), ping.url_is_noise)
            .await
    }

    /// Answers a ping that asks for nothing but a sign of life.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn answer_head_ping(&self, ping: &PingRequest) -> Result<(), ControlError> {
        self.answer(Method::HEAD, ping, Vec::new(), ping.url_is_noise)
            .await
    }

    /// Answers a request of the server to the node with a whole HTTP/1.1
    /// response, always inside the channel.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn post_c2n_response(
        &self,
        ping: &PingRequest,
        response: Vec<u8>,
    ) -> Result<(), ControlError> {
        self.answer(Method::POST, ping, response, true).await
    }

    /// A request about tailnet lock: a GET with a JSON body, to `/machine/tka/` and
    /// `subject`.
    ///
    /// # Errors
    /// [`ControlError`], also for each status but 200.
    pub async fn tailnet_lock<A: DeserializeOwned>(
        &self,
        subject: &str,
        request: &impl Serialize,
    ) -> Result<A, ControlError> {
        let path = format!("/machine/tka/{subject}");
        let exchange = async {
            let response = self
                .send(Method::GET, &path, json(request), HeaderMap::new())
                .await?;
            let response = self.successful(&path, response).await?;
            read_up_to(MAX_CHAIN_LEN, &path, response).await
        };
        let body = within(LOCK_PATIENCE, &path, exchange).await?;
        serde_json::from_slice(&body).map_err(|source| ControlError::Json { path, source })
    }

    /// Any other request inside the channel: status and body of the answer.
    ///
    /// # Errors
    /// [`ControlError`], not for the status.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let response = self.send(method, path, body, HeaderMap::new()).await?;
        let status = response.status();
        Ok((status, read_answer(path, response).await?))
    }

    async fn answer(
        &self,
        method: Method,
        ping: &PingRequest,
        body: Vec<u8>,
        inside: bool,
    ) -> Result<(), ControlError> {
        let url: Url = ping
            .url
            .parse()
            .map_err(|_| ControlError::AnswerUrl(ping.url.clone()))?;
        if inside {
            let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
            let exchange = self.send(method, path, body, HeaderMap::new());
            return within(SHORT, path, exchange).await.map(drop);
        }
        let request = Fetch {
            method,
            body,
            ..Fetch::get(&url)
        };
        fetch(&self.shared.dialer, request).await?;
        Ok(())
    }

    /// A request that must be answered with 200.
    async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, ControlError> {
        let response = self.send(Method::POST, path, body, headers).await?;
        self.successful(path, response).await
    }

    /// The response, if its status is 200.
    async fn successful(
        &self,
        path: &str,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, ControlError> {
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::TOO_MANY_REQUESTS => Err(ControlError::RateLimited {
                retry_after: retry_after(response.headers()),
            }),
            status => {
                let body = read_answer(path, response).await.unwrap_or_default();
                Err(ControlError::Status {
                    path: path.to_owned(),
                    status,
                    body: shown(&body),
                })
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, ControlError> {
        let mut sender = self.sender().await?;
        let url = format!("https://{}{path}", self.shared.server.authority());
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = url
            .parse()
            .map_err(|_| ControlError::AnswerUrl(url.clone()))?;
        *request.headers_mut() = headers;
        sender
            .send_request(request)
            .await
            .map_err(ControlError::Broken)
    }

    /// The open connection, or a new one. Other requests that need it wait
    /// meanwhile.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, ControlError> {
        let mut connection = self.shared.connection.lock().await;
        if let Some(Connection { sender, .. }) = &mut *connection
            && !sender.is_closed()
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        *connection = None;
        let key = *lock(&self.shared.key);
        let key = match key {
            Some(key) => key,
            None => {
                self.fetch_key().await?;
                let key = *lock(&self.shared.key);
                key.ok_or(ControlError::TooOld)?
            }
        };
        let last_dial = lock(&self.shared.last_dial).replace(Instant::now());
        let race = racing::Race {
            server: &self.shared.server,
            machine: &self.shared.machine,
            key,
            version: self.shared.version,
            dialer: &self.shared.dialer,
        };
        let stream = match race.run(last_dial).await {
            Ok(stream) => stream,
            Err(failure) => {
                // The server may have got a new key; fetch it again next time.
                *lock(&self.shared.key) = None;
                return Err(Box::new(failure).into());
            }
        };
        let (alive, watched) = watch::channel(());
        let tasks = ConnectionTasks(watched);
        let (sender, driver) = http2::Builder::new(tasks.clone())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(2 * STREAM_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ControlError::Broken)?;
        hyper::rt::Executor::execute(&tasks, async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection to the coordination server ended");
            }
        });
        *connection = Some(Connection {
            sender: sender.clone(),
            _alive: alive,
        });
        Ok(sender)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn json<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message)
        .unwrap_or_else(|_| unreachable!("the protocol's types have text keys and finite numbers"))
}

/// Lets a load balancer find the right server; means nothing else.
fn routing_hint(request: &MapRequest) -> HeaderMap {
    let value = HeaderValue::try_from(request.node_key.to_string()).ok();
    value
        .map(|value| (HeaderName::from_static("ts-lb"), value))
        .into_iter()
        .collect()
}

async fn within<T>(
    after: Duration,
    path: &str,
    exchange: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    let timed = tokio::time::timeout(after, exchange).await;
    timed.unwrap_or_else(|_| {
        Err(ControlError::TimedOut {
            path: path.to_owned(),
            after,
        })
    })
}

async fn read_answer(path: &str, response: Response<Incoming>) -> Result<Bytes, ControlError> {
    read_up_to(MAX_ANSWER_LEN, path, response).await
}

async fn read_up_to(
    limit: usize,
    path: &str,
    response: Response<Incoming>,
) -> Result<Bytes, ControlError> {
    let body = Limited::new(response.into_body(), limit).collect().await;
    let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => ControlError::Broken(*error),
        Err(_) => ControlError::TooLong {
            path: path.to_owned(),
            limit,
        },
    })?;
    Ok(body.to_bytes())
}

/// How long to wait: seconds or an HTTP date, sensible ones only.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            let wait = date.duration_since(jiff::Timestamp::now());
            Duration::try_from(wait).ok()?
        }
    };
    (Duration::ZERO < wait && wait <= MAX_RETRY_AFTER).then_some(wait)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_a_sensible_retry_after_counts() {
        let wait = |text: &str| {
            let value = HeaderValue::try_from(text).unwrap();
            retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, value)]))
        };
        assert_eq!(wait("17"), Some(Duration::from_secs(17)));
        assert_eq!(wait("3600"), Some(MAX_RETRY_AFTER));
        for nonsense in [
            "0",
            "-3",
            "3601",
            "soon",
            "",
            "Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(wait(nonsense), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(10);
        let soon = soon.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = wait(&soon).unwrap();
        assert!(
            wait <= Duration::from_secs(600) && wait > Duration::from_secs(60),
            "{wait:?}"
        );
    }
}
