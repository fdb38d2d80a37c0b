//! The client of a coordination server as one state without IO.
//!
//! A [`ControlSession`] speaks for one node key. It registers (waiting for a
//! person where the server wants one), then holds the map stream, and beside it
//! sends an update whenever the description of this machine changes. Requests
//! leave as [`Output`]s; the runtime carries them out and feeds the results back
//! as [`Input`]s. Everything that the node has to know leaves as an [`Event`].
//!
//! ```text
//!             Register            OpenStream, Update
//!  paused ──▶ registering ──────▶ following ──▶ StreamBegins, Map, Map, ...
//!    ▲   ▲        │  │ AuthUrl, then        │
//!    │   │        │  └─ Register again      │ stream ended, or not opened
//!    │   └────────┘ refused, failed         │
//!    └──────────────────────────────────────┘
//! ```
//!
//! Failed requests are repeated, with growing delays, until the session is
//! dropped or [over](ControlSession::is_over). A session is over in three cases:
//! the server refuses its auth key (the same key would get the same answer), its
//! key has expired and a fresh key did not help, or the server's address cannot
//! be used. Other refusals may pass (the server has a problem, an administrator
//! decides again), so they are reported and the request is repeated, seldom. The
//! same holds for a server that does not know the node any more: the node was
//! deleted, or the server lost its database and may get it back.
//!
//! A session never sees a private key. When the server asks for another node
//! key, it emits [`Event::FreshKeyWanted`] and waits for [`Input::FreshKey`], so
//! that the owner can write the key to disk before it is used.
//!
//! Requests of the server to the node (c2n) leave as [`Event::C2n`] with a number
//! under which the answer is given back; each request is passed on once.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod c2n;
mod description;
mod session;

pub use description::{Description, logout_request};
pub use session::{
    ControlSession, Event, Input, Output, Reason, Request, RequestError, STREAM_WATCHDOG,
    SessionConfig,
};
