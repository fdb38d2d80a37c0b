//! The parts of an endpoint: a request type with a row in a table, and the forms that
//! requests and answers take in HTTP.
//!
//! A [`RequestForm`] is read by the router and written by the client; an
//! [`AnswerForm`] is written by the router and read by the client. So both ends
//! of an endpoint follow from one definition. Bodies may be streams in both
//! directions: a request type may keep the body it was read from, and
//! [`JsonLines`] answers as long as events come.

use std::fmt::Display;
use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::client::ClientError;
use crate::error::{ApiError, Reply};

/// The largest body of a request that is read as a whole, in bytes.
const MAX_REQUEST: usize = 1 << 20;
/// The time that a client has to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest line of a stream of events that is read, in bytes.
const MAX_LINE: usize = 64 << 20;

/// The permission that an endpoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// None: every caller may use it.
    Nothing,
    /// To look at the node.
    Read,
    /// To change the node, or to see what only administrators may see.
    Write,
}

/// One row of a table of endpoints. The implementing type is the request.
pub trait Endpoint: RequestForm {
    /// The methods; empty: all.
    const METHODS: &'static [Method];
    /// The path, from its first slash on. It can end with `{id}`, which stands for any
    /// last part.
    const PATH: &'static str;
    /// The permission.
    const PERMISSION: Permission;
    /// The key of errors of the handler, which are JSON then: `{"Error": ".."}`.
    /// Without one they are plain text, as the errors of the router always are.
    const ERROR_KEY: Option<&'static str>;
    /// The answer.
    type Answer: Send + 'static;
    /// The form of the answer in HTTP.
    type Form: AnswerForm<Self::Answer>;
}

/// Something that carries out requests of one endpoint.
pub trait Handler<E: Endpoint>: Send + Sync + 'static {
    /// Carries out a request.
    fn handle(&self, request: E) -> impl Future<Output = Reply<E::Answer>> + Send;
}

/// The form of a request in HTTP.
pub trait RequestForm: Sized + Send + 'static {
    /// Reads the request.
    fn read(request: IncomingRequest) -> impl Future<Output = Reply<Self>> + Send;
    /// Writes the request.
    fn write(&self) -> OutgoingRequest;
}

/// A request at the router.
pub struct IncomingRequest {
    /// The last part of the path, where the row's path ends with `{id}`; else empty.
    pub tail: String,
    /// The query, the part of the address behind the question mark.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

impl IncomingRequest {
    /// The whole body.
    ///
    /// # Errors
    /// [`ApiError::Refused`] when it is too large or too slow.
    pub async fn bytes(self) -> Reply<Bytes> {
        tokio::time::timeout(BODY_TIMEOUT, Limited::new(self.body, MAX_REQUEST).collect())
            .await
            .map_err(|_| ApiError::Refused("the request's body takes too long".to_owned()))?
            .map(|body| body.to_bytes())
            .map_err(|error| ApiError::Refused(format!("reading the request: {error}")))
    }
}

/// A request at the client.
#[derive(Debug, Default)]
pub struct OutgoingRequest {
    /// The text in the place of `{id}` in the row's path.
    pub tail: String,
    /// The names and values of the query.
    pub query: Vec<(&'static str, String)>,
    /// Headers besides those of every request.
    pub headers: Vec<(HeaderName, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl OutgoingRequest {
    /// Adds a parameter to the query.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    /// A request with this body.
    pub fn with_body(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::default()
        }
    }
}

/// The part of an address behind the question mark.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query.
    pub fn parse(text: &str) -> Self {
        Self(
            url::form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The first value with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A parameter that may be missing or empty.
    ///
    /// # Errors
    /// [`ApiError::Refused`] when the value is not valid.
    pub fn optional<T: FromStr>(&self, name: &str) -> Reply<Option<T>>
    where
        T::Err: Display,
    {
        let Some(value) = self.get(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        value
            .parse()
            .map(Some)
            .map_err(|error| ApiError::Refused(format!("invalid '{name}' parameter: {error}")))
    }

    /// A parameter that must be given.
    ///
    /// # Errors
    /// [`ApiError::Refused`] when it is missing or not valid.
    pub fn required<T: FromStr>(&self, name: &str) -> Reply<T>
    where
        T::Err: Display,
    {
        self.optional(name)?
            .ok_or_else(|| ApiError::Refused(format!("missing '{name}' parameter")))
    }
}

/// The form of an answer in HTTP.
pub trait AnswerForm<T> {
    /// Writes the answer.
    ///
    /// # Errors
    /// [`ApiError::Failed`] when it has no JSON form.
    fn write(answer: T) -> Reply<Response<Body>>;
    /// Reads the answer.
    fn read(response: Response<Body>) -> impl Future<Output = Result<T, ClientError>> + Send;
}

/// JSON in one line.
pub struct Json;
/// JSON over several lines, indented by tabs.
pub struct PrettyJson;
/// JSON objects, one per line, as long as the connection lasts.
pub struct JsonLines;
/// A text.
pub struct Text;
/// Counters in the text form of Prometheus.
pub struct MetricsText;
/// Bytes without a type.
pub struct Raw;
/// The status 200 without a body.
pub struct Done;
/// The status 204 without a body.
pub struct NoContent;
/// The status 201 without a body.
pub struct Created;

pub(crate) const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A response with a body of this type.
pub(crate) fn typed(body: impl Into<Body>, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}

/// A response with a plain text.
pub(crate) fn plain_text(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = typed(text, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = status;
    response
}

fn json_error(error: impl Display) -> ApiError {
    ApiError::Failed(format!("the answer has no JSON form: {error}"))
}

async fn whole_body(response: Response<Body>) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await;
    Ok(body.map_err(ClientError::broken)?.to_bytes())
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Answer(error.to_string()))
}

impl<T: Serialize + DeserializeOwned + Send> AnswerForm<T> for Json {
    fn write(answer: T) -> Reply<Response<Body>> {
        let mut bytes = serde_json::to_vec(&answer).map_err(json_error)?;
        bytes.push(b'\n');
        Ok(typed(bytes, APPLICATION_JSON))
    }

    async fn read(response: Response<Body>) -> Result<T, ClientError> {
        decode(&whole_body(response).await?)
    }
}

impl<T: Serialize + DeserializeOwned + Send> AnswerForm<T> for PrettyJson {
    fn write(answer: T) -> Reply<Response<Body>> {
        let mut bytes = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        answer
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, format,
            ))
            .map_err(json_error)?;
        bytes.push(b'\n');
        Ok(typed(bytes, APPLICATION_JSON))
    }

    async fn read(response: Response<Body>) -> Result<T, ClientError> {
        decode(&whole_body(response).await?)
    }
}

impl AnswerForm<String> for Text {
    fn write(answer: String) -> Reply<Response<Body>> {
        Ok(plain_text(StatusCode::OK, answer))
    }

