//! A whole node as one state: events go in, decisions come out.
//!
//! [`Engine`] knows the netmap, the preferences, every peer's keys and paths,
//! and every timer. One task owns it. It never does IO; the simulator runs the
//! very same code under a virtual clock. Packets are moved by the crate
//! [`dataplane`](warren_dataplane), whose threads read the
//! [`View`](warren_dataplane::View) that the engine publishes.
//!
//! A netmap arrives by [`Engine::apply_map`]; its consequences leave as
//! [`Output`]s: a new view, a new [`HostConfig`], messages to peers. A datagram
//! that is not tunnel data arrives by [`Engine::handle_udp`] or
//! [`Engine::handle_relay`] and goes to path finding or to the handshakes.
//!
//! The engine never reads a clock, draws randomness of its own, touches the
//! operating system, or waits.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod engine;
mod entropy;
mod host_config;
pub mod node;
mod packet_filter;
mod peers;
mod prefs;
mod report;
mod server_clock;

pub use engine::{
    Engine, EngineConfig, EngineCounters, HiddenPeer, LockGate, LockedOut, MAGIC_DNS, Output,
    RelayRequest, SSH,
};
pub use host_config::{HostConfig, TUNNEL_MTU};
pub use node::Node;
pub use prefs::NodePrefs;
pub use report::{ControlReport, PeerReport, PingAnswer, PingError, Pong};
pub use server_clock::ClockPair;
