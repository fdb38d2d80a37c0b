//! Errors of the administration API. Each has a code for programs, from which the
//! HTTP status follows, and a text for the administrator.

use http::StatusCode;
use serde::{Deserialize, Serialize};
use warren_control_core::{AdminError, DnsError};

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not valid; changing it helps.
    InvalidRequest,
    /// The policy in the request does not parse, or its tests fail.
    InvalidPolicy,
    /// The caller lacks the permission.
    PermissionDenied,
    /// The endpoint, user, node, key or version does not exist.
    NotFound,
    /// The endpoint does not have this method.
    MethodNotAllowed,
    /// The reference matches more than one record.
    Ambiguous,
    /// The request contradicts the present state: a name is in use, a record is still
    /// needed, or another administrator made a change in between.
    Conflict,
    /// The body of the request took too long.
    Timeout,
    /// The body of the request is too large.
    TooLarge,
    /// The server or the node cannot do that now; trying later may help.
    Unavailable,
    /// The server failed.
    Internal,
}

impl ErrorCode {
    /// The HTTP status of answers with this code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::InvalidPolicy => StatusCode::UNPROCESSABLE_ENTITY,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Ambiguous | Self::Conflict => StatusCode::CONFLICT,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The reason why a request was not carried out. It is also the JSON of such an
/// answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind of the error.
    pub code: ErrorCode,
    /// The reason and what to do next, as shown to the administrator.
    pub message: String,
}

/// The result of a request.
pub type Reply<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with this code and text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// An error of the server itself.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, error.to_string())
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        let code = match &error {
            AdminError::NoUser(_)
            | AdminError::NoUserForKey(_)
            | AdminError::NoNode(_)
            | AdminError::NoAuthKey(_)
            | AdminError::NoPending(_)
            | AdminError::NoSshCheck(_)
            | AdminError::NoPolicyVersion(_) => ErrorCode::NotFound,
            AdminError::Ambiguous { .. } => ErrorCode::Ambiguous,
            AdminError::UserExists(_)
            | AdminError::AccountTaken(_)
            | AdminError::UserHasNodes { .. }
            | AdminError::NameTaken(_)
            | AdminError::NoAddresses
            | AdminError::PolicyFileInCharge(_)
            | AdminError::PolicyChanged => ErrorCode::Conflict,
            AdminError::Dns(DnsError::NoRecord(_) | DnsError::NoSuffix(_)) => ErrorCode::NotFound,
            AdminError::Dns(DnsError::Configured(_)) => ErrorCode::Conflict,
            AdminError::NotConnected(_) | AdminError::TooManyQuestions(_) => ErrorCode::Unavailable,
            AdminError::Name(_)
            | AdminError::KeyWithoutOwner
            | AdminError::Tag(_)
            | AdminError::UndefinedTag(_)
            | AdminError::NoTags(_)
            | AdminError::JoinedWithoutUser(_)
            | AdminError::Question(_)
            | AdminError::Dns(DnsError::TooMany { .. })
            | AdminError::Time => ErrorCode::InvalidRequest,
            AdminError::Policy(_) => ErrorCode::InvalidPolicy,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn errors_of_the_coordinator_keep_their_text_and_get_a_code() {
        let error = ApiError::from(AdminError::NameTaken("db".to_owned()));
        assert_eq!(error.code.status(), StatusCode::CONFLICT);
        assert_eq!(
            error.to_string(),
            AdminError::NameTaken("db".to_owned()).to_string()
        );
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json["code"], "conflict");
        assert_eq!(serde_json::from_value::<ApiError>(json).unwrap(), error);
    }
}
