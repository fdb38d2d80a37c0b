//! The sections of a policy besides its access rules: logins over SSH, attributes
//! of nodes, addresses, relays.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};
use warren_control_types::{CapMap, DerpMap, Hostinfo, NodeId, SshPolicy, UserId};
use warren_policy::{Attributes, Policy, PolicyNode, RelayRegions, SshCheck};

use super::{Access, InForce, policy_node};
use crate::records::NodeRecord;

impl Access {
    /// The SSH policy of a node. `base_url` is the address at which nodes reach this
    /// server.
    pub(crate) fn ssh_policy_for(&self, id: NodeId, base_url: &str) -> SshPolicy {
        self.policy
            .as_ref()
            .map(|in_force| in_force.ssh.policy_for(id, base_url))
            .unwrap_or_default()
    }

    /// The rule that lets a session over SSH in after a check, if there is one.
    pub(crate) fn ssh_check_for(
        &self,
        source: NodeId,
        destination: NodeId,
        local_user: &str,
    ) -> Option<SshCheck> {
        let in_force = self.policy.as_ref()?;
        in_force.ssh.check_for(source, destination, local_user)
    }

    /// The attributes of a node, for the node itself.
    pub(crate) fn attributes_of(&self, node: &NodeRecord) -> CapMap {
        self.policy
            .as_ref()
            .map(|InForce { policy, users, .. }| policy.node_attributes(users, &policy_node(node)))
            .unwrap_or_default()
    }

    /// The attributes of a node that its peers are sent.
    pub(crate) fn peer_attributes_of(&self, node: &NodeRecord) -> CapMap {
        let node = policy_node(node);
        match &self.policy {
            Some(in_force) => in_force.policy.peer_attributes(&node),
            None => Policy::allow_all().peer_attributes(&node),
        }
    }

    /// Whether a node is shown without its IPv4 address, and shown no other
    /// node's.
    pub(crate) fn is_without_ipv4(&self, node: &NodeRecord) -> bool {
        self.policy
            .as_ref()
            .filter(|in_force| in_force.policy.may_disable_ipv4())
            .is_some_and(|InForce { policy, users, .. }| {
                policy.disables_ipv4(users, &policy_node(node))
            })
    }

    /// Whether any node may be without an IPv4 address.
    pub(crate) fn may_disable_ipv4(&self) -> bool {
        let policy = self.policy.as_ref();
        policy.is_some_and(|in_force| in_force.policy.may_disable_ipv4())
    }

    /// The relays of the tailnet: those of the server, as the policy alters
    /// them.
    pub(crate) fn relays(&self, own: &DerpMap) -> DerpMap {
        let mut map = own.clone();
        if let Some(in_force) = &self.policy {
            in_force.policy.relay_regions().apply(&mut map);
        }
        map
    }

    /// Whether both leave the tailnet the same relays.
    pub(crate) fn has_same_relays(&self, other: &Self) -> bool {
        let none = RelayRegions::default();
        let regions = |access: &Self| {
            let policy = access.policy.as_ref();
            policy.map_or_else(|| none.clone(), |p| p.policy.relay_regions().clone())
        };
        regions(self) == regions(other)
    }

    /// Where a node that is about to join gets its address from; anywhere if
    /// nothing is said.
    pub(crate) fn address_pools(
        &self,
        user: Option<UserId>,
        tags: &BTreeSet<String>,
    ) -> Vec<Ipv4Net> {
        let joining = PolicyNode {
            // It has no number yet; no selector asks for one.
            id: NodeId(0),
            user: user.filter(|_| tags.is_empty()),
            tags: tags.iter().cloned().collect(),
            addresses: Vec::new(),
            routes: Vec::new(),
            attributes: Attributes::default(),
        };
        self.policy
            .as_ref()
            .map(|InForce { policy, users, .. }| policy.ip_pools(users, &joining))
            .unwrap_or_default()
    }

    /// Whether another description of a host may change what the policy makes
    /// of it.
    pub(crate) fn depends_on_host(&self, before: &Hostinfo, after: &Hostinfo) -> bool {
        self.policy
            .as_ref()
            .is_some_and(|in_force| in_force.policy.requires_postures())
            && attributes(before) != attributes(after)
    }
}

/// Takes the IPv4 addresses of nodes out of a list; subnet routes stay.
pub(crate) fn without_ipv4(addresses: &mut Vec<IpNet>) {
    addresses.retain(|net| !matches!(net, IpNet::V4(net) if net.prefix_len() == 32));
}

/// The attributes of a host for postures, from its own description.
pub(super) fn attributes(host: &Hostinfo) -> Attributes {
    let mut out = Attributes::default();
    let mut say = |name: &str, text: &str| {
        if !text.is_empty() {
            out.set_text(name, text);
        }
    };
    let os = host.os.to_ascii_lowercase();
    say("node:os", if os == "darwin" { "macos" } else { &os });
    say("node:osVersion", &host.os_version);
    let version = host.ipn_version.split('-').next().unwrap_or_default();
    say("node:tsVersion", version);
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse::<u64>().ok());
    match minor {
        Some(minor) if minor % 2 == 0 => say("node:tsReleaseTrack", "stable"),
        Some(_) => say("node:tsReleaseTrack", "unstable"),
        None => {}
    }
    out.set_bool("node:tsAutoUpdate", host.allows_update);
    if let Some(encrypted) = host.state_encrypted {
        out.set_bool("node:tsStateEncrypted", encrypted);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use warren_policy::AttributeValue;

    use super::*;

    #[test]
    fn a_host_in_the_words_of_postures() {
        let host = Hostinfo {
            os: "macOS".to_owned(),
            os_version: "15.1".to_owned(),
            ipn_version: "1.85.3-t0123-g4567".to_owned(),
            ..Hostinfo::default()
        };
        let found = attributes(&host);
        let text = |name: &str| match found.get(name) {
            Some(AttributeValue::Text(text)) => text.clone(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(text("node:os"), "macos");
        assert_eq!(text("node:osVersion"), "15.1");
        assert_eq!(text("node:tsVersion"), "1.85.3");
        assert_eq!(text("node:tsReleaseTrack"), "unstable");
        assert_eq!(
            found.get("node:tsAutoUpdate"),
            Some(&AttributeValue::Bool(false))
        );
        assert_eq!(found.get("node:tsStateEncrypted"), None);
        assert_eq!(attributes(&Hostinfo::default()).get("node:os"), None);
    }

    #[test]
    fn routes_stay_without_ipv4() {
        let mut list: Vec<IpNet> = ["100.64.0.1/32", "fd7a:115c:a1e0::1/128", "10.0.0.0/8"]
            .map(|net| net.parse().unwrap())
            .to_vec();
        without_ipv4(&mut list);
        assert_eq!(list.len(), 2);
    }
}