    async fn read(response: Response<Body>) -> Result<String, ClientError> {
        let bytes = whole_body(response).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl AnswerForm<String> for MetricsText {
    fn write(answer: String) -> Reply<Response<Body>> {
        let content_type = HeaderValue::from_static("text/plain; version=0.0.4");
        Ok(typed(answer, content_type))
    }

    async fn read(response: Response<Body>) -> Result<String, ClientError> {
        <Text as AnswerForm<String>>::read(response).await
    }
}

impl AnswerForm<Bytes> for Raw {
    fn write(answer: Bytes) -> Reply<Response<Body>> {
        Ok(Response::new(answer.into()))
    }

    async fn read(response: Response<Body>) -> Result<Bytes, ClientError> {
        whole_body(response).await
    }
}

impl AnswerForm<()> for Created {
    fn write((): ()) -> Reply<Response<Body>> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    }

    async fn read(response: Response<Body>) -> Result<(), ClientError> {
        whole_body(response).await.map(drop)
    }
}

impl AnswerForm<()> for Done {
    fn write((): ()) -> Reply<Response<Body>> {
        Ok(Response::new(Body::empty()))
    }

    async fn read(response: Response<Body>) -> Result<(), ClientError> {
        whole_body(response).await.map(drop)
    }
}

impl AnswerForm<()> for NoContent {
    fn write((): ()) -> Reply<Response<Body>> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    async fn read(response: Response<Body>) -> Result<(), ClientError> {
        whole_body(response).await.map(drop)
    }
}

/// Events, as they come.
pub struct EventStream<T>(BoxStream<'static, Result<T, ClientError>>);

impl<T: Send + 'static> EventStream<T> {
    /// The next event; `None` when the daemon ended the stream.
    ///
    /// # Errors
    /// [`ClientError`] when the connection breaks or an event cannot be read.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        self.0.next().await.transpose()
    }
}

impl<T: Send + 'static> From<mpsc::Receiver<T>> for EventStream<T> {
    fn from(receiver: mpsc::Receiver<T>) -> Self {
        let events = stream::unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await?;
            Some((Ok(event), receiver))
        });
        Self(events.boxed())
    }
}

impl<T: Serialize + DeserializeOwned + Send + 'static> AnswerForm<EventStream<T>> for JsonLines {
    fn write(answer: EventStream<T>) -> Reply<Response<Body>> {
        let lines = answer.0.map(|event| {
            let mut line = serde_json::to_vec(&event?).map_err(json_error)?;
            line.push(b'\n');
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Bytes::from(line))
        });
        Ok(typed(Body::from_stream(lines), APPLICATION_JSON))
    }

    async fn read(response: Response<Body>) -> Result<EventStream<T>, ClientError> {
        let state = (response.into_body(), BytesMut::new());
        let events = stream::unfold(state, |(mut body, mut buffer)| async {
            let event = next_line(&mut body, &mut buffer).await;
            let event = match event {
                Ok(None) => return None,
                Ok(Some(line)) => decode(&line),
                Err(error) => Err(error),
            };
            Some((event, (body, buffer)))
        });
        Ok(EventStream(events.boxed()))
    }
}

/// The next line that is not empty; `None` at the end of the body.
async fn next_line(
    body: &mut Body,
    buffer: &mut BytesMut,
) -> Result<Option<BytesMut>, ClientError> {
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Ok(Some(line));
        }
        if buffer.len() > MAX_LINE {
            return Err(ClientError::Answer("a notification has no end".to_owned()));
        }
        match body.frame().await {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame.map_err(ClientError::broken)?.into_data() {
                    buffer.extend_from_slice(&data);
                }
            }
        }
    }
}
