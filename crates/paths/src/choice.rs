//! The comparison of two direct paths.
//!
//! The rule is that of the official client, in points: up to 100 for the share of latency
//! saved, 50 for loopback, 30 for link-local, 20 for private addresses, 10 for
//! IPv6. Two things are added so that equal paths do not alternate: latency
//! is smoothed over several pongs, and a difference under [`NOISE`] counts as
//! none; and the path in use keeps its place unless it loses by more than
//! [`MARGIN`].
//!
//! The rule compares two paths that work. Whether the one in use still does is
//! decided elsewhere: a degraded path is replaced by any pong.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Latency differences below this are jitter.
const NOISE: Duration = Duration::from_millis(2);
/// Points by which a challenger must win.
const MARGIN: u32 = 8;

/// A round-trip time that follows new samples slowly: 7/8 old, 1/8 new, as
/// TCP smooths it (RFC 6298 section 2).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoundTrip(Option<Duration>);

impl RoundTrip {
    pub(crate) fn sample(&mut self, sample: Duration) {
        self.0 = Some(self.0.map_or(sample, |old| (old * 7 + sample) / 8));
    }

    pub(crate) fn get(self) -> Option<Duration> {
        self.0
    }
}

/// Whether to leave the path in use, `current`, for `challenger`.
pub(crate) fn is_better(
    challenger: (SocketAddr, Duration),
    current: (SocketAddr, Duration),
) -> bool {
    if challenger.0 == current.0 {
        return false;
    }
    let ours = points(challenger, current.1);
    let theirs = points(current, challenger.1);
    ours > theirs + MARGIN
}

fn points((address, latency): (SocketAddr, Duration), other: Duration) -> u32 {
    let saved = other.saturating_sub(latency);
    let speed = if saved < NOISE {
        0
    } else {
        // `saved <= other`, so at most 100.
        u32::try_from(saved.as_micros() * 100 / other.as_micros().max(1)).unwrap_or(100)
    };
    let (scope, family) = match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => (50, 0),
        IpAddr::V4(ip) if ip.is_link_local() => (30, 0),
        IpAddr::V4(ip) if ip.is_private() => (20, 0),
        IpAddr::V4(_) => (0, 0),
        IpAddr::V6(ip) if ip.is_loopback() => (50, 10),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => (30, 10),
        IpAddr::V6(ip) if ip.is_unique_local() => (20, 10),
        IpAddr::V6(_) => (0, 10),
    };
    speed + scope + family
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn path(address: &str, millis: u64) -> (SocketAddr, Duration) {
        (address.parse().unwrap(), Duration::from_millis(millis))
    }

    #[test]
    fn table() {
        let public = "198.51.100.1:1";
        let other = "198.51.100.2:1";
        let cases = [
            ("clearly faster", path(public, 20), path(other, 40), true),
            ("slower", path(public, 40), path(other, 20), false),
            ("jitter on a LAN", path(public, 1), path(other, 2), false),
            ("a bit faster", path(public, 38), path(other, 40), false),
            (
                "private at the same speed",
                path("10.0.0.1:1", 5),
                path(public, 5),
                true,
            ),
            (
                "private but far slower",
                path("10.0.0.1:1", 50),
                path(public, 10),
                false,
            ),
            (
                "IPv6 at the same speed",
                path("[2001:db8::1]:1", 10),
                path(public, 10),
                true,
            ),
            (
                "back to IPv4",
                path(public, 10),
                path("[2001:db8::1]:1", 10),
                false,
            ),
            (
                "loopback",
                path("127.0.0.1:1", 1),
                path("10.0.0.1:1", 1),
                true,
            ),
            ("itself", path(public, 1), path(public, 100), false),
        ];
        for (what, challenger, current, expected) in cases {
            assert_eq!(is_better(challenger, current), expected, "{what}");
        }
    }

    proptest! {
        /// Two paths never replace each other in turn.
        #[test]
        fn at_most_one_is_better(a: IpAddr, b: IpAddr, x in 0u64..5000, y in 0u64..5000) {
            let a = (SocketAddr::new(a, 1), Duration::from_millis(x));
            let b = (SocketAddr::new(b, 1), Duration::from_millis(y));
            prop_assert!(!(is_better(a, b) && is_better(b, a)));
        }
    }

    #[test]
    fn one_slow_answer_moves_the_average_a_little() {
        let mut round_trip = RoundTrip::default();
        round_trip.sample(Duration::from_millis(40));
        round_trip.sample(Duration::from_millis(120));
        assert_eq!(round_trip.get(), Some(Duration::from_millis(50)));
    }
}
