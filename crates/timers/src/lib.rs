//! Deadlines and retry delays for state machines without IO.
//!
//! A state machine that follows many things (peers, sessions, parked requests)
//! has one deadline for each of them and reports the earliest one to its
//! runtime. [`DeadlineQueue`] keeps those deadlines ordered, so that neither the
//! question "when is the next one?" nor a change of one deadline looks at all
//! entries. [`Backoff`] computes the delay before the next attempt of something
//! that failed.
//!
//! A deadline carries no decision. When it fires, the state machine looks at
//! its own records to decide what to do, because they may have changed since.
//!
//! There is no clock here: the current time is always an argument.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod backoff;
mod deadline_queue;

pub use backoff::{Backoff, Growth};
pub use deadline_queue::DeadlineQueue;
