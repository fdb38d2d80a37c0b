//! The steps of `warren_lab::scenario`, under the name that older tests use.

pub use warren_lab::scenario::*;
