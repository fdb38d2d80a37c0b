//! The policy language: who may reach whom.
//!
//! A policy is a HuJSON file that people write. It is read once, with the
//! position of every value kept ([`Policy::parse`]); what is wrong with it
//! comes back as [`Diagnostic`]s, all at once, each with line, column, the
//! piece of text and what was expected. A parsed policy knows no node.
//!
//! [`Policy::compile`] puts it beside the users and nodes of the moment. The
//! [`Compiled`] result answers what each node is told: its packet filter
//! ([`Compiled::filter_for`]) and which peers it sees ([`Compiled::can_see`]).
//! Both are pure functions of policy, users and nodes, and their output is
//! ordered, so that equal input gives equal bytes on the wire. When a node,
//! users or the policy change, it is changed along, and says whom the change
//! concerns ([`Impact`]): what it costs is what it touches.
//!
//! Besides, a node is told who may log in to it ([`Policy::compile_ssh`]) and
//! what it may do by itself ([`Policy::node_attributes`]); the server asks
//! where a new node gets its address ([`Policy::ip_pools`]), which relays there
//! are ([`Policy::relay_regions`]) and what may be approved without asking.
//!
//! The `tests` and `sshTests` of a file are its promises about itself:
//! [`Policy::run_tests`] and [`Policy::run_ssh_tests`] check them against the
//! users and nodes of the moment, before the policy is taken.
//!
//! Nothing here reads files, asks the clock or talks to a network, and no
//! input makes it panic: a file that is refused leaves the caller with the
//! policy it had.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod attributes;
mod compile;
mod diagnostic;
pub mod explain;
mod file;
mod go_duration;
mod json;
mod node;
mod node_set;
mod policy;
mod policy_tests;
mod posture;

mod selector;
mod span;
mod ssh;

pub use attributes::{AttributeConfig, AttributeKind, HostedTailnet};
pub use compile::{Compiled, Impact};
pub use diagnostic::Diagnostic;
pub use file::Context;
pub use node::{PolicyNode, PolicyUser, Role, UnknownRole};
pub use node_set::NodeSet;
pub use policy::{Policy, RelayRegions};
pub use policy_tests::FailedTest;
pub use posture::{AttributeValue, Attributes, Number};
pub use ssh::{FailedSshTest, SshCheck, SshExpectation, SshRules};
