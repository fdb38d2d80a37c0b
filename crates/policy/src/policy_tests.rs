//! Runs the `tests` section against the rules of a policy.
//!
//! A test is evaluated against the rules of the whole tailnet, before they are
//! reduced to nodes; capabilities are ignored. With several source addresses a
//! destination is reached only if every one of them reaches it; of several
//! destination addresses, one is enough. Addresses of both families are tested
//! alike, as the hosted service does: a test asks about the policy, not about
//! the family that a packet would use.

use std::fmt;
use std::net::IpAddr;

use crate::model::{Policy, Reach, Rule, Test, TestTarget};
use crate::node::{PolicyNode, PolicyUser};
use crate::selector::Selector;
use crate::span::{INTERNET, Span, TAILNET};

/// The protocols of a rule that names none.
const DEFAULT_PROTOCOLS: [u8; 4] = [6, 17, 1, 58];

/// An assertion of the file that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedTest {
    /// The test's source as written.
    pub src: String,
    /// The destination as written.
    pub dst: String,
    /// The test's protocol, if it names one.
    pub protocol: Option<u8>,
    /// Whether the test says that the destination is reached.
    pub expected_allowed: bool,
}

impl fmt::Display for FailedTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.src, self.dst)?;
        if let Some(protocol) = self.protocol {
            write!(f, " (protocol {protocol})")?;
        }
        f.write_str(if self.expected_allowed {
            ": expected allowed, got denied"
        } else {
            ": expected denied, got allowed"
        })
    }
}

impl Policy {
    /// How many assertions the file makes about itself.
    #[must_use]
    pub fn count_tests(&self) -> usize {
        let access = self
            .tests
            .iter()
            .map(|test| test.accept.len() + test.deny.len());
        let ssh = self
            .ssh_tests
            .iter()
            .map(|test| test.to.len() * (test.accept.len() + test.check.len() + test.deny.len()));
        access.chain(ssh).sum()
    }

    /// Runs the file's tests and returns those that fail, in file order.
    #[must_use]
    pub fn run_tests(&self, users: &[PolicyUser], nodes: &[PolicyNode]) -> Vec<FailedTest> {
        let run = TestRun {
            policy: self,
            users,
            nodes,
        };
        let mut failed = Vec::new();
        for test in &self.tests {
            for (targets, expected_allowed) in [(&test.accept, true), (&test.deny, false)] {
                let broken = targets
                    .iter()
                    .filter(|target| run.allowed(test, target) != Some(expected_allowed));
                failed.extend(broken.map(|target| FailedTest {
                    src: test.source_text.clone(),
                    dst: target.text.clone(),
                    protocol: test.protocol,
                    expected_allowed,
                }));
            }
        }
        failed
    }
}

struct TestRun<'a> {
    policy: &'a Policy,
    users: &'a [PolicyUser],
    nodes: &'a [PolicyNode],
}

/// An address with the node that owns it, if one does.
type OwnedAddress<'a> = (IpAddr, Option<&'a PolicyNode>);

impl<'a> TestRun<'a> {
    /// Whether the target is reached; `None` if the source matches no node.
    fn allowed(&self, test: &Test, target: &TestTarget) -> Option<bool> {
        let sources = self.addresses_of(&test.source);
        if sources.is_empty() {
            return None;
        }
        let all = sources.iter().all(|source| {
            let destinations = match target.to {
                Selector::OwnUser => self.own_user_addresses(source),
                ref other => self.addresses_of(other),
            };
            destinations
                .iter()
                .any(|destination| self.reaches(test, source, destination, target.port))
        });
        Some(all)
    }

    fn addresses_of(&self, selector: &Selector) -> Vec<OwnedAddress<'a>> {
        if let Selector::Net(net) = selector {
            let owner = self.nodes.iter().find(|node| node.has_address(net.addr()));
            return vec![(net.addr(), owner)];
        }
        self.nodes
            .iter()
            .filter(|node| self.policy.selects_node(selector, self.users, node))
            .flat_map(|node| node.addresses.iter().map(move |a| (*a, Some(node))))
            .collect()
    }

    fn own_user_addresses(&self, source: &OwnedAddress<'a>) -> Vec<OwnedAddress<'a>> {
        let same = |node: &&PolicyNode| source.1.is_some_and(|source| same_user(source, node));
        self.nodes
            .iter()
            .filter(same)
            .flat_map(|node| node.addresses.iter().map(move |a| (*a, Some(node))))
            .collect()
    }

    fn reaches(
        &self,
        test: &Test,
        src: &OwnedAddress<'_>,
        dst: &OwnedAddress<'_>,
        port: u16,
    ) -> bool {
        // The attributes of the source node are those that the test gives.
        // Hosts behind a subnet router have no posture.
        let posed = |rule: &Rule| {
            src.1.is_none() || self.policy.has_posture(&rule.postures, &test.attributes)
        };
        self.policy.open
            || self.policy.rules.iter().any(|rule| {
                self.is_source(rule, src)
                    && posed(rule)
                    && rule
                        .reach
                        .iter()
                        .any(|reach| self.opens(reach, src, dst, test.protocol, port))
            })
    }

    fn is_source(&self, rule: &Rule, src: &OwnedAddress<'_>) -> bool {
        let at = Span::from(src.0);
        rule.sources.iter().any(|selector| match selector {
            Selector::Any => {
                let mut routes = self.nodes.iter().flat_map(PolicyNode::subnet_routes);
                TAILNET.iter().any(|named| named.span.contains(&at))
                    || routes.any(|route| Span::from(route).contains(&at))
            }
            Selector::DangerAll => true,
            Selector::Net(net) => net.contains(&src.0),
            Selector::Set(set) => set.spans.iter().any(|span| span.contains(&at)),
            identity => self.is_node(identity, src),
        })
    }

    fn opens(
        &self,
        reach: &Reach,
        src: &OwnedAddress<'_>,
        dst: &OwnedAddress<'_>,
        protocol: Option<u8>,
        port: u16,
    ) -> bool {
        let protocol_fits = match (reach.protocol, protocol) {
            (None, None) => true,
            (None, Some(asked)) => DEFAULT_PROTOCOLS.contains(&asked),
            (Some(named), None) => DEFAULT_PROTOCOLS.contains(&named),
            (Some(named), Some(asked)) => named == asked,
        };
        protocol_fits
            && reach.ports.iter().any(|ports| ports.contains(port))
            && reach.to.iter().any(|selector| match selector {
                Selector::Any | Selector::DangerAll => true,
                Selector::Net(net) => net.contains(&dst.0),
                Selector::Internet => {
                    let at = Span::from(dst.0);
                    INTERNET.iter().any(|named| named.span.contains(&at))
                }
                Selector::Set(set) => {
                    let at = Span::from(dst.0);
                    set.spans.iter().any(|span| span.contains(&at))
                }
                Selector::OwnUser => match (src.1, dst.1) {
                    (Some(src), Some(dst)) => same_user(src, dst),
                    _ => false,
                },
                identity => self.is_node(identity, dst),
            })
    }

    fn is_node(&self, identity: &Selector, owned: &OwnedAddress<'_>) -> bool {
        owned
            .1
            .is_some_and(|node| self.policy.selects_node(identity, self.users, node))
    }
}

/// Whether both are untagged nodes of one user.
fn same_user(a: &PolicyNode, b: &PolicyNode) -> bool {
    !a.is_tagged() && !b.is_tagged() && a.user.is_some() && a.user == b.user
}
