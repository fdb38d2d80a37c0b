//! Requests that start and end logins.

use http::HeaderName;

use super::{name_exit_node, without_content};
use crate::REASON_HEADER;
use crate::endpoint::{IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::{ApiError, Reply};
use crate::prefs::Options;
use crate::types::Status;

/// Starts the node with these preferences. With an auth key the node registers
/// with it; without one, it connects if it has a login.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The auth key, the preferences, and whether to make a new login.
    pub options: Options,
}

impl Start {
    /// The options in the form in which they are used: an exit node that is given
    /// by its address is given by its id.
    ///
    /// # Errors
    /// [`ApiError::Refused`] when the preferences cannot be used.
    pub fn prepare(mut self, status: &Status) -> Reply<Options> {
        if let Some(prefs) = &mut self.options.update_prefs {
            name_exit_node(prefs, status);
            prefs.check().map_err(ApiError::Refused)?;
        }
        Ok(self.options)
    }
}

impl RequestForm for Start {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let options = Options::from_json(&request.bytes().await?).map_err(ApiError::Refused)?;
        Ok(Self { options })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::with_body(self.options.to_json().to_string())
    }
}

/// Begins a login in which a person opens an address. The address follows as a
/// notification. This also replaces a key that is still valid.
#[derive(Debug, Clone, Copy)]
pub struct LogIn;

/// Forgets the login here, without a request to the coordination server.
#[derive(Debug, Clone, Copy)]
pub struct ResetLogin;

without_content!(LogIn, ResetLogin);

/// Expires the node key at the server and forgets it here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOut {
    /// The reason that the user gave, for the log; may be empty.
    pub reason: String,
}

impl RequestForm for LogOut {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        // A reason that cannot be read is none: the user wants to log out.
        let reason = request
            .headers
            .get(REASON_HEADER)
            .and_then(|value| data_encoding::BASE64.decode(value.as_bytes()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .unwrap_or_default();
        Ok(Self { reason })
    }

    fn write(&self) -> OutgoingRequest {
        let reason = data_encoding::BASE64.encode(self.reason.as_bytes());
        OutgoingRequest {
            headers: vec![(HeaderName::from_static(REASON_HEADER), reason)],
            ..OutgoingRequest::default()
        }
    }
}
