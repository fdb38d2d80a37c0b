//! The content of a policy file as data.
//!
//! [`crate::file`] reads a file into it; the compiler, the evaluators and the
//! explanations read from it. It depends on none of them.

mod attributes;
mod relays;
mod ssh;

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde_json::Value;

use crate::posture::{Assertion, Attributes};
use crate::selector::{Ports, Selector};

pub(crate) use attributes::NodeAttribute;
pub use attributes::{AttributeConfig, AttributeKind};
pub use relays::RelayRegions;
pub(crate) use ssh::{Logins, SshRule, SshTest};

/// A policy, independent of any node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// The file has neither acls nor grants: everything is allowed.
    pub(crate) open: bool,
    /// Grants in file order, then acls in file order.
    pub(crate) rules: Vec<Rule>,
    pub(crate) groups: BTreeMap<String, Vec<String>>,
    pub(crate) tag_owners: BTreeMap<String, Vec<Selector>>,
    pub(crate) route_approvers: Vec<(IpNet, Vec<Selector>)>,
    pub(crate) exit_approvers: Vec<Selector>,
    /// By `svc:x` or by the tag of services.
    pub(crate) service_approvers: BTreeMap<String, Vec<Selector>>,
    pub(crate) tests: Vec<Test>,
    pub(crate) ssh: Vec<SshRule>,
    pub(crate) ssh_tests: Vec<SshTest>,
    pub(crate) node_attributes: Vec<NodeAttribute>,
    pub(crate) attribute_configs: BTreeMap<String, AttributeConfig>,
    pub(crate) postures: BTreeMap<String, Vec<Assertion>>,
    pub(crate) relay_regions: RelayRegions,
    pub(crate) randomize_client_port: bool,
    pub(crate) disable_ipv4: bool,
    pub(crate) one_cgnat_route: Option<bool>,
}

/// The reason why a policy lets every node reach every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowsEverything {
    /// The file has neither acls nor grants.
    NoRules,
    /// A rule has everyone as source and as destination, with all ports.
    Rule,
}

impl fmt::Display for AllowsEverything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRules => "it has neither acls nor grants",
            Self::Rule => "one of its rules allows all sources to reach all destinations",
        })
    }
}

/// A grant, or one acl: sources once, and what they may reach.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) sources: Vec<Selector>,
    pub(crate) reach: Vec<Reach>,
    /// Capabilities with their values, in file order.
    pub(crate) app: Vec<(String, Vec<Value>)>,
    /// Destinations of the capabilities.
    pub(crate) app_to: Vec<Selector>,
    /// Tags of the routers that may carry the traffic; empty: any.
    pub(crate) via: Vec<String>,
    /// Postures of which a source node must have one; empty: none needed.
    pub(crate) postures: Vec<String>,
}

impl Rule {
    /// Whether the rule lets every node reach every node with TCP, UDP and ICMP.
    fn allows_everything(&self) -> bool {
        let is_everyone = |selectors: &[Selector]| {
            let has = |wanted: &Selector| selectors.contains(wanted);
            has(&Selector::Any)
                || has(&Selector::DangerAll)
                || (has(&Selector::Member) && has(&Selector::Tagged))
        };
        let is_open = |reach: &Reach| {
            let mut ports = reach.ports.iter();
            reach.protocol.is_none()
                && ports.any(|ports| ports.first <= 1 && ports.last == u16::MAX)
        };
        // Every destination of an acl has its own reach.
        let to: Vec<Selector> = self
            .reach
            .iter()
            .filter(|reach| is_open(reach))
            .flat_map(|reach| reach.to.iter().cloned())
            .collect();
        self.via.is_empty()
            && self.postures.is_empty()
            && is_everyone(&self.sources)
            && is_everyone(&to)
    }
}

/// Some destinations with one protocol and its ports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reach {
    pub(crate) to: Vec<Selector>,
    /// `None`: TCP, UDP and ICMP.
    pub(crate) protocol: Option<u8>,
    pub(crate) ports: Vec<Ports>,
}

/// An entry of `tests`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Test {
    pub(crate) source: Selector,
    pub(crate) source_text: String,
    pub(crate) protocol: Option<u8>,
    pub(crate) accept: Vec<TestTarget>,
    pub(crate) deny: Vec<TestTarget>,
    /// The attributes that the source is assumed to have.
    pub(crate) attributes: Attributes,
}

/// A destination of a test.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TestTarget {
    pub(crate) to: Selector,
    pub(crate) port: u16,
    pub(crate) text: String,
}

impl Policy {
    /// The policy of a tailnet without a file: every node may reach every node.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            open: true,
            ..Self::default()
        }
    }

    /// Whether everything is allowed because the file has no rules section.
    #[must_use]
    pub fn is_allow_all(&self) -> bool {
        self.open
    }

    /// The reason why every node may reach every node, if this policy allows
    /// that. Users must be able to see that a policy protects nothing.
    #[must_use]
    pub fn allows_everything(&self) -> Option<AllowsEverything> {
        if self.open {
            return Some(AllowsEverything::NoRules);
        }
        let mut rules = self.rules.iter();
        let is_open = rules.any(Rule::allows_everything);
        is_open.then_some(AllowsEverything::Rule)
    }

    /// Whether the tag is defined in `tagOwners`.
    #[must_use]
    pub fn knows_tag(&self, tag: &str) -> bool {
        self.tag_owners.contains_key(tag)
    }

    /// Whether every node uses a random UDP port.
    #[must_use]
    pub fn randomize_client_port(&self) -> bool {
        self.randomize_client_port
    }

    /// Whether the policy defines SSH logins or attributes of single nodes.
    #[must_use]
    pub fn has_node_rules(&self) -> bool {
        !self.ssh.is_empty() || !self.node_attributes.is_empty()
    }

    /// Whether there are rules for logins over SSH.
    #[must_use]
    pub fn has_ssh_rules(&self) -> bool {
        !self.ssh.is_empty()
    }

    /// Whether any rule requires a posture.
    #[must_use]
    pub fn requires_postures(&self) -> bool {
        let rules = self.rules.iter().map(|rule| &rule.postures);
        let ssh = self.ssh.iter().map(|rule| &rule.postures);
        rules.chain(ssh).any(|postures| !postures.is_empty())
    }

    /// The changes of the policy to the relays.
    #[must_use]
    pub fn relay_regions(&self) -> &RelayRegions {
        &self.relay_regions
    }
}
