//! Why a packet passes or not, and what a new policy changes.
//!
//! Three answers to one question stand beside each other here and in the
//! property tests: what the compiled filter does, what a plain evaluator says
//! that reads the rules one after the other ([`evaluate`]), and what a person
//! is told ([`Scene::why`]): the rule with its place in the file, how its
//! names lead to the nodes in question, who carries the packet, or else the
//! smallest edit of the file that would let it pass.
//!
//! [`Scene::diff`] puts two policies beside the same users and nodes and names
//! what one allows and the other does not.
//!
//! Nothing here is fast. It runs when somebody asks, never for a packet.

mod diff;
mod edit;
mod evaluate;
mod imagined;
mod layout;
mod ports;
mod render;
mod scene;
mod why;

pub use diff::{Change, Diff};
pub use edit::Edit;
pub use evaluate::{Opening, Packet, Verdict, evaluate};
pub use imagined::Imagined;
pub use layout::Place;
pub use scene::{AskError, Endpoint, Scene};
pub use why::{Answer, Carrier, Link, NearMiss, Question, Reason, Why};
