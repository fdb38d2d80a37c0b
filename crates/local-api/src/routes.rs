//! The endpoints: from a request to a call of the [`Backend`] and back.

use std::convert::Infallible;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Body as HttpBody, Frame};
use serde::Serialize;

use crate::backend::{Backend, BackendError, Reply};
use crate::filter::WhyQuestion;
use crate::go_json::MaybeIp;
use crate::metrics;
use crate::notify::NotifyMask;
use crate::permission::Access;
use crate::prefs::{MaskedPrefs, Options, Prefs};
use crate::types::{PingType, WhoIsTarget};
use crate::{CAPABILITY_HEADER, HOST, REASON_HEADER, VERSION, VERSION_HEADER};
use warren_control_types::CapabilityVersion;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The largest request that is read, in bytes.
const MAX_REQUEST: usize = 1 << 20;
/// How long it may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What an endpoint asks of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Read,
    Write,
}

/// A request that gets an error as answer.
struct Problem {
    status: StatusCode,
    text: String,
    /// As `{"Error": ..}` (prefs) or `{"error": ..}` (ping), else plain.
    json_key: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, text: impl Display) -> Self {
        Self {
            status,
            text: text.to_string(),
            json_key: None,
        }
    }

    fn bad_request(text: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    fn json(mut self, key: &'static str) -> Self {
        self.json_key = Some(key);
        self
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        let status = match &error {
            BackendError::Refused(_) => StatusCode::BAD_REQUEST,
            BackendError::NotFound(_) => StatusCode::NOT_FOUND,
            BackendError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            BackendError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

type Outcome = Result<Response<Body>, Problem>;

/// Answers one request.
pub(crate) async fn respond<B, R>(
    backend: &B,
    access: Access,
    request: Request<R>,
) -> Response<Body>
where
    B: Backend,
    R: HttpBody<Data = Bytes> + Send,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let outcome = match refuse_web(&request) {
        Some(problem) => Err(problem),
        None => route(backend, access, request).await,
    };
    let mut response = outcome.unwrap_or_else(problem_response);
    let headers = response.headers_mut();
    headers.insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
    headers.insert(
        CAPABILITY_HEADER,
        HeaderValue::from(CapabilityVersion::CURRENT.0),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'; script-src 'none'; \
             script-src-elem 'none'; script-src-attr 'none'",
        ),
    );
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Refuses what a browser sends on behalf of a web page.
fn refuse_web<R>(request: &Request<R>) -> Option<Problem> {
    let headers = request.headers();
    for name in [header::REFERER, header::ORIGIN] {
        if headers.contains_key(&name) {
            return Some(Problem::new(
                StatusCode::FORBIDDEN,
                format!("invalid {name} header"),
            ));
        }
    }
    let host = headers
        .get(header::HOST)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let fits = host.is_empty() || host == HOST.as_bytes();
    (!fits).then(|| Problem::new(StatusCode::FORBIDDEN, "invalid Host header"))
}

/// The endpoints, with their methods and what they ask for. The last fitting
/// row counts, so that a method can ask for more.
const ENDPOINTS: &[(&str, &[Method], Need)] = &[
    ("status", &[Method::GET], Need::Read),
    ("prefs", &[Method::GET, Method::HEAD], Need::Read),
    ("prefs", &[Method::PATCH], Need::Write),
    ("check-prefs", &[Method::POST], Need::Write),
    ("start", &[Method::POST], Need::Write),
    ("login-interactive", &[Method::POST], Need::Write),
    ("logout", &[Method::POST], Need::Write),
    ("reset-auth", &[Method::POST], Need::Write),
    ("watch-ipn-bus", &[Method::GET], Need::Read),
    ("whois", &[Method::GET], Need::Read),
    ("ping", &[Method::POST], Need::Nothing),
    ("derpmap", &[Method::GET], Need::Nothing),
    ("dns-config", &[Method::GET], Need::Read),
    ("serve-config", &[Method::GET], Need::Read),
    ("profiles/", &[Method::GET], Need::Write),
    ("profiles/current", &[Method::GET], Need::Write),
    ("usermetrics", &[Method::GET], Need::Nothing),
    ("metrics", &[Method::GET], Need::Write),
    ("bugreport", &[Method::POST], Need::Read),
    ("netcheck", &[Method::GET], Need::Read),
    ("debug", &[Method::POST], Need::Write),
    // Who may come in where, and what did: no business of every user here.
    // The reference's own view of the rules asks for as much.
    ("debug-filter", &[Method::GET], Need::Write),
    ("debug-why", &[Method::GET], Need::Read),
];

async fn route<B, R>(backend: &B, access: Access, request: Request<R>) -> Outcome
where
    B: Backend,
    R: HttpBody<Data = Bytes> + Send,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some(name) = path.strip_prefix("/localapi/v0/") else {
        return match path {
            "/" | "/localapi/" | "/localapi/v0" => Ok(text(StatusCode::OK, "tailscaled\n")),
            _ => Err(not_found(path)),
        };
    };
    if name.is_empty() {
        return Ok(text(StatusCode::OK, "tailscaled\n"));
    }
    let need = find_endpoint(name, &head.method)?;
    let granted = match need {
        Need::Nothing => true,
        Need::Read => access.read,
        Need::Write => access.write,
    };
    if !granted {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("{name} access denied"),
        ));
    }
    if need == Need::Write && head.method != Method::GET {
        tracing::debug!("localapi: [{}] {name}", head.method);
    }
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_REQUEST).collect())
        .await
        .map_err(|_| Problem::bad_request("the request's body takes too long".to_owned()))?
        .map_err(|error| Problem::bad_request(format!("reading the request: {error}")))?
        .to_bytes();
    match (name, &head.method) {
        ("status", _) => {
            let peers = query.get("peers") != Some("false");
            json(&backend.status(peers).await?, Indent::Tab)
        }
        ("prefs", &Method::PATCH) => edit_prefs(backend, &body).await,
        ("prefs", _) => json(&backend.prefs().await?, Indent::Tab),
        ("check-prefs", _) => {
            let mut prefs = Prefs::from_json(&body).map_err(Problem::bad_request)?;
            name_exit_node(backend, &mut prefs).await?;
            let answer = match backend.check_prefs(prefs).await {
                Ok(()) => serde_json::json!({}),
                Err(error) => serde_json::json!({ "Error": error.to_string() }),
            };
            json(&answer, Indent::None)
        }
        ("start", _) => {
            let mut options = Options::from_json(&body).map_err(Problem::bad_request)?;
            if let Some(prefs) = &mut options.update_prefs {
                name_exit_node(backend, prefs).await?;
                backend.check_prefs(prefs.clone()).await?;
            }
            done(backend.start(options).await)
        }
        ("login-interactive", _) => done(backend.login_interactive().await),
        ("logout", _) => done(backend.logout(reason(&head.headers)).await),
        ("reset-auth", _) => done(backend.reset_auth().await),
        ("watch-ipn-bus", _) => watch(backend, &query).await,
        ("whois", _) => {
            let target: WhoIsTarget = query.required("addr")?;
            json(&backend.whois(target).await?, Indent::Tab)
        }
        ("ping", _) => {
            let ip: IpAddr = query.required("ip")?;
            let kind: PingType = query.required("type")?;
            let size = match query.get("size") {
                None | Some("") => 0,
                Some(_) => query.required("size")?,
            };
            let result = backend.ping(ip, kind, size).await;
            json(
                &result.map_err(|error| Problem::from(error).json("error"))?,
                Indent::None,
            )
        }
        ("derpmap", _) => json(&backend.derp_map().await?, Indent::Tab),
        ("dns-config", _) => json(&backend.dns_config().await?, Indent::Tab),
        // Nothing can be published yet, so the configuration is empty.
        ("serve-config", _) => json(&serde_json::json!({}), Indent::None),
        ("profiles/", _) => json(&[backend.current_profile().await?], Indent::None),
        ("profiles/current", _) => json(&backend.current_profile().await?, Indent::None),
        ("usermetrics" | "metrics", _) => {
            let mut response = text(
                StatusCode::OK,
                metrics::exposition(&backend.metrics().await?),
            );
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; version=0.0.4"),
            );
            Ok(response)
        }
        ("bugreport", _) => {
            let marker = bug_marker()?;
            tracing::info!(
                marker,
                note = query.get("note").unwrap_or_default(),
                "bug report"
            );
            Ok(text(StatusCode::OK, marker))
        }
        ("netcheck", _) => json(&backend.netcheck().await?, Indent::Tab),
        ("debug-filter", _) => json(&backend.filter().await?, Indent::Tab),
        ("debug-why", _) => {
            let from = match query.get("from") {
                None | Some("") => None,
                Some(_) => Some(query.required("from")?),
            };
            let question = WhyQuestion {
                dst: query.required("dst")?,
                port: query.required("port")?,
                protocol: query.required("proto")?,
                from,
            };
            json(&backend.why(question).await?, Indent::Tab)
        }
        ("debug", _) => match query.get("action") {
            Some("restun") => debug_done(backend.restun().await),
            Some("rebind") => debug_done(backend.rebind().await),
            other => Err(Problem::bad_request(format!(
                "unknown debug action {:?}; there are restun and rebind",
                other.unwrap_or_default()
            ))),
        },
        _ => Err(not_found(path)),
    }
}

