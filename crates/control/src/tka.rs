//! The requests about tailnet lock, at `/machine/tka/...`. Clients send them as GET with
//! a body.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use axum::{Extension, Router};
use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use warren_control_core::LockError;
use warren_control_types::{
    TkaBootstrapRequest, TkaDisableRequest, TkaInitBeginRequest, TkaInitFinishRequest,
    TkaSignaturesUsingKeyRequest, TkaSubmitSignatureRequest, TkaSyncOfferRequest,
    TkaSyncSendRequest,
};
use warren_lock::DisablementSecret;

use crate::coordinator::CoordinatorHandle;
use crate::http::{JsonBody, json as answer, text};
use crate::machine::Peer;
use crate::store::StoreError;

/// The longest request that carries update messages or the signatures of all nodes.
pub(crate) const MAX_LARGE: usize = 8 << 20;
/// The longest of the other requests.
const MAX_SMALL: usize = 1 << 20;
/// The longest disablement secret; usual ones have 32 bytes.
const MAX_SECRET: usize = 1024;

type Handle = State<Arc<CoordinatorHandle>>;

/// The routes below `/machine/tka`.
pub(crate) fn router() -> Router<Arc<CoordinatorHandle>> {
    Router::new()
        .route("/init/begin", any(init_begin))
        .route("/init/finish", any(init_finish))
        .route("/bootstrap", any(bootstrap))
        .route("/sync/offer", any(sync_offer))
        .route("/sync/send", any(sync_send))
        .route("/sign", any(sign))
        .route("/disable", any(disable))
        .route("/affected-sigs", any(affected_signatures))
}

/// The answer to a request. All that it is based on is on disk.
fn answered<T: Serialize>(result: Result<T, LockError>) -> Response {
    match result {
        Ok(value) => answer(StatusCode::OK, &value),
        Err(error) => {
            let status = match &error {
                LockError::NoNode => StatusCode::NOT_FOUND,
                LockError::NotAllowed | LockError::WrongSecret => StatusCode::FORBIDDEN,
                LockError::AlreadyOn | LockError::NotOn | LockError::NotPrepared => {
                    StatusCode::CONFLICT
                }
                LockError::Damaged => StatusCode::INTERNAL_SERVER_ERROR,
                LockError::Refused(_) => StatusCode::BAD_REQUEST,
            };
            text(status, error.to_string())
        }
    }
}

fn saved<T: Serialize>(result: Result<Result<T, LockError>, StoreError>) -> Response {
    match result {
        Ok(result) => answered(result),
        Err(error) => {
            tracing::error!("the state of tailnet lock could not be saved: {error}");
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the server cannot save its state at the moment (see its log); try again later",
            )
        }
    }
}

async fn init_begin(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaInitBeginRequest, MAX_LARGE>,
) -> Response {
    let begun = coordinator
        .change_saved(|core, _, wall| core.lock_init_begin(peer.machine, &request, wall));
    saved(begun.await)
}

async fn init_finish(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaInitFinishRequest, MAX_LARGE>,
) -> Response {
    let finished = coordinator.change_saved(|core, _, wall| {
        let finished = core.lock_init_finish(peer.machine, &request, wall);
        finished.map(|()| json!({}))
    });
    saved(finished.await)
}

async fn bootstrap(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaBootstrapRequest, MAX_SMALL>,
) -> Response {
    let state = coordinator.read_saved(|view| view.lock_bootstrap(peer.machine, &request));
    saved(state.await)
}

async fn sync_offer(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaSyncOfferRequest, MAX_SMALL>,
) -> Response {
    let offer = coordinator.read_saved(|view| view.lock_sync_offer(peer.machine, &request));
    saved(offer.await)
}

async fn sync_send(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaSyncSendRequest, MAX_LARGE>,
) -> Response {
    let sent =
        coordinator.change_saved(|core, _, wall| core.lock_sync_send(peer.machine, &request, wall));
    saved(sent.await)
}

async fn sign(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaSubmitSignatureRequest, MAX_SMALL>,
) -> Response {
    let signed = coordinator.change_saved(|core, _, _| {
        let signed = core.lock_sign(peer.machine, &request);
        signed.map(|()| json!({}))
    });
    saved(signed.await)
}

async fn disable(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaDisableRequest, MAX_SMALL>,
) -> Response {
    if request.disablement_secret.len() > MAX_SECRET {
        return answered::<()>(Err(LockError::WrongSecret));
    }
    // The derivation takes long, so it runs beside the coordinator, and one at a time.
    let Ok(_turn) = coordinator.disablement_turn().await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
    };
    let secret = DisablementSecret::from_bytes(&request.disablement_secret);
    let Ok(value) = tokio::task::spawn_blocking(move || secret.value()).await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
    };
    let disabled = coordinator.change_saved(|core, _, _| {
        let disabled = core.lock_disable(peer.machine, &request, value);
        disabled.map(|()| json!({}))
    });
    saved(disabled.await)
}

async fn affected_signatures(
    State(coordinator): Handle,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<TkaSignaturesUsingKeyRequest, MAX_SMALL>,
) -> Response {
    let found = coordinator.read_saved(|view| view.lock_signatures_using(peer.machine, &request));
    saved(found.await)
}
