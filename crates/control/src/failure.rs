//! How a command ends: with text on standard output, or with a reason.

use std::io::Write as _;

use warren_terminal::SafeWriter;

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

/// Prints, without characters that act on a terminal; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: String) {
    let _ = SafeWriter(std::io::stdout()).write_all(text.as_bytes());
}

/// Prints a line for the user beside the output.
pub(crate) fn print_error(text: &str) {
    let _ = writeln!(SafeWriter(std::io::stderr()), "warren-control: {text}");
}
