//! The coordination server: the shell around [`warren_control_core`].
//!
//! The core decides; this crate listens, stores and tells the time. The parts,
//! in the order in which a login meets them:
//!
//! * [`server`] accepts connections, tells TLS from plain HTTP by the first
//!   byte, serves what is public (`/key`, `/health`, ...) and hands relay
//!   connections to the embedded relay;
//! * [`connections`] bounds how many there are, in all and from one source;
//! * [`noise`] takes the upgraded connection, makes the Noise handshake and
//!   serves HTTP/2 inside it;
//! * [`channel_idle`] ends control channels that are not used;
//! * [`machine`] is what is served there: registration and the map stream;
//! * [`ssh_action`] is served there too: may this session over SSH go on?
//! * [`questions`] are what this server asks nodes, over their map streams;
//! * [`coordinator`] is the one owner of the coordinator; it carries the coordinator's
//!   wishes to sessions, to the timer and to the store;
//! * [`store`] writes rows to SQLite from a thread of its own, in batches;
//! * [`admin`] is the administrator's door: a Unix socket in the state folder,
//!   HTTP and JSON, and the command line that uses it.
//!
//! What it never does: answer a registration before its row is on disk, hold a
//! change back to batch it with others, or log a secret.

pub mod admin;
pub mod args;
pub mod channel_idle;
pub mod clock;
pub mod coordinator;
pub mod machine;
pub mod noise;
pub mod output;
pub mod pages;
mod policy_cli;
mod policy_file;
pub mod questions;
pub mod run;
pub mod server;
pub mod ssh_action;
pub mod state_dir;
pub mod store;
