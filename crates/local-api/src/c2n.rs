//! Requests of the coordination server to the node (c2n): small HTTP requests that
//! come through the map stream and are answered through the same channel.
//!
//! They have a table of their own, with the same kinds of rows and handlers as the
//! local interface. The only endpoint so far is an echo, by which servers see
//! whether a node is alive. Other requests are answered as unknown, which servers
//! expect of older nodes.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use crate::caller::{Access, Caller};
use crate::endpoint::{
    Handler, IncomingRequest, OutgoingRequest, Permission, Raw, RequestForm, plain_text,
};
use crate::endpoints::endpoints;
use crate::error::Reply;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// A request to send the body back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// The body.
    pub body: Bytes,
}

impl RequestForm for Echo {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let body = request.bytes().await?;
        Ok(Self { body })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::with_body(self.body.to_vec())
    }
}

endpoints! {
    /// A node, as the coordination server needs it: a handler for each endpoint.
    trait C2nApi;
    /// The routes of c2n requests.
    fn c2n_routes;

    Echo: [] "/echo", Nothing => Raw<Bytes>;
}

/// The complete HTTP/1.1 response to a complete HTTP/1.1 request.
pub async fn respond<T: C2nApi>(node: Arc<T>, request: &[u8]) -> Vec<u8> {
    let response = match parse(request) {
        None => plain_text(StatusCode::BAD_REQUEST, "cannot read the request"),
        Some(request) => {
            let router = c2n_routes(node).into_router().fallback(unknown_path);
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    };
    write(response).await
}

async fn unknown_path() -> Response<Body> {
    plain_text(StatusCode::BAD_REQUEST, "unknown c2n path")
}

/// Reads a request; its body is all that follows the head.
fn parse(bytes: &[u8]) -> Option<Request<Body>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(end) = head.parse(bytes).ok()? else {
        return None;
    };
    let mut request = Request::builder().method(head.method?).uri(head.path?);
    for header in head.headers.iter() {
        request = request.header(header.name, header.value);
    }
    let body = Body::from(bytes.get(end..)?.to_vec());
    let mut request = request.body(body).ok()?;
    request.extensions_mut().insert(Caller::CoordinationServer);
    request.extensions_mut().insert(Access::FULL);
    Some(request)
}

async fn write(response: Response<Body>) -> Vec<u8> {
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        // A handler whose stream breaks has nothing to send.
        Err(_) => Bytes::new(),
    };
    let mut text = format!("HTTP/1.1 {}\r\n", head.status);
    for (name, value) in &head.headers {
        if let Ok(value) = value.to_str()
            && name != http::header::CONTENT_LENGTH
        {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    [text.as_bytes(), &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node;

    impl Handler<Echo> for Node {
        async fn handle(&self, request: Echo) -> Reply<Bytes> {
            Ok(request.body)
        }
    }

    async fn ask(request: &[u8]) -> Vec<u8> {
        respond(Arc::new(Node), request).await
    }

    #[tokio::test]
    async fn echo_answers_with_the_body_and_other_paths_are_unknown() {
        assert_eq!(ROWS.len(), 1);
        let answer = ask(b"POST /echo HTTP/1.1\r\nHost: x\r\n\r\nhello").await;
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        for request in [
            &b"GET /debug HTTP/1.0\r\n\r\n"[..],
            b"",
            b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"\xff \xff \xff\r\n\r\n",
        ] {
            let answer = ask(request).await;
            assert!(answer.starts_with(b"HTTP/1.1 400 "), "{request:?}");
        }
    }
}
