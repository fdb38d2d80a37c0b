//! The calling end of the local interface.
//!
//! Each call opens a connection of its own. When no daemon answers, the client tries
//! again for two seconds: a daemon that was started just before needs a moment to
//! open its socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::endpoint::{AnswerForm, Endpoint};
use crate::endpoints::GetStatus;
use crate::error::ApiError;
use crate::ordered_json::OrderedJson;
use crate::{HOST, VERSION_HEADER};

/// The time in which a daemon that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(250);

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens; starting it or naming another socket helps.
    #[error(
        "the Warren daemon does not answer at {socket}: {source}\n\
         Is it running? Start it with:  sudo warren daemon\n\
         Is it elsewhere? Name its socket:  warren --socket PATH ..."
    )]
    Unreachable {
        /// The socket.
        socket: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// This user may not open the socket.
    #[error("no permission to open {socket}; use sudo, or check the folder it is in")]
    SocketDenied {
        /// The socket.
        socket: String,
    },
    /// The daemon does not let this user do that.
    #[error("Access denied: {0}")]
    AccessDenied(String),
    /// The daemon answered with an error.
    #[error(transparent)]
    Refused(ApiError),
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what was expected.
    #[error("the daemon's answer cannot be read: {0}")]
    Answer(String),
}

impl ClientError {
    pub(crate) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// A way to reach the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client for the daemon behind this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            patience: PATIENCE,
        }
    }

    /// Does not wait for a daemon that does not answer.
    #[must_use]
    pub fn impatient(mut self) -> Self {
        self.patience = Duration::ZERO;
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let until = Instant::now() + self.patience;
        loop {
            let source = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let socket = self.socket.display().to_string();
            if source.kind() == io::ErrorKind::PermissionDenied {
                return Err(ClientError::SocketDenied { socket });
            }
            if Instant::now() + RETRY > until {
                return Err(ClientError::Unreachable { socket, source });
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Sends the request of an endpoint, and reads the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn call<E: Endpoint>(&self, request: E) -> Result<E::Answer, ClientError> {
        E::Form::read(self.send(&request).await?).await
    }

    /// The status as the daemon wrote it, with the daemon's version.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn raw_status(&self, peers: bool) -> Result<(OrderedJson, String), ClientError> {
        let response = self.send(&GetStatus { peers }).await?;
        let version = response
            .headers()
            .get(VERSION_HEADER)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let body = response.into_body().collect().await;
        let bytes = body.map_err(ClientError::broken)?.to_bytes();
        let status = serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        Ok((status, version))
    }

    /// Sends a request to any path, and returns the status and the answer as text.
    ///
    /// # Errors
    /// [`ClientError`]; not for answers with the status of an error.
    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(StatusCode, String), ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, HOST)
            .body(Full::new(Bytes::from(body.to_owned())))
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        let response = self.exchange(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let bytes = body.map_err(ClientError::broken)?.to_bytes();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Sends the request of an endpoint. The connection ends with the body of the
    /// response.
    async fn send<E: Endpoint>(&self, request: &E) -> Result<Response<Body>, ClientError> {
        let response = self.exchange(http_request(request)?).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = response.into_body().collect().await;
        let bytes = body.map_err(ClientError::broken)?.to_bytes();
        Err(refusal(status, &bytes))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Body>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::broken)?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // A broken connection shows as a broken answer.
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(ClientError::broken)?.into_parts();
        let body = body.into_data_stream().inspect(move |_| {
            let _connection = &task;
        });
        Ok(Response::from_parts(head, Body::from_stream(body)))
    }
}

/// The request of an endpoint in HTTP.
fn http_request<E: Endpoint>(request: &E) -> Result<Request<Full<Bytes>>, ClientError> {
    let outgoing = request.write();
    let tail: String = url::form_urlencoded::byte_serialize(outgoing.tail.as_bytes()).collect();
    let mut target = E::PATH.replace("{id}", &tail);
    if !outgoing.query.is_empty() {
        target.push('?');
        let query = target.len();
        target = url::form_urlencoded::Serializer::for_suffix(target, query)
            .extend_pairs(&outgoing.query)
            .finish();
    }
    let method = E::METHODS.first().unwrap_or(&Method::POST).clone();
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, HOST);
    for (name, value) in outgoing.headers {
        request = request.header(name, value);
    }
    request
        .body(Full::new(Bytes::from(outgoing.body)))
        .map_err(|error| ClientError::Answer(error.to_string()))
}

fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    let json: Option<Value> = serde_json::from_slice(bytes).ok();
    let said = json
        .as_ref()
        .and_then(|value| value.get("error").or_else(|| value.get("Error")))
        .and_then(Value::as_str)
        .map_or_else(
            || String::from_utf8_lossy(bytes).trim().to_owned(),
            str::to_owned,
        );
    if status == StatusCode::FORBIDDEN {
        return ClientError::AccessDenied(said);
    }
    let text = if said.is_empty() {
        format!("the daemon answered {status}")
    } else {
        said
    };
    ClientError::Refused(ApiError::from_status(status, text))
}
