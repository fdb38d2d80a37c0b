//! Answers after which the connection of the request carries something else (RFC 9110,
//! section 7.8: upgrade).

use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument as _;

use crate::error::ApiError;
use crate::places::Place;
use crate::router::refusal;

/// A connection in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The connection that takes over, as an extension of the response; these are copied, so
/// it is taken out once.
#[derive(Clone)]
pub(crate) struct TakenOver(Arc<Mutex<Option<Box<dyn Duplex>>>>);

impl TakenOver {
    pub(crate) fn by(stream: Box<dyn Duplex>) -> Self {
        Self(Arc::new(Mutex::new(Some(stream))))
    }

    fn take(&self) -> Option<Box<dyn Duplex>> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }
}

/// Joins the connection of the request with the one that the response brings, if it
/// brings one. `upgrade` is the connection of the request, and `place` its place, which it
/// keeps to its end.
pub(crate) fn follow(
    response: Response,
    upgrade: Option<OnUpgrade>,
    place: Option<Arc<Place>>,
) -> Response {
    let taken = response.extensions().get::<TakenOver>();
    let Some(mut stream) = taken.and_then(TakenOver::take) else {
        return response;
    };
    let Some(upgrade) = upgrade else {
        return refusal(&ApiError::Refused(
            "this request needs a connection that can be upgraded".to_owned(),
        ));
    };
    let joining = async move {
        let joined = async {
            let upgraded = upgrade.await.map_err(std::io::Error::other)?;
            let mut program = TokioIo::new(upgraded);
            tokio::io::copy_bidirectional(&mut program, &mut stream).await
        };
        if let Err(error) = joined.await {
            tracing::debug!(%error, "a connection of a program ended early");
        }
        drop(place);
    };
    tokio::spawn(joining.in_current_span());
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::caller::Caller;
    use crate::places::{Places, Rank};
    use axum::body::Body;
    use hyper::StatusCode;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const CALLER: Caller = Caller::LocalUser { uid: 1000 };

    fn places_left(places: &Places) -> usize {
        std::iter::from_fn(|| places.take(CALLER, Rank::Other))
            .collect::<Vec<_>>()
            .len()
    }

    #[tokio::test]
    async fn a_connection_that_was_taken_over_keeps_its_place_to_its_end() {
        let places = Places::default();
        let all = places_left(&places);
        let (mut program, connection) = tokio::io::duplex(4096);
        let (ours, mut elsewhere) = tokio::io::duplex(4096);
        let ours = Mutex::new(Some(ours));
        let place = Mutex::new(places.take(CALLER, Rank::Other).map(Arc::new));
        let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
            let upgrade = request.extensions_mut().remove::<OnUpgrade>();
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let stream = ours.lock().unwrap().take().unwrap();
            response
                .extensions_mut()
                .insert(TakenOver::by(Box::new(stream)));
            let response = follow(response, upgrade, place.lock().unwrap().take());
            async move { Ok::<_, std::io::Error>(response) }
        });
        let head =
            "GET /dial HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: ts-dial\r\n\r\n";
        program.write_all(head.as_bytes()).await.unwrap();
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(connection), service)
            .with_upgrades()
            .await;
        served.unwrap();
        program.write_all(b"through").await.unwrap();
        let mut arrived = [0; 7];
        elsewhere.read_exact(&mut arrived).await.unwrap();
        assert_eq!((&arrived, places_left(&places)), (b"through", all - 1));

        drop(program);
        // The end arrives when the joining task has ended its half.
        assert_eq!(elsewhere.read(&mut [0; 1]).await.unwrap(), 0);
        drop(elsewhere);
        while places_left(&places) < all {
            tokio::task::yield_now().await;
        }
    }
}
