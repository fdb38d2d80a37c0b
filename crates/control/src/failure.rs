//! How a command ends: with text on standard output, or with a reason.

use std::io::Write as _;

/// Why the program ends with an error.
#[derive(Debug)]
pub enum Failure {
    /// The command failed, for this reason.
    Failed(String),
    /// The command line is not valid, for this reason.
    Usage(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Prints; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: String) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
