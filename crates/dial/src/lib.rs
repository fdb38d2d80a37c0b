//! Being built.

pub mod derp;
