//! Why a packet passes or not, and what a new policy changes.
//!
//! Three answers to one question stand beside each other here and in the
//! property tests: what the compiled filter does, what a plain evaluator says
//! that reads the rules one after the other ([`evaluate`]), and what a person
//! is told ([`PolicyContext::why`]): the rule with its place in the file, how its
//! names lead to the nodes in question, who carries the packet, or else the
//! smallest edit of the file that would let it pass.
//!
//! [`PolicyContext::diff`] puts two policies beside the same users and nodes and names
//! what one allows and the other does not.
//!
//! Nothing here is fast. It runs when somebody asks, never for a packet.

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