async fn edit_prefs<B: Backend>(backend: &B, body: &[u8]) -> Outcome {
    let mut change = MaskedPrefs::from_json(body).map_err(Problem::bad_request)?;
    if change.internal_exit_node_prior.is_some() {
        return Err(Problem::bad_request("InternalExitNodePrior cannot be set").json("Error"));
    }
    if let Some(MaybeIp(Some(ip))) = change.exit_node_ip
        && let Some(id) = exit_node_at(backend, ip).await?
    {
        change.exit_node_id = Some(id);
        change.exit_node_ip = Some(MaybeIp(None));
    }
    let mut outcome = backend.prefs().await?;
    change.apply_to(&mut outcome);
    let refused = |error| Problem::from(error).json("Error");
    backend.check_prefs(outcome).await.map_err(refused)?;
    json(
        &backend.edit_prefs(change).await.map_err(refused)?,
        Indent::Tab,
    )
}

/// Names the exit node that is given by its address, where it is known.
async fn name_exit_node<B: Backend>(backend: &B, prefs: &mut Prefs) -> Reply<()> {
    if let Some(ip) = prefs.exit_node_ip.0
        && let Some(id) = exit_node_at(backend, ip).await?
    {
        prefs.exit_node_id = id;
        prefs.exit_node_ip = MaybeIp(None);
    }
    Ok(())
}

