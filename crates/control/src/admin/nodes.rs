//! Nodes, machines that wait for approval, and subnet routes.

use std::time::Duration;

use warren_control_api::endpoints::{
    ApproveNode, ApproveRoutes, AssignNode, DeleteNode, ExpireNode, GetNode, ListNodes,
    ListPendingNodes, ListRoutes, NewExpiry, NodeInfo, PendingNodeInfo, RejectLogin, RejectedLogin,
    RenameNode, TagNode,
};
use warren_control_api::{Caller, Handler, Reply};
use warren_control_core::{
    AdminError, Coordinator, NodeRecord, PendingId, PendingView, UserRef, View,
};
use warren_control_types::NodeId;

use super::{Administration, moment};
use crate::clock::wall_clock;

fn node_info(state: &View, node: &NodeRecord, wall: Duration) -> NodeInfo {
    let user = node.user.and_then(|id| state.user(id));
    let texts = |routes: &[ipnet::IpNet]| routes.iter().map(ToString::to_string).collect();
    NodeInfo {
        id: node.id.0,
        name: node.hostinfo.hostname.clone(),
        given_name: node.name.clone(),
        fqdn: state.full_name(node),
        user: user.map(|user| user.name.clone()),
        tags: node.tags.iter().cloned().collect(),
        ip_addresses: vec![node.address.v4().to_string(), node.address.v6().to_string()],
        online: state.is_online(node.id),
        last_seen: node.last_seen,
        expiry: node.key_expiry,
        expired: node.key_expiry.is_some_and(|expiry| expiry <= moment(wall)),
        created_at: node.created,
        register_method: node.join_method,
        auth_key: node.auth_key.map(|key| key.0),
        ephemeral: node.ephemeral,
        node_key: node.key.to_string(),
        machine_key: node.machine.to_string(),
        disco_key: node.disco.map(|key| key.to_string()),
        endpoints: node.endpoints.iter().map(ToString::to_string).collect(),
        home_relay: node.home_relay.map(|region| region.0),
        os: node.hostinfo.os.clone(),
        version: node.hostinfo.ipn_version.clone(),
        capability_version: node.capability,
        available_routes: texts(&node.hostinfo.routable_ips),
        approved_routes: node
            .approved_routes
            .iter()
            .map(ToString::to_string)
            .collect(),
        serving_routes: texts(&state.serving_routes(node.id)),
        router_state: (!node.approved_routes.is_empty()).then(|| state.router_state(node.id)),
    }
}

fn pending_node_info(pending: PendingView) -> PendingNodeInfo {
    PendingNodeInfo {
        id: pending.id.0,
        name: pending.hostname,
        os: pending.os,
        since: pending.since,
    }
}

/// The node with this id, after a change of it.
fn changed_node(
    coordinator: &Coordinator,
    id: NodeId,
    wall: Duration,
) -> Result<NodeInfo, AdminError> {
    let node = coordinator
        .node(id)
        .ok_or_else(|| AdminError::NoNode(id.to_string()))?;
    Ok(node_info(&coordinator.view(), node, wall))
}

impl Administration {
    /// Makes a change of one node and waits until it is on disk.
    async fn change_node(
        &self,
        change: impl FnOnce(&mut Coordinator, Duration) -> Result<NodeId, AdminError>,
    ) -> Reply<NodeInfo> {
        self.change(|coordinator, wall| {
            let id = change(coordinator, wall)?;
            changed_node(coordinator, id, wall)
        })
        .await
    }

    fn select_nodes(&self, state: &View, select: impl Fn(&NodeRecord) -> bool) -> Vec<NodeInfo> {
        let selected = state.nodes().filter(|node| select(node));
        selected
            .map(|node| node_info(state, node, wall_clock()))
            .collect()
    }
}

impl Handler<ListNodes> for Administration {
    async fn handle(&self, _: &Caller, request: ListNodes) -> Reply<Vec<NodeInfo>> {
        let state = self.coordinator.view();
        let owner = match &request.user {
            Some(user) => Some(state.find_user(user)?.id),
            None => None,
        };
        Ok(self.select_nodes(&state, |node| owner.is_none() || node.user == owner))
    }
}

