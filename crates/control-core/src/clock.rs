//! Readings of the clocks.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The calendar moment of a wall clock reading. A reading beyond the year 9999
/// is held at the end of the calendar.
pub(crate) fn timestamp(wall: Duration) -> Timestamp {
    SignedDuration::try_from(wall)
        .ok()
        .and_then(|since| Timestamp::from_duration(since).ok())
        .unwrap_or(Timestamp::MAX)
}
