//! Who sees whom, and what each node lets in.
//!
//! Without a policy every node sees every node and lets everything in. With
//! one, `warren_policy` compiles it; a peer is visible when either side may
//! open a connection to the other, since both then need the other's key.

use ipnet::IpNet;
use warren_control_types::{FilterRule, NetPortRange, NodeId, PortRange};

use crate::records::{NodeRecord, Snapshot, UserRecord};

/// The policy in force.
#[derive(Debug, Default)]
pub struct Access {
    policy: Option<()>,
}

impl Access {
    /// No policy: every node may reach every node.
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// A policy from its text.
    ///
    /// # Errors
    /// Its diagnostics, ready to be shown.
    pub fn parse(_text: &str) -> Result<Self, String> {
        Err("no policies yet".into())
    }

    /// Whether there is no policy.
    pub fn is_allow_all(&self) -> bool {
        self.policy.is_none()
    }

    pub(crate) fn recompute(&mut self, _data: &Snapshot) {}

    pub(crate) fn can_see(&self, _viewer: NodeId, _peer: NodeId) -> bool {
        true
    }

    pub(crate) fn filter_for(&self, _id: NodeId) -> Vec<FilterRule> {
        vec![FilterRule {
            src_ips: vec!["*".to_owned()],
            dst_ports: vec![NetPortRange {
                ip: "*".to_owned(),
                ports: PortRange::ANY,
                ..Default::default()
            }],
            ..Default::default()
        }]
    }

    pub(crate) fn may_tag(&self, _user: &UserRecord, _tag: &str) -> bool {
        false
    }

    pub(crate) fn approves_route(
        &self,
        _node: &NodeRecord,
        _owner: Option<&UserRecord>,
        _route: &IpNet,
    ) -> bool {
        false
    }
}
