//! The runtime of a node: the state machines of a node together with the
//! operating system, the coordination server and the relays.
//!
//! [`daemon::run`] runs a node in this process until a signal stops it. The
//! command line and the program `warren` are in the crate `warren-cli`; what
//! local programs exchange with the node is in `warren-local-api`.

pub mod daemon;

/// The local interface, whose types the daemon answers with.
use warren_local_api as localapi;
