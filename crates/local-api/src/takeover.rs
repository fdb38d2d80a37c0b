//! Answers after which the connection of the request carries something else (RFC 9110,
//! section 7.8: upgrade).

use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument as _;

use crate::error::ApiError;
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
/// brings one. `upgrade` is the connection of the request.
pub(crate) fn follow(response: Response, upgrade: Option<OnUpgrade>) -> Response {
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
    };
    tokio::spawn(joining.in_current_span());
    response
}
