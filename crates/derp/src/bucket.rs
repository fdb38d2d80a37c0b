//! A token bucket: how much may be sent or taken, on average and at once.

use std::time::{Duration, Instant};

/// Fills with `rate` tokens a second up to `burst`. Starts full.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket. A `burst` of zero lets nothing through.
    pub fn new(now: Instant, rate_per_second: u64, burst: u64) -> Self {
        let (rate, burst) = (rate_per_second as f64, burst as f64);
        Self {
            rate,
            burst,
            tokens: burst,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Takes `amount` if that much is there.
    pub fn try_take(&mut self, now: Instant, amount: u64) -> bool {
        self.refill(now);
        let enough = self.tokens >= amount as f64;
        if enough {
            self.tokens -= amount as f64;
        }
        enough
    }

    /// Takes `amount` in any case, going into debt, and says how long the
    /// caller must pause until the debt is paid. Amounts above the burst are
    /// charged as one burst.
    pub fn take_and_wait(&mut self, now: Instant, amount: u64) -> Duration {
        self.refill(now);
        self.tokens -= (amount as f64).min(self.burst);
        if self.tokens >= 0.0 || self.rate <= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((-self.tokens / self.rate).min(3600.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn burst_passes_and_then_the_rate_limits() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start, 1, 3);
        let answers: Vec<bool> = (0..4).map(|_| bucket.try_take(start, 1)).collect();
        assert_eq!(answers, [true, true, true, false]);
        assert!(!bucket.try_take(start + Duration::from_millis(900), 1));
        assert!(bucket.try_take(start + Duration::from_millis(1100), 1));
    }

    #[test]
    fn debt_is_paid_by_waiting() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start, 1000, 100);
        assert_eq!(bucket.take_and_wait(start, 100), Duration::ZERO);
        assert_eq!(bucket.take_and_wait(start, 50), Duration::from_millis(50));
    }

    proptest! {
        /// For every order of amounts and times (even a clock that goes
        /// back), no more passes than burst plus rate times the elapsed time.
        #[test]
        fn never_more_than_promised(steps: Vec<(u16, u8)>, rate in 1u64..10_000, burst in 0u64..5_000) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(start, rate, burst);
            let (mut latest, mut passed) = (0u64, 0u64);
            for (millis, amount) in steps {
                latest = latest.max(u64::from(millis));
                let now = start + Duration::from_millis(millis.into());
                if bucket.try_take(now, amount.into()) {
                    passed += u64::from(amount);
                }
                prop_assert!(passed * 1000 <= burst * 1000 + rate * latest + 1000);
            }
        }
    }
}
