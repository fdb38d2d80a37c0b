//! The path of every packet between the TUN device and the network.
//!
//! Two plain structs do the work: [`Outbound`] takes what the host wants to send,
//! [`Inbound`] what arrives. A thread of the runtime owns one. Several threads can
//! share the sending with an [`Outbound`] each, as long as a flow stays with one
//! of them, and the receiving with a [`DecryptedBatch`] each and the [`Inbound`] in
//! turns. They own nothing but buffers. They read the state of the node from a
//! [`View`], an immutable snapshot of peers, routes, sessions and filter that
//! the engine replaces as a whole; they report to a sink ([`OutSink`], [`InSink`])
//! or to atomic counters.
//!
//! ```text
//! out: TUN read (virtio header, up to 64 KiB) ─ parse once ─ peer by longest
//!      prefix ─ filter once ─ cut into segments while copying into the send
//!      buffer ─ seal in place, consecutive counters ─ runs of equal datagrams
//! in:  datagrams (a superframe and its segment size) ─ session by index ─
//!      open in place ─ (in order from here:) replay window ─ source belongs
//!      to the peer ─ filter ─ coalesce by flow ─ TUN write (virtio header)
//! ```
//!
//! A packet costs no allocation, no lock and no hand-over to another thread.
//! Both ends gather work until the caller flushes them: it does so when there
//! is nothing left to read, so that a single packet leaves at once and a busy
//! moment is sent in a few system calls.
//!
//! Never here: sockets, files, the clock, choice of paths, handshakes.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod checksum;
mod coalesce;
mod counters;
mod decrypt;
mod fair_share;
mod inbound;
mod intercepts;
mod offload;
mod outbound;
mod peer_batches;
mod relayed;
mod routes;
mod segment;
mod sinks;
mod sources;
mod staging;
mod view;

pub use counters::{DropReason, Drops, PeerCounters, Traffic};
pub use decrypt::{DecryptMemory, DecryptedBatch};
pub use fair_share::{FairShare, Limit};
pub use inbound::{Inbound, InboundOffloads};
pub use intercepts::{Clients, Intercepts, Match, ServiceId};
pub use offload::{GsoType, VNET_HDR_LEN, VnetHdr};
pub use outbound::Outbound;
pub use routes::RouteTable;
pub use sinks::{InSink, Joined, OutSink, RelaySend, TunWrite, UdpSend};
pub use sources::Sources;
pub use view::{PeerView, SessionView, View};
