//! The steps from an entry of a rule to a machine, as sentences.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::explain::context::PolicyContext;
use crate::explain::evaluate::{are_of_one_user, is_called};
use crate::explain::layout::{Entry, Layout, SourceLocation};
use crate::node::PolicyNode;
use crate::selector::Selector;

impl PolicyContext<'_> {
    pub(super) fn location(&self, entry: &Entry) -> SourceLocation {
        SourceLocation::of(self.text, &entry.span)
    }

    /// The steps from a source entry to an address.
    pub(super) fn source_steps(
        &self,
        layout: &Layout,
        selector: &Selector,
        sender: Option<&PolicyNode>,
        address: IpAddr,
    ) -> Vec<String> {
        match (selector, sender) {
            (Selector::Any, Some(node)) => {
                vec![format!(
                    "{} is a machine of the network",
                    self.name_of(node)
                )]
            }
            (Selector::Any, None) => vec![self.behind(address)],
            (Selector::DangerAll, _) => vec!["every address".to_owned()],
            (Selector::Net(net), _) => self.net_steps(layout, net, address),
            (Selector::Set(set), _) => vec![format!("{} contains {address}", set.name)],
            (_, Some(node)) => self.identity_steps(layout, selector, node),
            (_, None) => Vec::new(),
        }
    }

    pub(super) fn destination_steps(
        &self,
        layout: &Layout,
        selector: &Selector,
        sender: Option<&PolicyNode>,
        receiver: &PolicyNode,
        address: IpAddr,
    ) -> Vec<String> {
        match selector {
            Selector::Any | Selector::DangerAll => vec!["every destination".to_owned()],
            Selector::Internet => vec![format!("{address} is a public address")],
            Selector::Net(net) => self.net_steps(layout, net, address),
            Selector::Set(set) => vec![format!("{} contains {address}", set.name)],
            Selector::OwnUser => {
                let both = sender.filter(|sender| are_of_one_user(sender, receiver));
                both.map(|sender| {
                    format!(
                        "{} and {} belong to {}",
                        self.name_of(sender),
                        self.name_of(receiver),
                        self.owner_of(receiver)
                    )
                })
                .into_iter()
                .collect()
            }
            identity => self.identity_steps(layout, identity, receiver),
        }
    }

    /// A sentence that names the router of the address.
    fn behind(&self, address: IpAddr) -> String {
        for node in self.nodes {
            if let Some(route) = node.subnet_routes().find(|route| route.contains(&address)) {
                let name = self.name_of(node);
                return format!("{address} is behind {name}, which serves {route}");
            }
        }
        format!("{address} is in the network's own range")
    }

    fn net_steps(&self, layout: &Layout, net: &IpNet, address: IpAddr) -> Vec<String> {
        let mut steps = Vec::new();
        let host = layout.hosts.iter().find(|(_, span)| {
            let member = self.text.get(span.clone()).unwrap_or_default();
            let value = member.trim_end_matches('"').rsplit('"').next();
            value.and_then(|v| crate::selector::parse_net(v.trim())) == Some(*net)
        });
        if let Some((name, span)) = host {
            let place = SourceLocation::of(self.text, span);
            steps.push(format!(
                "host {name} is {net} ({}:{})",
                place.line, place.column
            ));
        }
        if net.prefix_len() != net.max_prefix_len() {
            steps.push(format!("{net} contains {address}"));
        }
        if let Some(node) = self.evaluator().owner(address) {
            steps.push(format!("{address} is {}", self.name_of(node)));
        }
        steps
    }

    fn identity_steps(
        &self,
        layout: &Layout,
        selector: &Selector,
        node: &PolicyNode,
    ) -> Vec<String> {
        let name = self.name_of(node);
        let owner = self.owner_of(node);
        match selector {
            Selector::Tag(tag) => vec![format!("{name} carries {tag}")],
            Selector::Tagged => vec![format!("{name} is tagged ({owner})")],
            Selector::Member => vec![format!("{name} belongs to the user {owner}")],
            Selector::User(login) => vec![format!("{login} owns {name}")],
            Selector::Domain(domain) => {
                vec![format!("{owner} is in the domain {domain} and owns {name}")]
            }
            Selector::Group(group) => {
                let user = self.users.iter().find(|user| Some(user.id) == node.user);
                let members = layout.groups.iter().find(|(named, _)| named == group);
                let entry = user.and_then(|user| {
                    let (_, members) = members?;
                    members.iter().find(|entry| is_called(user, &entry.text))
                });
                let contains = match entry {
                    Some(entry) => {
                        let at = self.location(entry);
                        format!(
                            "{group} contains {} ({}:{})",
                            entry.text, at.line, at.column
                        )
                    }
                    None => format!("{group} contains {owner}"),
                };
                vec![contains, format!("{owner} owns {name}")]
            }
            _ => vec![format!("{name} matches")],
        }
    }
}
