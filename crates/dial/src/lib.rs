//! Connections out of this machine, and the protocols over them.
//!
//! Everything that dials goes through a [`Dialer`]: it resolves ([`names`]), races
//! IPv6 and IPv4, and marks its sockets so that the node's own traffic is not
//! routed back into the tunnel. On top of it:
//!
//! - [`proxies`]: the proxies that the environment names, and the way through them;
//! - [`tls`]: every certificate rule of this system, strict and weakened, in
//!   one file;
//! - [`upgrade`]: leaving HTTP/1.1 for another protocol without losing a byte;
//! - [`fetch`]: small documents by HTTP, for the server's key and for probes;
//! - [`connections`]: which connections a listener keeps when there are many;
//! - [`pages`]: a listener for health and metrics;
//! - [`limits`]: how many connections the process may have open;
//! - [`noise_stream`]: the control channel as a byte stream, for both ends;
//! - [`control`]: the client of the coordination server;
//! - [`derp`]: the client of a relay.

mod dialer;
mod entropy;
mod interception;
mod response_head;
mod transport;

pub mod connections;
pub mod control;
pub mod derp;
pub mod fetch;
pub mod limits;
pub mod names;
pub mod noise_stream;
pub mod pages;
pub mod proxies;
pub mod tls;
pub mod upgrade;

pub use dialer::{DialError, Dialer, mark_own_traffic};
pub use entropy::SystemEntropy;
pub use transport::Transport;