impl Handler<GetNode> for Administration {
    async fn handle(&self, _: &Caller, request: GetNode) -> Reply<NodeInfo> {
        let state = self.coordinator.view();
        let node = state.find_node(&request.node)?;
        Ok(node_info(&state, node, wall_clock()))
    }
}

impl Handler<RenameNode> for Administration {
    async fn handle(&self, _: &Caller, request: RenameNode) -> Reply<NodeInfo> {
        self.change_node(|c, _| c.rename_node(&request.node, &request.new_name))
            .await
    }
}

impl Handler<ExpireNode> for Administration {
    async fn handle(&self, _: &Caller, request: ExpireNode) -> Reply<NodeInfo> {
        self.change_node(|c, wall| match request.expiry {
            NewExpiry::Now => c.expire_node(wall, &request.node),
            NewExpiry::Never => c.set_expiry(wall, &request.node, None),
            NewExpiry::At(end) => c.set_expiry(wall, &request.node, Some(end)),
        })
        .await
    }
}

impl Handler<DeleteNode> for Administration {
    async fn handle(&self, _: &Caller, request: DeleteNode) -> Reply<NodeInfo> {
        self.change(|c, wall| {
            let state = c.view();
            let node = node_info(&state, state.find_node(&request.node)?, wall);
            c.delete_node(&request.node)?;
            Ok(node)
        })
        .await
    }
}

impl Handler<TagNode> for Administration {
    async fn handle(&self, _: &Caller, request: TagNode) -> Reply<NodeInfo> {
        self.change_node(|c, _| c.tag_node(&request.node, request.tags))
            .await
    }
}

impl Handler<AssignNode> for Administration {
    async fn handle(&self, _: &Caller, request: AssignNode) -> Reply<NodeInfo> {
        let user = request.user.map(UserRef::from);
        self.change_node(|c, _| c.assign_node(&request.node, user))
            .await
    }
}

impl Handler<ListRoutes> for Administration {
    async fn handle(&self, _: &Caller, request: ListRoutes) -> Reply<Vec<NodeInfo>> {
        let state = self.coordinator.view();
        match &request.node {
            Some(node) => {
                let node = state.find_node(node)?;
                Ok(vec![node_info(&state, node, wall_clock())])
            }
            None => Ok(self.select_nodes(&state, |node| {
                !node.hostinfo.routable_ips.is_empty() || !node.approved_routes.is_empty()
            })),
        }
    }
}

impl Handler<ApproveRoutes> for Administration {
    async fn handle(&self, _: &Caller, request: ApproveRoutes) -> Reply<NodeInfo> {
        self.change_node(|c, _| c.approve_routes(&request.node, &request.routes))
            .await
    }
}

impl Handler<ListPendingNodes> for Administration {
    async fn handle(&self, _: &Caller, _: ListPendingNodes) -> Reply<Vec<PendingNodeInfo>> {
        let pending = self.coordinator.inspect(Coordinator::pending);
        Ok(pending.into_iter().map(pending_node_info).collect())
    }
}

impl Handler<ApproveNode> for Administration {
    async fn handle(&self, _: &Caller, request: ApproveNode) -> Reply<NodeInfo> {
        let id = PendingId(request.id);
        let approved = self
            .coordinator
            .change_saved(|c, now, wall| {
                let id = c.approve(now, wall, &id, &request.user, request.tags)?;
                changed_node(c, id, wall)
            })
            .await?;
        Ok(approved?)
    }
}

impl Handler<RejectLogin> for Administration {
    async fn handle(&self, _: &Caller, request: RejectLogin) -> Reply<RejectedLogin> {
        let RejectLogin { id } = request;
        let pending = PendingId(id.clone());
        let (refused, _no_rows) = self.coordinator.change(|c, now, _| c.refuse(now, &pending));
        refused?;
        Ok(RejectedLogin { id })
    }
}
