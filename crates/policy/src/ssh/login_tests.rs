//! Runs the `sshTests` section against the SSH rules of a policy.
//!
//! A test is evaluated against the SSH rules that its destinations receive. It
//! must hold for every pair of a source node and a destination; one
//! counter-example makes it fail. It needs no rule that opens port 22: the
//! section is about logins.

use std::fmt;
use std::net::Ipv6Addr;

use super::SshRules;
use crate::model::{Policy, SshTest};
use crate::node::{PolicyNode, PolicyUser};
use crate::posture::Attributes;
use crate::selector::Selector;

/// The outcome that a test expects of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshExpectation {
    /// The login is accepted, with or without a check.
    Accept,
    /// The login is accepted after a check.
    Check,
    /// The login is denied.
    Deny,
}

/// An assertion about logins that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedSshTest {
    /// The test's source as written.
    pub src: String,
    /// The destination as written.
    pub dst: String,
    /// The local user; empty when the test fails for every one.
    pub user: String,
    /// The outcome that the test expects.
    pub expected: SshExpectation,
    /// The actual outcome, as the end of a sentence.
    pub found: &'static str,
}

impl fmt::Display for FailedSshTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh {} -> ", self.src)?;
        if !self.user.is_empty() {
            write!(f, "{}@", self.user)?;
        }
        let expected = match self.expected {
            SshExpectation::Accept => "accepted",
            SshExpectation::Check => "checked",
            SshExpectation::Deny => "denied",
        };
        write!(f, "{}: expected {expected}, {}", self.dst, self.found)
    }
}

impl Policy {
    /// Runs the file's `sshTests` and returns those that fail, in file order.
    #[must_use]
    pub fn run_ssh_tests(&self, users: &[PolicyUser], nodes: &[PolicyNode]) -> Vec<FailedSshTest> {
        let mut posed: Vec<(&Attributes, SshRules)> = Vec::new();
        let mut failed = Vec::new();
        for test in &self.ssh_tests {
            let known = posed.iter().position(|(of, _)| **of == test.attributes);
            let at = known.unwrap_or_else(|| {
                let rules = self.ssh_rules(users, nodes, Some(&test.attributes));
                posed.push((&test.attributes, rules));
                posed.len() - 1
            });
            if let Some((_, rules)) = posed.get(at) {
                let run = Run {
                    policy: self,
                    users,
                    rules,
                    test,
                };
                run.collect(&mut failed);
            }
        }
        failed
    }
}

/// One test with the rules that it is run against.
struct Run<'a> {
    policy: &'a Policy,
    users: &'a [PolicyUser],
    rules: &'a SshRules,
    test: &'a SshTest,
}

impl Run<'_> {
    fn collect(&self, out: &mut Vec<FailedSshTest>) {
        let test = self.test;
        let expectations = [
            (SshExpectation::Accept, &test.accept),
            (SshExpectation::Check, &test.check),
            (SshExpectation::Deny, &test.deny),
        ];
        let sources = self.nodes(&test.source);
        for (to, text) in &test.to {
            let destinations = if *to == Selector::OwnUser {
                self.own_user_nodes()
            } else {
                self.nodes(to)
            };
            let unmatched = if sources.is_empty() {
                Some("but the source matches no node")
            } else if text.parse::<Ipv6Addr>().is_ok() {
                // The hosted service does the same: here it accepts only the
                // IPv4 address of a node.
                Some(
                    "but an IPv6 address is not a destination: write a tag, a user or an IPv4 address",
                )
            } else if destinations.is_empty() {
                Some("but the destination matches no node")
            } else {
                None
            };
            for (expected, logins) in &expectations {
                let broken = logins.iter().filter_map(|user| {
                    let found = match unmatched {
                        Some(reason) => reason,
                        None => self.broken(*expected, &sources, &destinations, user)?,
                    };
                    Some(FailedSshTest {
                        src: test.source_text.clone(),
                        dst: text.clone(),
                        user: user.clone(),
                        expected: *expected,
                        found,
                    })
                });
                out.extend(broken);
            }
        }
    }

    /// The outcome that contradicts the expectation, if there is one.
    fn broken(
        &self,
        expected: SshExpectation,
        sources: &[usize],
        destinations: &[usize],
        user: &str,
    ) -> Option<&'static str> {
        let mut pairs = destinations
            .iter()
            .flat_map(|to| sources.iter().map(move |from| (*from, *to)));
        pairs.find_map(|(from, to)| {
            let matching = |checked: bool| {
                let mut rules = self.rules.rules.iter();
                rules.any(|rule| {
                    rule.check.is_some() == checked && self.rules.lets_in(rule, from, to, user)
                })
            };
            match (expected, matching(true), matching(false)) {
                (SshExpectation::Accept, false, false) => Some("got denied"),
                (SshExpectation::Check, false, true) => Some("got accepted without a check"),
                (SshExpectation::Check, false, false) => Some("got denied"),
                (SshExpectation::Deny, true, _) => Some("got checked"),
                (SshExpectation::Deny, false, true) => Some("got accepted"),
                _ => None,
            }
        })
    }

    /// The nodes that a selector matches, by identity or by an address.
    fn nodes(&self, selector: &Selector) -> Vec<usize> {
        let nodes = self.rules.nodes.iter().enumerate();
        nodes
            .filter(|(_, node)| self.policy.targets_node(selector, self.users, node))
            .map(|(index, _)| index)
            .collect()
    }

    /// The nodes of `autogroup:self`; empty unless the source is a user.
    fn own_user_nodes(&self) -> Vec<usize> {
        match &self.test.source {
            source @ Selector::User(_) => self.nodes(source),
            _ => Vec::new(),
        }
    }
}
