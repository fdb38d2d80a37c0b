//! Waiting for something to become true.
//!
//! The lab watches real programs from outside, so it has to look again until
//! they get there. A wait has a name and a limit, and fails with what it saw
//! last.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::LabError;

/// How long the lab lets a machine under load take for something that is
/// expected within a second.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks every few milliseconds until `look` gives a value.
///
/// # Errors
/// After `limit`: says what was waited for and what the last look gave.
pub fn until<T, E: Display>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, LabError> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if start.elapsed() > limit {
            return Err(LabError::new(format!(
                "waited {} s for {what}; the last look gave: {last}",
                limit.as_secs()
            )));
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
