//! The administrator's interface: a Unix socket in the state folder.
//!
//! One request is one [`Command`] in JSON, posted to `/v1/command`; the answer
//! is the data as JSON, or `{"error": "..."}`. Processes that may open the
//! socket (mode 0600) act as the administrator; there is no further login.

mod command;
mod policies;
mod socket;
mod views;

pub use command::Command;
pub use policies::{PolicyView, WhichPolicy};
pub use socket::{AdminSocket, AskError, ask, serve};
pub use views::{
    AuthKeyView, C2nView, CheckView, CreatedKeyView, HealthView, NodeView, UserView, WaitingView,
};
