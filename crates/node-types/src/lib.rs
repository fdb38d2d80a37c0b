//! Types that several parts of a node share.
//!
//! - [`Prefs`] and [`MaskedPrefs`]: what the user wants, and changes to it.
//!
//! The types hold data only. They carry no policy, do no IO and read no clock.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod prefs;

pub use prefs::{
    AppConnector, AutoUpdate, MaskedPrefs, NetfilterMode, Prefs, check_hostname, exit_routes,
};
