//! The administrator's door: a Unix socket in the state folder.
//!
//! One request is one [`Command`] in JSON, posted to `/v1/command`; the answer
//! is the data as JSON, or `{"error": "..."}`. Whoever may open the socket
//! (mode 0600) is the administrator; there is nothing else to log in to.

mod command;
mod door;
mod policies;
mod views;

pub use command::Command;
pub use door::{AskError, Door, ask, serve};
pub use policies::{PolicyView, WhichPolicy};
pub use views::{
    AuthKeyView, C2nView, CheckView, CreatedKeyView, HealthView, NodeView, UserView, WaitingView,
};
