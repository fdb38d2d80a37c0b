//! The listener of `--debug`: counters and figures about the process over HTTP.
//!
//! It has no authentication. All who reach the address read the figures, and change
//! nothing; so it belongs on a loopback address, and a warning is logged for others.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::handle::NodeHandle;
use super::start::DaemonError;
use crate::localapi::endpoints::GetMetrics;

/// Connections at a time; others wait.
const MAX_CONNECTIONS: usize = 16;
/// How long one connection may last.
const CONNECTION: Duration = Duration::from_secs(60);
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);
/// The pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

const METRICS: &str = "text/plain; version=0.0.4";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
/metrics, /debug/metrics  counters, in the form of Prometheus
/debug/process            memory, threads and open files, as JSON
/debug/tasks              tasks of the runtime, as JSON
";

/// Opens the listener and serves it until the process ends.
///
/// # Errors
/// The address cannot be listened at.
pub(super) async fn serve(address: &str, node: NodeHandle) -> Result<(), DaemonError> {
    // ":8080" means all addresses.
    let bindable = match address.starts_with(':') {
        true => format!("0.0.0.0{address}"),
        false => address.to_owned(),
    };
    let listener = TcpListener::bind(&bindable).await;
    let listener = listener.map_err(|source| DaemonError::Debug {
        address: address.to_owned(),
        source,
    })?;
    if let Ok(bound) = listener.local_addr() {
        note_address(bound);
    }
    tokio::spawn(accept(listener, node));
    Ok(())
}

fn note_address(bound: SocketAddr) {
    if bound.ip().is_loopback() {
        tracing::info!(
            port = bound.port(),
            "serving counters and figures (--debug)"
        );
    } else {
        tracing::warn!(
            port = bound.port(),
            "the address of --debug is not a loopback address: all who reach it read the \
             counters of this node, without a password"
        );
    }
}

async fn accept(listener: TcpListener, node: NodeHandle) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "the listener of --debug accepts no connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let node = node.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let node = node.clone();
                async move { Ok::<_, Infallible>(answer(&request, &node).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A client that leaves, or stays too long, only ends its own connection.
            drop(tokio::time::timeout(CONNECTION, connection).await);
        });
    }
}

async fn answer(request: &Request<Incoming>, node: &NodeHandle) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return response(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET and HEAD are possible here\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/" | "/debug" | "/debug/" => response(StatusCode::OK, TEXT, INDEX.to_owned()),
        "/metrics" | "/debug/metrics" => match node.call(GetMetrics).await {
            Ok(text) => response(StatusCode::OK, METRICS, text),
            Err(error) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n")),
        },
        "/debug/process" => json_response(&process()),
        "/debug/tasks" => json_response(&tasks()),
        path if path.starts_with("/debug/pprof") => response(
            StatusCode::NOT_FOUND,
            TEXT,
            "this program has no Go profiles; use: perf record -g -p PID\n".to_owned(),
        ),
        _ => response(
            StatusCode::NOT_FOUND,
            TEXT,
            format!("not found; there are:\n{INDEX}"),
        ),
    }
}

fn json_response(value: &serde_json::Value) -> Response<Full<Bytes>> {
    response(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// The figures of the process from /proc; those that cannot be read are `null`.
fn process() -> serde_json::Value {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse::<u64>().ok())
    };
    let bytes = |name: &str| field(name).map(|kib| kib * 1024);
    let files = std::fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
    json!({
        "resident_bytes": bytes("VmRSS:"),
        "peak_resident_bytes": bytes("VmHWM:"),
        "virtual_bytes": bytes("VmSize:"),
        "threads": field("Threads:"),
        "open_files": files,
    })
}

/// The figures of the runtime.
fn tasks() -> serde_json::Value {
    let metrics = tokio::runtime::Handle::current().metrics();
    json!({
        "workers": metrics.num_workers(),
        "alive_tasks": metrics.num_alive_tasks(),
        "waiting_tasks": metrics.global_queue_depth(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::daemon::{Inbox, Message};

    async fn get(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn figures_are_served_and_nothing_can_be_changed() {
        let (inbox, mut outbox) = Inbox::new();
        // A daemon that stops: it drops requests.
        tokio::spawn(async move { while let Some(Message::Request(_)) = outbox.next().await {} });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, NodeHandle::new(inbox)));
        for (request, status, text) in [
            ("GET /", "200", "/debug/metrics"),
            ("GET /debug/process", "200", "\"resident_bytes\": "),
            ("GET /debug/tasks", "200", "\"alive_tasks\": "),
            ("GET /debug/pprof/goroutine", "404", "perf record"),
            ("GET /x", "404", "there are"),
            ("POST /metrics", "405", "only GET"),
            ("GET /metrics", "503", "the daemon is stopping"),
        ] {
            let answer = get(at, request).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(
                answer.starts_with(&expected) && answer.contains(text),
                "{request}: {answer}"
            );
        }
    }
}
