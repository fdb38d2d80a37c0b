//! Small documents by HTTP/1.1: the server's key, answers to pings, probes.
//!
//! One request, one connection, a limit on the answer's length. Redirects are not
//! followed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use url::Url;

use crate::proxies::{Proxy, Scheme, authority};
use crate::tls::{self, TlsError, Trust};
use crate::{DialError, Dialer};

/// Bytes both ways: TCP, or TLS over it.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// An HTTP request.
#[derive(Clone, Debug)]
pub struct Fetch<'a> {
    /// The HTTP method.
    pub method: Method,
    /// The address; `http` or `https`.
    pub url: &'a Url,
    /// Header fields beside those that follow from the rest. A body without a
    /// `Content-Type` here is JSON.
    pub headers: HeaderMap,
    /// The body of the request.
    pub body: Vec<u8>,
    /// Most bytes of the answer's body.
    pub limit: usize,
    /// How long all of it may take.
    pub timeout: Duration,
}

impl<'a> Fetch<'a> {
    /// A GET for a small document.
    pub fn get(url: &'a Url) -> Self {
        let timeout = Duration::from_secs(15);
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Vec::new(),
            limit: 64 * 1024,
            timeout,
        }
    }
}

/// An answer, with any status.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The HTTP status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The proxy that the answer came through, if the proxy could have given it itself.
    pub proxy: Option<String>,
}

/// The request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not an address this program can fetch.
    #[error("\"{0}\" is not an http or https address with a host")]
    Url(String),
    /// The connection failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The exchange failed.
    #[error("fetching {url} failed: {source}")]
    Http {
        /// The requested URL, without its query.
        url: String,
        /// The error of the connection or of HTTP.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("fetching {url} took longer than {} s", after.as_secs())]
    TimedOut {
        /// The requested URL, without its query.
        url: String,
        /// The time limit that passed.
        after: Duration,
    },
}

/// The address without the parts that may be secret.
fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// A connection for one request.
struct Opened<'a> {
    stream: Box<dyn Duplex>,
    /// The proxy that wants the whole URL and carries the request on.
    proxy: Option<&'a Proxy>,
}

/// Connects to the host of `url`, with TLS if it says so, or to the proxy.
async fn open<'a>(dialer: &'a Dialer, url: &Url) -> Result<Opened<'a>, FetchError> {
    let bad = || FetchError::Url(url.to_string());
    let host = url.host_str().ok_or_else(bad)?;
    let port = url.port_or_known_default().ok_or_else(bad)?;
    let scheme = match url.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(bad()),
    };
    let proxy = dialer.proxy(scheme, host, port).map_err(DialError::from)?;
    if let Some(proxy) = proxy.filter(|proxy| scheme == Scheme::Http && proxy.speaks_http()) {
        let stream = proxy.connect(dialer).await.map_err(|problem| {
            DialError::from(Box::new(proxy.error(&authority(host, port), problem)))
        })?;
        return Ok(Opened {
            stream: Box::new(stream),
            proxy: Some(proxy),
        });
    }
    let transport = dialer.open(scheme, host, port).await?;
    let stream: Box<dyn Duplex> = match scheme {
        Scheme::Http => Box::new(transport),
        Scheme::Https => {
            Box::new(tls::connect(transport, host, &Trust::Roots, &[b"http/1.1"]).await?)
        }
    };
    Ok(Opened {
        stream,
        proxy: None,
    })
}

/// Sends one request and reads the answer.
///
/// # Errors
/// [`FetchError`].
pub async fn fetch(dialer: &Dialer, request: Fetch<'_>) -> Result<Fetched, FetchError> {
    let (url, after) = (request.url, request.timeout);
    let exchange = async {
        let Opened { stream, proxy } = open(dialer, url).await?;
        let answer = exchange(stream, request, proxy).await;
        let mut answer = answer.map_err(|source| FetchError::Http {
            url: shown(url),
            source,
        })?;
        if let Some(proxy) = proxy {
            if answer.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
                let schemes = answer.headers.get_all(header::PROXY_AUTHENTICATE);
                let schemes = schemes.iter().filter_map(|value| value.to_str().ok());
                let problem = proxy.credentials_problem(schemes);
                let error = proxy.error(&shown(url), problem);
                return Err(DialError::from(Box::new(error)).into());
            }
            answer.proxy = Some(proxy.to_string());
        }
        Ok(answer)
    };
    let timed = tokio::time::timeout(after, exchange).await;
    timed.unwrap_or_else(|_| {
        Err(FetchError::TimedOut {
            url: shown(url),
            after,
        })
    })
}

async fn exchange(
    stream: Box<dyn Duplex>,
    request: Fetch<'_>,
    proxy: Option<&Proxy>,
) -> Result<Fetched, Box<dyn std::error::Error + Send + Sync>> {
    let url = request.url;
    let target = match proxy {
        Some(_) => &url[..url::Position::AfterQuery],
        None => &url[url::Position::BeforePath..url::Position::AfterQuery],
    };
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let mut head = http::Request::builder()
        .method(request.method)
        .uri(target)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close");
    if !request.body.is_empty() && !request.headers.contains_key(header::CONTENT_TYPE) {
        head = head.header(header::CONTENT_TYPE, "application/json");
    }
    if let Some(value) = proxy.and_then(Proxy::authorization) {
        head = head.header(header::PROXY_AUTHORIZATION, value);
    }
    for (name, value) in &request.headers {
        head = head.header(name, value);
    }
    let message = head.body(Full::new(Bytes::from(request.body)))?;

    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(message).await?.into_parts();
        let body = Limited::new(body, request.limit)
            .collect()
            .await?
            .to_bytes();
        Ok(Fetched {
            status: head.status,
            headers: head.headers,
            body,
            proxy: None,
        })
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The connection is done with the bytes, the exchange not yet with
        // its part of them.
        _ = connection => exchange.await,
    }
}
