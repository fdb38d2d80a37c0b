//! Bytes on the network: views that read fields safely, and types that only
//! hold what is meaningful and can always be written back.
//!
//! One file per protocol. Nothing here keeps state or does IO, and no input
//! makes it panic; each parser has a fuzz target.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod control;
pub mod derp;
pub mod disco;
pub mod geneve;
pub mod ip;
pub mod nat_pmp;
pub mod pcp;
pub mod relay_batch;
pub mod socks5;
pub mod stun;
pub mod upnp;
pub mod wireguard;
