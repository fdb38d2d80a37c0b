//! The requests, built from what this machine is like.

use std::net::SocketAddr;

use jiff::Timestamp;
use warren_control_types::{
    CapabilityVersion, EndpointType, Hostinfo, MapRequest, RegisterAuth, RegisterRequest,
};
use warren_keys::{DiscoPublic, NodePublic};

/// A logout is a registration that expires in the past. This is the moment that
/// other clients use.
const LOGGED_OUT_AT: i64 = 123;

/// This machine, as the server should know it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Description {
    /// The machine and its software.
    pub hostinfo: Hostinfo,
    /// The addresses at which it can be reached, best first.
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
    /// The sender of its path-finding messages.
    pub disco_key: Option<DiscoPublic>,
    /// The head of its tailnet lock; empty while that is off.
    pub lock_head: String,
}

impl Description {
    /// The request that reports this description (`stream` is false) or opens
    /// the map stream.
    pub(crate) fn map_request(&self, node_key: NodePublic, stream: bool) -> MapRequest {
        MapRequest {
            version: CapabilityVersion::CURRENT,
            compress: "zstd".to_owned(),
            keep_alive: stream,
            node_key,
            disco_key: self.disco_key,
            stream,
            hostinfo: Some(self.hostinfo.clone()),
            endpoints: self.endpoints.iter().map(|(at, _)| *at).collect(),
            endpoint_types: self.endpoints.iter().map(|(_, kind)| *kind).collect(),
            omit_peers: !stream,
            tka_head: self.lock_head.clone(),
            ..MapRequest::default()
        }
    }

    pub(crate) fn register_request(
        &self,
        node_key: NodePublic,
        old_node_key: Option<NodePublic>,
        auth_key: Option<String>,
        followup: String,
        ephemeral: bool,
    ) -> RegisterRequest {
        RegisterRequest {
            version: CapabilityVersion::CURRENT,
            node_key,
            old_node_key,
            auth: auth_key.map(|auth_key| RegisterAuth { auth_key }),
            followup,
            hostinfo: Some(self.hostinfo.clone()),
            ephemeral,
            ..RegisterRequest::default()
        }
    }
}

/// The request that gives up a node key.
pub fn logout_request(node_key: NodePublic, hostinfo: Hostinfo) -> RegisterRequest {
    RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key,
        expiry: Timestamp::from_second(LOGGED_OUT_AT).ok(),
        hostinfo: Some(hostinfo),
        ..RegisterRequest::default()
    }
}
