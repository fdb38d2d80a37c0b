//! The handlers of the administration API.
//!
//! [`Administration`] carries out the requests of
//! [`warren_control_api::endpoints`], one module per subject. Reads work on the state
//! of one moment; a change is answered when it is on disk.

mod auth_keys;
mod dns;
mod nodes;
mod policies;
mod server;
mod ssh_checks;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use jiff::Timestamp;
use warren_control_api::endpoints::administration_routes;
use warren_control_api::{ApiError, ErrorCode, Reply};
use warren_control_core::{AdminError, Coordinator};

pub(crate) use ssh_checks::{ssh_check_info, waiting_ssh_checks};

use crate::c2n::C2nError;
use crate::certificates::CertificateFiles;
use crate::coordinator::CoordinatorHandle;
use crate::dns_records::RecordsFile;
use crate::login::Logins;
use crate::reload::Reloader;
use crate::store::StoreError;

/// The administration of one coordinator.
pub(crate) struct Administration {
    pub(crate) coordinator: Arc<CoordinatorHandle>,
    pub(crate) logins: Arc<Logins>,
    pub(crate) settings: Arc<Reloader>,
    /// The file with extra records, if there is one.
    pub(crate) records: Option<Arc<RecordsFile>>,
    /// The files of the certificate, if they were given.
    pub(crate) certificate: Option<Arc<CertificateFiles>>,
}

/// The router of the administration API, for the socket.
pub(crate) fn router(administration: Administration) -> Router {
    administration_routes(Arc::new(administration)).into_router()
}

impl Administration {
    /// Makes a change and waits until it is on disk.
    async fn change<V>(
        &self,
        change: impl FnOnce(&mut Coordinator, Duration) -> Result<V, AdminError>,
    ) -> Reply<V> {
        let changed = self
            .coordinator
            .change_saved(|coordinator, _, wall| change(coordinator, wall))
            .await?;
        Ok(changed?)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(ErrorCode::Unavailable, error.to_string())
    }
}

impl From<C2nError> for ApiError {
    fn from(error: C2nError) -> Self {
        let code = match error {
            C2nError::Path(_) => ErrorCode::InvalidRequest,
            C2nError::Silence(_) | C2nError::InvalidResponse { .. } => ErrorCode::Unavailable,
            C2nError::Refused(error) => return error.into(),
        };
        Self::new(code, error.to_string())
    }
}

/// The moment `wall` after the UNIX epoch, to the nanosecond: a key that is shown as
/// expired must be refused too.
pub(crate) fn moment(wall: Duration) -> Timestamp {
    i128::try_from(wall.as_nanos())
        .ok()
        .and_then(|nanoseconds| Timestamp::from_nanosecond(nanoseconds).ok())
        .unwrap_or(Timestamp::MAX)
}
