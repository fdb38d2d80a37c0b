//! The calling end of the administration API.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::endpoint::Endpoint;
use crate::error::ApiError;
use crate::socket::{path_in, short_path};

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server listens on the socket.
    #[error(
        "no warren-control serves the state in {} ({source}); start it with `warren-control serve --state-dir {}`, or name the right folder with --state-dir",
        state_dir.display(),
        state_dir.display()
    )]
    NotRunning {
        /// The state folder.
        state_dir: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The connection broke, or the answer cannot be read.
    #[error("the server did not answer: {0}")]
    Connection(String),
    /// The server refused the request.
    #[error(transparent)]
    Refused(ApiError),
}

impl ClientError {
    fn connection(error: impl std::fmt::Display) -> Self {
        Self::Connection(error.to_string())
    }
}

/// A client of the server with a certain state folder. Each call opens a connection
/// of its own.
#[derive(Debug, Clone)]
pub struct Client {
    state_dir: PathBuf,
}

impl Client {
    /// A client of the server with this state folder.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
        }
    }

    /// The state folder of the server.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Sends the request of an endpoint, and reads the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<E: Endpoint>(&self, request: &E) -> Result<E::Answer, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::connection)?;
        // Ends with this call. A broken connection shows as a broken answer.
        let mut connected = JoinSet::new();
        connected.spawn(connection);
        let response = sender.send_request(http_request(request)?).await;
        let (head, body) = response.map_err(ClientError::connection)?.into_parts();
        let body = body.collect().await.map_err(ClientError::connection)?;
        let body = body.to_bytes();
        let unreadable = |_| ClientError::Connection(String::from_utf8_lossy(&body).into_owned());
        if head.status.is_success() {
            serde_json::from_slice(&body).map_err(unreadable)
        } else {
            let error = serde_json::from_slice(&body).map_err(unreadable)?;
            Err(ClientError::Refused(error))
        }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let not_running = |source| ClientError::NotRunning {
            state_dir: self.state_dir.clone(),
            source,
        };
        let (_folder, path) = short_path(&path_in(&self.state_dir)).map_err(not_running)?;
        UnixStream::connect(path).await.map_err(not_running)
    }
}

/// The request of an endpoint in HTTP.
fn http_request<E: Endpoint>(request: &E) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut target = E::PATH.to_owned();
    let mut body = Vec::new();
    if E::METHOD == Method::GET {
        let members = serde_json::to_value(request).map_err(ClientError::connection)?;
        let query = query(&members);
        if !query.is_empty() {
            target = format!("{target}?{query}");
        }
    } else {
        body = serde_json::to_vec(request).map_err(ClientError::connection)?;
    }
    Request::builder()
        .method(E::METHOD)
        .uri(target)
        .header(header::HOST, "localhost")
        .body(Full::new(Bytes::from(body)))
        .map_err(ClientError::connection)
}

/// The members of a request as a query; those without a value are left out.
fn query(members: &Value) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in members.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => drop(query.append_pair(name, text)),
            other => drop(query.append_pair(name, &other.to_string())),
        }
    }
    query.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::caller::Caller;
    use crate::endpoint::Handler;
    use crate::endpoints::{GetNode, GetPolicy, RenameUser};
    use crate::error::{ErrorCode, Reply};
    use crate::router::Routes;
    use crate::socket::AdminSocket;

    /// A service that refuses each request with its text.
    struct Echo;

    impl<E: Endpoint> Handler<E> for Echo {
        async fn handle(&self, caller: &Caller, request: E) -> Reply<E::Answer> {
            assert!(matches!(caller, Caller::LocalUser { .. }));
            let text = serde_json::to_string(&request).unwrap();
            Err(ApiError::new(ErrorCode::Conflict, text))
        }
    }

    async fn echo<E: Endpoint>(client: &Client, request: &E) {
        match client.call(request).await {
            Err(ClientError::Refused(error)) => {
                assert_eq!(error.code, ErrorCode::Conflict);
                assert_eq!(error.message, serde_json::to_string(request).unwrap());
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("not refused"),
        }
    }

    #[tokio::test]
    async fn requests_and_errors_cross_the_socket_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the address of a socket.
        let state_dir = dir.path().join("x".repeat(120));
        std::fs::create_dir(&state_dir).unwrap();
        let client = Client::new(&state_dir);
        let get = GetPolicy { version: Some(3) };
        let error = client.call(&get).await.unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");

        let socket = AdminSocket::open(&state_dir).unwrap();
        let routes = Routes::new(Arc::new(Echo))
            .on::<GetPolicy>()
            .on::<GetNode>()
            .on::<RenameUser>();
        let mut server = JoinSet::new();
        server.spawn(socket.serve(routes.into_router()));
        echo(&client, &get).await;
        echo(&client, &GetPolicy { version: None }).await;
        for text in ["db", "name:a b&c=d/e?f#g%41+\u{e9}", ""] {
            let node = text.to_owned();
            echo(&client, &GetNode { node }).await;
            let rename = RenameUser {
                user: text.to_owned(),
                new_name: "x".to_owned(),
            };
            echo(&client, &rename).await;
        }
        server.shutdown().await;
        assert!(!path_in(&state_dir).exists());
    }
}
