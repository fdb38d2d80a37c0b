//! Requests that change between the logins of a node.

use super::without_content;
use crate::endpoint::{IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::Reply;

/// All stored logins.
#[derive(Debug, Clone, Copy)]
pub struct GetProfiles;

/// The login in use.
#[derive(Debug, Clone, Copy)]
pub struct GetCurrentProfile;

/// Leaves the login in use as it is, and begins an empty one.
#[derive(Debug, Clone, Copy)]
pub struct NewProfile;

without_content!(GetProfiles, GetCurrentProfile, NewProfile);

/// A request for one stored login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetProfile {
    /// Its id.
    pub id: String,
}

/// Changes to a stored login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchProfile {
    /// Its id.
    pub id: String,
}

/// Removes a stored login here, without a request to its coordination server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteProfile {
    /// Its id.
    pub id: String,
}

macro_rules! with_id {
    ($($request:ident),*) => {$(
        impl RequestForm for $request {
            async fn read(request: IncomingRequest) -> Reply<Self> {
                Ok(Self { id: request.tail })
            }

            fn write(&self) -> OutgoingRequest {
                OutgoingRequest {
                    tail: self.id.clone(),
                    ..OutgoingRequest::default()
                }
            }
        }
    )*};
}
with_id!(GetProfile, SwitchProfile, DeleteProfile);
