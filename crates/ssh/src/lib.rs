//! The SSH server of a node.
//!
//! ```text
//!   Stream from a peer ──▶ [ Server: places, deadlines ] ──▶ connection (russh)
//!                                  │ who, as whom: Tailnet, ssh-policy
//!                                  ▼
//!        session ──spec, pipes or a terminal──▶ child process ── drops root, exec ──▶ shell
//!        forwarded ports, agent ──▶ sockets of this machine
//! ```
//!
//! [`Server::serve`] takes one connection. The tunnel has proven which node it comes from,
//! so there is no other proof: the policy of the netmap decides ([`warren_ssh_policy`]), and
//! where a rule demands it, the coordination server ([`Tailnet::ask`]).
//!
//! **A session is a process of its own from the start** ([`child`]). This program is started
//! again, with one thread, and is given what it needs through its standard input: the ids to
//! change to, the environment, the command. It gives all privileges up and becomes the shell
//! of the user. The daemon itself, which has many threads, changes no ids, and nothing that a
//! client sends reaches the environment or the arguments of a process with privileges.
//!
//! **A connection is ended** by the client; by a policy that would not let it in again, at
//! once; by the end of its rule or of its session time; by silence before the login
//! ([`limits::LOGIN_PATIENCE`]).
//!
//! **Bounds** are in [`limits`]: connections in total and for each peer, channels for each
//! connection, bytes for each channel. A client that exceeds the window of a channel is
//! disconnected.
//!
//! **russh is used in `transport.rs`** (connections, channels) and `host_keys.rs` (the form of
//! keys) only. It is compiled from `third-party/russh`; `WARREN.md` there has the reasons.
//!
//! **Never here:** the network inside the tunnel, the netmap, decisions of the policy.

mod accounts;
mod agent;
pub mod child;
mod forward;
mod host_keys;
mod inherited_files;
pub mod limits;
mod login;
mod process;
mod pty_end;
mod server;
mod session;
mod tailnet;
mod terminal_modes;
mod transport;

pub use accounts::Accounts;
pub use host_keys::{HostKeyError, HostKeys};
pub use server::{Ends, Options, Server};
pub use tailnet::{Answer, Facts, Tailnet};
