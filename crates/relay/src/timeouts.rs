//! The limits on the time a connection may stay in each phase before login.
//! After the login, keepalives and write timeouts end connections that are dead.

use std::time::Duration;

use warren_derp::server::LOGIN_TIMEOUT;

/// The longest time in each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From accepting a TCP connection to the end of the TLS handshake.
    pub tls: Duration,
    /// For a whole request head, and for taking an answer.
    pub http: Duration,
    /// From the upgrade to a whole DERP login.
    pub login: Duration,
    /// From accepting a TCP connection to the upgrade to DERP, however many
    /// requests are made.
    pub until_upgrade: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tls: Duration::from_secs(10),
            http: Duration::from_secs(30),
            login: LOGIN_TIMEOUT,
            until_upgrade: Duration::from_secs(60),
        }
    }
}
