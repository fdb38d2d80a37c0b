//! The network map: the requests of a node, and the stream of messages that it
//! gets.
//!
//! A node keeps one [`MapRequest`] with `stream` open. Its answer is a first,
//! full [`MapResponse`] and then changes for as long as the connection lives;
//! [`Netmap`](crate::Netmap) puts them together. Updates about the node itself
//! are short requests beside it, with `omit_peers` and without `stream`.

mod dial_plan;
mod notices;
mod ping;
mod request;
mod response;

pub use dial_plan::{ControlDialPlan, ControlIpCandidate};
pub use notices::{ClientVersion, Debug, DisplayMessage, DisplayMessageAction, TkaInfo};
pub use ping::{PingRequest, PingResponse};
pub use request::{EndpointType, MapRequest};
pub use response::MapResponse;
