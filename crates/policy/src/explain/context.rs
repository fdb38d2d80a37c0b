//! A policy with its file, users and nodes: the data to which a question
//! refers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_control_types::{NodeId, UserId};

use super::evaluate::{Evaluator, is_called};
use super::layout::Layout;
use crate::model::Policy;
use crate::node::{PolicyNode, PolicyUser};
use crate::selector::{Selector, parse_address, parse_net};

/// All data that an explanation needs.
#[derive(Debug, Clone)]
pub struct PolicyContext<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// The text it was read from.
    pub text: &'a str,
    /// The name of the file in messages.
    pub file: &'a str,
    /// The users of the tailnet.
    pub users: &'a [PolicyUser],
    /// Its nodes.
    pub nodes: &'a [PolicyNode],
    /// Names of nodes for users. A node without a name is shown by its address.
    pub names: &'a BTreeMap<NodeId, String>,
    /// Routes that nodes advertise, approved or not.
    pub offered: &'a BTreeMap<NodeId, Vec<IpNet>>,
}

/// One endpoint of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The node, if the address belongs to one.
    pub node: Option<NodeId>,
    /// Its name, or the address.
    pub name: String,
    /// Its login name or tags.
    pub owner: String,
    /// The addresses in question, IPv4 first.
    pub addresses: Vec<IpAddr>,
}

/// The error for a question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No machine, user, tag, group or host has this name.
    #[error(
        "\"{0}\" not found among the machines, addresses, users, tags, groups and hosts{known}",
        known = suggestion(.1)
    )]
    NotFound(String, Option<String>),
    /// The name is known, but currently matches no node.
    #[error("\"{0}\" matches no machine at the moment, so there is nothing to explain")]
    NoNodes(String),
    /// The destination has no port, or not a valid one.
    #[error(
        "\"{0}\" is not a destination; write it as db:5432 or 10.1.2.3:22, an IPv6 address as [fd7a::1]:22, or without a port for icmp"
    )]
    Destination(String),
    /// The protocol is unknown.
    #[error(
        "\"{0}\" is not a valid protocol; expected tcp, udp, icmp, another name, or a number to 255"
    )]
    Protocol(String),
    /// A prefix that is not one address.
    #[error("\"{0}\" is more than one address; ask for one of them")]
    NotOne(String),
}

fn suggestion(known: &Option<String>) -> String {
    known
        .as_ref()
        .map_or_else(String::new, |help| format!("; {help}"))
}

impl<'a> PolicyContext<'a> {
    pub(super) fn evaluator(&self) -> Evaluator<'a> {
        Evaluator {
            policy: self.policy,
            users: self.users,
            nodes: self.nodes,
        }
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::of(self.text)
    }

    /// The name of a node for users.
    #[must_use]
    pub fn name_of(&self, node: &PolicyNode) -> String {
        let address = || node.addresses.first().map(ToString::to_string);
        self.names
            .get(&node.id)
            .cloned()
            .or_else(address)
            .unwrap_or_else(|| format!("node {}", node.id))
    }

    /// The owner of a node: a login name as policies spell it, or its tags.
    #[must_use]
    pub fn owner_of(&self, node: &PolicyNode) -> String {
        if node.is_tagged() {
            return node.tags.join(",");
        }
        node.user
            .and_then(|id| self.login(id))
            .unwrap_or_else(|| "no owner".to_owned())
    }

    /// The login name of a user as policies spell it: `name@` for a local user
    /// of this server.
    pub(super) fn login(&self, id: UserId) -> Option<String> {
        let user = self.users.iter().find(|user| user.id == id)?;
        Some(if user.login.contains('@') {
            user.login.clone()
        } else {
            format!("{}@", user.login)
        })
    }

    pub(super) fn endpoint(&self, node: &PolicyNode) -> Endpoint {
        let mut addresses = node.addresses.clone();
        addresses.sort_unstable();
        Endpoint {
            node: Some(node.id),
            name: self.name_of(node),
            owner: self.owner_of(node),
            addresses,
        }
    }

    fn at_address(&self, address: IpAddr) -> Endpoint {
        match self.nodes.iter().find(|node| node.has_address(address)) {
            Some(node) => Endpoint {
                addresses: vec![address],
                ..self.endpoint(node)
            },
            None => Endpoint {
                node: None,
                name: address.to_string(),
                owner: String::new(),
                addresses: vec![address],
            },
        }
    }

    /// Resolves a text to machines: by name, address, user, tag, group or host.
    ///
    /// # Errors The name is unknown, or matches no machine.
    pub fn resolve(&self, text: &str) -> Result<Vec<Endpoint>, AskError> {
        let text = text.trim();
        let lower = text.to_ascii_lowercase();
        let label = lower.split('.').next().unwrap_or_default();
        let named = |wanted: &str| {
            self.nodes
                .iter()
                .find(|node| self.names.get(&node.id).is_some_and(|name| name == wanted))
        };
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Some(address) = parse_address(bare) {
            return Ok(vec![self.at_address(address)]);
        }
        if let Some(node) = named(&lower).or_else(|| named(label)) {
            return Ok(vec![self.endpoint(node)]);
        }
        if let Some(net) = parse_net(text).or_else(|| self.host(text)) {
            if net.prefix_len() != net.max_prefix_len() {
                return Err(AskError::NotOne(text.to_owned()));
            }
            return Ok(vec![self.at_address(net.addr())]);
        }
        let selector = self.selector(text)?;
        let evaluator = self.evaluator();
        let found: Vec<Endpoint> = self
            .nodes
            .iter()
            .filter(|node| evaluator.means_node(&selector, node))
            .map(|node| self.endpoint(node))
            .collect();
        if found.is_empty() {
            return Err(AskError::NoNodes(text.to_owned()));
        }
        Ok(found)
    }

    /// A host of the file, by name.
    fn host(&self, name: &str) -> Option<IpNet> {
        let layout = self.layout();
        let (_, span) = layout.hosts.iter().find(|(host, _)| host == name)?;
        let member = self.text.get(span.clone())?;
        // The value is the last string of the member.
        let value = member.trim_end().strip_suffix('"')?.rsplit('"').next()?;
        parse_net(value.trim())
    }

    fn selector(&self, text: &str) -> Result<Selector, AskError> {
        let user = |login: &str| self.users.iter().any(|user| is_called(user, login));
        let tag = |tag: &str| {
            self.policy.knows_tag(tag)
                || self
                    .nodes
                    .iter()
                    .any(|node| node.tags.iter().any(|t| t == tag))
        };
        Ok(match text {
            "*" => Selector::Any,
            "autogroup:member" | "autogroup:members" => Selector::Member,
            "autogroup:tagged" => Selector::Tagged,
            group if self.policy.groups.contains_key(group) => Selector::Group(group.to_owned()),
            name if name.starts_with("tag:") && tag(name) => Selector::Tag(name.to_owned()),
            login if user(login) => Selector::User(login.to_owned()),
            other => {
                let logins = self.users.iter().filter_map(|user| self.login(user.id));
                let tags = self.nodes.iter().flat_map(|node| node.tags.iter().cloned());
                let known: Vec<String> = self
                    .names
                    .values()
                    .cloned()
                    .chain(self.policy.groups.keys().cloned())
                    .chain(self.policy.tag_owners.keys().cloned())
                    .chain(logins)
                    .chain(tags)
                    .collect();
                let known = known.iter().map(String::as_str);
                let help = crate::diagnostic::did_you_mean(other, known);
                return Err(AskError::NotFound(other.to_owned(), help));
            }
        })
    }
}
