//! The clock of the system.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time, by the clock that also wakes the timers: with two clocks, a
/// timer could come before its time and be set again at once, for ever.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Wall time since 1970. A clock that is set before 1970 counts as 1970.
pub fn wall_clock() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
