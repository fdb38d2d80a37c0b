//! Errors of the local interface. Each has a code, which is also its HTTP status,
//! and a text for the user.

use http::StatusCode;

/// The reason why a request was not carried out. The text is shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request is invalid or not allowed; changing it helps.
    #[error("{0}")]
    Refused(String),
    /// The caller lacks the permission.
    #[error("{0}")]
    AccessDenied(String),
    /// The endpoint or the thing that was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The endpoint does not have this method.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// The node cannot do that in its present state; trying later may help.
    #[error("{0}")]
    Unavailable(String),
    /// The node failed: its disk, the operating system, or it is ending.
    #[error("{0}")]
    Failed(String),
}

/// The result of a request.
pub type Reply<T> = Result<T, ApiError>;

impl ApiError {
    /// The code of the error.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused(_) => StatusCode::BAD_REQUEST,
            Self::AccessDenied(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The error with this code. Codes that no error has become
    /// [`ApiError::Failed`].
    pub fn from_status(status: StatusCode, text: String) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::Refused(text),
            StatusCode::FORBIDDEN => Self::AccessDenied(text),
            StatusCode::NOT_FOUND => Self::NotFound(text),
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed(text),
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable(text),
            _ => Self::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_as_its_code() {
        let text = || "text".to_owned();
        for error in [
            ApiError::Refused(text()),
            ApiError::AccessDenied(text()),
            ApiError::NotFound(text()),
            ApiError::MethodNotAllowed(text()),
            ApiError::Unavailable(text()),
            ApiError::Failed(text()),
        ] {
            assert_eq!(ApiError::from_status(error.status(), text()), error);
        }
    }
}
