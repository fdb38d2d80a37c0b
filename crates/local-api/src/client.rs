//! The calling end of the local interface.
//!
//! Each call opens a connection of its own. When nobody answers, it is tried
//! again for two seconds: a daemon that was started in the same breath needs
//! a moment to open its socket.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::filter::{FilterReport, WhyAnswer, WhyQuestion};
use crate::notify::{Notify, NotifyMask};
use crate::prefs::{MaskedPrefs, Options, Prefs};
use crate::types::{NetcheckReport, PingResult, PingType, Status, WhoIsResponse};
use crate::{HOST, REASON_HEADER, VERSION_HEADER};

/// How long a daemon that does not answer is given.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is tried.
const RETRY: Duration = Duration::from_millis(250);

/// The longest notification that is read, in bytes.
const MAX_LINE: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens; starting the daemon or naming another socket helps.
    #[error(
        "the Warren daemon does not answer at {socket}: {source}\n\
         Is it running? Start it with:  sudo warren daemon\n\
         Is it elsewhere? Name its socket:  warren --socket PATH ..."
    )]
    Unreachable {
        /// Where it was looked for.
        socket: String,
        /// What the system said.
        source: io::Error,
    },
    /// The socket may not even be opened.
    #[error("no permission to open {socket}; use sudo, or check the folder it is in")]
    SocketDenied {
        /// Which socket.
        socket: String,
    },
    /// The daemon does not let this user do that.
    #[error("Access denied: {0}")]
    AccessDenied(String),
    /// The daemon answered with an error.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What it said.
        text: String,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer is not what was expected.
    #[error("the daemon's answer cannot be read: {0}")]
    Answer(String),
}

/// A way to reach the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Notifications, as they come.
pub struct Watch {
    body: Incoming,
    buffer: BytesMut,
    // Ends the connection when the listener goes away.
    _connection: JoinSet<()>,
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

    /// Sends a request and gives back the answer with the connection it comes
    /// over. `target` is what stands behind `/localapi/v0/`.
    async fn send(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
        headers: &[(&'static str, String)],
    ) -> Result<(Response<Incoming>, JoinSet<()>), ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // A broken connection shows as a broken answer.
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/localapi/v0/{target}"))
            .header(header::HOST, HOST);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        let response = sender.send_request(request).await?;
        if response.status().is_success() {
            return Ok((response, task));
        }
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        Err(refusal(status, &bytes))
    }

    /// Sends a request and reads the answer.
    pub async fn call(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        let (response, _connection) = self.send(method, target, body, &[]).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        decode(&self.call(Method::GET, target, Vec::new()).await?)
    }

    async fn post(&self, target: &str, body: &Value) -> Result<Bytes, ClientError> {
        self.call(Method::POST, target, body.to_string().into_bytes())
            .await
    }

    /// The status.
    pub async fn status(&self, peers: bool) -> Result<Status, ClientError> {
        self.get(if peers {
            "status"
        } else {
            "status?peers=false"
        })
        .await
    }

    /// The status, as the daemon wrote it, and the daemon's version.
    pub async fn raw_status(&self, peers: bool) -> Result<(Value, String), ClientError> {
        let target = if peers {
            "status"
        } else {
            "status?peers=false"
        };
        let (response, _connection) = self.send(Method::GET, target, Vec::new(), &[]).await?;
        let version = response
            .headers()
            .get(VERSION_HEADER)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((decode(&bytes)?, version))
    }

    /// The preferences.
    pub async fn prefs(&self) -> Result<Prefs, ClientError> {
        let bytes = self.call(Method::GET, "prefs", Vec::new()).await?;
        Prefs::from_json(&bytes).map_err(ClientError::Answer)
    }

    /// Changes preferences.
    pub async fn edit_prefs(&self, change: &MaskedPrefs) -> Result<Prefs, ClientError> {
        let body = change.to_json().to_string().into_bytes();
        let bytes = self.call(Method::PATCH, "prefs", body).await?;
        Prefs::from_json(&bytes).map_err(ClientError::Answer)
    }

    /// Whether these preferences could be used.
    pub async fn check_prefs(&self, prefs: &Prefs) -> Result<(), ClientError> {
        let body = serde_json::to_vec(prefs).map_err(|e| ClientError::Answer(e.to_string()))?;
        let answer: Value = decode(&self.call(Method::POST, "check-prefs", body).await?)?;
        match answer.get("Error").and_then(Value::as_str) {
            None | Some("") => Ok(()),
            Some(text) => Err(ClientError::Refused {
                status: StatusCode::OK,
                text: text.to_owned(),
            }),
        }
    }

    /// Starts.
    pub async fn start(&self, options: &Options) -> Result<(), ClientError> {
        self.post("start", &options.to_json()).await.map(drop)
    }

    /// Begins a login in a browser.
    pub async fn login_interactive(&self) -> Result<(), ClientError> {
        self.post("login-interactive", &Value::Null).await.map(drop)
    }

    /// Logs out.
    pub async fn logout(&self, reason: &str) -> Result<(), ClientError> {
        let reason = data_encoding::BASE64.encode(reason.as_bytes());
        let headers = [(REASON_HEADER, reason)];
        self.send(Method::POST, "logout", Vec::new(), &headers)
            .await
            .map(drop)
    }

    /// Listens.
    pub async fn watch(&self, mask: NotifyMask) -> Result<Watch, ClientError> {
        let target = format!("watch-ipn-bus?mask={}", mask.0);
        let (response, connection) = self.send(Method::GET, &target, Vec::new(), &[]).await?;
        Ok(Watch {
            body: response.into_body(),
            buffer: BytesMut::new(),
            _connection: connection,
        })
    }

    /// Pings once; waits for the reply as long as it takes.
    pub async fn ping(
        &self,
        ip: IpAddr,
        kind: PingType,
        size: usize,
    ) -> Result<PingResult, ClientError> {
        let target = format!("ping?ip={ip}&type={kind}&size={size}");
        decode(&self.call(Method::POST, &target, Vec::new()).await?)
    }

    /// Whose address (address, address:port or node key) is it?
    pub async fn whois(&self, target: &str) -> Result<WhoIsResponse, ClientError> {
        let target: String = url::form_urlencoded::byte_serialize(target.as_bytes()).collect();
        self.get(&format!("whois?addr={target}")).await
    }

    /// The packet filter in force.
    pub async fn filter(&self) -> Result<FilterReport, ClientError> {
        self.get("debug-filter").await
    }

    /// Whether a connection may work.
    pub async fn why(&self, question: WhyQuestion) -> Result<WhyAnswer, ClientError> {
        let WhyQuestion {
            dst,
            port,
            protocol,
            from,
        } = question;
        let mut target = format!("debug-why?dst={dst}&port={port}&proto={protocol}");
        if let Some(from) = from {
            target.push_str(&format!("&from={from}"));
        }
        self.get(&target).await
    }

    /// The network around the daemon.
    pub async fn netcheck(&self) -> Result<NetcheckReport, ClientError> {
        self.get("netcheck").await
    }
}

impl Watch {
    /// The next notification; `None` when the daemon ended the stream.
    pub async fn next(&mut self) -> Result<Option<Notify>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return decode(&line).map(Some);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::Answer("a notification has no end".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Answer(error.to_string()))
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
    ClientError::Refused { status, text }
}
