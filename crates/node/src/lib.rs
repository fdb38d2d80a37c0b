//! Being built.

pub mod cli;
pub mod localapi;
