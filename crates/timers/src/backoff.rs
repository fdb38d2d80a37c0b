//! The delay before the next attempt of something that failed.

use std::time::Duration;

use warren_keys::Entropy;

/// How the delay grows from one failure to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// Twice the delay before: `first`, `2 * first`, `4 * first` ...
    Doubling,
    /// With the square of the number of failures: `first`, `4 * first`,
    /// `9 * first` ...
    Quadratic,
}

/// Counts failures in a row and gives the delay after each of them.
///
/// [`delay`](Self::delay) is exact. [`jittered`](Self::jittered) spreads it
/// evenly over half to one and a half times its length, so that many nodes that
/// lost the same server do not come back at the same moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    growth: Growth,
    failures: u32,
}

impl Backoff {
    /// Delays from `first` (after the first failure) up to `longest`.
    pub const fn new(growth: Growth, first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            growth,
            failures: 0,
        }
    }

    /// Counts one more failure and returns the exact delay after it.
    pub fn delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let factor = match self.growth {
            Growth::Doubling => 1u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX),
            Growth::Quadratic => self.failures.saturating_mul(self.failures),
        };
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Counts one more failure and returns a random delay between half and one
    /// and a half times the exact one.
    pub fn jittered(&mut self, entropy: &mut dyn Entropy) -> Duration {
        jitter(self.delay(), entropy)
    }

    /// Forgets all failures: something succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A random duration between half and one and a half times `base`.
fn jitter(base: Duration, entropy: &mut dyn Entropy) -> Duration {
    let mut byte = [0];
    entropy.fill(&mut byte);
    base / 2 + base.saturating_mul(u32::from(byte[0])) / 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_testkit::FixedEntropy;

    fn delays(mut backoff: Backoff, count: usize) -> Vec<u128> {
        (0..count).map(|_| backoff.delay().as_millis()).collect()
    }

    #[test]
    fn delays_grow_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(2));
        assert_eq!(
            delays(Backoff::new(Growth::Doubling, first, longest), 7),
            [100, 200, 400, 800, 1600, 2000, 2000]
        );
        assert_eq!(
            delays(Backoff::new(Growth::Quadratic, first, longest), 6),
            [100, 400, 900, 1600, 2000, 2000]
        );
    }

    #[test]
    fn very_many_failures_do_not_overflow() {
        for growth in [Growth::Doubling, Growth::Quadratic] {
            let mut backoff = Backoff::new(growth, Duration::from_secs(1), Duration::from_secs(60));
            backoff.failures = u32::MAX - 1;
            assert_eq!(backoff.delay(), Duration::from_secs(60));
            assert_eq!(backoff.delay(), Duration::from_secs(60));
        }
    }

    #[test]
    fn a_reset_starts_again_with_the_first_delay() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(Growth::Doubling, second, second * 8);
        assert_eq!((backoff.delay(), backoff.delay()), (second, second * 2));
        backoff.reset();
        assert_eq!(backoff.delay(), second);
    }

    #[test]
    fn jitter_stays_between_half_and_one_and_a_half() {
        let base = Duration::from_secs(1);
        assert_eq!(jitter(base, &mut FixedEntropy(0)), base / 2);
        assert!(jitter(base, &mut FixedEntropy(255)) < base * 3 / 2);
    }
}
