//! Evaluates `nodeAttrs` and related options: the capabilities of single nodes,
//! as entries of their capability map.
//!
//! The capabilities of a policy ([`Policy::node_attributes`]) are separate from
//! those that the hosted service sends to every node
//! ([`Policy::hosted_baseline`]): the latter belong to features of the service
//! that another server need not have.

use ipnet::Ipv4Net;
use warren_control_types::CapMap;

use crate::model::{AttributeConfig, NodeAttribute, Policy};
use crate::node::{PolicyNode, PolicyUser, Role};

/// The node has no IPv4 address.
const DISABLE_IPV4: &str = "disable-ipv4";

/// The node uses a random UDP port instead of the default one.
const RANDOMIZE_CLIENT_PORT: &str = "randomize-client-port";

/// The node is a candidate when a peer asks for a suggested exit node.
const SUGGEST_EXIT_NODE: &str = "suggest-exit-node";

/// The node may publish services to the internet.
const FUNNEL: &str = "funnel";

/// Settings of the tailnet on which the baseline of the hosted service depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostedTailnet<'a> {
    /// The name that is shown for the tailnet.
    pub display_name: &'a str,
    /// Whether nodes update themselves; `None` if the tailnet has no default.
    pub auto_update: Option<bool>,
    /// Whether nodes can get certificates.
    pub https: bool,
}

impl Policy {
    /// The capabilities of `node` under this policy, as shown to the node
    /// itself. The entries of all matching targets are merged.
    #[must_use]
    pub fn node_attributes(&self, users: &[PolicyUser], node: &PolicyNode) -> CapMap {
        let mut out = CapMap::default();
        for entry in self.entries_for(users, node) {
            for name in &entry.attributes {
                out.entry(name.clone()).or_default();
                if name == FUNNEL {
                    out.entry("https://tailscale.com/cap/funnel-ports?ports=443,8443,10000".into())
                        .or_default();
                }
            }
            for (name, values) in &entry.app {
                let all = out.entry(name.clone()).or_default();
                for value in values {
                    if !all.contains(value) {
                        all.push(value.clone());
                    }
                }
            }
        }
        if self.randomize_client_port {
            out.entry(RANDOMIZE_CLIENT_PORT.into()).or_default();
        }
        if self.disable_ipv4 {
            out.entry(DISABLE_IPV4.into()).or_default();
        }
        match self.one_cgnat_route {
            Some(true) => out.entry("one-cgnat?v=true".into()).or_default(),
            Some(false) => out.entry("one-cgnat?v=false".into()).or_default(),
            None => return out,
        };
        out
    }

    /// The capabilities of `node` that its peers see.
    #[must_use]
    pub fn peer_attributes(&self, node: &PolicyNode) -> CapMap {
        // As on the hosted service, every approved exit node is suggested,
        // whether nodeAttrs names the attribute or not.
        let suggested = node.exit_routes().next().map(|_| SUGGEST_EXIT_NODE);
        suggested.into_iter().collect()
    }

    /// Whether there may be nodes without an IPv4 address.
    #[must_use]
    pub fn may_disable_ipv4(&self) -> bool {
        let mut names = self.node_attributes.iter().flat_map(|e| &e.attributes);
        self.disable_ipv4 || names.any(|name| name == DISABLE_IPV4)
    }

    /// Whether IPv4 is disabled for `node`: it has no IPv4 address for any
    /// node, and sees no IPv4 address of other nodes. IPv4 subnet routes are
    /// not affected.
    #[must_use]
    pub fn disables_ipv4(&self, users: &[PolicyUser], node: &PolicyNode) -> bool {
        self.disable_ipv4
            || self
                .entries_for(users, node)
                .any(|entry| entry.attributes.iter().any(|name| name == DISABLE_IPV4))
    }

    /// The ranges from which a registering `node` may get its IPv4 address;
    /// empty means any address. A node without an address matches by identity.
    #[must_use]
    pub fn ip_pools(&self, users: &[PolicyUser], node: &PolicyNode) -> Vec<Ipv4Net> {
        let mut out: Vec<Ipv4Net> = Vec::new();
        for net in self
            .entries_for(users, node)
            .flat_map(|entry| &entry.ip_pool)
        {
            if !out.contains(net) {
                out.push(*net);
            }
        }
        out
    }

    /// How a custom attribute of hosts is handled.
    #[must_use]
    pub fn attribute_config(&self, name: &str) -> Option<&AttributeConfig> {
        self.attribute_configs.get(name)
    }

    /// Whether `peer` receives the custom attribute `name` of other nodes.
    #[must_use]
    pub fn receives_attribute(&self, users: &[PolicyUser], peer: &PolicyNode, name: &str) -> bool {
        self.attribute_config(name).is_some_and(|config| {
            let mut selectors = config.broadcast_to.iter();
            selectors.any(|selector| self.targets_node(selector, users, peer))
        })
    }

    /// The capabilities that the hosted service sends to `node` independently
    /// of the policy.
    #[must_use]
    pub fn hosted_baseline(
        &self,
        users: &[PolicyUser],
        node: &PolicyNode,
        tailnet: &HostedTailnet<'_>,
    ) -> CapMap {
        let mut out: CapMap = [
            "https://tailscale.com/cap/file-sharing",
            "https://tailscale.com/cap/ssh",
            "https://tailscale.com/cap/tailnet-lock",
            "probe-udp-lifetime",
            "ssh-behavior-v1",
            "ssh-env-vars",
            "store-appc-routes",
        ]
        .into_iter()
        .collect();
        out.insert(
            "tailnet-display-name".to_owned(),
            vec![tailnet.display_name.into()],
        );
        if let Some(auto_update) = tailnet.auto_update {
            out.insert("default-auto-update".to_owned(), vec![auto_update.into()]);
        }
        // A tagged node counts as a node of the tailnet's owner, who may use
        // every tag.
        let owner = users.iter().find(|user| user.role == Role::Owner);
        let user = if node.is_tagged() {
            owner
        } else {
            users.iter().find(|user| Some(user.id) == node.user)
        };
        let role = user.map_or(Role::Member, |user| user.role);
        for name in role.capabilities() {
            if !(node.is_tagged() && name.ends_with("/is-admin")) {
                out.insert((*name).to_owned(), Vec::new());
            }
        }
        let publishes = self
            .entries_for(users, node)
            .any(|entry| entry.attributes.iter().any(|name| name == FUNNEL));
        if publishes && !tailnet.https {
            let warning = "https://tailscale.com/cap/warn-funnel-no-https";
            out.insert(warning.to_owned(), Vec::new());
        }
        out
    }

    fn entries_for<'a>(
        &'a self,
        users: &'a [PolicyUser],
        node: &'a PolicyNode,
    ) -> impl Iterator<Item = &'a NodeAttribute> {
        self.node_attributes.iter().filter(move |entry| {
            entry
                .targets
                .iter()
                .any(|selector| self.targets_node(selector, users, node))
        })
    }
}
