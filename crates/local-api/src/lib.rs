//! The local interface: how programs on this machine talk to the daemon.
//!
//! It is HTTP/1.1 over a Unix socket, JSON in the field names of the reference
//! client, so that the scripts, containers and agents written for that client
//! work with ours unchanged. Who may do what is decided by who is on the other
//! end of the socket, as the kernel tells it (see [`permission`]); there are no
//! tokens and no passwords.
//!
//! ```text
//!   warren up ──┐                      ┌── Backend (trait) ── engine
//!   a script  ──┼── socket ── server ──┤
//!   a GUI     ──┘     (who?)           └── notifications, one JSON per line
//! ```
//!
//! - [`types`], [`prefs`] and [`notify`] are the JSON objects;
//! - [`backend`] is the only thing the server knows of the engine;
//! - [`server`] reads requests, checks permission and answers;
//! - [`client`] is the other end, used by the command line and by tests.
//!
//! Nothing here decides anything about the network, and nothing here ever
//! writes a private key: [`prefs::Persist`] has no field for one.

pub mod backend;
pub mod client;
pub mod filter;
pub mod go_json;
pub mod metrics;
pub mod notify;
pub mod permission;
pub mod prefs;
mod routes;
pub mod server;
pub mod types;

/// The host name that clients put into the `Host` header, and the only one
/// besides the empty one that the server accepts: a web page that is tricked
/// into reaching the socket cannot choose it.
pub const HOST: &str = "local-tailscaled.sock";

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/warren/warren.sock";

/// The long version text, as shown in `Version` and in the version header.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Header with [`VERSION`] on every answer.
pub const VERSION_HEADER: &str = "tailscale-version";

/// Header with the capability version on every answer.
pub const CAPABILITY_HEADER: &str = "tailscale-cap";

/// Request header with the reason a person gave, base64 (standard alphabet).
pub const REASON_HEADER: &str = "x-tailscale-reason";
