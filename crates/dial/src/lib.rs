//! Connections out of this machine, and what runs over them.

mod dialer;

pub mod derp;
pub mod tls;
pub mod upgrade;

pub use dialer::{DialError, Dialer};
