//! The administration API of a coordination server.
//!
//! It is HTTP/1.1 over a Unix socket in the state folder, with JSON. Processes that
//! may open the socket (mode 0600) act as the administrator; there is no further
//! login.
//!
//! ```text
//!   warren-control users list ── client ── socket ── router ──┐
//!                                         (caller) (endpoints) ├── handlers ── coordinator
//!   HTTP with API keys, web console ───── another router ─────┘
//! ```
//!
//! - [`endpoints`] is the table of all endpoints. A row names the request type, the
//!   method, the path, the permission and the answer type. The router, the client
//!   and the trait that a server implements all follow from it;
//! - [`endpoint`] has the parts of a row: [`endpoint::Endpoint`] and
//!   [`endpoint::Handler`];
//! - [`error`] has the errors with their codes, [`caller`] the callers and permissions;
//! - [`router`] finds the row of a request, checks the permission and calls the handler;
//! - [`socket`] listens and accepts connections, [`client`] is the other end.
//!
//! To add an endpoint, write a request type in one of the modules of [`endpoints`],
//! add a row, and implement [`endpoint::Handler`] for it: the compiler asks for the
//! rest.
//!
//! # Further interfaces
//!
//! A handler gets a typed request and a [`caller::Caller`]; it does not see HTTP. An
//! interface in the shape of another product, with API keys, is a second router that
//! turns its own paths and bodies into the same request types: it adds a variant of
//! [`caller::Caller`] with the permissions of the key, and no handler.
//!
//! Every answer is one JSON document. No endpoint streams: the administrator asks
//! for a state, and changes are complete when they are answered.

pub mod caller;
pub mod client;
pub mod endpoint;
pub mod endpoints;
pub mod error;
pub mod router;
pub mod socket;

pub use caller::{Caller, Permission};
pub use client::{Client, ClientError};
pub use endpoint::{Endpoint, Handler};
pub use error::{ApiError, ErrorCode, Reply};
