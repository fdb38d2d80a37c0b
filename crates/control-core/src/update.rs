//! What nodes say about themselves between logins.
//!
//! A lite update carries the complete present truth, a streaming request only
//! what happens to be known. Neither may erase the network report (`NetInfo`)
//! by leaving it out. Peers hear of a change at once, as a patch where the
//! protocol has one.

use std::net::{IpAddr, SocketAddr};

use warren_control_types::{Hostinfo, MapRequest, NodeId, RegionId};
use warren_keys::{DiscoPublic, MachinePublic};

use crate::coordinator::Coordinator;
use crate::error::MapError;
use crate::names::sanitize_hostname;
use crate::session::{PatchFields, PeerMark};

/// More candidates than a real node has; the rest is cut.
const MAX_ENDPOINTS: usize = 64;

impl Coordinator {
    /// Applies a lite update. The node's stream stays as it is.
    ///
    /// # Errors
    /// See [`MapError`]; nothing was changed.
    pub fn update(
        &mut self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<NodeId, MapError> {
        let id = self.authorize(machine, request)?;
        self.apply_capability(id, request.version.0);
        if let Some(hostinfo) = &request.hostinfo {
            self.apply_hostinfo(id, hostinfo);
        }
        let mut fields = self.apply_endpoints(id, &request.endpoints);
        if let Some(disco) = request.disco_key {
            fields = fields.with(self.apply_disco(id, disco));
        }
        self.patched(id, fields);
        Ok(id)
    }

    /// Checks that a one-shot map request is allowed.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn identify(
        &self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<NodeId, MapError> {
        self.authorize(machine, request)
    }

    /// Takes over what a streaming request happens to carry.
    pub(crate) fn apply_stream_request(&mut self, id: NodeId, request: &MapRequest) {
        self.apply_capability(id, request.version.0);
        if let Some(hostinfo) = request.hostinfo.as_ref().filter(|h| !h.hostname.is_empty()) {
            self.apply_hostinfo(id, hostinfo);
        }
        let mut fields = PatchFields::default();
        if !request.endpoints.is_empty() {
            fields = fields.with(self.apply_endpoints(id, &request.endpoints));
        }
        if let Some(disco) = request.disco_key {
            fields = fields.with(self.apply_disco(id, disco));
        }
        self.patched(id, fields);
    }

    fn patched(&mut self, id: NodeId, fields: PatchFields) {
        if !fields.is_empty() {
            self.store_node(id, false);
            self.announce(id, PeerMark::Patch(fields));
            self.mark_own(id);
        }
    }

    pub(crate) fn apply_capability(&mut self, id: NodeId, capability: u32) {
        let Some(node) = self.data.nodes.get_mut(&id) else {
            return;
        };
        if node.capability != capability {
            node.capability = capability;
            self.patched(id, PatchFields::CAPABILITY);
        }
    }

    fn apply_endpoints(&mut self, id: NodeId, endpoints: &[SocketAddr]) -> PatchFields {
        let usable: Vec<_> = endpoints
            .iter()
            .copied()
            .filter(is_usable)
            .take(MAX_ENDPOINTS)
            .collect();
        match self.data.nodes.get_mut(&id) {
            Some(node) if node.endpoints != usable => {
                node.endpoints = usable;
                PatchFields::ENDPOINTS
            }
            Some(_) | None => PatchFields::default(),
        }
    }

    fn apply_disco(&mut self, id: NodeId, disco: DiscoPublic) -> PatchFields {
        match self.data.nodes.get_mut(&id) {
            Some(node) if node.disco != Some(disco) => {
                node.disco = Some(disco);
                PatchFields::DISCO
            }
            Some(_) | None => PatchFields::default(),
        }
    }

    /// Takes over a host's description of itself.
    pub(crate) fn apply_hostinfo(&mut self, id: NodeId, new: &Hostinfo) {
        let Some(node) = self.data.nodes.get(&id) else {
            return;
        };
        let mut new = new.clone();
        if new.net_info.is_none() {
            new.net_info = node.hostinfo.net_info.clone();
        }
        if new == node.hostinfo {
            return;
        }
        let renamed = (!node.name_chosen && new.hostname != node.hostinfo.hostname)
            .then(|| self.free_name(&sanitize_hostname(&new.hostname), Some(id)))
            .filter(|name| *name != node.name);
        let routes_changed = new.routable_ips != node.hostinfo.routable_ips;
        let new_posture = self.access.depends_on_host(&node.hostinfo, &new);
        let visible_change = self.peer_hostinfo(&new) != self.peer_hostinfo(&node.hostinfo);
        let relay = home_relay(&new).or(node.home_relay);
        let relay_changed = relay != node.home_relay;
        let Some(node) = self.data.nodes.get_mut(&id) else {
            return;
        };
        node.hostinfo = new;
        node.home_relay = relay;
        let is_renamed = renamed.is_some();
        if let Some(name) = renamed {
            node.name = name;
        }
        self.store_node(id, is_renamed);
        self.mark_own(id);
        if new_posture {
            self.identity_changed(id);
        }
        if is_renamed || visible_change {
            self.announce(id, PeerMark::Whole);
        } else if relay_changed {
            self.announce(id, PeerMark::Patch(PatchFields::RELAY));
        }
        if routes_changed {
            self.approve_by_policy(id);
            self.routers_changed();
            self.identity_changed(id);
        }
    }
}

/// The home relay a host reports; 0 is "not known yet".
pub(crate) fn home_relay(hostinfo: &Hostinfo) -> Option<RegionId> {
    hostinfo
        .net_info
        .as_ref()
        .and_then(|net| net.preferred_derp)
        .filter(|region| region.0 != 0)
}

/// Link-local and zoned addresses mean nothing on another link.
fn is_usable(endpoint: &SocketAddr) -> bool {
    endpoint.port() != 0
        && match endpoint {
            SocketAddr::V4(v4) => !v4.ip().is_unspecified() && !v4.ip().is_multicast(),
            SocketAddr::V6(v6) => {
                v6.scope_id() == 0
                    && !IpAddr::from(*v6.ip()).is_unspecified()
                    && !v6.ip().is_multicast()
                    && !v6.ip().is_unicast_link_local()
            }
        }
}