/// The stable id of the possible exit node with this address.
async fn exit_node_at<B: Backend>(backend: &B, ip: IpAddr) -> Reply<Option<String>> {
    let status = backend.status(true).await?;
    let mut peers = status.peer.into_values();
    let found = peers.find(|peer| peer.exit_node_option && peer.tailscale_ips.contains(&ip));
    Ok(found.map(|peer| peer.id))
}

async fn watch<B: Backend>(backend: &B, query: &Query) -> Outcome {
    let mask = match query.get("mask") {
        None | Some("") => NotifyMask(0),
        Some(_) => NotifyMask(query.required("mask")?),
    };
    if mask.contains(NotifyMask::IN_PROCESS) {
        return Err(Problem::bad_request(
            "mask bit 65536 is for embedding programs only",
        ));
    }
    let receiver = backend.subscribe(mask).await?;
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async {
        let notify = receiver.recv().await?;
        Some((notify, receiver))
    })
    .filter_map(|notify| async move {
        let mut line = serde_json::to_vec(&notify).ok()?;
        line.push(b'\n');
        Some(Ok::<_, Infallible>(Frame::data(Bytes::from(line))))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, APPLICATION_JSON);
    Ok(response)
}

/// The reason that a person gave for an action; what cannot be read is none.
fn reason(headers: &http::HeaderMap) -> String {
    headers
        .get(REASON_HEADER)
        .and_then(|value| data_encoding::BASE64.decode(value.as_bytes()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default()
}

/// A text that marks this moment in the daemon's log.
fn bug_marker() -> Result<String, Problem> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    let now = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S");
    Ok(format!(
        "BUG-warren-{now}Z-{}",
        data_encoding::HEXLOWER.encode(&random)
    ))
}

/// The part of an address behind the question mark.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        Self(
            url::form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn required<T: FromStr>(&self, name: &str) -> Result<T, Problem>
    where
        T::Err: Display,
    {
        let value = self
            .get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Problem::bad_request(format!("missing '{name}' parameter")))?;
        value
            .parse()
            .map_err(|error| Problem::bad_request(format!("invalid '{name}' parameter: {error}")))
    }
}

#[derive(Clone, Copy)]
enum Indent {
    None,
    Tab,
}

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

fn json<T: Serialize + ?Sized>(value: &T, indent: Indent) -> Outcome {
    let mut bytes = Vec::new();
    let written = match indent {
        Indent::None => value.serialize(&mut serde_json::Serializer::new(&mut bytes)),
        Indent::Tab => {
            let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, format,
            ))
        }
    };
    written.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    bytes.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(bytes)).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, APPLICATION_JSON);
    Ok(response)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn done(reply: Reply<()>) -> Outcome {
    reply?;
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn debug_done(reply: Reply<()>) -> Outcome {
    reply?;
    Ok(text(StatusCode::OK, "done\n"))
}

fn not_found(path: &str) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no {path} in this version"),
    )
}

fn problem_response(problem: Problem) -> Response<Body> {
    match problem.json_key {
        None => text(problem.status, format!("{}\n", problem.text)),
        Some(key) => {
            let mut response = text(
                problem.status,
                serde_json::json!({ key: problem.text }).to_string(),
            );
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, APPLICATION_JSON);
            response
        }
    }
}

/// What `name` needs with this method.
fn find_endpoint(name: &str, method: &Method) -> Result<Need, Problem> {
    let rows = || ENDPOINTS.iter().filter(|(endpoint, ..)| *endpoint == name);
    if rows().next().is_none() {
        return Err(not_found(&format!("/localapi/v0/{name}")));
    }
    let row = rows().find(|(_, methods, _)| methods.contains(method));
    row.map(|(_, _, need)| *need).ok_or_else(|| {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{method} is not a method of {name}"),
        )
    })
}
