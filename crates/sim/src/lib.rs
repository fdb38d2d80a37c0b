//! A deterministic internet, to test a tailnet on.
//!
//! Nodes run the real node core and packet path, relays the real DERP server, the
//! coordination server the real coordinator, all in one process under one
//! virtual clock. The network between them is simulated: NATs by RFC 4787
//! behaviour, firewalls, latency, jitter, loss, cables that are pulled, hosts
//! that roam, processes that are killed, wall clocks that jump.
//!
//! ```
//! use warren_sim::{FlowSpec, Uplink, Sim, PathKind, millis, secs};
//!
//! let mut sim = Sim::new(1);
//! sim.relay("ams");
//! let alice = sim.node("alice", Uplink::Easy);
//! let bob = sim.node("bob", Uplink::Firewall);
//! sim.run_until_joined();
//! let flow = sim.flow(alice, bob, FlowSpec::every(millis(20)));
//! sim.run_for(secs(5));
//! assert!(sim.report(flow).lost.is_empty());
//! assert_eq!(sim.path_kind(alice, bob), PathKind::Direct);
//! ```
//!
//! The life of an event: it waits in a queue ordered by (time, number); its host
//! handles it and returns actions; the simulation turns them into later events.
//! Nothing else moves the clock, and all randomness comes from one seed, so the
//! same seed gives the same packets, byte for byte ([`Sim::trace`]).
//!
//! Some events are violations, which end the run: a packet that reaches a node
//! other than its receiver, comes out of the tunnel twice, or has a false source;
//! one that a test has forbidden; a deadline that a state does not get past.
//!
//! Not simulated are the operating system, TCP and TLS (streams are reliable, in
//! order and cost round trips), the Noise channel of the control protocol,
//! bandwidth and queues.

mod control;
mod control_frames;
mod flow;
mod nat;
mod network;
mod node;
mod packet_path;
mod random;
mod relay;
mod relay_io;
mod session_io;
mod sim;
mod stream;
mod time;
mod trace;

pub use flow::{FlowReport, FlowSpec};
pub use nat::{Dependence, NatBehaviour, Ports};
pub use network::{Link, Loss, Uplink};
pub use sim::{FlowIndex, NodeIndex, NodeSpec, Options, PathKind, RelayIndex, Sim};
pub use time::{SimTime, millis, secs};
