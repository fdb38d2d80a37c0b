//! Being built.

pub mod dataplane;
