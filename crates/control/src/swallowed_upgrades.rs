//! Requests whose upgrade a proxy in front of this server swallowed.
//!
//! A client asks for `/ts2021` with its first handshake message and the wish to switch
//! protocols. Many proxies pass on the first and drop the second unless they are
//! configured otherwise. The client then sees no more than a timeout, so the server
//! reports it to its administrator.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, Method, Version, header};
use jiff::Timestamp;

/// The remedy, for the administrator.
pub const HINT: &str = "a proxy in front of this server drops the Upgrade header; let it \
     speak HTTP/1.1 to this server and pass on the headers Upgrade and Connection as they are";

/// Counts them. See the module.
#[derive(Debug, Default)]
pub struct SwallowedUpgrades(Mutex<Count>);

/// How many there were, and when the last one came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Since the start of the server.
    pub requests: u64,
    /// `None`: there was none.
    pub last: Option<Timestamp>,
}

impl SwallowedUpgrades {
    /// Counts one. The first is logged.
    pub fn note(&self, now: Timestamp) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if count.requests == 0 {
            tracing::warn!("a client cannot connect: {HINT}");
        }
        count.requests += 1;
        count.last = Some(now);
    }

    /// How many there were.
    pub fn count(&self) -> Count {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a request with a client's handshake message has lost the wish to switch to
/// this protocol, or to a WebSocket in a GET.
pub fn is_swallowed(method: &Method, version: Version, headers: &HeaderMap, to: &str) -> bool {
    let wanted = if method == Method::GET {
        "websocket"
    } else {
        to
    };
    let asked = headers.get(header::UPGRADE).is_some_and(|value| {
        let value = value.to_str().unwrap_or_default();
        let mut words = value.split(',').map(str::trim);
        words.any(|word| word.eq_ignore_ascii_case(wanted))
    });
    !(asked && version == Version::HTTP_11)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// The settings of proxies that people run into.
    #[test]
    fn requests_without_their_upgrade_are_recognised() {
        let headers = |upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            if !upgrade.is_empty() {
                headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            }
            headers
        };
        let (post, get) = (Method::POST, Method::GET);
        for (method, version, upgrade, swallowed) in [
            (&post, Version::HTTP_11, "proto", false),
            (&post, Version::HTTP_11, "PROTO", false),
            (&get, Version::HTTP_11, "websocket", false),
            // nginx without settings, nginx with those for WebSockets, an HTTP/2 hop.
            (&post, Version::HTTP_10, "", true),
            (&post, Version::HTTP_10, "proto", true),
            (&post, Version::HTTP_11, "WebSocket", true),
            (&post, Version::HTTP_2, "", true),
            (&get, Version::HTTP_11, "", true),
        ] {
            let found = is_swallowed(method, version, &headers(upgrade), "proto");
            assert_eq!(found, swallowed, "{method} {version:?} {upgrade:?}");
        }
    }

    #[test]
    fn each_is_counted() {
        let upgrades = SwallowedUpgrades::default();
        assert_eq!(upgrades.count(), Count::default());
        upgrades.note(Timestamp::UNIX_EPOCH);
        upgrades.note(Timestamp::MAX);
        let count = upgrades.count();
        assert_eq!((count.requests, count.last), (2, Some(Timestamp::MAX)));
    }
}
