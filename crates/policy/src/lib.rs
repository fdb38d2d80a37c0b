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
//! ordered, so that equal input gives equal bytes on the wire.
//!
//! Nothing here reads files, asks the clock or talks to a network, and no
//! input makes it panic: a file that is refused leaves the caller with the
//! policy it had.

mod node;

pub use node::{PolicyNode, PolicyUser};

// The public surface that the coordination server builds on:
//
//   Policy::parse(text: &str) -> Result<Policy, Vec<Diagnostic>>
//   Policy::allow_all() -> Policy
//   Policy::is_allow_all(&self) -> bool
//   Policy::compile(&self, users: &[PolicyUser], nodes: &[PolicyNode]) -> Compiled
//   Policy::approves_route(&self, users: &[PolicyUser], node: &PolicyNode, route: IpNet) -> bool
//   Policy::may_use_tag(&self, users: &[PolicyUser], user: UserId, tag: &str) -> bool
//   Policy::knows_tag(&self, tag: &str) -> bool
//   Compiled::filter_for(&self, node: NodeId) -> Vec<FilterRule>
//   Compiled::can_see(&self, a: NodeId, b: NodeId) -> bool
//   Compiled::peers_of(&self, node: NodeId) -> Vec<NodeId>   (ascending)
//   Compiled::routes_for(&self, viewer: NodeId, peer: NodeId) -> Vec<IpNet>
//   Diagnostic { message, help: Option<String>, line, column, span: Range<usize>, text }
//   impl Display for Diagnostic: "line:column: message (help)"
