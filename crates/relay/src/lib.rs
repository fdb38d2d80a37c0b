//! The relay: carries packets between nodes that cannot reach each other
//! directly (yet), and answers STUN.
//!
//! The protocol lives in `warren-derp`; this crate gives it sockets. A
//! [`Relay`] is a handle that can be cloned; any number of connections may be
//! served through it, by [`listen`] with listeners of its own, or by a program
//! that has the connection already:
//!
//! ```no_run
//! # use warren_relay::{Config, Relay, RequestHead};
//! # async fn example(secret: warren_keys::NodeSecret, mut stream: tokio::net::TcpStream,
//! #     peer: std::net::SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
//! let relay = Relay::new(Config::new(secret));
//! let mut leftover = Vec::new();
//! if let Some(head) = RequestHead::read(&mut stream, &mut leftover).await? {
//!     if relay.wants(&head) {
//!         relay.serve_request(&head, stream, leftover, peer, |_owner| {}).await?;
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # Life of a connection
//!
//! A slot among all connections, held until the end → TLS (HTTP/1.1 only, with a certificate at the end of the chain that names
//! the relay's key) → request head → `GET /derp` turns into the DERP stream,
//! with a response, without one, or as WebSocket → login and admission → two tasks, one reading and one writing, until either ends.
//!
//! The reading task looks up where each packet goes and puts it into the queue
//! of that connection; the writing task of that connection empties the queue
//! with few large writes. No task ever waits for another connection:
//! [`warren_derp::SendQueue`] says what is dropped when a receiver is slow.
//!
//! # Limits
//!
//! The relay never looks into packets, keeps nothing about its clients on disk, and
//! logs no keys or addresses above the debug level.

pub mod bootstrap;
pub mod cli;
mod connection;
mod head;
mod http;
pub mod keyfile;
pub mod listen;
mod mesh;
mod metrics;
mod relay;
pub mod stun;
mod timeouts;
pub mod tls;
pub mod verify;
mod websocket;

pub use connection::ConnectionError;
pub use head::{HeadError, Prefixed, RequestHead};
pub use http::ServeError;
pub use mesh::{MeshPeer, ParseMeshPeerError};
pub use relay::{Admission, Applicant, Config, MAX_CONNECTIONS, RateLimit, Relay};
pub use timeouts::Timeouts;
