//! The local interface: how programs on this machine talk to a node.
//!
//! It is HTTP/1.1 over a Unix socket, with JSON in the field names of the
//! official client, so that scripts, containers and agents written for that
//! client work with ours unchanged. The kernel reports the user at the other end
//! of the socket, and the permissions follow from that (see [`caller`]). There
//! are no tokens and no passwords.
//!
//! ```text
//!   warren up ──┐                                  ┌── NodeHandle ── engine
//!   a script  ──┼── socket ── server ── router ────┤
//!   a GUI     ──┘            (caller)  (endpoints) └── notifications, one JSON per line
//! ```
//!
//! - [`endpoints`] is the table of all endpoints. A row names the request type, the
//!   method, the path, the permission and the answer. The router, the client and
//!   the trait that a node implements all follow from it;
//! - [`endpoint`] is the form that requests and answers take in HTTP, [`error`] the
//!   errors with their codes;
//! - [`prefs`], [`notify`], [`health`], [`filter`] and [`types`] are the JSON objects;
//! - [`ordered_json`] keeps the order of keys where an answer is passed on as it is;
//! - [`router`] finds the row of a request, checks the permission and calls the node;
//! - [`server`] accepts connections, [`c2n`] takes requests of the coordination server;
//! - [`client`] is the other end, used by the command line and by tests.
//!
//! To add an endpoint, add a row and a request type in [`endpoints`], and
//! implement [`endpoint::Handler`] for it: the compiler asks for the rest.
//!
//! Nothing here decides anything about the network, and nothing here ever
//! writes a private key: [`prefs::Persist`] has no field for one.

pub mod address;
pub mod c2n;
pub mod caller;
pub mod client;
pub mod endpoint;
pub mod endpoints;
pub mod error;
pub mod filter;
pub mod go_json;
pub mod health;
pub mod notify;
pub mod ordered_json;
mod places;
pub mod prefs;
pub mod router;
pub mod server;
pub mod tailnet_lock;
pub mod takeover;
pub mod types;

/// The host name that clients put into the `Host` header, and the only one
/// besides the empty one that the server accepts: a web page that is tricked
/// into reaching the socket cannot choose it.
pub const HOST: &str = "local-tailscaled.sock";

/// The socket of the daemon, unless a flag or the environment names another.
pub const DEFAULT_SOCKET: &str = "/var/run/warren/warren.sock";

/// The long version text, as shown in `Version` and in the version header.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Header with [`VERSION`] on every answer.
pub const VERSION_HEADER: &str = "tailscale-version";

/// Header with the capability version on every answer.
pub const CAPABILITY_HEADER: &str = "tailscale-cap";

/// Request header with the reason that a person gave, in base64 (standard
/// alphabet).
pub const REASON_HEADER: &str = "x-tailscale-reason";
