//! The clock of the system.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall time since 1970. A clock that is set before 1970 counts as 1970.
pub fn wall_clock() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
