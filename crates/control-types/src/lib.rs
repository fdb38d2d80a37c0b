//! The coordination protocol: every message between a node and its
//! coordination server, as types.
//!
//! Both ends use the same types. Names are the protocol's own, in Rust case;
//! the docs of a field say what it means, those of [`json`] how values are
//! written. Three rules hold for all messages: a value that can be absent is an
//! `Option`, `None` in an answer that carries changes means "as before", and zero
//! keys, numbers and times that mean "none" never reach the rest of the program.
//!
//! [`Netmap`] is the only type here with behaviour: it puts the messages of a
//! map stream together, exactly as every other client does.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod derp_map;
mod dns;
mod filter;
mod folded;
mod hostinfo;
mod ids;
mod map;
mod netmap;
mod node;
mod register;
mod ssh;
mod tka;

pub mod json;

pub use derp_map::{
    DerpMap, DerpMapError, DerpMapUpdate, DerpNode, DerpRegion, HomeParams, HomeParamsUpdate,
    HostAddress,
};
pub use dns::{DnsConfig, DnsRecord, Resolver};
pub use filter::{CapGrant, FilterRule, NetPortRange, PortRange};
pub use hostinfo::{Hostinfo, Location, NetInfo, Service, TpmInfo};
pub use ids::{CapabilityVersion, LoginId, NodeId, RegionId, StableNodeId, UserId};
pub use map::{
    ClientVersion, ControlDialPlan, ControlIpCandidate, Debug, DisplayMessage,
    DisplayMessageAction, EndpointType, MapRequest, MapResponse, PingRequest, PingResponse,
    TkaInfo,
};
pub use netmap::{Applied, ApplyError, Changes, Netmap, Notices, PeerDelta};
pub use node::{CapMap, Node, PeerChange};
pub use register::{
    EarlyNoise, Login, OverTlsPublicKeyResponse, RegisterAuth, RegisterRequest, RegisterResponse,
    User, UserProfile,
};
pub use ssh::{SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule};
pub use tka::{
    Encoded, TkaBootstrapRequest, TkaBootstrapResponse, TkaDisableRequest, TkaInitBeginRequest,
    TkaInitBeginResponse, TkaInitFinishRequest, TkaSignInfo, TkaSignaturesUsingKeyRequest,
    TkaSignaturesUsingKeyResponse, TkaSubmitSignatureRequest, TkaSyncOfferRequest,
    TkaSyncOfferResponse, TkaSyncSendRequest, TkaSyncSendResponse,
};
