//! Explains why a packet is allowed or refused, and what a new policy changes.
//!
//! Three independent answers to the same question are compared here and in the
//! property tests: the verdict of the compiled filter, the verdict of a plain
//! evaluator that reads the rules one after the other ([`evaluate()`]), and the
//! explanation for users ([`PolicyContext::why`]). The explanation gives the
//! rule with its place in the file, the steps from its names to the nodes in
//! question, and the router that carries the packet. For a refused packet it
//! gives the smallest edit of the file that would allow it.
//!
//! [`PolicyContext::diff`] applies two policies to the same users and nodes and
//! lists the access that only one of them allows.
//!
//! This module is not optimised. It runs on demand, never for a packet.

mod context;
mod diff;
mod edit;
mod evaluate;
mod layout;
mod ports;
mod render;
mod synthetic;
mod why;

pub use context::{AskError, Endpoint, PolicyContext};
pub use diff::{AccessChange, Diff};
pub use edit::Edit;
pub use evaluate::{Opening, Packet, Verdict, evaluate};
pub use layout::SourceLocation;
pub use synthetic::SyntheticTailnet;
pub use why::{Carrier, Link, NearMiss, PairAnswer, Question, Reason, Why};
