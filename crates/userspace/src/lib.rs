//! The network of a node that has no network interface.
//!
//! ```text
//!   packet threads ◀──frames──▶ [ Network: a Netstack behind a lock ] ──▶ Arrivals
//!                                   ▲ Stream, Flow                          │
//!        proxies, LocalAPI ─────────┘                  forward: this machine, subnets
//! ```
//!
//! [`Network`] owns the [`Netstack`](warren_netstack::Netstack) and moves its packets.
//! A [`Stream`] is one of its TCP connections with the traits of tokio, a [`Flow`] one
//! of its UDP flows. [`forward`] connects what peers open to the programs of this machine
//! and, on a subnet router or an exit node, to other hosts; what may come was decided by
//! the packet filter. [`proxy`] gives programs of this machine the way out: SOCKS5 and an
//! HTTP proxy.
//!
//! **Division of the work.** There is one lock around the netstack. Each caller (a task
//! that reads or writes a stream, the task of [`Network::run`] with packets and
//! deadlines) also sends what there is to send. Frames that the packet threads have no
//! space for stay in the netstack, and with them the data of programs: back-pressure
//! reaches to the program that writes.
//!
//! **Never here:** protocol logic of TCP, names, who may connect.

pub mod forward;
mod host_end;
mod network;
mod ping;
pub mod proxy;
mod services;
mod stream;

pub use network::{Arrival, Arrivals, Incoming, IncomingFlow, Link, Network, NetworkOptions};
pub use services::{OwnServices, serve_only};
pub use stream::{Flow, Stream};
