//! The HTTP proxy for one program: CONNECT, and requests with a whole URI (RFC 9112,
//! section 3.2).

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use warren_wire::socks5::Host;

use super::{Dial, HEAD_TIMEOUT, Outgoing};
use crate::forward::splice;

/// The reason of a CONNECT that failed, under the name that programs know.
const CONNECT_ERROR: HeaderName = HeaderName::from_static("tailscale-connect-error");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

type Body = BoxBody<Bytes, hyper::Error>;

/// Serves one program.
pub(super) async fn serve(program: TcpStream, dial: Arc<dyn Dial>) -> io::Result<()> {
    let service = service_fn(move |request| {
        let dial = Arc::clone(&dial);
        async move { Ok::<_, std::convert::Infallible>(answer(request, &*dial).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(program), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>, dial: &dyn Dial) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return connect(request, dial).await;
    }
    match forward(request, dial).await {
        Ok(response) => response,
        Err((status, text)) => plain(status, text),
    }
}

/// Opens a connection and gives it to the program.
async fn connect(request: Request<Incoming>, dial: &dyn Dial) -> Response<Body> {
    let target = request.uri().authority().and_then(|authority| {
        let port = authority.port_u16()?;
        Some((host_of(authority), port))
    });
    let Some((host, port)) = target else {
        return plain(
            StatusCode::BAD_REQUEST,
            "CONNECT needs a host and a port, for instance node:443".to_owned(),
        );
    };
    let outgoing = match dial.connect(&host, port).await {
        Ok(outgoing) => outgoing,
        Err(error) => {
            let text = error.to_string();
            let value = HeaderValue::from_str(&text);
            let mut response = plain(StatusCode::INTERNAL_SERVER_ERROR, text);
            if let Ok(value) = value {
                response.headers_mut().insert(CONNECT_ERROR, value);
            }
            return response;
        }
    };
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await;
        let upgraded = upgraded.map_err(io::Error::other);
        let ended = match upgraded {
            Ok(program) => splice(TokioIo::new(program), outgoing).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection through the proxy ended early");
        }
    });
    Response::new(Empty::new().map_err(never).boxed())
}

/// Sends a request on, over a connection of its own.
async fn forward(
    mut request: Request<Incoming>,
    dial: &dyn Dial,
) -> Result<Response<Body>, (StatusCode, String)> {
    let authority = match (request.uri().scheme(), request.uri().authority()) {
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => authority.clone(),
        _ => {
            return Err((
                StatusCode::BAD_REQUEST,
                "this is a proxy: send a request for http://host/, or CONNECT".to_owned(),
            ));
        }
    };
    let gateway = |error: &dyn std::fmt::Display| {
        let text = format!("{authority}: {error}");
        (StatusCode::BAD_GATEWAY, text)
    };
    let host = host_of(&authority);
    let port = authority.port_u16().unwrap_or(80);
    let outgoing: Outgoing = dial
        .connect(&host, port)
        .await
        .map_err(|error| gateway(&error))?;
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    remove_hop_by_hop(request.headers_mut());
    // The target decides, not what the program wrote beside it (RFC 9112, section 3.2.2).
    let value = HeaderValue::from_str(authority.as_str()).map_err(|error| gateway(&error))?;
    request.headers_mut().insert(header::HOST, value);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(outgoing))
        .await
        .map_err(|error| gateway(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of the proxy ended early");
        }
    });
    let sent = sender.send_request(request).await;
    let mut response = sent.map_err(|error| gateway(&error))?;
    remove_hop_by_hop(response.headers_mut());
    Ok(response.map(|body| body.boxed()))
}

/// Removes the headers that are meant for one connection (RFC 9110, section 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        PROXY_CONNECTION,
        KEEP_ALIVE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn host_of(authority: &Authority) -> Host {
    let host = authority.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse() {
        Ok(address) => Host::Address(address),
        Err(_) => Host::Name(host.to_owned()),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text + "\n").map_err(never).boxed());
    *response.status_mut() = status;
    response
}

fn never<E>(never: std::convert::Infallible) -> E {
    match never {}
}
