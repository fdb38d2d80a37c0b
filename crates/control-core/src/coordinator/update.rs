//! Reports of nodes about themselves between logins.
//!
//! A lite update carries the complete present state, a streaming request only
//! what happens to be known. Neither may erase the network report (`NetInfo`)
//! by leaving it out. Peers are informed of a change at once, as a patch where
//! the protocol has one.

use std::net::{IpAddr, SocketAddr};

use warren_control_types::{Hostinfo, MapRequest, NodeId, RegionId};
use warren_keys::{DiscoPublic, MachinePublic};

use super::Coordinator;
use crate::error::MapError;
use crate::host_limits::bounded;
use crate::names::sanitize_hostname;
use crate::records::{Change, NodeRecord};

/// More candidates than a real node has; the rest is cut.
const MAX_ENDPOINTS: usize = 64;

/// The contents of a request about its node. `None`: the request says nothing.
#[derive(Debug, Default)]
pub(super) struct Report<'a> {
    pub(super) capability: u32,
    pub(super) hostinfo: Option<&'a Hostinfo>,
    pub(super) endpoints: Option<&'a [SocketAddr]>,
    pub(super) disco: Option<DiscoPublic>,
}

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
        let id = self.view.authorize(machine, request)?;
        let report = Report {
            capability: request.version.0,
            hostinfo: request.hostinfo.as_ref(),
            endpoints: Some(&request.endpoints),
            disco: request.disco_key,
        };
        self.apply_report(id, &report);
        Ok(id)
    }

    /// Takes over what a streaming request happens to carry.
    pub(super) fn apply_stream_request(&mut self, id: NodeId, request: &MapRequest) {
        let endpoints = Some(request.endpoints.as_slice());
        let hostinfo = request.hostinfo.as_ref();
        let report = Report {
            capability: request.version.0,
            hostinfo: hostinfo.filter(|host| !host.hostname.is_empty()),
            endpoints: endpoints.filter(|endpoints| !endpoints.is_empty()),
            disco: request.disco_key,
        };
        self.apply_report(id, &report);
    }

    fn apply_report(&mut self, id: NodeId, report: &Report<'_>) {
        let Some(old) = self.view.node(id) else {
            return;
        };
        let mut node = old.clone();
        self.take_report(&mut node, report);
        // Tags are asked for by a registration.
        let asked = &old.hostinfo.request_tags;
        node.hostinfo.request_tags.clone_from(asked);
        if node == *old {
            return;
        }
        let renamed = node.name != old.name;
        let routes_differ = node.hostinfo.routable_ips != old.hostinfo.routable_ips;
        self.commit(Change::Node(Box::new(node)), renamed);
        if routes_differ {
            self.approve_by_policy(id);
        }
    }

    /// Takes a report over into a record.
    pub(super) fn take_report(&self, node: &mut NodeRecord, report: &Report<'_>) {
        node.capability = report.capability;
        if let Some(endpoints) = report.endpoints {
            let usable = endpoints.iter().copied().filter(is_usable);
            node.endpoints = usable.take(MAX_ENDPOINTS).collect();
        }
        if report.disco.is_some() {
            node.disco = report.disco;
        }
        if let Some(new) = report.hostinfo.map(bounded) {
            if !node.name_chosen && new.hostname != node.hostinfo.hostname {
                let label = sanitize_hostname(&new.hostname);
                node.name = self.view.free_name(&label, Some(node.id));
            }
            let net_info = node.hostinfo.net_info.take();
            node.hostinfo = new;
            if node.hostinfo.net_info.is_none() {
                node.hostinfo.net_info = net_info;
            }
            node.home_relay = home_relay(&node.hostinfo).or(node.home_relay);
        }
    }
}

/// The home relay a host reports; 0 is "not known yet".
pub(super) fn home_relay(hostinfo: &Hostinfo) -> Option<RegionId> {
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
