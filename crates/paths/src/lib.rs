//! Being built.
mod api;
pub use api::*;
