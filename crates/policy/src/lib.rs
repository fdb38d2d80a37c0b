//! The policy language: access rules between users and nodes.
//!
//! A policy is a HuJSON file that users write. It is parsed once, with the
//! position of every value ([`Policy::parse`]). Errors are returned all at once
//! as [`Diagnostic`]s, each with line, column, the text, and advice. A parsed
//! policy is independent of nodes.
//!
//! [`Policy::compile`] applies it to the current users and nodes. The
//! [`Compiled`] result gives each node its packet filter
//! ([`Compiled::filter_for`]) and its peers ([`Compiled::can_see`]). Both are
//! pure functions of policy, users and nodes, and their output is ordered, so
//! that equal input gives equal bytes on the wire. When a node, the users or
//! the policy change, the result is updated incrementally and returns the nodes
//! that are affected ([`Impact`]); the cost depends on the size of the change.
//!
//! A policy also defines SSH logins ([`Policy::compile_ssh`]), the capabilities
//! of single nodes ([`Policy::node_attributes`]), the address ranges of new
//! nodes ([`Policy::ip_pools`]), the relays ([`Policy::relay_regions`]), and
//! automatic approvals.
//!
//! The `tests` and `sshTests` of a file are assertions about its own rules:
//! [`Policy::run_tests`] and [`Policy::run_ssh_tests`] check them for the
//! current users and nodes before the policy is accepted.
//!
//! This crate does not read files, the clock or the network, and no input makes
//! it panic: if a file is refused, the caller keeps its previous policy.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod approvals;
mod attributes;
mod compile;
mod diagnostic;
pub mod explain;
mod file;
mod go_duration;
mod json;
mod matching;
mod model;
mod node;
mod node_set;
mod policy_tests;
mod posture;

mod selector;
mod span;
mod ssh;

pub use attributes::HostedTailnet;
pub use compile::{Compiled, Impact, RouterService};
pub use diagnostic::Diagnostic;
pub use file::Context;
pub use model::{AllowsEverything, AttributeConfig, AttributeKind, Policy, RelayRegions};
pub use node::{PolicyNode, PolicyUser, Role, UnknownRole};
pub use node_set::NodeSet;
pub use policy_tests::FailedTest;
pub use posture::{AttributeValue, Attributes, Number};
pub use ssh::{FailedSshTest, SshCheck, SshExpectation, SshRules};
