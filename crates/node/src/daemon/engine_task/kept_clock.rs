//! The floor of the handshakes' clock, kept so that peers go on believing us.
//!
//! A peer takes an initiation only when its timestamp is greater than the last
//! one it took from us. A machine without a battery for its clock, or one whose
//! clock was ahead, may start again in what its peers take for the past, and
//! they would refuse it until its clock has caught up. So a time is kept that no
//! timestamp of this run is above, and the next run begins there.
//!
//! It runs ahead of the timestamps by [`STEP`], so that it is written at most
//! once in that time, and only while there are handshakes; a daemon that is told
//! to stop writes the exact one.

use std::time::Duration;

use super::EngineTask;

/// How far the floor is set ahead.
const STEP: Duration = Duration::from_secs(60);

const OTHERWISE: &str = "cannot keep the clock of handshakes; if the machine's clock is set back, peers may refuse us \
     after a restart";

impl EngineTask {
    /// Begins where the last run, or the last engine, ended.
    pub(super) fn resume_clock(&mut self) {
        self.engine.resume_timestamps(self.state.clock_floor);
    }

    /// Sets the floor ahead when the timestamps have come up to it.
    pub(super) fn keep_clock(&mut self) {
        let last = self.engine.last_timestamp();
        if last > self.state.clock_floor {
            self.set_clock_floor(whole_seconds(last) + STEP);
        }
    }

    /// At the end: no further ahead than needed.
    pub(super) fn keep_exact_clock(&mut self) {
        let exact = whole_seconds(self.engine.last_timestamp());
        if exact != self.state.clock_floor {
            self.set_clock_floor(exact);
        }
    }

    fn set_clock_floor(&mut self, floor: Duration) {
        self.state.clock_floor = floor;
        let text = format!("{}\n", floor.as_secs());
        let path = self.state.clock_path();
        self.files.write(path, text.into_bytes(), OTHERWISE);
    }
}

/// The next whole second that is not before `time`.
fn whole_seconds(time: Duration) -> Duration {
    let begun = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs().saturating_add(begun))
}
