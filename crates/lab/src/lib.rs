//! A real internet in miniature: hosts in network namespaces, kernel NATs
//! between them, our released binaries on them, and other people's beside.
//!
//! A test reads like what it claims:
//!
//! ```no_run
//! # fn main() -> Result<(), warren_lab::LabError> {
//! use warren_lab::{Control, Kind, Lab, Node, Place};
//! let mut lab = Lab::new()?;
//! let control = Control::start(&lab.host("control", Place::Open)?, None)?;
//! let key = control.auth_key("ann")?;
//! let alice = Node::start(&lab.host("alice", Place::Easy)?, Kind::Warren)?;
//! let bob = Node::start(&lab.host("bob", Place::Firewall)?, Kind::Tailscale)?;
//! alice.up(control.url(), &key, &[])?;
//! bob.up(control.url(), &key, &[])?;
//! alice.wait_until_direct("bob")?;
//! # Ok(())
//! # }
//! ```
//!
//! The lab never fakes a component: what it cannot start it reports as
//! missing, and the test skips visibly.

mod container;
pub mod demo;
mod gateway;
mod namespace;
mod nat;
mod network;
mod node;
pub mod probe;
mod program;
pub mod scenario;
mod server;
mod user_namespace;
mod wait;
pub mod web;

pub use container::{Container, EntryPoint};
pub use gateway::{Gateway, MappingProtocol};
pub use namespace::Namespace;
pub use nat::Place;
pub use network::{Host, HostOptions, Lab, LabError, which};
pub use node::{Kind, Node, Path};
pub use program::{BINARIES_VARIABLE, PEERS_VARIABLE, Program, foreign, ours};
pub use server::{Control, Headscale, Relay, RelayKind, derp_map};
pub use user_namespace::run_in_user_namespace;
pub use wait::{PATIENCE, until};
